use super::super::golang;
use super::rows::{EndpointHash, EndpointHealth, EndpointStatus};
use super::simple::{alarm_type, event_type};
use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::{
    AlarmResponse, AuthRoleGetResponse, AuthRoleListResponse, DeleteRangeResponse, LeaseLeasesResponse,
    LeaseTimeToLiveResponse, MemberListResponse, PutResponse, RangeResponse, ResponseHeader, TxnResponse,
    WatchResponse,
};
use crate::pb::mvccpb::KeyValue;

/// Lines of `"Name" : value`.
struct Lines {
    text: String,
    hex: bool,
}

impl Lines {
    fn new(hex: bool) -> Self {
        Self { text: String::new(), hex }
    }

    fn with_header(hex: bool, header: Option<&ResponseHeader>) -> Self {
        let mut lines = Self::new(hex);
        lines.header(header);
        lines
    }

    fn plain(&mut self, name: &str, value: impl std::fmt::Display) {
        self.text += &format!("\"{name}\" : {value}\n");
    }

    fn quoted(&mut self, name: &str, value: &[u8]) {
        self.plain(name, golang::quote(value));
    }

    /// The id of a member or cluster.
    fn id(&mut self, name: &str, id: u64) {
        if self.hex { self.plain(name, format_args!("{id:x}")) } else { self.plain(name, id) }
    }

    fn lease(&mut self, name: &str, id: i64) {
        if self.hex { self.plain(name, golang::lease_id(id)) } else { self.plain(name, id) }
    }

    fn header(&mut self, header: Option<&ResponseHeader>) {
        let header = header.copied().unwrap_or_default();
        self.id("ClusterID", header.cluster_id);
        self.id("MemberID", header.member_id);
        // Answers that have nothing to do with keys carry no revision.
        if header.revision > 0 {
            self.plain("Revision", header.revision);
        }
        self.plain("RaftTerm", header.raft_term);
    }

    fn pair(&mut self, prefix: &str, kv: &KeyValue) {
        self.quoted(&format!("{prefix}Key"), &kv.key);
        self.plain(&format!("{prefix}CreateRevision"), kv.create_revision);
        self.plain(&format!("{prefix}ModRevision"), kv.mod_revision);
        self.plain(&format!("{prefix}Version"), kv.version);
        self.quoted(&format!("{prefix}Value"), &kv.value);
        self.lease(&format!("{prefix}Lease"), kv.lease);
    }

    fn range(&mut self, answer: &RangeResponse) {
        self.header(answer.header.as_ref());
        answer.kvs.iter().for_each(|kv| self.pair("", kv));
        self.plain("More", answer.more);
        self.plain("Count", answer.count);
    }

    fn put(&mut self, answer: &PutResponse) {
        self.header(answer.header.as_ref());
        answer.prev_kv.iter().for_each(|kv| self.pair("Prev", kv));
    }

    fn delete(&mut self, answer: &DeleteRangeResponse) {
        self.header(answer.header.as_ref());
        self.plain("Deleted", answer.deleted);
        answer.prev_kvs.iter().for_each(|kv| self.pair("Prev", kv));
    }

    fn txn(&mut self, answer: &TxnResponse) {
        self.header(answer.header.as_ref());
        self.plain("Succeeded", answer.succeeded);
        for op in &answer.responses {
            match &op.response {
                Some(Response::ResponseRange(answer)) => self.range(answer),
                Some(Response::ResponsePut(answer)) => self.put(answer),
                Some(Response::ResponseDeleteRange(answer)) => self.delete(answer),
                Some(Response::ResponseTxn(answer)) => self.txn(answer),
                None => self.quoted("Unknown", b""),
            }
        }
    }

    fn end_block(&mut self) {
        self.text.push('\n');
    }

    fn finish(self) -> Vec<u8> {
        self.text.into_bytes()
    }
}

pub(super) fn header_only(hex: bool, header: Option<&ResponseHeader>) -> Vec<u8> {
    Lines::with_header(hex, header).finish()
}

pub(super) fn range(hex: bool, answer: &RangeResponse) -> Vec<u8> {
    let mut lines = Lines::new(hex);
    lines.range(answer);
    lines.finish()
}

pub(super) fn put(hex: bool, answer: &PutResponse) -> Vec<u8> {
    let mut lines = Lines::new(hex);
    lines.put(answer);
    lines.finish()
}

pub(super) fn delete(hex: bool, answer: &DeleteRangeResponse) -> Vec<u8> {
    let mut lines = Lines::new(hex);
    lines.delete(answer);
    lines.finish()
}

pub(super) fn txn(hex: bool, answer: &TxnResponse) -> Vec<u8> {
    let mut lines = Lines::new(hex);
    lines.txn(answer);
    lines.finish()
}

