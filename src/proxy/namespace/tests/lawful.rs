//! What may go up, whatever came. The tests of whole programs include this file, too.

use std::collections::HashSet;

use bytes::Bytes;
use http::HeaderMap;
use prost::Message;

use crate::pb::etcdserverpb::{
    AlarmRequest, AuthenticateRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
    WatchRequest, alarm_request::AlarmAction, request_op, watch_request,
};

pub(super) const WATCH: &str = "/etcdserverpb.Watch/Watch";
pub(super) const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
pub(super) const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
pub(super) const TXN: &str = "/etcdserverpb.KV/Txn";
pub(super) const PUT: &str = "/etcdserverpb.KV/Put";
pub(super) const STATUS: &str = "/etcdserverpb.Maintenance/Status";
/// Where the wishes of tenants that agree on compactions are.
pub(super) const WISHES: &str = "\0watershed/compaction/";

/// One request as the upstream got it; the body grows while it comes.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    /// Whether all of it is there.
    pub(super) ended: bool,
}

/// Flag and message.
pub(super) type Frame = (u8, Bytes);

/// What one tenant may reach.
pub(super) struct Law {
    namespace: &'static str,
    /// Where the marks of its leases are.
    marks: String,
    /// The key of its wish, where it agrees with others on compactions.
    wish: Option<String>,
    /// Its leases.
    own: HashSet<i64>,
}

impl Call {
    /// The whole frames of the body so far, and the bytes behind them.
    pub(super) fn frames(&self) -> (Vec<Frame>, &[u8]) {
        frames_of(&self.body)
    }
}

/// The whole frames at the beginning of a body, and the bytes behind them.
pub(super) fn frames_of(mut rest: &[u8]) -> (Vec<Frame>, &[u8]) {
    let mut frames = Vec::new();
    while let Some((&[flag, a, b, c, d], after)) = rest.split_first_chunk::<5>()
        && let Some((message, after)) = after.split_at_checked(u32::from_be_bytes([a, b, c, d]) as usize)
    {
        rest = after;
        frames.push((flag, Bytes::copy_from_slice(message)));
    }
    (frames, rest)
}

/// Where the marks of the leases of a namespace are.
pub(super) fn marks_of(namespace: &str) -> String {
    format!("\0watershed/lease/{}/", in_hex(namespace))
}

/// The key of the wish of a namespace.
pub(super) fn wish_of(namespace: &str) -> String {
    format!("{WISHES}{}", in_hex(namespace))
}

fn in_hex(namespace: &str) -> String {
    namespace.bytes().map(|byte| format!("{byte:02x}")).collect()
}

impl Law {
    /// That of the tenant with this namespace and these leases.
    pub(super) fn new(namespace: &'static str, own: impl IntoIterator<Item = i64>) -> Self {
        Self { namespace, marks: marks_of(namespace), wish: None, own: own.into_iter().collect() }
    }

    /// That of a tenant that agrees with others on compactions.
    #[allow(dead_code, reason = "the tests of whole programs use it")]
    pub(super) fn agreeing(self) -> Self {
        Self { wish: Some(wish_of(self.namespace)), ..self }
    }

