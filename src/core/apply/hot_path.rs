//! Puts as apply sees them, for `benches/hot_paths.py`.

use std::sync::Arc;

use parking_lot::RwLock;
use prost::Message;

use super::{Applier, ApplierConfig, Batch, open_leases};
use crate::core::alarm::AlarmStore;
use crate::core::auth::AuthStore;
use crate::core::backend::Backend;
use crate::core::cluster::ClusterStore;
use crate::core::mvcc::Store;
use crate::core::raft::{Committed, CommittedKind};
use crate::pb::etcdserverpb::{InternalRaftRequest, PutRequest, RequestHeader};
use crate::types::{LogIndex, Term};

const PUTS: u64 = 1000;
/// Entries that are applied before their state is published, as many as 64 clients cause.
const BATCH: usize = 8;

fn applier() -> Applier {
    let backend = Backend::in_memory().unwrap();
    let store = Store::open(backend.clone()).unwrap();
    let leases = Arc::new(RwLock::new(open_leases(&backend, &store, 1).unwrap()));
    let auth = AuthStore::open(&backend).unwrap();
    let config = ApplierConfig { quota_bytes: -1 };
    Applier::new(store, leases, ClusterStore::default(), AlarmStore::default(), auth, backend, config)
}

/// A put of 256 bytes, one on each key.
fn entry(index: u64) -> Committed {
    let put = PutRequest {
        key: format!("/registry/{:06}", index % PUTS).into(),
        value: vec![b'v'; 256].into(),
        ..Default::default()
    };
    let header = RequestHeader { id: index, ..Default::default() };
    let request = InternalRaftRequest { header: Some(header), put: Some(put), ..Default::default() };
    let kind = CommittedKind::Request(request.encode_to_vec().into());
    Committed { index: LogIndex(index), term: Term(1), kind }
}

fn apply(applier: &mut Applier, entries: Vec<Committed>) -> usize {
    let mut events = 0;
    let mut batch = Batch::default();
    for (count, entry) in entries.into_iter().enumerate() {
        applier.apply(entry, &mut batch).unwrap();
        if count % BATCH == BATCH - 1 {
            applier.store().publish();
            events += batch.events.len();
            batch = Batch::default();
        }
    }
    events
}

#[inline(never)]
fn counted(applier: &mut Applier, entries: Vec<Committed>) -> usize {
    apply(applier, entries)
}

#[test]
fn put() {
    let mut applier = applier();
    apply(&mut applier, (1..=PUTS).map(entry).collect());
    let entries = (PUTS + 1..=2 * PUTS).map(entry).collect();
    assert_eq!(counted(&mut applier, entries), PUTS as usize);
}
