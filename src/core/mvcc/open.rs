//! Rebuilding the store from its rows.

use std::ops::ControlFlow;

use super::MvccError;
use super::compaction::{FINISHED, SCHEDULED};
use super::pins::WHOLE_STATE_BYTES;
use super::record::{Fields, Record};
use super::store::Store;
use super::view::State;
use crate::core::backend::{Backend, Table};
use crate::types::{LeaseId, RecordId, Revision};

impl Store {
    /// Rebuilds the store from the rows of a backend.
    ///
    /// # Errors
    /// Rows that cannot be read or make no sense.
    pub fn open(backend: Backend) -> Result<Self, MvccError> {
        let (state, unfinished) = load(backend)?;
        Ok(Self::with_state(state, unfinished))
    }

    /// Replaces the whole state by that of another backend, as when a snapshot arrives. Readers that exist go on, and see the
    /// new state once it is [published](Self::publish).
    ///
    /// # Errors
    /// As for [`open`](Self::open); the old state stays then.
    pub fn restore(&mut self, backend: Backend) -> Result<(), MvccError> {
        let replaced = self.state.replaced_bytes;
        (self.state, self.unfinished) = load(backend)?;
        self.state.replaced_bytes = replaced.saturating_add(WHOLE_STATE_BYTES);
        self.shared.hashes.clear();
        Ok(())
    }

    /// Every key that names a lease, with that lease; for rebuilding the leases at start.
    pub fn leased_keys(&self) -> impl Iterator<Item = (&[u8], LeaseId)> {
        let leased = |record: &Record| Some(LeaseId(record.fields().lease)).filter(|&lease| lease != LeaseId(0));
        self.state.live.from(b"".as_slice()).filter_map(move |record| Some((record.key(), leased(record)?)))
    }
}

fn load(backend: Backend) -> Result<(State, Option<(Revision, Revision)>), MvccError> {
    // The index names rows of this state: a reader that still holds it when another one is installed finds them.
    let backend = backend.pinned();
    let mut state = State::empty(backend.clone());
    let mut scratch = Vec::new();
    let mut broken = None;
    backend.scan(RecordId::default(), Revision(i64::MAX), &mut |id, tombstone, row| match state.replay(
        id,
        tombstone,
        row,
        &mut scratch,
    ) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            broken = Some(error);
            ControlFlow::Break(())
        }
    })?;
    if let Some(error) = broken {
        return Err(error);
    }

    let finished = compaction_mark(&backend, FINISHED)?;
    let scheduled = compaction_mark(&backend, SCHEDULED)?;
    let compacted = finished.max(scheduled);
    // The newest revisions may have left no row: deleted keys whose tombstones are compacted.
    state.revision = state.revision.max(compacted);
    state.compacted = compacted;
    let unfinished = (scheduled > finished).then_some((scheduled, finished));
    Ok((state, unfinished))
}

fn compaction_mark(backend: &Backend, name: &[u8]) -> Result<Revision, MvccError> {
    let rows = backend.rows(Table::Meta)?;
    let value = rows.into_iter().find(|(key, _)| key.as_ref() == name).map(|(_, value)| value);
    let Some(value) = value else {
        return Ok(Revision(-1));
    };
    let id = RecordId::default();
    let broken = MvccError::Corrupt { id, problem: "a compaction mark that is no revision" };
    RecordId::from_bytes(&value).map(|(id, _)| id.main).ok_or(broken)
}

impl State {
    fn replay(&mut self, id: RecordId, tombstone: bool, row: &[u8], scratch: &mut Vec<u8>) -> Result<(), MvccError> {
        self.revision = self.revision.max(id.main);
        if row.is_empty() && !tombstone {
            self.bumps.push(id);
            return Ok(());
        }
        if tombstone {
            let fields = Fields::parse(row).ok_or(MvccError::Corrupt { id, problem: "unreadable" })?;
            let key = &row[fields.key];
            if let Some(record) = self.live.remove(key) {
                self.retire(&record, id.main);
            }
            self.bury(key, id);
            return Ok(());
        }
        let record = Record::from_row(row, id, scratch).ok_or(MvccError::Corrupt { id, problem: "unreadable" })?;
        if record.modified() != id.main {
            return Err(MvccError::Corrupt { id, problem: "stored under another revision than its own" });
        }
        let probe = record.clone();
        if let Some(replaced) = self.live.insert(record, probe.key()) {
            self.retire(&replaced, id.main);
        }
        Ok(())
    }
}
