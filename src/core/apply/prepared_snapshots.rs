use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::core::backend::Prepared;
use crate::types::LogPosition;

/// States that were prepared and wait for consensus to ask for them.
///
/// Who prepares one puts it here before the message that announces it goes to consensus, and takes it back when
/// consensus does not want it. Bounded by the transfers a member receives at once.
#[derive(Debug, Default)]
pub struct PreparedSnapshots {
    prepared: Mutex<BTreeMap<LogPosition, Prepared>>,
}

impl PreparedSnapshots {
    /// Adds a prepared state.
    pub fn put(&self, prepared: Prepared) {
        let replaced = self.prepared.lock().insert(prepared.position(), prepared);
        // Closed outside the lock.
        drop(replaced);
    }

    /// Takes the state at a position, and closes older ones: those will never be asked for.
    pub fn take(&self, position: LogPosition) -> Option<Prepared> {
        let (found, older) = {
            let mut prepared = self.prepared.lock();
            let found = prepared.remove(&position);
            let newer = prepared.split_off(&position);
            (found, std::mem::replace(&mut *prepared, newer))
        };
        drop(older);
        found
    }

    /// Takes back the state at a position, and nothing else.
    pub fn take_back(&self, position: LogPosition) -> Option<Prepared> {
        self.prepared.lock().remove(&position)
    }
}
