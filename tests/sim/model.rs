//! What the log means, written down a second time and as plainly as possible: the reference that answers, reads,
//! watches and states of the members are held against.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use watershed::core::apply::{Applied, ApplyError, CompactionInForce, GrantedLease};
use watershed::core::lease::LeaseError;
use watershed::core::mvcc::MvccError;
use watershed::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use watershed::pb::etcdserverpb::request_op::Request;
use watershed::pb::etcdserverpb::response_op::Response;
use watershed::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, InternalRaftRequest, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use watershed::pb::mvccpb::KeyValue;
use watershed::types::KeyRange;

/// The shortest lease, as in a member with an election timeout of a second.
pub const TTL_MIN: i64 = 2;

/// What a request brought about.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Put(PutResponse),
    Delete(DeleteRangeResponse),
    Txn(TxnResponse),
    Compacted {
        at: i64,
        revision: i64,
    },
    Granted {
        id: i64,
        ttl: i64,
        revision: i64,
    },
    Revoked {
        revision: i64,
    },
    Refused(&'static str),
    /// A record of the cluster's own.
    Other,
}

impl Reply {
    /// Puts what a member answered into the same words.
    pub fn of(outcome: &Result<Applied, ApplyError>) -> Self {
        match outcome {
            Ok(Applied::Put(answer)) => Self::Put(recode(answer)),
            Ok(Applied::DeleteRange(answer)) => Self::Delete(recode(answer)),
            Ok(Applied::Txn(answer)) => Self::Txn(recode(&answer.clone().read().expect("nothing is compacted"))),
            Ok(Applied::Compaction(CompactionInForce { at, revision })) => {
                Self::Compacted { at: at.0, revision: revision.0 }
            }
            Ok(Applied::LeaseGrant(GrantedLease { id, ttl, revision })) => {
                Self::Granted { id: id.0, ttl: *ttl, revision: revision.0 }
            }
            Ok(Applied::LeaseRevoke(revision)) => Self::Revoked { revision: revision.0 },
            Ok(_) => Self::Other,
            Err(ApplyError::Mvcc(MvccError::LeaseNotFound { .. })) => Self::Refused("no lease"),
            Err(ApplyError::Mvcc(MvccError::Compacted { .. })) => Self::Refused("compacted"),
            Err(ApplyError::Mvcc(MvccError::Future { .. })) => Self::Refused("future"),
            Err(ApplyError::Lease(LeaseError::NotFound { .. })) => Self::Refused("no lease"),
            Err(ApplyError::Lease(LeaseError::Exists { .. })) => Self::Refused("lease exists"),
            Err(_) => Self::Refused("other"),
        }
    }

    /// The revision it was answered at, if it says one.
    pub fn revision(&self) -> Option<i64> {
        let header = match self {
            Self::Put(answer) => &answer.header,
            Self::Delete(answer) => &answer.header,
            Self::Txn(answer) => &answer.header,
            Self::Revoked { revision } | Self::Granted { revision, .. } | Self::Compacted { revision, .. } => {
                return Some(*revision);
            }
            _ => return None,
        };
        header.as_ref().map(|header| header.revision)
    }
}

/// The wire form tells nothing of which of the two families of messages it was written from.
pub fn recode<T: Message + Default>(answer: &impl Message) -> T {
    T::decode(answer.encode_to_vec().as_slice()).expect("the same message")
}

/// One change of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub revision: i64,
    pub key: Bytes,
    /// None for a deletion.
    pub kv: Option<KeyValue>,
    pub prev: Option<KeyValue>,
}

/// Keys with their whole history, leases and what hangs on them.
#[derive(Default)]
pub struct Model {
    versions: BTreeMap<Bytes, Vec<(i64, Option<KeyValue>)>>,
    events: Vec<Event>,
    pub leases: BTreeMap<i64, BTreeSet<Bytes>>,
    /// 0 stands for 1, the revision of an empty store.
    written: i64,
    pub compacted: i64,
}

impl Model {
    pub fn revision(&self) -> i64 {
        self.written.max(1)
    }

    /// Events above `after` up to `upto` in a range.
    pub fn events(&self, range: &KeyRange, after: i64, upto: i64) -> Vec<&Event> {
        let from = self.events.partition_point(|event| event.revision <= after);
        let events = self.events[from..].iter().take_while(|event| event.revision <= upto);
        events.filter(|event| range.contains(&event.key)).collect()
    }

    /// What a range read at `at` answers; the header holds `header`.
    pub fn range(&self, request: &RangeRequest, at: i64, header: i64) -> RangeResponse {
        let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        let kvs: Vec<KeyValue> = self
            .versions
            .iter()
            .filter(|(key, _)| range.contains(key))
            .filter_map(|(_, versions)| {
                let upto = versions.partition_point(|(revision, _)| *revision <= at);
                versions[..upto].last().and_then(|(_, kv)| kv.clone())
            })
            .collect();
        RangeResponse { header: self::header(header), count: kvs.len() as i64, kvs, more: false }
    }

