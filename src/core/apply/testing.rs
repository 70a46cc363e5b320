//! A state and an observer for the tests of this room.

use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use prost::Message;

use super::{AppliedRequest, Applier, ApplierConfig, ApplyObserver, LeaseFact, open_leases};
use crate::core::alarm::AlarmStore;
use crate::core::auth::AuthStore;
use crate::core::backend::Backend;
use crate::core::cluster::ClusterStore;
use crate::core::mvcc::{OperationCounts, RevisionEvents, Store, StoreReader};
use crate::core::raft::{Committed, CommittedKind, MembersDecision};
use crate::pb::etcdserverpb::{CompactionRequest, InternalRaftRequest, PutRequest};
use crate::types::{LogIndex, Revision, Term};

#[derive(Default)]
pub(super) struct TestObserver {
    pub reader: Option<StoreReader>,
    /// What readers saw when a snapshot was about to replace it, and the leases there were then.
    pub before_snapshot: Option<(Revision, usize)>,
    /// Up to where batches went, and the thread that applied them.
    pub batches: Arc<Mutex<Vec<(LogIndex, ThreadId)>>>,
    /// A batch that reaches this panics.
    pub panics_from: Option<LogIndex>,
    pub failed: Arc<Mutex<Vec<String>>>,
}

impl ApplyObserver for TestObserver {
    fn applied_request(&mut self, _: &AppliedRequest, _: Duration) {}
    fn operations(&mut self, _: &OperationCounts) {}
    fn events(&mut self, _: Vec<RevisionEvents>) {}
    fn leases(&mut self, _: &[LeaseFact]) {}
    fn members_decided(&mut self, _: Vec<MembersDecision>) {}
    fn records(&mut self, _: &ClusterStore, _: &AlarmStore) {}
    fn installing(&mut self, applier: &Applier) {
        self.before_snapshot = self.reader.as_ref().map(|reader| (reader.revision(), applier.leases().len()));
    }
    fn installed(&mut self, _: &Applier) {}
    fn applied(&mut self, index: LogIndex) {
        self.batches.lock().push((index, thread::current().id()));
        assert!(self.panics_from.is_none_or(|from| index < from), "as the test wants");
    }
    fn over_quota(&mut self) {}
    fn compaction_slice(&mut self, _: Duration) {}
    fn compacted(&mut self, _: usize, _: Duration) {}
    fn failed(&mut self, reason: String) {
        self.failed.lock().push(reason);
    }
}

/// One that has applied nothing.
pub(super) fn applier() -> (Backend, Applier) {
    let backend = Backend::in_memory().unwrap();
    let store = Store::open(backend.clone()).unwrap();
    let leases = Arc::new(RwLock::new(open_leases(&backend, &store, 1).unwrap()));
    let (auth, config) = (AuthStore::open(&backend).unwrap(), ApplierConfig { quota_bytes: -1 });
    let (cluster, alarms) = (ClusterStore::default(), AlarmStore::default());
    (backend.clone(), Applier::new(store, leases, cluster, alarms, auth, backend, config))
}

pub(super) fn put() -> InternalRaftRequest {
    let put = PutRequest { key: "k".into(), ..Default::default() };
    InternalRaftRequest { put: Some(put), ..Default::default() }
}

pub(super) fn compaction(revision: i64) -> InternalRaftRequest {
    let compaction = Some(CompactionRequest { revision, physical: true });
    InternalRaftRequest { compaction, ..Default::default() }
}

pub(super) fn entry(index: u64, request: &InternalRaftRequest) -> Committed {
    let kind = CommittedKind::Request(request.encode_to_vec().into());
    Committed { index: LogIndex(index), term: Term(1), kind }
}

/// The log of these requests.
pub(super) fn entries(requests: &[InternalRaftRequest]) -> Vec<Committed> {
    requests.iter().zip(1..).map(|(request, index)| entry(index, request)).collect()
}
