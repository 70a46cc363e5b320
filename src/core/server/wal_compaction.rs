use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::error::RecoverError;
use super::recover::stored_members;
use crate::core::backend::Backend;
use crate::core::raft::RaftHandle;
use crate::core::wal::WalSnapshot;
use crate::shutdown::Tasks;
use crate::types::LogIndex;

/// Pause between checks of how much of the log the state on disk covers.
const PERIOD: Duration = Duration::from_secs(1);

/// Which part of the log the state on disk covers: decides when a snapshot record is written, after which whole segments
/// before it can be deleted.
pub struct WalCompaction {
    backend: Backend,
    /// Entries between two records.
    snapshot_count: u64,
    marked: LogIndex,
}

impl WalCompaction {
    /// Begins with what is durable now.
    pub fn new(backend: Backend, snapshot_count: u64) -> Self {
        let marked = backend.durable().index;
        Self { backend, snapshot_count, marked }
    }

    /// The record that is due.
    ///
    /// # Errors
    /// The members cannot be read; the same record is due again then.
    pub fn due(&mut self) -> Result<Option<WalSnapshot>, RecoverError> {
        let durable = self.backend.durable();
        if durable.index.0 < self.marked.0.saturating_add(self.snapshot_count) {
            return Ok(None);
        }
        let conf_state = stored_members(&self.backend)?.conf_state();
        self.marked = durable.index;
        Ok(Some(WalSnapshot { index: durable.index, term: durable.term, conf_state }))
    }
}

/// Releases log entries that the state on disk covers, after each `snapshot_count` entries.
pub(super) async fn run(backend: Backend, raft: RaftHandle, snapshot_count: u64, keep: u64, tasks: Tasks) {
    let stop = tasks.stop_signal();
    let mut compaction = WalCompaction::new(backend, snapshot_count);
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match compaction.due() {
            Ok(None) => {}
            Ok(Some(snapshot)) => {
                debug!(index = %snapshot.index, "log up to here is covered by the state on disk");
                raft.state_saved(snapshot, keep);
            }
            Err(error) => warn!(%error, "state could not be read"),
        }
    }
}
