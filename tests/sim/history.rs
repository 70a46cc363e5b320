//! The same runs once more, as histories for the checkers that know nothing of the log: they see what clients saw.

use watershed::pb::etcdserverpb::compare::{CompareTarget as Target, TargetUnion};
use watershed::pb::etcdserverpb::request_op::Request as RequestUnion;
use watershed::pb::etcdserverpb::response_op::Response as ResponseUnion;
use watershed::pb::etcdserverpb::{
    Compare as WireCompare, DeleteRangeRequest, InternalRaftRequest, PutRequest, RangeRequest, RangeResponse,
    RequestOp, ResponseOp, TxnRequest, WatchResponse,
};
use watershed::pb::mvccpb::KeyValue;
use watershed::types::KeyRange;

use super::checkers::{
    Body, Compare, CompareTarget, Comparison, Event, Kv, Operation, Outcome, RangeQuery, Request, WatchAnswer,
    WatchMessage, WatchRecord,
};
use super::client::{Answer, Ask, NOBODY, Op, OpId};
use super::context::Micros;
use super::model::Reply;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn kv(kv: &KeyValue) -> Kv {
    Kv {
        key: text(&kv.key),
        value: text(&kv.value),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

fn kvs(all: &[KeyValue]) -> Vec<Kv> {
    all.iter().map(kv).collect()
}

/// An operation that has ended, with an answer or without.
pub fn operation(id: OpId, op: &Op, now: Micros, answer: Option<&Answer>) -> Operation {
    // What no client asks comes from one of its own each time.
    let client = if op.client == NOBODY { 1000 + id as usize } else { op.client };
    Operation {
        client: client as u32,
        member: op.member as u32,
        invoked: op.called * 1000,
        returned: now * 1000,
        request: request(&op.ask),
        outcome: outcome(&op.ask, answer),
    }
}

fn request(ask: &Ask) -> Request {
    match ask {
        Ask::Write(request) => write(request),
        Ask::Read { request, linearizable } => Request::Range(range(request, !linearizable)),
        Ask::Renew(id) => Request::KeepAlive { id: *id },
    }
}

fn write(request: &InternalRaftRequest) -> Request {
    if let Some(request) = &request.put {
        return put(request);
    }
    if let Some(request) = &request.delete_range {
        return delete(request);
    }
    if let Some(request) = &request.txn {
        return txn(request);
    }
    if let Some(grant) = &request.lease_grant {
        return Request::Grant { id: grant.id, ttl: grant.ttl };
    }
    if let Some(revoke) = &request.lease_revoke {
        return Request::Revoke { id: revoke.id };
    }
    Request::Compact { revision: request.compaction.as_ref().map_or(0, |compaction| compaction.revision) }
}

fn put(request: &PutRequest) -> Request {
    let (key, value) = (text(&request.key), text(&request.value));
    Request::Put { key, value, lease: request.lease, prev_kv: request.prev_kv }
}

fn delete(request: &DeleteRangeRequest) -> Request {
    let (key, range_end) = (text(&request.key), text(&request.range_end));
    Request::Delete { key, range_end, prev_kv: request.prev_kv }
}

fn range(request: &RangeRequest, serializable: bool) -> RangeQuery {
    let (key, range_end) = (text(&request.key), text(&request.range_end));
    RangeQuery { key, range_end, revision: request.revision, limit: request.limit, serializable }
}

fn txn(request: &TxnRequest) -> Request {
    let ops = |ops: &[RequestOp]| ops.iter().map(op).collect();
    Request::Txn {
        compares: request.compare.iter().map(compare).collect(),
        success: ops(&request.success),
        failure: ops(&request.failure),
    }
}

fn op(op: &RequestOp) -> Request {
    match &op.request {
        Some(RequestUnion::RequestPut(request)) => put(request),
        Some(RequestUnion::RequestDeleteRange(request)) => delete(request),
        Some(RequestUnion::RequestRange(request)) => Request::Range(range(request, false)),
        other => unreachable!("clients of the simulation do not send {other:?}"),
    }
}

fn compare(compare: &WireCompare) -> Compare {
    let target = match (compare.target(), &compare.target_union) {
        (Target::Mod, Some(TargetUnion::ModRevision(revision))) => CompareTarget::Mod(*revision),
        other => unreachable!("clients of the simulation do not compare {other:?}"),
    };
    Compare { key: text(&compare.key), target, comparison: Comparison::Equal }
}

fn outcome(ask: &Ask, answer: Option<&Answer>) -> Outcome {
    let done = |revision, body| Outcome::Done { revision, body };
    match answer {
        Some(Answer::Written(reply)) => match reply {
            Reply::Put(answer) => {
                let previous = answer.prev_kv.as_ref().map(kv);
                done(reply.revision().unwrap_or(0), Body::Put { previous })
            }
            Reply::Delete(answer) => {
                let (deleted, previous) = (answer.deleted, kvs(&answer.prev_kvs));
                done(reply.revision().unwrap_or(0), Body::Delete { deleted, previous })
            }
            Reply::Txn(answer) => {
                let bodies = answer.responses.iter().map(body).collect();
                done(reply.revision().unwrap_or(0), Body::Txn { succeeded: answer.succeeded, bodies })
            }
            Reply::Granted { id, ttl, revision } => done(*revision, Body::Granted { id: *id, ttl: *ttl }),
            Reply::Compacted { revision, .. } => done(*revision, Body::Compacted),
            Reply::Revoked { revision } => done(*revision, Body::Revoked),
            Reply::Refused("no lease") => Outcome::Refused { reason: "lease not found".to_owned() },
            Reply::Refused(reason) => Outcome::Refused { reason: (*reason).to_owned() },
            Reply::Other => Outcome::Unknown,
        },
        Some(Answer::Read(Ok(answer))) => done(revision(answer), range_body(answer)),
        Some(Answer::Read(Err(reason))) => Outcome::Refused { reason: (*reason).to_owned() },
        Some(Answer::Renewed { ttl, revision }) => done(*revision, Body::KeptAlive { ttl: *ttl }),
        // A write that was lost with its member may be in the log.
        Some(Answer::NotLeader(_) | Answer::Lost) | None => match ask {
            Ask::Write(_) | Ask::Renew(_) => Outcome::Unknown,
            Ask::Read { .. } => Outcome::Refused { reason: "no answer".to_owned() },
        },
    }
}

fn revision(answer: &RangeResponse) -> i64 {
    answer.header.as_ref().map_or(0, |header| header.revision)
}

fn range_body(answer: &RangeResponse) -> Body {
    Body::Range { kvs: kvs(&answer.kvs), count: answer.count, more: answer.more }
}

fn body(response: &ResponseOp) -> Body {
    match &response.response {
        Some(ResponseUnion::ResponsePut(answer)) => Body::Put { previous: answer.prev_kv.as_ref().map(kv) },
        Some(ResponseUnion::ResponseDeleteRange(answer)) => {
            Body::Delete { deleted: answer.deleted, previous: kvs(&answer.prev_kvs) }
        }
        Some(ResponseUnion::ResponseRange(answer)) => range_body(answer),
        other => unreachable!("clients of the simulation did not ask for {other:?}"),
    }
}

/// A watch that begins.
pub fn watch(member: usize, watched: &KeyRange, start: i64, resumes: bool, prev_kv: bool) -> WatchRecord {
    let (key, range_end) = watched.to_wire();
    WatchRecord {
        member: member as u32,
        key: text(&key),
        range_end: text(&range_end),
        start_revision: start,
        resumes,
        prev_kv,
        ..WatchRecord::default()
    }
}

pub fn watch_answer(now: Micros, response: &WatchResponse) -> WatchAnswer {
    let revision = response.header.as_ref().map_or(0, |header| header.revision);
    let message = if response.created {
        WatchMessage::Created
    } else if response.canceled {
        let reason = response.cancel_reason.clone();
        WatchMessage::Cancelled { compact_revision: response.compact_revision, reason }
    } else if response.events.is_empty() {
        WatchMessage::Progress
    } else {
        let events = response.events.iter().map(|event| Event {
            deleted: event.r#type == 1,
            kv: event.kv.as_ref().map(kv).expect("an event has its key"),
            previous: event.prev_kv.as_ref().map(kv),
        });
        WatchMessage::Events { events: events.collect(), fragment: response.fragment }
    };
    WatchAnswer { received: now * 1000, revision, message }
}
