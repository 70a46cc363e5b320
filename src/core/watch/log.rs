use std::sync::Arc;

use super::history::{StoreHistory, log_batch};
use crate::core::mvcc::{RevisionEvents, StoreReader};
use crate::eventlog::{EventLog, Source};
use crate::types::Revision;

/// The event log of a member: one for the whole store. Cheap to clone.
#[derive(Clone)]
pub struct CoreWatch {
    source: Arc<Source>,
    reader: StoreReader,
}

impl CoreWatch {
    /// A log that begins at the published state, with at most `log_bytes_max` of the newest events in memory.
    pub fn new(reader: StoreReader, log_bytes_max: usize) -> Self {
        let history = StoreHistory::new(reader.clone());
        Self::with(reader, log_bytes_max, history)
    }

    /// The same without threads, for simulations: old events are read on the calling thread.
    pub fn inline(reader: StoreReader, log_bytes_max: usize) -> Self {
        let history = StoreHistory::inline(reader.clone());
        Self::with(reader, log_bytes_max, history)
    }

    fn with(reader: StoreReader, log_bytes_max: usize, history: StoreHistory) -> Self {
        let log = EventLog::new(reader.revision(), log_bytes_max);
        let source = Source::new(log, Arc::new(history));
        Self { source, reader }
    }

    /// Takes the events of applied revisions, in order. Called by the one thread that applies, after it published
    /// the revisions and before it answers their writers; does not wait for any watcher.
    pub fn append(&self, revisions: impl IntoIterator<Item = RevisionEvents>) {
        self.source.log().append(revisions.into_iter().map(|events| Arc::new(log_batch(events))));
    }

    /// The published state was replaced by a later one whose events were not appended. Watchers that have not seen
    /// them read them from the store, or are cancelled if they were compacted there.
    pub fn jump(&self) {
        self.source.log().compact(self.reader.compacted());
        self.source.log().jump(self.reader.revision());
    }

    /// Where watchers read.
    pub fn source(&self) -> Arc<Source> {
        // Compactions are not appended: a new watch is checked against the compacted revision of the store.
        self.source.log().compact(self.reader.compacted());
        self.source.clone()
    }

    /// The newest revision whose events watchers can see.
    pub fn revision(&self) -> Revision {
        self.source.log().head()
    }
}