pub(super) fn watch(hex: bool, answer: &WatchResponse) -> Vec<u8> {
    let mut lines = Lines::with_header(hex, answer.header.as_ref());
    for event in &answer.events {
        lines.plain("Type", event_type(event.r#type));
        event.prev_kv.iter().for_each(|kv| lines.pair("Prev", kv));
        lines.pair("", event.kv.as_ref().unwrap_or(&KeyValue::default()));
    }
    lines.finish()
}

pub(super) fn lease_ttl(hex: bool, header: Option<&ResponseHeader>, id: i64, ttl: i64) -> Vec<u8> {
    let mut lines = Lines::with_header(hex, header);
    lines.lease("ID", id);
    lines.plain("TTL", ttl);
    lines.finish()
}

pub(super) fn time_to_live(hex: bool, answer: &LeaseTimeToLiveResponse) -> Vec<u8> {
    let mut lines = Lines::with_header(hex, answer.header.as_ref());
    lines.lease("ID", answer.id);
    lines.plain("TTL", answer.ttl);
    lines.plain("GrantedTTL", answer.granted_ttl);
    answer.keys.iter().for_each(|key| lines.quoted("Key", key));
    lines.finish()
}

pub(super) fn leases(hex: bool, answer: &LeaseLeasesResponse) -> Vec<u8> {
    let mut lines = Lines::with_header(hex, answer.header.as_ref());
    answer.leases.iter().for_each(|lease| lines.lease("ID", lease.id));
    lines.finish()
}

pub(super) fn members(hex: bool, answer: &MemberListResponse) -> Vec<u8> {
    let mut lines = Lines::with_header(hex, answer.header.as_ref());
    for member in &answer.members {
        lines.id("ID", member.id);
        lines.quoted("Name", member.name.as_bytes());
        member.peer_ur_ls.iter().for_each(|url| lines.quoted("PeerURL", url.as_bytes()));
        member.client_ur_ls.iter().for_each(|url| lines.quoted("ClientURL", url.as_bytes()));
        lines.plain("IsLearner", member.is_learner);
        lines.end_block();
    }
    lines.finish()
}

pub(super) fn alarms(hex: bool, answer: &AlarmResponse) -> Vec<u8> {
    let mut lines = Lines::with_header(hex, answer.header.as_ref());
    for alarm in &answer.alarms {
        lines.id("MemberID", alarm.member_id);
        lines.plain("AlarmType", alarm_type(alarm.alarm));
        lines.end_block();
    }
    lines.finish()
}

pub(super) fn health(endpoints: &[EndpointHealth]) -> Vec<u8> {
    let mut lines = Lines::new(false);
    for health in endpoints {
        lines.quoted("Endpoint", health.endpoint.as_bytes());
        lines.plain("Health", health.error.is_none());
        lines.plain("Took", golang::duration(health.took));
        lines.plain("Error", health.error.as_deref().unwrap_or_default());
        lines.end_block();
    }
    lines.finish()
}

pub(super) fn status(hex: bool, endpoints: &[EndpointStatus]) -> Vec<u8> {
    let mut lines = Lines::new(hex);
    for EndpointStatus { endpoint, status } in endpoints {
        let downgrade = status.downgrade_info.clone().unwrap_or_default();
        lines.header(status.header.as_ref());
        lines.quoted("Version", status.version.as_bytes());
        lines.quoted("StorageVersion", status.storage_version.as_bytes());
        lines.plain("DBSize", status.db_size);
        lines.plain("DBSizeInUse", status.db_size_in_use);
        lines.plain("DBSizeQuota", status.db_size_quota);
        lines.plain("Leader", status.leader);
        lines.plain("IsLearner", status.is_learner);
        lines.plain("RaftIndex", status.raft_index);
        lines.plain("RaftTerm", status.raft_term);
        lines.plain("RaftAppliedIndex", status.raft_applied_index);
        lines.plain("Errors", format_args!("[{}]", status.errors.join(" ")));
        lines.quoted("Endpoint", endpoint.as_bytes());
        lines.quoted("DowngradeTargetVersion", downgrade.target_version.as_bytes());
        lines.plain("DowngradeEnabled", downgrade.enabled);
        lines.end_block();
    }
    lines.finish()
}

pub(super) fn hashes(hex: bool, endpoints: &[EndpointHash]) -> Vec<u8> {
    let mut lines = Lines::new(hex);
    for EndpointHash { endpoint, hash } in endpoints {
        lines.header(hash.header.as_ref());
        lines.quoted("Endpoint", endpoint.as_bytes());
        lines.plain("Hash", hash.hash);
        lines.plain("HashRevision", hash.hash_revision);
        lines.end_block();
    }
    lines.finish()
}

pub(super) fn permissions(hex: bool, answer: &AuthRoleGetResponse) -> Vec<u8> {
    let mut lines = Lines::with_header(hex, answer.header.as_ref());
    for permission in &answer.perm {
        // etcdctl has a second space here.
        lines.plain("PermType", format_args!(" {}", permission.perm_type().as_str_name()));
        lines.quoted("Key", &permission.key);
        lines.quoted("RangeEnd", &permission.range_end);
    }
    lines.finish()
}

pub(super) fn roles(hex: bool, answer: &AuthRoleListResponse) -> Vec<u8> {
    let mut lines = Lines::with_header(hex, answer.header.as_ref());
    let names: String = answer.roles.iter().map(|role| format!(" {}", golang::quote(role.as_bytes()))).collect();
    lines.text += &format!("\"Roles\" :{names}\n");
    lines.finish()
}
