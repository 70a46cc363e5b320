//! The same runs once more, as histories for the checkers that know nothing of the log: they see what clients saw.

use watershed::pb::etcdserverpb::compare::{CompareTarget as Target, TargetUnion};
use watershed::pb::etcdserverpb::request_op::Request as RequestUnion;
use watershed::pb::etcdserverpb::response_op::Response as ResponseUnion;
use watershed::pb::etcdserverpb::{
    Compare as WireCompare, DeleteRangeRequest, InternalRaftRequest, PutRequest, RangeRequest, RangeResponse,
    RequestOp, ResponseOp, TxnRequest, WatchResponse,
};
use watershed::types::KeyRange;

use super::checkers::{
    Body, Compare, CompareTarget, Comparison, Operation, Outcome, RangeQuery, Request, WatchAnswer, WatchMessage,
    WatchRecord, text,
};
use super::client::{Answer, Ask, NOBODY, Op, OpId};
use super::context::Micros;
use super::model::Reply;

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
            Reply::Put(answer) => done(reply.revision().unwrap_or(0), Body::from(answer)),
            Reply::Delete(answer) => done(reply.revision().unwrap_or(0), Body::from(answer)),
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
        Some(Answer::Read(Ok(answer))) => done(revision(answer), Body::from(answer)),
        Some(Answer::Read(Err(reason))) => Outcome::Refused { reason: (*reason).to_owned() },
        Some(Answer::Renewed { ttl, revision }) => done(*revision, Body::KeptAlive { ttl: *ttl }),
        Some(Answer::NotExecuted) => Outcome::Refused { reason: "not executed".to_owned() },
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

fn body(response: &ResponseOp) -> Body {
    match &response.response {
        Some(ResponseUnion::ResponsePut(answer)) => Body::from(answer),
        Some(ResponseUnion::ResponseDeleteRange(answer)) => Body::from(answer),
        Some(ResponseUnion::ResponseRange(answer)) => Body::from(answer),
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
    WatchAnswer { received: now * 1000, revision, message: WatchMessage::from(response) }
}
