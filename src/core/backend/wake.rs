use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How long changes gather. A start replays about this much of the log; a longer time writes shared pages less often.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// Pending bytes that bring the next checkpoint forward, so that memory stays small under load, and the disk is never busy with one for long.
const CHECKPOINT_BYTES: usize = 4 * 1024 * 1024;

/// Wakes the checkpoint thread early.
#[derive(Debug, Default)]
pub(super) struct CheckpointWake {
    state: Mutex<WakeState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct WakeState {
    due: bool,
    stopping: bool,
}

impl CheckpointWake {
    /// Called after each submit with what is pending now.
    pub(super) fn pending(&self, bytes: usize) {
        if bytes >= CHECKPOINT_BYTES {
            self.state.lock().due = true;
            self.changed.notify_one();
        }
    }

    /// Asks for the last checkpoint.
    pub(super) fn stop(&self) {
        self.state.lock().stopping = true;
        self.changed.notify_one();
    }

    /// Waits until a checkpoint is due, and tells why it is.
    pub(super) fn wait(&self) -> Due {
        let mut state = self.state.lock();
        if !state.due && !state.stopping {
            self.changed.wait_for(&mut state, CHECKPOINT_INTERVAL);
        }
        match (state.stopping, std::mem::take(&mut state.due)) {
            (true, _) => Due::Last,
            (false, true) => Due::Bytes,
            (false, false) => Due::Time,
        }
    }
}

/// Why a checkpoint is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Time,
    Bytes,
    Last,
}
