//! The hash of the key-value history, etcd's value bit for bit.
//!
//! CRC-32C over the word `key` and then name and value of every stored row up to a revision, except rows at or below
//! the last compaction that the newest state up to that revision does not need. So the value does not depend on how
//! far the removal of compacted rows has got, and members agree on it.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::MvccError;
use super::hash_cache::HashKv;
use super::holds::Hold;
use super::index::Spot;
use super::reader::StoreReader;
use super::record::Fields;
use super::view::{Shared, State, View};
use crate::types::{KeyRange, RecordId, Revision};

/// What is hashed before the rows: the name of etcd's bucket.
const PREFIX: &[u8] = b"key";

impl StoreReader {
    /// Hashes the history up to `revision` (0: the newest, negative: none of it); also returns the newest revision.
    /// Reads all rows, and waits for a compaction that other hashes have held: for a thread that may block.
    ///
    /// Always over the rows there are now: what a check of those rows needs.
    ///
    /// # Errors
    /// A future or compacted revision.
    pub fn hash_kv(&self, revision: Revision) -> Result<(HashKv, Revision), MvccError> {
        // Held before the look at the state, so that nothing which that state needs is removed any more.
        let _held = self.shared.holds.for_reader();
        let snapshot = self.snapshot();
        if revision.0 < 0 {
            let compact_revision = snapshot.compacted();
            let nothing = HashKv { hash: crc32c::crc32c(PREFIX), compact_revision, hash_revision: revision };
            return Ok((nothing, snapshot.revision()));
        }
        let at = snapshot.view().at(revision.0)?;
        let hash = hash(snapshot.view(), at, snapshot.compacted(), false)?;
        Ok((hash, snapshot.revision()))
    }

    /// As etcd answers `HashKV`: the revision of one of the last ten compactions since the start has the hash that was computed
    /// at that compaction, also when later ones have removed it; every other one is hashed by [`hash_kv`](Self::hash_kv).
    /// Revision 0 is always the newest one, also after a compaction at 0.
    ///
    /// # Errors
    /// As `hash_kv`.
    pub fn answered_hash_kv(&self, revision: Revision) -> Result<(HashKv, Revision), MvccError> {
        match self.shared.hashes.at(revision) {
            Some(hash) if revision.0 != 0 => Ok((hash, self.snapshot().revision())),
            _ => self.hash_kv(revision),
        }
    }

    /// The hashes of the newest compactions, oldest first; members compare them.
    pub fn compaction_hashes(&self) -> Vec<HashKv> {
        self.shared.hashes.all()
    }
}

/// The hash that a compaction leaves behind, not yet computed; holds the removal of rows until it is dropped.
pub struct CompactionHash {
    before: Arc<State>,
    shared: Arc<Shared>,
    at: Revision,
    previous: Revision,
    _hold: Hold,
}

impl CompactionHash {
    pub(super) fn new(before: Arc<State>, shared: Arc<Shared>, at: Revision, previous: Revision) -> Self {
        let hold = shared.holds.for_compaction();
        Self { before, shared, at, previous, _hold: hold }
    }

    /// Computes and caches the hash; reads all rows.
    ///
    /// # Errors
    /// When the rows cannot be read.
    pub fn run(self) -> Result<HashKv, MvccError> {
        let view = View { state: &self.before, shared: &self.shared };
        let hash = hash(view, self.at, self.previous, true)?;
        self.shared.hashes.store(hash);
        Ok(hash)
    }
}

/// With `compacting` this is the hash of a compaction at `at`; tombstones of that revision then count as needed.
fn hash(view: View<'_>, at: Revision, compacted: Revision, compacting: bool) -> Result<HashKv, MvccError> {
    let everything = KeyRange::From(Default::default());
    let bump = |at: Revision| view.state.bumps.iter().rev().find(|bump| bump.main <= at);
    let needs_any = view.count(&everything, at) > 0 || bump(at).is_some() || (compacting && buries_at(view, at));
    // When the state at `at` needs nothing, etcd leaves nothing out that its last compaction has left.
    let needed_at = if needs_any { at } else { compacted };
    let mut sum = crc32c::crc32c(PREFIX);
    let mut broken = None;
    view.state.backend.scan(RecordId::default(), at, &mut |id, tombstone, value| {
        if id.main <= compacted {
            if tombstone {
                // Those below are gone after the compaction, that at it may be.
                return ControlFlow::Continue(());
            }
            // To etcd these are versions of the empty key.
            if value.is_empty() && bump(needed_at) != Some(&id) {
                return ControlFlow::Continue(());
            }
            let Some(fields) = Fields::parse(value) else {
                broken = Some(MvccError::Corrupt { id, problem: "not in etcd's encoding" });
                return ControlFlow::Break(());
            };
            if !value.is_empty() && !is_newest(view, &value[fields.key], id, needed_at) {
                return ControlFlow::Continue(());
            }
        }
        sum = crc32c::crc32c_append(sum, &id.to_bytes());
        if tombstone {
            sum = crc32c::crc32c_append(sum, b"t");
        }
        sum = crc32c::crc32c_append(sum, value);
        ControlFlow::Continue(())
    })?;
    match broken {
        Some(error) => Err(error),
        None => Ok(HashKv { hash: sum, compact_revision: compacted, hash_revision: at }),
    }
}

/// Whether version `id` of `key` is what a reader at `at` would see.
fn is_newest(view: View<'_>, key: &[u8], id: RecordId, at: Revision) -> bool {
    if let Some(record) = view.state.live.get(key)
        && record.id() == id
    {
        return true;
    }
    let sub = u32::try_from(id.sub).unwrap_or(u32::MAX);
    let past = view.state.past.get(Spot { key, main: id.main.0, sub });
    past.is_some_and(|past| past.until > at.0)
}

fn buries_at(view: View<'_>, at: Revision) -> bool {
    view.state.past.from(Spot::first(b"")).any(|past| past.tombstone && past.main == at.0)
}
