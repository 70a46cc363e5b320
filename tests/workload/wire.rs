use tonic::{Code, Status};
use watershed::client::Client;
use watershed::pb::etcdserverpb::compare::{self, TargetUnion};
use watershed::pb::etcdserverpb::{
    CompactionRequest, Compare as PbCompare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, ResponseOp,
    TxnRequest, TxnResponse, request_op, response_op,
};

use crate::checkers::{Body, Compare, CompareTarget, Comparison, Outcome, RangeQuery, Request};
use crate::harness::Answers;

/// Sends a request of a history.
pub async fn send(client: &Client, request: &Request) -> Outcome {
    match call(client, request).await {
        Ok((header, body)) => Outcome::Done { revision: header.unwrap_or_default().revision, body },
        Err(status) => failed(&status),
    }
}

/// Whether a failed request may have had an effect. Only what says so for certain counts as refused.
fn failed(status: &Status) -> Outcome {
    let refused = match status.code() {
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound | Code::FailedPrecondition => true,
        Code::ResourceExhausted => true,
        Code::Unavailable => status.message().starts_with("no endpoint can be reached"),
        _ => false,
    };
    match refused {
        true => Outcome::Refused { reason: format!("{:?}: {}", status.code(), status.message()) },
        false => Outcome::Unknown,
    }
}

async fn call(client: &Client, request: &Request) -> Result<(Option<ResponseHeader>, Body), Status> {
    let mut kv = client.kv();
    let mut leases = client.lease();
    Ok(match request {
        Request::Put { .. } => {
            let answer = kv.put(put(request)).await?.into_inner();
            (answer.header, Body::from(&answer))
        }
        Request::Delete { .. } => {
            let answer = kv.delete_range(delete(request)).await?.into_inner();
            (answer.header, Body::from(&answer))
        }
        Request::Range(query) => {
            let answer = kv.range(range(query)).await?.into_inner();
            (answer.header, Body::from(&answer))
        }
        Request::Txn { .. } => {
            let mut answer = kv.txn(txn(request)).await?.into_inner();
            (answer.header.take(), done(answer))
        }
        Request::Grant { id, ttl } => {
            let answer = leases.lease_grant(LeaseGrantRequest { id: *id, ttl: *ttl }).await?.into_inner();
            (answer.header, Body::Granted { id: answer.id, ttl: answer.ttl })
        }
        Request::Revoke { id } => {
            (leases.lease_revoke(LeaseRevokeRequest { id: *id }).await?.into_inner().header, Body::Revoked)
        }
        Request::KeepAlive { id } => {
            let id = *id;
            let requests = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
            let mut answers = Answers::new(async move { leases.lease_keep_alive(requests).await });
            let answer = answers.message().await?.ok_or_else(|| Status::unknown("the stream ended"))?;
            (answer.header, Body::KeptAlive { ttl: answer.ttl })
        }
        Request::TimeToLive { id } => {
            let request = LeaseTimeToLiveRequest { id: *id, keys: false };
            let answer = leases.lease_time_to_live(request).await?.into_inner();
            (answer.header, Body::TimeToLive { ttl: answer.ttl })
        }
        Request::Compact { revision } => {
            let request = CompactionRequest { revision: *revision, physical: false };
            (kv.compact(request).await?.into_inner().header, Body::Compacted)
        }
    })
}

fn put(request: &Request) -> PutRequest {
    let Request::Put { key, value, lease, prev_kv } = request else { return PutRequest::default() };
    PutRequest {
        key: key.clone().into(),
        value: value.clone().into(),
        lease: *lease,
        prev_kv: *prev_kv,
        ..Default::default()
    }
}

fn delete(request: &Request) -> DeleteRangeRequest {
    let Request::Delete { key, range_end, prev_kv } = request else { return DeleteRangeRequest::default() };
    DeleteRangeRequest { key: key.clone().into(), range_end: range_end.clone().into(), prev_kv: *prev_kv }
}

fn range(query: &RangeQuery) -> RangeRequest {
    RangeRequest {
        key: query.key.clone().into(),
        range_end: query.range_end.clone().into(),
        revision: query.revision,
        limit: query.limit,
        serializable: query.serializable,
        ..Default::default()
    }
}

fn txn(request: &Request) -> TxnRequest {
    let Request::Txn { compares, success, failure } = request else { return TxnRequest::default() };
    let operation = |request: &Request| {
        let request = match request {
            Request::Put { .. } => request_op::Request::RequestPut(put(request)),
            Request::Delete { .. } => request_op::Request::RequestDeleteRange(delete(request)),
            Request::Range(query) => request_op::Request::RequestRange(range(query)),
            Request::Txn { .. } => request_op::Request::RequestTxn(txn(request)),
            other => panic!("{other:?} is no part of a transaction"),
        };
        RequestOp { request: Some(request) }
    };
    TxnRequest {
        compare: compares.iter().map(condition).collect(),
        success: success.iter().map(operation).collect(),
        failure: failure.iter().map(operation).collect(),
    }
}

fn condition(from: &Compare) -> PbCompare {
    let (target, union) = match &from.target {
        CompareTarget::Version(version) => (compare::CompareTarget::Version, TargetUnion::Version(*version)),
        CompareTarget::Create(revision) => (compare::CompareTarget::Create, TargetUnion::CreateRevision(*revision)),
        CompareTarget::Mod(revision) => (compare::CompareTarget::Mod, TargetUnion::ModRevision(*revision)),
        CompareTarget::Value(value) => (compare::CompareTarget::Value, TargetUnion::Value(value.clone().into())),
    };
    let result = match from.comparison {
        Comparison::Equal => compare::CompareResult::Equal,
        Comparison::NotEqual => compare::CompareResult::NotEqual,
        Comparison::Greater => compare::CompareResult::Greater,
        Comparison::Less => compare::CompareResult::Less,
    };
    PbCompare {
        key: from.key.clone().into(),
        target: target.into(),
        result: result.into(),
        target_union: Some(union),
        ..Default::default()
    }
}

fn done(answer: TxnResponse) -> Body {
    let body = |part: ResponseOp| match part.response.expect("an answer of a kind") {
        response_op::Response::ResponsePut(put) => Body::from(&put),
        response_op::Response::ResponseDeleteRange(range) => Body::from(&range),
        response_op::Response::ResponseRange(range) => Body::from(&range),
        response_op::Response::ResponseTxn(txn) => done(txn),
    };
    Body::Txn { succeeded: answer.succeeded, bodies: answer.responses.into_iter().map(body).collect() }
}
