use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;

use crate::core::cluster::{ClusterVersion, Member};
use crate::core::peer::{PeerDialer, connect_url};
use crate::types::ClusterId;

/// Longest answer that is read; a list of members is some kilobytes long.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The members of a cluster, as one of them lists them on its peer port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningCluster {
    /// Its id.
    pub id: ClusterId,
    /// By id.
    pub members: Vec<Member>,
}

/// The form that etcd's messages have.
impl fmt::Display for RunningCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |member: &Member| {
            let Member { peer_urls, is_learner, name, client_urls, .. } = member;
            let (id, peers, clients) = (member.member_id(), peer_urls.join(" "), client_urls.join(" "));
            format!("{{ID:{id} PeerURLs:[{peers}] IsLearner:{is_learner} Name:{name} ClientURLs:[{clients}]}}")
        };
        let members: Vec<String> = self.members.iter().map(one).collect();
        write!(f, "{{ClusterID:{} Members:[{}]}}", self.id, members.join(" "))
    }
}

/// Asks the member at a peer URL for the members of its cluster.
///
/// # Errors
/// Text for the operator: the URL and what went wrong.
pub(super) async fn fetch_cluster(url: &str, dialer: &PeerDialer, timeout: Duration) -> Result<RunningCluster, String> {
    let (headers, body) = get(url, "/members", dialer, timeout).await?;
    let wrong = |what: String| format!("{url}/members: {what}");
    let mut members: Vec<Member> = serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
    let id = headers.get("x-etcd-cluster-id").and_then(|id| id.to_str().ok());
    let id = id.and_then(|id| u64::from_str_radix(id, 16).ok()).ok_or_else(|| wrong("no cluster id".to_owned()))?;
    if members.is_empty() {
        return Err(wrong("failed to get raft cluster member(s) from the given URLs".to_owned()));
    }
    members.sort_by_key(|member| member.id);
    Ok(RunningCluster { id: ClusterId(id), members })
}

/// The cluster version as a member sees it; none when it does not answer, or does not know it yet.
pub(super) async fn fetch_cluster_version(
    member: &Member,
    dialer: &PeerDialer,
    timeout: Duration,
) -> Option<ClusterVersion> {
    #[derive(serde::Deserialize)]
    struct Versions {
        etcdcluster: String,
    }
    for url in &member.peer_urls {
        let versions = match get(url, "/version", dialer, timeout).await {
            Ok((_, body)) => serde_json::from_slice::<Versions>(&body).ok(),
            Err(reason) => {
                tracing::warn!(reason, "peer did not tell its version");
                None
            }
        };
        if let Some(versions) = versions {
            return ClusterVersion::parse(&versions.etcdcluster);
        }
    }
    None
}

/// One GET. Redirects are not followed: a peer never sends one.
async fn get(url: &str, path: &str, dialer: &PeerDialer, timeout: Duration) -> Result<(HeaderMap, Bytes), String> {
    let wrong = |what: &dyn fmt::Display| format!("{url}{path}: {what}");
    let answer = async {
        let (stream, authority) = connect_url(url, dialer, timeout).await.map_err(|error| wrong(&error))?;
        let broken = |error: hyper::Error| wrong(&root(&error));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = Request::get(path).header(header::HOST, authority).header(header::CONNECTION, "close");
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| wrong(&error))?;
        let asked = async {
            let (parts, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
            if parts.status != StatusCode::OK {
                return Err(wrong(&parts.status));
            }
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| wrong(&error))?;
            Ok((parts.headers, body.to_bytes()))
        };
        // The connection ends with the answer, or before it when it breaks: then the answer is the error.
        let (answer, _) = tokio::join!(asked, connection);
        answer
    };
    tokio::time::timeout(timeout, answer).await.unwrap_or_else(|_| Err(wrong(&"no answer in time")))
}

/// The first cause, at the end of the chain.
fn root<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error)
}
