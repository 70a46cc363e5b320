//! Compaction of history, in slices.

use std::sync::Arc;

use bytes::Bytes;

use super::MvccError;
use super::hash::CompactionHash;
use super::holds::Turn;
use super::index::{Past, Spot};
use super::store::{OperationCounts, Store, Written};
use super::view::State;
use crate::core::backend::{Change, Table};
use crate::tree::Entry;
use crate::types::{RecordId, Revision};

pub(super) const SCHEDULED: &[u8] = b"scheduledCompactRev";
pub(super) const FINISHED: &[u8] = b"finishedCompactRev";

/// A compaction whose revision is already in force and whose rows are still being removed.
pub struct Compaction {
    at: Revision,
    previous: Revision,
    /// The last version looked at.
    cursor: Option<<Past as Entry>::Separator>,
    /// The state as it was before, for the hash; none when the compaction was found half done at start.
    before: Option<Arc<State>>,
    removed: usize,
    /// What it gets once a hash has held it.
    turn: Option<Turn>,
}

/// How far a slice got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call again.
    More,
    /// A hash is being computed over rows that this would remove; call again later.
    Held,
    /// Nothing is left to remove.
    Done,
}

impl Compaction {
    fn resumed(at: Revision, previous: Revision) -> Self {
        Self { at, previous, cursor: None, before: None, removed: 0, turn: None }
    }

    /// The oldest revision kept.
    pub fn revision(&self) -> Revision {
        self.at
    }

    /// Rows removed so far.
    pub fn removed(&self) -> usize {
        self.removed
    }

    /// The hash of what this compaction ends; to be run on a thread that may block **before the first slice**.
    ///
    /// None for a compaction resumed at start, whose rows are partly gone, and on a second call.
    pub fn take_hash(&mut self, store: &Store) -> Option<CompactionHash> {
        let before = self.before.take()?;
        Some(CompactionHash::new(before, Arc::clone(&store.shared), self.at, self.previous))
    }
}

impl Store {
    /// Puts a compaction in force: after the next [`publish`](Self::publish), reads below `at` fail. The caller passes the
    /// answer to [`compaction_slice`](Self::compaction_slice) until that is done.
    ///
    /// # Errors
    /// `at` is not above the last compaction, or it is a future revision.
    pub fn compact(&mut self, at: Revision) -> Result<Written<Compaction>, MvccError> {
        let (current, compacted) = (self.state.revision, self.state.compacted);
        if at <= compacted {
            return Err(MvccError::Compacted { asked: at, compacted });
        }
        if at > current {
            return Err(MvccError::Future { asked: at, current });
        }
        let before = Some(Arc::new(self.state.clone()));
        self.state.compacted = at;
        let response = Compaction { at, previous: compacted, cursor: None, before, removed: 0, turn: None };
        let operations = OperationCounts::default();
        Ok(Written { response, changes: vec![mark(SCHEDULED, at)], events: None, lease_moves: Vec::new(), operations })
    }

    /// The compaction that an earlier process began and did not finish; at most once after opening.
    pub fn take_unfinished_compaction(&mut self) -> Option<Compaction> {
        self.unfinished.take().map(|(at, previous)| Compaction::resumed(at, previous))
    }

    /// Looks at up to `versions` replaced versions and removes those below the compacted revision. The removed rows go
    /// to the backend like those of a write; slices may run between any two entries of the log.
    pub fn compaction_slice(&mut self, compaction: &mut Compaction, versions: usize) -> (Progress, Vec<Change>) {
        // Rows may be removed only once readers refuse their revisions.
        if self.shared.published.load().compacted < self.state.compacted {
            self.publish();
        }
        if !self.shared.holds.admit_slice(&mut compaction.turn) {
            return (Progress::Held, Vec::new());
        }
        let (mut seen, mut last) = (0, None);
        let mut fallen = Vec::new();
        let rest = match &compaction.cursor {
            Some((key, main, sub)) => self.state.past.from(Spot { key, main: *main, sub: *sub }),
            None => self.state.past.from(Spot::first(b"")),
        };
        for past in rest.take(versions.max(2)) {
            seen += 1;
            last = Some(past);
            if past.falls_at(compaction.at) {
                fallen.push(past.clone());
            }
        }
        let done = seen < versions.max(2);
        compaction.cursor = last.map(Entry::separator);
        let mut changes = Vec::with_capacity(fallen.len() + 1);
        for past in &fallen {
            self.state.past.remove(past.spot());
            changes.push(removal(past));
        }
        compaction.removed += fallen.len();
        if done {
            compaction.before = None;
            compaction.turn = None;
            changes.push(mark(FINISHED, compaction.at));
        }
        (if done { Progress::Done } else { Progress::More }, changes)
    }
}

fn removal(past: &Past) -> Change {
    let mut key = past.id().to_bytes().to_vec();
    if past.tombstone {
        key.push(b't');
    }
    Change::delete(Table::Key, key)
}

/// The row by which a store compacts to `at` once it is opened.
pub fn compacted_at(at: Revision) -> Change {
    mark(SCHEDULED, at)
}

fn mark(name: &'static [u8], at: Revision) -> Change {
    let value = Bytes::copy_from_slice(&RecordId::new(at, 0).to_bytes());
    Change::put(Table::Meta, Bytes::from_static(name), value)
}
