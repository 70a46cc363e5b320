use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::types::Revision;

/// Hashes of finished compactions that are kept.
const CACHED: usize = 10;

/// The hash of the history up to a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C.
    pub hash: u32,
    /// Compaction in force for this hash; -1 for none.
    pub compact_revision: Revision,
    /// Newest revision hashed.
    pub hash_revision: Revision,
}

/// The newest hashes computed at compactions, by revision.
#[derive(Default)]
pub(super) struct HashCache(Mutex<VecDeque<HashKv>>);

impl HashCache {
    /// Adds one; the oldest goes when there are more than are kept.
    pub(super) fn store(&self, hash: HashKv) {
        let mut hashes = self.0.lock();
        let at = hashes.partition_point(|other| other.hash_revision < hash.hash_revision);
        hashes.insert(at, hash);
        if hashes.len() > CACHED {
            hashes.pop_front();
        }
    }

    /// The one of the compaction at `revision`.
    pub(super) fn at(&self, revision: Revision) -> Option<HashKv> {
        self.0.lock().iter().find(|hash| hash.hash_revision == revision).copied()
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Vec<HashKv> {
        self.0.lock().iter().copied().collect()
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}