    pub fn apply(&mut self, request: &InternalRaftRequest) -> Reply {
        let before = self.revision();
        let main = before + 1;
        if let Some(put) = &request.put {
            if put.lease != 0 && !self.leases.contains_key(&put.lease) {
                return Reply::Refused("no lease");
            }
            return Reply::Put(PutResponse { header: header(main), ..self.put(put, main) });
        }
        if let Some(delete) = &request.delete_range {
            let answer = self.delete(delete, main);
            return Reply::Delete(DeleteRangeResponse { header: header(self.revision()), ..answer });
        }
        if let Some(txn) = &request.txn {
            return self.txn(txn, main);
        }
        if let Some(compaction) = &request.compaction {
            if compaction.revision > before {
                return Reply::Refused("future");
            }
            if compaction.revision <= self.compacted {
                return Reply::Refused("compacted");
            }
            self.compacted = compaction.revision;
            return Reply::Compacted { at: compaction.revision, revision: before };
        }
        if let Some(grant) = &request.lease_grant {
            if self.leases.contains_key(&grant.id) {
                return Reply::Refused("lease exists");
            }
            self.leases.insert(grant.id, BTreeSet::new());
            return Reply::Granted { id: grant.id, ttl: grant.ttl.max(TTL_MIN), revision: before };
        }
        if let Some(revoke) = &request.lease_revoke {
            let Some(keys) = self.leases.remove(&revoke.id) else { return Reply::Refused("no lease") };
            for key in keys {
                self.remove(&key, main);
            }
            return Reply::Revoked { revision: self.revision() };
        }
        Reply::Other
    }

    fn current(&self, key: &[u8]) -> Option<&KeyValue> {
        self.versions.get(key)?.last()?.1.as_ref()
    }

    fn write(&mut self, key: &Bytes, main: i64, kv: Option<KeyValue>) -> Option<KeyValue> {
        let versions = self.versions.entry(key.clone()).or_default();
        let prev = versions.last().and_then(|(_, kv)| kv.clone());
        versions.push((main, kv.clone()));
        self.written = main;
        if let Some(keys) = prev.as_ref().and_then(|prev| self.leases.get_mut(&prev.lease)) {
            keys.remove(key);
        }
        if let Some(keys) = kv.as_ref().and_then(|kv| self.leases.get_mut(&kv.lease)) {
            keys.insert(key.clone());
        }
        self.events.push(Event { revision: main, key: key.clone(), kv, prev: prev.clone() });
        prev
    }

    fn put(&mut self, request: &PutRequest, main: i64) -> PutResponse {
        let (create_revision, version) =
            self.current(&request.key).map_or((main, 0), |kv| (kv.create_revision, kv.version));
        let kv = KeyValue {
            key: request.key.clone(),
            value: request.value.clone(),
            create_revision,
            mod_revision: main,
            version: version + 1,
            lease: request.lease,
        };
        let prev = self.write(&request.key, main, Some(kv));
        PutResponse { header: None, prev_kv: prev.filter(|_| request.prev_kv) }
    }

    fn remove(&mut self, key: &Bytes, main: i64) -> Option<KeyValue> {
        self.current(key)?;
        self.write(key, main, None)
    }

    fn delete(&mut self, request: &DeleteRangeRequest, main: i64) -> DeleteRangeResponse {
        let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        let keys: Vec<Bytes> = self.versions.keys().filter(|key| range.contains(key)).cloned().collect();
        let gone: Vec<KeyValue> = keys.iter().filter_map(|key| self.remove(key, main)).collect();
        let deleted = gone.len() as i64;
        DeleteRangeResponse { header: None, deleted, prev_kvs: if request.prev_kv { gone } else { Vec::new() } }
    }

    fn txn(&mut self, request: &TxnRequest, main: i64) -> Reply {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &request.success } else { &request.failure };
        let puts = ops.iter().filter_map(|op| match &op.request {
            Some(Request::RequestPut(put)) => Some(put.lease),
            _ => None,
        });
        if puts.into_iter().any(|lease| lease != 0 && !self.leases.contains_key(&lease)) {
            return Reply::Refused("no lease");
        }
        let responses = ops.iter().map(|op| self.op(op, main)).collect();
        Reply::Txn(TxnResponse { header: header(self.revision()), succeeded, responses })
    }

    fn op(&mut self, op: &RequestOp, main: i64) -> ResponseOp {
        let response = match &op.request {
            // Until something is written, a transaction answers at the revision before it.
            Some(Request::RequestRange(range)) => Response::ResponseRange(self.range(range, i64::MAX, self.revision())),
            Some(Request::RequestPut(put)) => {
                let answer = self.put(put, main);
                Response::ResponsePut(PutResponse { header: header(self.revision()), ..answer })
            }
            Some(Request::RequestDeleteRange(delete)) => {
                let answer = self.delete(delete, main);
                Response::ResponseDeleteRange(DeleteRangeResponse { header: header(self.revision()), ..answer })
            }
            _ => unreachable!("clients of the simulation send no other operation"),
        };
        ResponseOp { response: Some(response) }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let kv = self.current(&compare.key);
        let equal = match (compare.target(), &compare.target_union) {
            (CompareTarget::Value, Some(TargetUnion::Value(value))) => kv.is_some_and(|kv| kv.value == value),
            (CompareTarget::Mod, Some(TargetUnion::ModRevision(at))) => kv.map_or(0, |kv| kv.mod_revision) == *at,
            (CompareTarget::Create, Some(TargetUnion::CreateRevision(at))) => {
                kv.map_or(0, |kv| kv.create_revision) == *at
            }
            (CompareTarget::Version, Some(TargetUnion::Version(at))) => kv.map_or(0, |kv| kv.version) == *at,
            other => unreachable!("clients of the simulation do not compare {other:?}"),
        };
        match compare.result() {
            CompareResult::Equal => equal,
            other => unreachable!("clients of the simulation do not compare {other:?}"),
        }
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}
