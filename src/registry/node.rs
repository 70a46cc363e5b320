use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;

use super::stored::Stored;
use crate::discovery::RegistryKeys;
use crate::pages::{JSON, Page, page};

/// Before tokens in the keys of answers, wherever the registry is.
const REGISTRY: &str = RegistryKeys::ALL;
const INDEX_HEADER: &str = "x-etcd-index";

/// A node of etcd's v2 API: a key with a value, or a directory with nodes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dir: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<Vec<Node>>,
    modified_index: i64,
    created_index: i64,
}

/// What was done or read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    action: &'a str,
    node: Node,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_node: Option<Node>,
}

impl Node {
    pub(super) fn size(token: &str, size: &Stored) -> Self {
        Self::file(format!("{REGISTRY}{token}/_config/size"), size)
    }

    pub(super) fn member(token: &str, member: &Stored) -> Self {
        Self::file(format!("{REGISTRY}{token}/{}", member.name), member)
    }

    /// A token with its members; its indexes are those of its size.
    pub(super) fn token(token: &str, created: i64, members: &[Stored]) -> Self {
        let nodes: Vec<Self> = members.iter().map(|member| Self::member(token, member)).collect();
        Self {
            key: format!("{REGISTRY}{token}"),
            value: None,
            dir: true,
            nodes: (!nodes.is_empty()).then_some(nodes),
            modified_index: created,
            created_index: created,
        }
    }

    fn file(key: String, stored: &Stored) -> Self {
        let &Stored { created, modified, .. } = stored;
        let value = Some(stored.value.clone());
        Self { key, value, dir: false, nodes: None, modified_index: modified, created_index: created }
    }

    /// As a deletion shows it.
    fn deleted(mut self, index: i64) -> (Self, Option<Self>) {
        let gone = Self {
            key: self.key.clone(),
            value: None,
            dir: self.dir,
            nodes: None,
            modified_index: index,
            created_index: self.created_index,
        };
        self.nodes = None;
        (gone, Some(self))
    }
}

/// The text of a success: an action, its node, and a line's end.
pub(super) fn answer_text(action: &str, node: Node) -> String {
    text(&Answer { action, node, prev_node: None })
}

/// The text of a deletion at an index.
pub(super) fn deletion_text(node: Node, index: i64) -> String {
    let (node, prev_node) = node.deleted(index);
    text(&Answer { action: "delete", node, prev_node })
}

fn text(answer: &Answer<'_>) -> String {
    // Texts and numbers can always be written.
    let mut text = serde_json::to_string(answer).unwrap_or_default();
    text.push('\n');
    text
}

/// A success at an index of the store.
pub(super) fn answer(status: StatusCode, index: i64, text: String) -> Page {
    with_index(page(status, JSON, text), index)
}

/// Says at which index of the store an answer is.
pub(super) fn with_index<B>(mut response: Response<B>, index: i64) -> Response<B> {
    response.headers_mut().insert(INDEX_HEADER, HeaderValue::from(index));
    response
}

/// A failure, with the codes and messages of etcd's v2 API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    code: u16,
    cause: String,
    index: i64,
}

impl Failure {
    pub(super) fn not_found(key: impl Into<String>, index: i64) -> Self {
        Self { code: 100, cause: format!("{REGISTRY}{}", key.into()), index }
    }

    /// All members of the token have come.
    pub(super) fn full(token: &str, index: i64) -> Self {
        Self { code: 103, cause: format!("{REGISTRY}{token}"), index }
    }

    pub(super) fn exists(key: impl Into<String>, index: i64) -> Self {
        Self { code: 105, cause: format!("{REGISTRY}{}", key.into()), index }
    }

    /// A field of the request that cannot be.
    pub(super) fn invalid(cause: impl Into<String>) -> Self {
        Self { code: 209, cause: cause.into(), index: 0 }
    }

    /// The cluster did not do it.
    pub(super) fn store(cause: impl Into<String>) -> Self {
        Self { code: 300, cause: cause.into(), index: 0 }
    }

    /// The history that a wait asked for is compacted.
    pub(super) fn cleared(oldest: i64, asked: i64, index: i64) -> Self {
        Self { code: 401, cause: format!("the requested history has been cleared [{oldest}/{asked}]"), index }
    }

    pub(super) fn page(&self) -> Page {
        let (status, message) = match self.code {
            100 => (StatusCode::NOT_FOUND, "Key not found"),
            103 => (StatusCode::FORBIDDEN, "Reached the max number of peers in the cluster"),
            105 => (StatusCode::PRECONDITION_FAILED, "Key already exists"),
            209 => (StatusCode::BAD_REQUEST, "Invalid field"),
            401 => (StatusCode::BAD_REQUEST, "The event in requested index is outdated and cleared"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "Raft Internal Error"),
        };
        let body = serde_json::json!({
            "errorCode": self.code, "message": message, "cause": self.cause, "index": self.index,
        });
        answer(status, self.index, format!("{body}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_form_of_the_v2_api() {
        let member = Stored { name: "1f".into(), value: "m=http://a:1".into(), created: 5, modified: 5 };
        assert_eq!(
            answer_text("create", Node::member("t", &member)),
            "{\"action\":\"create\",\"node\":{\"key\":\"/_etcd/registry/t/1f\",\"value\":\"m=http://a:1\",\
             \"modifiedIndex\":5,\"createdIndex\":5}}\n"
        );
        assert_eq!(
            answer_text("get", Node::token("t", 4, &[])),
            "{\"action\":\"get\",\"node\":{\"key\":\"/_etcd/registry/t\",\"dir\":true,\"modifiedIndex\":4,\
             \"createdIndex\":4}}\n"
        );
        assert_eq!(
            deletion_text(Node::member("t", &member), 9),
            "{\"action\":\"delete\",\"node\":{\"key\":\"/_etcd/registry/t/1f\",\"modifiedIndex\":9,\
             \"createdIndex\":5},\"prevNode\":{\"key\":\"/_etcd/registry/t/1f\",\"value\":\"m=http://a:1\",\
             \"modifiedIndex\":5,\"createdIndex\":5}}\n"
        );
        let failure = Failure::exists("t/1f", 7).page();
        assert_eq!(failure.status(), StatusCode::PRECONDITION_FAILED);
        assert_eq!(failure.headers()[INDEX_HEADER], "7");
    }
}
