//! Past events for watchers that are behind.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::MvccError;
use super::index::Spot;
use super::reader::{Snapshot, StoreReader};
use super::record::{Fields, deletion};
use super::store::{EventKind, RevisionEvents, StoreEvent};
use crate::types::{KeyRange, RecordId, Revision};

/// Which events to read, and how many at a time.
#[derive(Clone, Debug)]
pub struct HistoryRequest {
    /// Keys of interest.
    pub range: KeyRange,
    /// First revision of interest.
    pub from: Revision,
    /// Most revisions in an answer.
    pub revisions_max: usize,
    /// Bytes of events after which the answer ends; one revision is never split.
    pub events_bytes_max: usize,
    /// Rows looked at after which the answer ends, also when few of them are of interest.
    pub rows_max: usize,
    /// Whether to look up the pairs before the events.
    pub prev_kv: bool,
}

/// A piece of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryBatch {
    /// Events of interest, by revision.
    pub revisions: Vec<RevisionEvents>,
    /// Every revision before this one is answered; ask again from here.
    pub next: Revision,
    /// Newest revision when this was read: the caller is caught up when `next` is above it.
    pub current: Revision,
}

impl StoreReader {
    /// Reads events of the past. Reads from the disk: for a thread that may block.
    ///
    /// Pairs before the events are those at the revision before; they are missing where compaction took them.
    ///
    /// # Errors
    /// `from` is compacted; rows that cannot be read.
    pub fn history(&self, request: &HistoryRequest) -> Result<HistoryBatch, MvccError> {
        let snapshot = self.snapshot();
        let from = Revision(request.from.0.max(1));
        let refuse = |compacted| Err(MvccError::Compacted { asked: request.from, compacted });
        if request.from < snapshot.compacted() {
            return refuse(snapshot.compacted());
        }
        let current = snapshot.revision();
        let next = current.next().max(from);
        let mut gathered = Gathered { revisions: Vec::new(), bytes: 0, rows: 0, at: Revision(0), next };
        let walked = match &request.range {
            _ if from > current => Ok(()),
            KeyRange::One(key) => gathered.walk_key(&snapshot, request, key, from),
            _ => gathered.walk_all(&snapshot, request, from),
        };
        // Rows go only after their compaction is published: if there is a new one, rows may have been missing.
        let compacted = self.compacted();
        if request.from < compacted {
            return refuse(compacted);
        }
        walked?;
        Ok(HistoryBatch { revisions: gathered.revisions, next: gathered.next, current })
    }
}

struct Gathered {
    revisions: Vec<RevisionEvents>,
    bytes: usize,
    rows: usize,
    /// Revision of the last row looked at.
    at: Revision,
    next: Revision,
}

impl Gathered {
    /// Looks at every row since `from`.
    fn walk_all(&mut self, snapshot: &Snapshot, request: &HistoryRequest, from: Revision) -> Result<(), MvccError> {
        let mut broken = Ok(());
        let current = snapshot.revision();
        snapshot.state.backend.scan(RecordId::new(from, 0), current, &mut |id, tombstone, row| {
            self.take(snapshot, request, id, tombstone, row).unwrap_or_else(|error| {
                broken = Err(error);
                ControlFlow::Break(())
            })
        })?;
        broken
    }

    /// Looks at the rows of one key, which the index knows.
    fn walk_key(
        &mut self,
        snapshot: &Snapshot,
        request: &HistoryRequest,
        key: &[u8],
        from: Revision,
    ) -> Result<(), MvccError> {
        let state = &snapshot.state;
        for past in state.past.from(Spot { key, main: from.0, sub: 0 }).take_while(|past| past.key.as_ref() == key) {
            let id = past.id();
            let row = state.backend.record(id)?.ok_or(MvccError::Corrupt { id, problem: "missing" })?;
            if self.take(snapshot, request, id, past.tombstone, &row)?.is_break() {
                return Ok(());
            }
        }
        if let Some(record) = state.live.get(key).filter(|record| record.modified() >= from) {
            let _ = self.take(snapshot, request, record.id(), false, &record.bytes())?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        snapshot: &Snapshot,
        request: &HistoryRequest,
        id: RecordId,
        tombstone: bool,
        row: &Bytes,
    ) -> Result<ControlFlow<()>, MvccError> {
        if id.main != self.at {
            // A new revision, the only place to end.
            self.at = id.main;
            let last_is_full = self.revisions.len() >= request.revisions_max;
            if last_is_full || self.bytes >= request.events_bytes_max || self.rows >= request.rows_max.max(1) {
                self.next = id.main;
                return Ok(ControlFlow::Break(()));
            }
        }
        self.rows += 1;
        if row.is_empty() {
            // The trace of a restore with `--bump-revision`.
            return Ok(ControlFlow::Continue(()));
        }
        let fields = Fields::parse(row).ok_or(MvccError::Corrupt { id, problem: "not in etcd's encoding" })?;
        let key = row.slice(fields.key.clone());
        if !request.range.contains(&key) {
            return Ok(ControlFlow::Continue(()));
        }
        let created = !tombstone && fields.create == fields.modified;
        let prev_kv =
            if request.prev_kv && !created { snapshot.view().pair_at(&key, Revision(id.main.0 - 1))? } else { None };
        let (kind, kv) =
            if tombstone { (EventKind::Delete, deletion(&key, id.main)) } else { (EventKind::Put, row.clone()) };
        self.bytes += kv.len() + prev_kv.as_ref().map_or(0, Bytes::len);
        let event = StoreEvent { kind, key, kv, prev_kv, created };
        match self.revisions.last_mut() {
            Some(last) if last.revision == id.main => last.events.push(event),
            _ => self.revisions.push(RevisionEvents { revision: id.main, events: vec![event] }),
        }
        Ok(ControlFlow::Continue(()))
    }
}
