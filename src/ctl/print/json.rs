use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::failure::Failure;
use super::super::golang;
use super::rows::{EndpointHash, EndpointHealth, EndpointStatus};
use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::{
    AlarmResponse, AuthRoleGetResponse, AuthStatusResponse, DeleteRangeResponse, DowngradeResponse, LeaseGrantResponse,
    LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseTimeToLiveResponse, Member, PutResponse, RangeResponse,
    ResponseHeader, TxnResponse, WatchResponse,
};
use crate::pb::mvccpb::{Event, KeyValue};

/// A JSON text.
pub(super) struct Json(String);

/// One line.
pub(super) fn line(json: Json) -> Result<Vec<u8>, Failure> {
    Ok((json.0 + "\n").into_bytes())
}

/// An object whose fields keep the order they are written in.
#[derive(Default)]
struct Object(String);

impl Object {
    fn set(mut self, name: &str, value: impl Into<Json>) -> Self {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0 += &text(name).0;
        self.0.push(':');
        self.0 += &value.into().0;
        self
    }

    /// Leaves the field out when there is nothing to say.
    fn maybe(self, name: &str, value: Option<impl Into<Json>>) -> Self {
        match value {
            Some(value) => self.set(name, value),
            None => self,
        }
    }

    fn number<N: Default + PartialEq + std::fmt::Display>(self, name: &str, value: N) -> Self {
        let set = value != N::default();
        self.maybe(name, set.then(|| Json(value.to_string())))
    }

    fn flag(self, name: &str, value: bool) -> Self {
        self.maybe(name, value.then(|| Json("true".to_owned())))
    }

    fn bytes(self, name: &str, value: &[u8]) -> Self {
        self.maybe(name, (!value.is_empty()).then(|| bytes(value)))
    }

    fn string(self, name: &str, value: &str) -> Self {
        self.maybe(name, (!value.is_empty()).then(|| text(value)))
    }

    fn items(self, name: &str, items: Vec<Json>) -> Self {
        self.maybe(name, (!items.is_empty()).then(|| array(items)))
    }
}

impl From<Object> for Json {
    fn from(object: Object) -> Self {
        Self(format!("{{{}}}", object.0))
    }
}

impl From<i64> for Json {
    fn from(number: i64) -> Self {
        Self(number.to_string())
    }
}

impl From<bool> for Json {
    fn from(flag: bool) -> Self {
        Self(flag.to_string())
    }
}

fn array(items: Vec<Json>) -> Json {
    let items: Vec<String> = items.into_iter().map(|item| item.0).collect();
    Json(format!("[{}]", items.join(",")))
}

fn null() -> Json {
    Json("null".to_owned())
}

fn bytes(value: &[u8]) -> Json {
    Json(format!("\"{}\"", STANDARD.encode(value)))
}

/// A string with the escapes of Go's encoder, which keeps texts safe inside HTML.
fn text(value: &str) -> Json {
    let mut json = String::with_capacity(value.len() + 2);
    json.push('"');
    for c in value.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\x08' => json.push_str("\\b"),
            '\x0c' => json.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => json.push_str(&format!("\\u{:04x}", c as u32)),
            c if (c as u32) < 0x20 => json.push_str(&format!("\\u{:04x}", c as u32)),
            c => json.push(c),
        }
    }
    json.push('"');
    Json(json)
}

fn strings(values: &[String]) -> Vec<Json> {
    values.iter().map(|value| text(value)).collect()
}

/// Fields of a header, for answers that have them at their own level.
fn header_fields(object: Object, header: Option<&ResponseHeader>) -> Object {
    let header = header.copied().unwrap_or_default();
    object
        .number("cluster_id", header.cluster_id)
        .number("member_id", header.member_id)
        .number("revision", header.revision)
        .number("raft_term", header.raft_term)
}

fn with_header(header: Option<&ResponseHeader>) -> Object {
    Object::default().maybe("header", header.map(|header| header_fields(Object::default(), Some(header))))
}

pub(super) fn header_only(header: Option<&ResponseHeader>) -> Json {
    with_header(header).into()
}

