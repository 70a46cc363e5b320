//! The store as apply, its only writer, sees it.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::index::{Past, Spot, TOMBSTONE};
use super::pins::NODES_PER_WRITE_BYTES;
use super::reader::{Snapshot, StoreReader};
use super::record::{Draft, Record, deletion, tombstone};
use super::view::{Found, Shared, State, View};
use crate::core::backend::{Change, Table};
use crate::types::{Key, KeyRange, LeaseId, RecordId, Revision};

/// Tells whether a lease exists, at the moment of the call.
pub trait LeaseView {
    /// Whether `id` was granted and not revoked.
    fn exists(&self, id: LeaseId) -> bool;
}

impl<F: Fn(LeaseId) -> bool> LeaseView for F {
    fn exists(&self, id: LeaseId) -> bool {
        self(id)
    }
}

/// What a write did.
#[derive(Debug, Default)]
pub struct Written<R> {
    /// The answer; its header has the revision only.
    pub response: R,
    /// Rows for the backend; empty when nothing was written.
    pub changes: Vec<Change>,
    /// What watchers see; none when nothing was written.
    pub events: Option<RevisionEvents>,
    /// Keys that changed their lease, in the order of the writes.
    pub lease_moves: Vec<LeaseMove>,
    /// For metrics.
    pub operations: OperationCounts,
}

/// Operations as etcd counts them: a delete of a range is one, and so is each comparison of a transaction, as a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationCounts {
    /// Reads of a key or range.
    pub ranges: u64,
    /// Writes of a key.
    pub puts: u64,
    /// Deletes of a key or range.
    pub deletes: u64,
    /// Groups of more than one operation; the comparisons of a transaction are a group of their own.
    pub txns: u64,
    /// Bytes of keys and values written.
    pub put_bytes: u64,
}

impl OperationCounts {
    /// A group of reads.
    pub fn reads(ranges: usize) -> Self {
        Self { ranges: ranges as u64, txns: u64::from(ranges > 1), ..Self::default() }
    }

    /// Adds other operations.
    pub fn add(&mut self, other: &Self) {
        self.ranges += other.ranges;
        self.puts += other.puts;
        self.deletes += other.deletes;
        self.txns += other.txns;
        self.put_bytes += other.put_bytes;
    }
}

/// A key that was detached from one lease and attached to another; 0 stands for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseMove {
    /// The key.
    pub key: Key,
    /// Lease it was attached to.
    pub from: LeaseId,
    /// Lease it is attached to now.
    pub to: LeaseId,
}

/// All events of one revision, in the order of the writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionEvents {
    /// Revision of the events.
    pub revision: Revision,
    /// At least one.
    pub events: Vec<StoreEvent>,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was deleted.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreEvent {
    /// Put or delete.
    pub kind: EventKind,
    /// The key.
    pub key: Key,
    /// Encoded `KeyValue` after the change; of a deleted key it holds the key and the revision.
    pub kv: Bytes,
    /// Encoded `KeyValue` before this revision; none on creation.
    pub prev_kv: Option<Bytes>,
    /// The put that created the key.
    pub created: bool,
}

/// The multi-version store, owned by apply.
///
/// Writes change a private copy; [`publish`](Self::publish) shows it to readers. The caller of a write submits its
/// `changes` to the backend before the next call: replaced versions are read back from there.
pub struct Store {
    pub(super) state: State,
    pub(super) shared: Arc<Shared>,
    pub(super) scratch: Vec<u8>,
    /// A compaction that an earlier process did not finish: its revision, and that of the one before.
    pub(super) unfinished: Option<(Revision, Revision)>,
}

impl Store {
    pub(super) fn with_state(state: State, unfinished: Option<(Revision, Revision)>) -> Self {
        let shared = Shared {
            published: ArcSwap::from_pointee(state.clone()),
            holds: Default::default(),
            hashes: Default::default(),
            pins: Default::default(),
        };
        Self { state, shared: Arc::new(shared), scratch: Vec::new(), unfinished }
    }

