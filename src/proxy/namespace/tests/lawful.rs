//! What may go up, whatever came.

use std::collections::HashSet;

use bytes::Bytes;
use prost::Message;

use super::upstream::{ALARM, Call, KEEP_ALIVE, MARKERS, NAMESPACE, PUT, STATUS, WATCH};
use crate::pb::etcdserverpb::{
    AlarmRequest, AuthenticateRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, TxnRequest, WatchCreateRequest, WatchRequest,
    alarm_request::AlarmAction, request_op, watch_request,
};

/// Whether a member may get this call of a tenant whose leases are `own`.
pub(super) fn lawful(call: &Call, own: &HashSet<i64>) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{what}: {call:x?}"));
    let is_stream = call.path == WATCH || call.path == KEEP_ALIVE;
    if !is_stream && !call.ended {
        // On its way, or broken off because its client left: a member executes neither.
        return Ok(());
    }
    let (frames, behind) = call.frames();
    if frames.iter().any(|(flag, _)| *flag != 0) || call.headers.contains_key("grpc-encoding") {
        return wrong("compressed");
    }
    if call.path == WATCH {
        let all_within = watches_of(call).iter().all(|create| is_within(&create.key, &create.range_end));
        return if all_within { Ok(()) } else { wrong("a watch outside") };
    }
    if call.path == KEEP_ALIVE {
        let ids = frames.iter().map(|(_, message)| decoded::<LeaseKeepAliveRequest>(message).map(|request| request.id));
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        return if ids.iter().all(|id| own.contains(id)) { Ok(()) } else { wrong("a foreign lease") };
    }
    let ([(_, message)], []) = (&frames[..], behind) else { return wrong("not one message") };
    let is_lawful = match call.path.as_str() {
        "/etcdserverpb.KV/Range" | "/etcdserverpb.KV/RangeStream" => {
            let RangeRequest { key, range_end, .. } = decoded(message)?;
            is_within(&key, &range_end) || is_below(MARKERS, &key, &range_end)
        }
        PUT => {
            let PutRequest { key, lease, .. } = decoded(message)?;
            let is_mark = key == format!("{MARKERS}{lease:016x}");
            is_mark || is_within(&key, b"") && is_own(lease, own)
        }
        "/etcdserverpb.KV/DeleteRange" => {
            let DeleteRangeRequest { key, range_end, .. } = decoded(message)?;
            is_within(&key, &range_end)
        }
        "/etcdserverpb.KV/Txn" => is_txn_within(&decoded(message)?, own),
        "/etcdserverpb.Lease/LeaseGrant" => decoded::<LeaseGrantRequest>(message).is_ok(),
        "/etcdserverpb.Lease/LeaseRevoke" => is_own(decoded::<LeaseRevokeRequest>(message)?.id, own),
        "/etcdserverpb.Lease/LeaseTimeToLive" => is_own(decoded::<LeaseTimeToLiveRequest>(message)?.id, own),
        ALARM => decoded::<AlarmRequest>(message)?.action == i32::from(AlarmAction::Get),
        "/etcdserverpb.Auth/Authenticate" => decoded::<AuthenticateRequest>(message).is_ok(),
        "/etcdserverpb.Lease/LeaseLeases"
        | STATUS
        | "/etcdserverpb.Cluster/MemberList"
        | "/etcdserverpb.Auth/AuthStatus" => true,
        _ => false,
    };
    if is_lawful { Ok(()) } else { wrong("reaches outside") }
}

fn decoded<M: Message + Default>(message: &Bytes) -> Result<M, String> {
    M::decode(message.clone()).map_err(|error| format!("{error}: {message:x?}"))
}

/// Whether every key of the range begins with the prefix. No key at all, as an error that the member words, is fine.
fn is_within(key: &[u8], range_end: &[u8]) -> bool {
    key.is_empty() && range_end.is_empty() || is_below(NAMESPACE, key, range_end)
}

fn is_below(prefix: &str, key: &[u8], range_end: &[u8]) -> bool {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix") += 1;
    key.starts_with(prefix.as_bytes()) && (range_end.is_empty() || range_end != b"\0" && range_end <= &end[..])
}

/// Whether the lease is none, the tenant's or nobody's.
fn is_own(lease: i64, own: &HashSet<i64>) -> bool {
    lease == 0 || lease <= -(1 << 62) || own.contains(&lease)
}

fn is_txn_within(txn: &TxnRequest, own: &HashSet<i64>) -> bool {
    txn.compare.iter().all(|compare| is_within(&compare.key, &compare.range_end))
        && txn.success.iter().chain(&txn.failure).all(|operation| match &operation.request {
            Some(request_op::Request::RequestRange(range)) => is_within(&range.key, &range.range_end),
            Some(request_op::Request::RequestPut(put)) => is_within(&put.key, b"") && is_own(put.lease, own),
            Some(request_op::Request::RequestDeleteRange(delete)) => is_within(&delete.key, &delete.range_end),
            Some(request_op::Request::RequestTxn(txn)) => is_txn_within(txn, own),
            None => true,
        })
}

/// The watches that a call asks for.
pub(super) fn watches_of(call: &Call) -> Vec<WatchCreateRequest> {
    let (frames, _) = call.frames();
    let requests = frames.into_iter().map(|(_, message)| WatchRequest::decode(message).expect("a watch request"));
    requests
        .filter_map(|request| match request.request_union {
            Some(watch_request::RequestUnion::CreateRequest(create)) => Some(create),
            _ => None,
        })
        .collect()
}