fn pair(kv: &KeyValue) -> Json {
    Object::default()
        .bytes("key", &kv.key)
        .number("create_revision", kv.create_revision)
        .number("mod_revision", kv.mod_revision)
        .number("version", kv.version)
        .bytes("value", &kv.value)
        .number("lease", kv.lease)
        .into()
}

pub(super) fn range(answer: &RangeResponse) -> Json {
    with_header(answer.header.as_ref())
        .items("kvs", answer.kvs.iter().map(pair).collect())
        .flag("more", answer.more)
        .number("count", answer.count)
        .into()
}

pub(super) fn put(answer: &PutResponse) -> Json {
    with_header(answer.header.as_ref()).maybe("prev_kv", answer.prev_kv.as_ref().map(pair)).into()
}

pub(super) fn delete(answer: &DeleteRangeResponse) -> Json {
    with_header(answer.header.as_ref())
        .number("deleted", answer.deleted)
        .items("prev_kvs", answer.prev_kvs.iter().map(pair).collect())
        .into()
}

pub(super) fn txn(answer: &TxnResponse) -> Json {
    let ops = answer.responses.iter().map(|op| {
        let arm = match &op.response {
            Some(Response::ResponseRange(answer)) => Object::default().set("response_range", range(answer)),
            Some(Response::ResponsePut(answer)) => Object::default().set("response_put", put(answer)),
            Some(Response::ResponseDeleteRange(answer)) => {
                Object::default().set("response_delete_range", delete(answer))
            }
            Some(Response::ResponseTxn(answer)) => Object::default().set("response_txn", txn(answer)),
            None => Object::default(),
        };
        Object::default().set("Response", arm).into()
    });
    with_header(answer.header.as_ref()).flag("succeeded", answer.succeeded).items("responses", ops.collect()).into()
}

