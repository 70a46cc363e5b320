use super::super::failure::{Exit, Failure};
use super::super::golang;
use super::printer::{Format, Printer};
use super::rows::{EndpointHash, EndpointHealth, EndpointStatus};
use super::{fields, json, proto, rows, simple, table};
use crate::pb::etcdserverpb::{
    AlarmResponse, DeleteRangeResponse, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse,
    LeaseRevokeResponse, LeaseTimeToLiveResponse, MemberAddResponse, MemberListResponse, MemberPromoteResponse,
    MemberRemoveResponse, MemberUpdateResponse, MoveLeaderResponse, PutResponse, RangeResponse, ResponseHeader,
    TxnResponse, WatchResponse,
};

/// What to print, or why that format does not fit.
type Text = Result<Vec<u8>, Failure>;

impl Printer {
    pub(crate) fn range(&self, answer: &RangeResponse) -> Text {
        match self.format {
            Format::Simple => Ok(simple::range(self, answer)),
            Format::Fields => Ok(fields::range(self.hex, answer)),
            Format::Json => json::line(json::range(answer)),
            Format::Protobuf => proto::message(answer),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn put(&self, answer: &PutResponse) -> Text {
        match self.format {
            Format::Simple => Ok(simple::put(self, answer)),
            Format::Fields => Ok(fields::put(self.hex, answer)),
            Format::Json => json::line(json::put(answer)),
            Format::Protobuf => proto::message(answer),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn delete(&self, answer: &DeleteRangeResponse) -> Text {
        match self.format {
            Format::Simple => Ok(simple::delete(self, answer)),
            Format::Fields => Ok(fields::delete(self.hex, answer)),
            Format::Json => json::line(json::delete(answer)),
            Format::Protobuf => proto::message(answer),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn txn(&self, answer: &TxnResponse) -> Text {
        match self.format {
            Format::Simple => Ok(simple::txn(self, answer)),
            Format::Fields => Ok(fields::txn(self.hex, answer)),
            Format::Json => json::line(json::txn(answer)),
            Format::Protobuf => proto::message(answer),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn watch(&self, answer: &WatchResponse) -> Text {
        match self.format {
            Format::Simple => Ok(simple::watch(self, answer)),
            Format::Fields => Ok(fields::watch(self.hex, answer)),
            Format::Json => json::line(json::watch(answer)),
            Format::Protobuf => proto::message(answer),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn lease_grant(&self, answer: &LeaseGrantResponse) -> Text {
        match self.format {
            Format::Simple => {
                let id = golang::lease_id(answer.id);
                Ok(format!("lease {id} granted with TTL({}s)\n", answer.ttl).into_bytes())
            }
            Format::Fields => Ok(fields::lease_ttl(self.hex, answer.header.as_ref(), answer.id, answer.ttl)),
            Format::Json => json::line(json::lease_grant(answer)),
            Format::Protobuf => header_message(answer.header.as_ref()),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn lease_revoke(&self, id: i64, answer: &LeaseRevokeResponse) -> Text {
        match self.format {
            Format::Simple => Ok(format!("lease {} revoked\n", golang::lease_id(id)).into_bytes()),
            Format::Fields => Ok(fields::header_only(self.hex, answer.header.as_ref())),
            Format::Json => json::line(json::header_only(answer.header.as_ref())),
            Format::Protobuf | Format::Table => self.refuse(),
        }
    }

    pub(crate) fn lease_keep_alive(&self, answer: &LeaseKeepAliveResponse) -> Text {
        match self.format {
            Format::Simple => {
                let id = golang::lease_id(answer.id);
                Ok(format!("lease {id} keepalived with TTL({})\n", answer.ttl).into_bytes())
            }
            Format::Fields => Ok(fields::lease_ttl(self.hex, answer.header.as_ref(), answer.id, answer.ttl)),
            Format::Json => json::line(json::lease_keep_alive(answer)),
            Format::Protobuf => header_message(answer.header.as_ref()),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn lease_time_to_live(&self, answer: &LeaseTimeToLiveResponse, keys: bool) -> Text {
        match self.format {
            Format::Simple => Ok(simple::time_to_live(answer, keys)),
            Format::Fields => Ok(fields::time_to_live(self.hex, answer)),
            Format::Json => json::line(json::time_to_live(answer)),
            Format::Protobuf => header_message(answer.header.as_ref()),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn leases(&self, answer: &LeaseLeasesResponse) -> Text {
        match self.format {
            Format::Simple => Ok(simple::leases(answer)),
            Format::Fields => Ok(fields::leases(self.hex, answer)),
            Format::Json => json::line(json::leases(answer)),
            Format::Protobuf => header_message(answer.header.as_ref()),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn member_list(&self, answer: &MemberListResponse) -> Text {
        match self.format {
            Format::Simple => Ok(rows::joined(&rows::members(answer))),
            Format::Fields => Ok(fields::members(self.hex, answer)),
            Format::Json => json::line(json::members(self.hex, answer.header.as_ref(), None, &answer.members)),
            Format::Protobuf => proto::message(answer),
            Format::Table => Ok(table::draw(rows::MEMBER_HEADS, &rows::members(answer))),
        }
    }

    pub(crate) fn member_add(&self, answer: &MemberAddResponse) -> Text {
        match self.format {
            Format::Simple => Ok(simple::member_add(answer)),
            Format::Json => {
                let member = Some(answer.member.clone().unwrap_or_default());
                json::line(json::members(self.hex, answer.header.as_ref(), member.as_ref(), &answer.members))
            }
            Format::Protobuf => proto::message(answer),
            Format::Fields | Format::Table => self.refuse(),
        }
    }

    pub(crate) fn member_remove(&self, id: u64, answer: &MemberRemoveResponse) -> Text {
        match self.format {
            Format::Simple => Ok(simple::member_change(id, "removed from", answer.header.as_ref())),
            Format::Json => json::line(json::members(self.hex, answer.header.as_ref(), None, &answer.members)),
            Format::Protobuf => proto::message(answer),
            Format::Fields | Format::Table => self.refuse(),
        }
    }

    pub(crate) fn member_update(&self, id: u64, answer: &MemberUpdateResponse) -> Text {
        match self.format {
            Format::Simple => Ok(simple::member_change(id, "updated in", answer.header.as_ref())),
            Format::Json => json::line(json::members(self.hex, answer.header.as_ref(), None, &answer.members)),
            Format::Protobuf => proto::message(answer),
            Format::Fields | Format::Table => self.refuse(),
        }
    }

    pub(crate) fn member_promote(&self, id: u64, answer: &MemberPromoteResponse) -> Text {
        match self.format {
            Format::Simple => Ok(simple::member_change(id, "promoted in", answer.header.as_ref())),
            Format::Json => json::line(json::members(self.hex, answer.header.as_ref(), None, &answer.members)),
            Format::Protobuf => proto::message(answer),
            Format::Fields | Format::Table => self.refuse(),
        }
    }

    pub(crate) fn alarms(&self, answer: &AlarmResponse) -> Text {
        match self.format {
            Format::Simple => Ok(simple::alarms(answer)),
            Format::Fields => Ok(fields::alarms(self.hex, answer)),
            Format::Json => json::line(json::alarms(answer)),
            Format::Protobuf => proto::message(answer),
            Format::Table => self.refuse(),
        }
    }

    pub(crate) fn move_leader(&self, from: u64, to: u64, answer: &MoveLeaderResponse) -> Text {
        match self.format {
            Format::Simple => Ok(format!("Leadership transferred from {from:x} to {to:x}\n").into_bytes()),
            Format::Json => json::line(json::header_only(answer.header.as_ref())),
            Format::Protobuf => proto::message(answer),
            Format::Fields | Format::Table => self.refuse(),
        }
    }

    /// Healthy endpoints for standard output; the simple format names the others on standard error.
    pub(crate) fn endpoint_health(&self, endpoints: &[EndpointHealth]) -> Text {
        match self.format {
            Format::Simple => Ok(simple::healthy(endpoints)),
            Format::Fields => Ok(fields::health(endpoints)),
            Format::Json => json::line(json::health(endpoints)),
            Format::Table => Ok(table::draw(rows::HEALTH_HEADS, &rows::health(endpoints))),
            Format::Protobuf => self.refuse(),
        }
    }

    pub(crate) fn endpoint_status(&self, endpoints: &[EndpointStatus]) -> Text {
        match self.format {
            Format::Simple => Ok(rows::joined(&rows::status(endpoints))),
            Format::Fields => Ok(fields::status(self.hex, endpoints)),
            Format::Json => json::line(json::status(endpoints)),
            Format::Table => Ok(table::draw(rows::STATUS_HEADS, &rows::status(endpoints))),
            Format::Protobuf => self.refuse(),
        }
    }

    pub(crate) fn endpoint_hashes(&self, endpoints: &[EndpointHash]) -> Text {
        match self.format {
            Format::Simple => Ok(rows::joined(&rows::hashes(endpoints))),
            Format::Fields => Ok(fields::hashes(self.hex, endpoints)),
            Format::Json => json::line(json::hashes(endpoints)),
            Format::Table => Ok(table::draw(rows::HASH_HEADS, &rows::hashes(endpoints))),
            Format::Protobuf => self.refuse(),
        }
    }

    pub(super) fn refuse(&self) -> Text {
        Err(self.unsupported())
    }

    /// The format does not fit what is to be printed.
    pub(crate) fn unsupported(&self) -> Failure {
        Failure::new(Exit::BadFeature, format!("{} not supported as output format", self.format.name()))
    }
}

/// What etcdctl's protobuf format shows of the answers about leases.
fn header_message(header: Option<&ResponseHeader>) -> Text {
    proto::message(&header.copied().unwrap_or_default())
}