    /// Reads what is published; cheap to clone.
    pub fn reader(&self) -> StoreReader {
        StoreReader { shared: Arc::clone(&self.shared) }
    }

    /// Newest revision, published or not.
    pub fn revision(&self) -> Revision {
        self.state.revision
    }

    /// Revision of the last compaction; -1 before the first.
    pub fn compacted(&self) -> Revision {
        self.state.compacted
    }

    /// Keys that exist.
    pub fn len(&self) -> usize {
        self.state.live.len()
    }

    /// Whether no key exists.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Publishes everything written so far to readers. Called once per batch of entries.
    pub fn publish(&mut self) {
        self.shared.published.store(Arc::new(self.state.clone()));
    }

    /// The state as it is now, published or not.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot { state: Arc::new(self.state.clone()), shared: Arc::clone(&self.shared) }
    }

    pub(super) fn view(&self) -> View<'_> {
        View { state: &self.state, shared: &self.shared }
    }
}

/// The writes of one revision.
///
/// Everything that can be refused is refused before one of these exists.
pub(super) struct Batch<'s> {
    pub store: &'s mut Store,
    /// Newest revision before this batch.
    pub begin: Revision,
    changes: Vec<Change>,
    events: Vec<StoreEvent>,
    lease_moves: Vec<LeaseMove>,
    pub operations: OperationCounts,
    /// Pairs before this revision of the keys written; kept only when a key may be written twice.
    before: Option<HashMap<Key, Option<Bytes>>>,
}

impl<'s> Batch<'s> {
    pub(super) fn new(store: &'s mut Store, keys_may_repeat: bool) -> Self {
        let begin = store.state.revision;
        let before = keys_may_repeat.then(HashMap::new);
        Self {
            store,
            begin,
            changes: Vec::new(),
            events: Vec::new(),
            lease_moves: Vec::new(),
            operations: OperationCounts::default(),
            before,
        }
    }

