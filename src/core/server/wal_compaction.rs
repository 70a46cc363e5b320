use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::recover::stored_members;
use crate::core::backend::Backend;
use crate::core::raft::RaftHandle;
use crate::core::wal::WalSnapshot;
use crate::shutdown::Tasks;
use crate::types::LogIndex;

/// Pause between checks of how much of the log the state on disk covers.
const PERIOD: Duration = Duration::from_secs(1);

/// Releases log entries that the state on disk covers: writes a snapshot record after each `snapshot_count` entries, after
/// which whole segments before it can be deleted.
pub async fn run(backend: Backend, raft: RaftHandle, snapshot_count: u64, keep: u64, tasks: Tasks) {
    let stop = tasks.stop_signal();
    let mut marked = backend.durable().index;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let durable = backend.durable();
        if durable.index.0 < marked.0.saturating_add(snapshot_count) {
            continue;
        }
        match stored_members(&backend) {
            Ok(members) => {
                marked = LogIndex(durable.index.0);
                let conf_state = members.conf_state();
                let snapshot = WalSnapshot { index: durable.index, term: durable.term, conf_state };
                raft.state_saved(snapshot, keep);
                debug!(index = %marked, "log up to here is covered by the state on disk");
            }
            Err(error) => warn!(%error, "state could not be read"),
        }
    }
}