    /// Whether a member may get these calls. Leases that were granted among them are the tenant's.
    pub(super) fn check<'c>(&mut self, calls: impl IntoIterator<Item = &'c Call> + Clone) -> Result<(), String> {
        self.learn(calls.clone());
        calls.into_iter().try_for_each(|call| self.allows(call))
    }

    /// Notes the leases that were granted to the tenant among these calls.
    pub(super) fn learn<'c>(&mut self, calls: impl IntoIterator<Item = &'c Call>) {
        for call in calls.into_iter().filter(|call| call.path == PUT) {
            if let Some(put) = call.frames().0.first().and_then(|(_, message)| PutRequest::decode(message.clone()).ok())
                && put.key.starts_with(self.marks.as_bytes())
            {
                self.own.insert(put.lease);
            }
        }
    }

    /// Whether a member may get this call.
    pub(super) fn allows(&self, call: &Call) -> Result<(), String> {
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
            let all_within = watches_of(call).iter().all(|create| self.is_within(&create.key, &create.range_end));
            return if all_within { Ok(()) } else { wrong("a watch outside") };
        }
        if call.path == KEEP_ALIVE {
            let ids =
                frames.iter().map(|(_, message)| decoded::<LeaseKeepAliveRequest>(message).map(|request| request.id));
            let ids = ids.collect::<Result<Vec<_>, _>>()?;
            return if ids.iter().all(|id| self.own.contains(id)) { Ok(()) } else { wrong("a foreign lease") };
        }
        let ([(_, message)], []) = (&frames[..], behind) else { return wrong("not one message") };
        let is_lawful = match call.path.as_str() {
            "/etcdserverpb.KV/Range" | "/etcdserverpb.KV/RangeStream" => {
                let RangeRequest { key, range_end, .. } = decoded(message)?;
                self.is_within(&key, &range_end)
                    || is_below(&self.marks, &key, &range_end)
                    || self.wish.is_some() && key == WISHES && is_below(WISHES, &key, &range_end)
                    || self.is_wish(&key) && range_end.is_empty()
            }
            PUT => {
                let PutRequest { key, lease, .. } = decoded(message)?;
                let is_mark = key == format!("{}{lease:016x}", self.marks);
                is_mark || self.is_wish(&key) || self.is_within(&key, b"") && self.is_own(lease)
            }
            "/etcdserverpb.KV/DeleteRange" => {
                let DeleteRangeRequest { key, range_end, .. } = decoded(message)?;
                self.is_within(&key, &range_end)
            }
            TXN => {
                let txn = decoded(message)?;
                self.is_txn_within(&txn) || self.notes_activity(&txn) || self.looks_for_leases(&txn)
            }
            "/etcdserverpb.Lease/LeaseGrant" => decoded::<LeaseGrantRequest>(message).is_ok(),
            "/etcdserverpb.Lease/LeaseRevoke" => self.is_own(decoded::<LeaseRevokeRequest>(message)?.id),
            "/etcdserverpb.Lease/LeaseTimeToLive" => self.is_own(decoded::<LeaseTimeToLiveRequest>(message)?.id),
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

    /// Whether every key of the range begins with the prefix. No key at all, as an error that the member words, is fine.
    fn is_within(&self, key: &[u8], range_end: &[u8]) -> bool {
        key.is_empty() && range_end.is_empty() || is_below(self.namespace, key, range_end)
    }

    /// Whether the lease is none, the tenant's or nobody's.
    fn is_own(&self, lease: i64) -> bool {
        lease == 0 || lease <= -(1 << 62) || self.own.contains(&lease)
    }

    /// Whether the key is that of its wish.
    fn is_wish(&self, key: &[u8]) -> bool {
        self.wish.as_ref().is_some_and(|wish| key == wish.as_bytes())
    }

    /// Whether all that it reads and writes is the wish of the tenant.
    fn notes_activity(&self, txn: &TxnRequest) -> bool {
        txn.compare.iter().all(|compare| self.is_wish(&compare.key) && compare.range_end.is_empty())
            && txn.success.iter().chain(&txn.failure).all(|operation| match &operation.request {
                Some(request_op::Request::RequestPut(put)) => self.is_wish(&put.key),
                _ => false,
            })
    }

    /// Whether all it does is to look for leases of the tenant.
    fn looks_for_leases(&self, txn: &TxnRequest) -> bool {
        let looks = |operation: &RequestOp| match &operation.request {
            Some(request_op::Request::RequestRange(range)) => is_below(&self.marks, &range.key, &range.range_end),
            _ => false,
        };
        txn.compare.is_empty() && txn.failure.is_empty() && txn.success.iter().all(looks)
    }

    fn is_txn_within(&self, txn: &TxnRequest) -> bool {
        txn.compare.iter().all(|compare| self.is_within(&compare.key, &compare.range_end))
            && txn.success.iter().chain(&txn.failure).all(|operation| match &operation.request {
                Some(request_op::Request::RequestRange(range)) => self.is_within(&range.key, &range.range_end),
                Some(request_op::Request::RequestPut(put)) => self.is_within(&put.key, b"") && self.is_own(put.lease),
                Some(request_op::Request::RequestDeleteRange(delete)) => self.is_within(&delete.key, &delete.range_end),
                Some(request_op::Request::RequestTxn(txn)) => self.is_txn_within(txn),
                None => true,
            })
    }
}

fn decoded<M: Message + Default>(message: &Bytes) -> Result<M, String> {
    M::decode(message.clone()).map_err(|error| format!("{error}: {message:x?}"))
}

fn is_below(prefix: &str, key: &[u8], range_end: &[u8]) -> bool {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix") += 1;
    key.starts_with(prefix.as_bytes()) && (range_end.is_empty() || range_end != b"\0" && range_end <= &end[..])
}

/// The watches that a call asks for.
fn watches_of(call: &Call) -> Vec<WatchCreateRequest> {
    let (frames, _) = call.frames();
    let requests = frames.into_iter().map(|(_, message)| WatchRequest::decode(message).expect("a watch request"));
    requests
        .filter_map(|request| match request.request_union {
            Some(watch_request::RequestUnion::CreateRequest(create)) => Some(create),
            _ => None,
        })
        .collect()
}
