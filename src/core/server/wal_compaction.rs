use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::error::RecoverError;
use super::proposer::PENDING_BYTES_MAX_PEERS;
use super::recover::stored_members;
use crate::core::backend::Backend;
use crate::core::raft::RaftHandle;
use crate::core::wal::WalSnapshot;
use crate::shutdown::Tasks;
use crate::types::LogIndex;

/// Pause between checks of how much of the log the state on disk covers. In a second 50,000 entries may come, which take 20 MB.
const PERIOD: Duration = Duration::from_millis(200);

/// Which part of the log the state on disk covers: decides when a snapshot record is written, after which whole segments
/// before it can be deleted, and when entries in memory may be forgotten.
pub struct WalCompaction {
    backend: Backend,
    /// Entries between two records.
    snapshot_count: u64,
    marked: LogIndex,
    /// What was last told.
    told: LogIndex,
}

impl WalCompaction {
    /// Begins with what is durable now.
    pub fn new(backend: Backend, snapshot_count: u64) -> Self {
        let marked = backend.durable().index;
        Self { backend, snapshot_count, marked, told: marked }
    }

    /// The record that is due.
    ///
    /// # Errors
    /// The members cannot be read; the same record is due again then.
    pub fn due(&mut self) -> Result<Option<WalSnapshot>, RecoverError> {
        let due = self.covered_from(self.marked.0.saturating_add(self.snapshot_count))?;
        if let Some(snapshot) = &due {
            self.marked = snapshot.index;
        }
        Ok(due)
    }

    /// What is covered now, if that is more than was told last.
    ///
    /// # Errors
    /// As [`due`](Self::due).
    pub fn grown(&mut self) -> Result<Option<WalSnapshot>, RecoverError> {
        self.covered_from(self.told.0.saturating_add(1))
    }

    fn covered_from(&mut self, least: u64) -> Result<Option<WalSnapshot>, RecoverError> {
        let durable = self.backend.durable();
        if durable.index.0 < least {
            return Ok(None);
        }
        let conf_state = stored_members(&self.backend)?.conf_state();
        self.told = durable.index;
        Ok(Some(WalSnapshot { index: durable.index, term: durable.term, conf_state }))
    }
}

/// Releases log entries that the state on disk covers, after each `snapshot_count` entries, or in memory when they are too
/// large; and tells raft when the state on disk has caught up.
pub(super) async fn run(backend: Backend, raft: RaftHandle, snapshot_count: u64, keep: u64, tasks: Tasks) {
    let stop = tasks.stop_signal();
    let mut compaction = WalCompaction::new(backend.clone(), snapshot_count);
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        raft.set_state_disk_late(backend.pending_bytes() as u64 > PENDING_BYTES_MAX_PEERS);
        if let Err(error) = tell(&mut compaction, &raft, keep) {
            warn!(%error, "state could not be read");
        }
    }
}

fn tell(compaction: &mut WalCompaction, raft: &RaftHandle, keep: u64) -> Result<(), RecoverError> {
    if let Some(snapshot) = compaction.due()? {
        debug!(index = %snapshot.index, "log up to here is covered by the state on disk");
        raft.state_saved(snapshot, keep);
    } else if let Some(snapshot) = compaction.grown()? {
        raft.bound_log(snapshot);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backend::ChangeSet;
    use crate::types::{LogPosition, Term};

    fn saved(backend: &Backend, index: u64) {
        let position = LogPosition { index: LogIndex(index), term: Term(1) };
        backend.submit(ChangeSet { position, changes: Vec::new() });
        backend.checkpoint().unwrap();
    }

    // Between two records nobody was told what the state on disk covers, however large the entries were.
    #[test]
    fn what_is_covered_is_told_between_two_records() {
        let backend = Backend::in_memory().unwrap();
        let mut compaction = WalCompaction::new(backend.clone(), 10);
        let index = |snapshot: Option<WalSnapshot>| snapshot.map(|snapshot| snapshot.index.0);
        saved(&backend, 5);
        assert_eq!(index(compaction.due().unwrap()), None);
        assert_eq!(index(compaction.grown().unwrap()), Some(5));
        assert_eq!(index(compaction.grown().unwrap()), None);
        saved(&backend, 12);
        assert_eq!(index(compaction.due().unwrap()), Some(12));
        assert_eq!(index(compaction.grown().unwrap()), None);
    }
}