    /// The state with the writes of this batch; its revision counts them.
    pub(super) fn view(&self) -> View<'_> {
        self.store.view()
    }

    /// Revision of this batch if it has written anything, else the one before.
    pub(super) fn revision(&self) -> Revision {
        self.store.state.revision
    }

    pub(super) fn finish<R>(self, response: R) -> Written<R> {
        let events =
            (!self.events.is_empty()).then(|| RevisionEvents { revision: self.begin.next(), events: self.events });
        let OperationCounts { ranges, puts, deletes, .. } = self.operations;
        let operations = OperationCounts { txns: u64::from(ranges + puts + deletes > 1), ..self.operations };
        Written { response, changes: self.changes, events, lease_moves: self.lease_moves, operations }
    }

    fn next_id(&mut self) -> RecordId {
        let main = self.begin.next();
        self.store.state.revision = main;
        self.store.state.replaced_bytes += NODES_PER_WRITE_BYTES;
        RecordId::new(main, self.changes.len() as i64)
    }

    /// Writes a version; returns the encoded pair it replaces.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8], lease: LeaseId) -> Option<Bytes> {
        self.operations.puts += 1;
        self.operations.put_bytes += (key.len() + value.len()) as u64;
        let id = self.next_id();
        let (mut create, mut old_lease, mut encoded) = (id.main, LeaseId(0), Bytes::new());
        let Store { state, scratch, .. } = &mut *self.store;
        let replaced = state.live.insert_with(key, |old, _| {
            let mut version = 1;
            if let Some(old) = old.map(Record::fields) {
                (create, old_lease) = (Revision(old.create), LeaseId(old.lease));
                version = old.version.saturating_add(1);
            }
            let record = Record::new(Draft { key, value, create, version, lease }, id, scratch);
            encoded = record.bytes();
            record
        });
        let owned = key_of(&encoded, key.len());

        let previous = replaced.as_ref().map(Record::bytes);
        if let Some(replaced) = replaced {
            self.store.state.retire(&replaced, id.main);
        }
        if old_lease != lease {
            self.lease_moves.push(LeaseMove { key: owned.clone(), from: old_lease, to: lease });
        }
        let created = create == id.main;
        let before = self.before_revision(&owned, &previous);
        self.changes.push(row(id, false, encoded.clone()));
        self.events.push(StoreEvent {
            kind: EventKind::Put,
            key: owned,
            kv: encoded,
            prev_kv: if created { None } else { before },
            created,
        });
        previous
    }

    /// The encoded pairs of a range, in key order.
    pub(super) fn pairs(&self, range: &KeyRange) -> Vec<Bytes> {
        self.live(range).map(Record::bytes).collect()
    }

    fn live<'v>(&'v self, range: &'v KeyRange) -> impl Iterator<Item = &'v Record> {
        self.view().walk(range, Revision(i64::MAX)).filter_map(|found| match found {
            Found::Live(record) => Some(record),
            Found::Past(_) => None,
        })
    }

    /// Deletes all keys of a range, in key order; returns how many there were.
    pub(super) fn delete(&mut self, range: &KeyRange) -> usize {
        let keys: Vec<Key> = self.live(range).map(|record| key_of(&record.bytes(), record.key().len())).collect();
        for key in &keys {
            self.delete_one(key);
        }
        keys.len()
    }

    pub(super) fn delete_one(&mut self, key: &Key) -> bool {
        let Some(record) = self.store.state.live.remove(key) else {
            return false;
        };
        let id = self.next_id();
        let old_lease = LeaseId(record.fields().lease);
        self.store.state.retire(&record, id.main);
        self.store.state.bury(key, id);
        if old_lease != LeaseId(0) {
            self.lease_moves.push(LeaseMove { key: key.clone(), from: old_lease, to: LeaseId(0) });
        }
        let prev_kv = self.before_revision(key, &Some(record.bytes()));
        self.changes.push(row(id, true, tombstone(key)));
        let kv = deletion(key, id.main);
        self.events.push(StoreEvent { kind: EventKind::Delete, key: key.clone(), kv, prev_kv, created: false });
        true
    }

    /// The pair before this revision, given the pair before this write.
    fn before_revision(&mut self, key: &Key, replaced: &Option<Bytes>) -> Option<Bytes> {
        match &mut self.before {
            None => replaced.clone(),
            Some(before) => before.entry(key.clone()).or_insert_with(|| replaced.clone()).clone(),
        }
    }
}

impl State {
    /// Moves a version that was replaced at `until` to the past versions.
    pub(super) fn retire(&mut self, record: &Record, until: Revision) {
        self.replaced_bytes += record.as_ref().len() as u64;
        let (key, id) = (record.key(), record.id());
        self.remember(key, id, until.0, false);
    }

    /// Records a tombstone among the past versions, so that compaction finds its row.
    pub(super) fn bury(&mut self, key: &[u8], id: RecordId) {
        self.remember(key, id, TOMBSTONE, true);
    }

    fn remember(&mut self, key: &[u8], id: RecordId, until: i64, tombstone: bool) {
        let (main, sub) = (id.main.0, u32::try_from(id.sub).unwrap_or(u32::MAX));
        self.past.insert_with(Spot { key, main, sub }, |_, before| {
            let key = match before {
                Some(past) if past.key.as_ref() == key => Arc::clone(&past.key),
                _ => Arc::from(key),
            };
            Past { key, main, sub, tombstone, until }
        });
    }
}

/// The key within an encoded pair: a view of the same bytes.
fn key_of(encoded: &Bytes, len: usize) -> Key {
    // Tag, then the length as a varint of seven bits a byte.
    let at = 1 + (usize::BITS - len.leading_zeros()).div_ceil(7).max(1) as usize;
    if len == 0 { Key::new() } else { encoded.slice(at..at + len) }
}

fn row(id: RecordId, tombstone: bool, value: Bytes) -> Change {
    let mut key = Vec::with_capacity(18);
    key.extend_from_slice(&id.to_bytes());
    if tombstone {
        key.push(b't');
    }
    Change::put(Table::Key, key, value)
}