fn event(event: &Event) -> Json {
    Object::default()
        .number("type", event.r#type)
        .maybe("kv", event.kv.as_ref().map(pair))
        .maybe("prev_kv", event.prev_kv.as_ref().map(pair))
        .into()
}

pub(super) fn watch(answer: &WatchResponse) -> Json {
    let header = answer.header.unwrap_or_default();
    Object::default()
        .set("Header", header_fields(Object::default(), Some(&header)))
        .set(
            "Events",
            match answer.events.as_slice() {
                [] => null(),
                events => array(events.iter().map(event).collect()),
            },
        )
        .set("CompactRevision", answer.compact_revision)
        .set("Canceled", answer.canceled)
        .set("Created", answer.created)
        .set("CancelReason", text(&answer.cancel_reason))
        .into()
}

pub(super) fn lease_grant(answer: &LeaseGrantResponse) -> Json {
    header_fields(Object::default(), answer.header.as_ref())
        .set("ID", answer.id)
        .set("TTL", answer.ttl)
        .set("Error", text(&answer.error))
        .into()
}

pub(super) fn lease_keep_alive(answer: &LeaseKeepAliveResponse) -> Json {
    header_fields(Object::default(), answer.header.as_ref()).set("ID", answer.id).set("TTL", answer.ttl).into()
}

pub(super) fn time_to_live(answer: &LeaseTimeToLiveResponse) -> Json {
    header_fields(Object::default(), answer.header.as_ref())
        .set("id", answer.id)
        .set("ttl", answer.ttl)
        .set("granted-ttl", answer.granted_ttl)
        .set(
            "keys",
            match answer.keys.as_slice() {
                [] => null(),
                keys => array(keys.iter().map(|key| bytes(key)).collect()),
            },
        )
        .into()
}

pub(super) fn leases(answer: &LeaseLeasesResponse) -> Json {
    let leases = answer.leases.iter().map(|lease| Object::default().set("id", lease.id).into());
    header_fields(Object::default(), answer.header.as_ref()).set("leases", array(leases.collect())).into()
}

fn member(hex: bool, member: &Member) -> Json {
    let id = if hex {
        Object::default().set("ID", text(&format!("{:x}", member.id)))
    } else {
        Object::default().number("ID", member.id)
    };
    id.string("name", &member.name)
        .items("peerURLs", strings(&member.peer_ur_ls))
        .items("clientURLs", strings(&member.client_ur_ls))
        .flag("isLearner", member.is_learner)
        .into()
}

/// Answers about members are the only ones whose ids `--hex` turns into hex strings.
pub(super) fn members(hex: bool, header: Option<&ResponseHeader>, added: Option<&Member>, members: &[Member]) -> Json {
    let head = match header {
        Some(header) if hex => Object::default().set(
            "header",
            Object::default()
                .set("cluster_id", text(&format!("{:x}", header.cluster_id)))
                .set("member_id", text(&format!("{:x}", header.member_id)))
                .number("revision", header.revision)
                .number("raft_term", header.raft_term),
        ),
        header => with_header(header),
    };
    head.maybe("member", added.map(|added| member(hex, added)))
        .items("members", members.iter().map(|one| member(hex, one)).collect())
        .into()
}

pub(super) fn alarms(answer: &AlarmResponse) -> Json {
    let alarms = answer
        .alarms
        .iter()
        .map(|alarm| Object::default().number("memberID", alarm.member_id).number("alarm", alarm.alarm).into());
    with_header(answer.header.as_ref()).items("alarms", alarms.collect()).into()
}

/// Names of users or roles.
pub(super) fn names(header: Option<&ResponseHeader>, field: &str, names: &[String]) -> Json {
    with_header(header).items(field, strings(names)).into()
}

pub(super) fn permissions(answer: &AuthRoleGetResponse) -> Json {
    let permissions = answer.perm.iter().map(|permission| {
        Object::default()
            .number("permType", permission.perm_type)
            .bytes("key", &permission.key)
            .bytes("range_end", &permission.range_end)
            .into()
    });
    with_header(answer.header.as_ref()).items("perm", permissions.collect()).into()
}

pub(super) fn auth_status(answer: &AuthStatusResponse) -> Json {
    with_header(answer.header.as_ref())
        .flag("enabled", answer.enabled)
        .number("authRevision", answer.auth_revision)
        .into()
}

pub(super) fn downgrade(answer: &DowngradeResponse) -> Json {
    with_header(answer.header.as_ref()).string("version", &answer.version).into()
}

/// A list that is `null` when empty, as Go writes a list nobody made.
fn list(items: Vec<Json>) -> Json {
    if items.is_empty() { null() } else { array(items) }
}

pub(super) fn health(endpoints: &[EndpointHealth]) -> Json {
    list(
        endpoints
            .iter()
            .map(|health| {
                Object::default()
                    .set("endpoint", text(&health.endpoint))
                    .set("health", health.error.is_none())
                    .set("took", text(&golang::duration(health.took)))
                    .string("error", health.error.as_deref().unwrap_or_default())
                    .into()
            })
            .collect(),
    )
}

pub(super) fn status(endpoints: &[EndpointStatus]) -> Json {
    let one = |EndpointStatus { endpoint, status }: &EndpointStatus| {
        let downgrade = status
            .downgrade_info
            .as_ref()
            .map(|info| Object::default().flag("enabled", info.enabled).string("targetVersion", &info.target_version));
        let body = with_header(status.header.as_ref())
            .string("version", &status.version)
            .number("dbSize", status.db_size)
            .number("leader", status.leader)
            .number("raftIndex", status.raft_index)
            .number("raftTerm", status.raft_term)
            .number("raftAppliedIndex", status.raft_applied_index)
            .items("errors", strings(&status.errors))
            .number("dbSizeInUse", status.db_size_in_use)
            .flag("isLearner", status.is_learner)
            .string("storageVersion", &status.storage_version)
            .number("dbSizeQuota", status.db_size_quota)
            .maybe("downgradeInfo", downgrade);
        Object::default().set("Endpoint", text(endpoint)).set("Status", body).into()
    };
    list(endpoints.iter().map(one).collect())
}

pub(super) fn hashes(endpoints: &[EndpointHash]) -> Json {
    let one = |EndpointHash { endpoint, hash }: &EndpointHash| {
        let body = with_header(hash.header.as_ref())
            .number("hash", hash.hash)
            .number("compact_revision", hash.compact_revision)
            .number("hash_revision", hash.hash_revision);
        Object::default().set("Endpoint", text(endpoint)).set("HashKV", body).into()
    };
    list(endpoints.iter().map(one).collect())
}
