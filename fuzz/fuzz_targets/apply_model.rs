//! Requests of the log, applied by the program and by the reference model of the simulator: the same answers, and the same state
//! at every revision.
#![no_main]

#[allow(dead_code)]
#[path = "../../tests/sim/model.rs"]
mod model;

use std::sync::Arc;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use model::{Model, Reply, TTL_MIN, recode};
use parking_lot::RwLock;
use prost::Message;
use watershed::core::alarm::AlarmStore;
use watershed::core::apply::{Applier, ApplierConfig, Batch, open_leases};
use watershed::core::auth::AuthStore;
use watershed::core::backend::Backend;
use watershed::core::cluster::ClusterStore;
use watershed::core::mvcc::{Store, check_txn};
use watershed::core::raft::{Committed, CommittedKind};
use watershed::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use watershed::pb::etcdserverpb::request_op::Request;
use watershed::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, InternalRaftRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
};
use watershed::types::{LogIndex, Term};

/// Choices, taken from the input.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    fn key(&mut self) -> Bytes {
        Bytes::from(vec![b'k', b'0' + self.byte() % 6])
    }

    fn range(&mut self) -> (Bytes, Bytes) {
        let key = self.key();
        let range_end = match self.byte() % 4 {
            0 | 1 => Bytes::new(),
            2 => self.key(),
            _ => Bytes::from_static(b"\0"),
        };
        (key, range_end)
    }

    fn put(&mut self) -> PutRequest {
        let (key, choice) = (self.key(), self.byte());
        let value = Bytes::from(vec![choice; usize::from(choice % 5)]);
        let lease = if choice.is_multiple_of(3) { i64::from(self.byte() % 4) } else { 0 };
        PutRequest { key, value, lease, prev_kv: choice.is_multiple_of(2), ..Default::default() }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, range_end) = self.range();
        DeleteRangeRequest { key, range_end, prev_kv: self.byte().is_multiple_of(2) }
    }

    fn compare(&mut self, model: &Model) -> Compare {
        let key = self.key();
        let number = if self.byte().is_multiple_of(2) { 0 } else { model.revision() - i64::from(self.byte() % 4) };
        let (target, union) = match self.byte() % 4 {
            0 => (CompareTarget::Mod, TargetUnion::ModRevision(number)),
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(number)),
            2 => (CompareTarget::Version, TargetUnion::Version(number % 4)),
            _ => (CompareTarget::Value, TargetUnion::Value(Bytes::from(vec![self.byte(); 1]))),
        };
        let (result, target) = (CompareResult::Equal.into(), target.into());
        Compare { result, target, key, target_union: Some(union), ..Default::default() }
    }

    fn ops(&mut self) -> Vec<RequestOp> {
        let count = self.byte() % 4;
        let op = |_| {
            let request = match self.byte() % 3 {
                0 => Request::RequestPut(self.put()),
                1 => Request::RequestDeleteRange(self.delete()),
                _ => {
                    let (key, range_end) = self.range();
                    Request::RequestRange(RangeRequest { key, range_end, ..Default::default() })
                }
            };
            RequestOp { request: Some(request) }
        };
        (0..count).map(op).collect()
    }

    fn request(&mut self, id: u64, model: &Model) -> InternalRaftRequest {
        let mut request = InternalRaftRequest { id, ..Default::default() };
        match self.byte() % 16 {
            0..5 => request.put = Some(self.put()),
            5..7 => request.delete_range = Some(self.delete()),
            7..12 => {
                let compare = (0..self.byte() % 3).map(|_| self.compare(model)).collect();
                request.txn = Some(TxnRequest { compare, success: self.ops(), failure: self.ops() });
            }
            12 => {
                let revision = model.revision() + 1 - i64::from(self.byte() % 8);
                request.compaction = Some(CompactionRequest { revision: revision.max(1), ..Default::default() });
            }
            13 => {
                let (id, ttl) = (i64::from(self.byte() % 3) + 1, i64::from(self.byte() % 20) + 1);
                request.lease_grant = Some(LeaseGrantRequest { id, ttl });
            }
            _ => request.lease_revoke = Some(LeaseRevokeRequest { id: i64::from(self.byte() % 3) + 1 }),
        }
        request
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let backend = Backend::in_memory().expect("a state");
    let store = Store::open(backend.clone()).expect("an empty state");
    let reader = store.reader();
    let leases = Arc::new(RwLock::new(open_leases(&backend, &store, TTL_MIN).expect("an empty state")));
    let config = ApplierConfig { quota_bytes: -1 };
    let auth = AuthStore::open(&backend).expect("an empty state");
    let mut applier =
        Applier::new(store, leases.clone(), ClusterStore::default(), AlarmStore::default(), auth, backend, config);
    let mut model = Model::default();
    let (mut index, mut compactions) = (0, Vec::new());
    while !input.0.is_empty() && index < 200 {
        let request = input.request(index + 1, &model);
        if request.txn.as_ref().is_some_and(|txn| check_txn(txn, 128).is_err()) {
            continue;
        }
        index += 1;
        let kind = CommittedKind::Request(request.encode_to_vec().into());
        let mut batch = Batch::default();
        applier.apply(Committed { index: LogIndex(index), term: Term(1), kind }, &mut batch).expect("no fault");
        applier.store().publish();
        compactions.append(&mut batch.compactions);
        if let Some(compaction) = compactions.last_mut() {
            let _ = applier.compaction_slice(compaction, usize::from(input.byte() % 4) + 1);
        }
        let (_, outcome) = batch.outcomes.pop().expect("the outcome of the request");
        let expected = model.apply(&request);
        assert_eq!(Reply::of(&outcome), expected, "{request:?}");
        let revision = model.revision();
        let everything = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        let shown: RangeResponse = recode(&reader.snapshot().range(&everything).expect("the newest revision"));
        assert_eq!(shown, model.range(&everything, revision, revision));
        let held: Vec<i64> = leases.read().all().iter().map(|lease| lease.id.0).collect();
        assert!(held.iter().eq(model.leases.keys()), "{held:?}");
        // One older revision, compacted or not.
        let at = (revision - i64::from(input.byte() % 16)).max(1);
        let older = RangeRequest { revision: at, ..everything };
        match reader.snapshot().range(&older) {
            Ok(shown) => {
                assert!(at >= model.compacted, "{at} is compacted at {}", model.compacted);
                assert_eq!(recode::<RangeResponse>(&shown), model.range(&older, at, revision));
            }
            Err(error) => assert!(at < model.compacted, "{at}: {error}"),
        }
    }
});
