//! Bounds what unfinished answers keep in memory of old states.
//!
//! A reader of an old state keeps every version that was replaced since: with many slow readers that would be many
//! copies of the store. The store counts the bytes it replaces, so the difference between now and the state of the
//! oldest reader bounds what all of them keep together. [`release_pins`](super::StoreReader::release_pins) ends the pins that are further
//! behind than allowed; their readers continue in a newer state, or end.

use std::sync::Arc;

use parking_lot::Mutex;
use slab::Slab;

/// Counted for each write beside the version it replaces: the tree nodes that it copies.
pub(super) const NODES_PER_WRITE_BYTES: u64 = 8 * 1024;
/// Counted when a snapshot replaces everything: no pin from before is kept.
pub(super) const WHOLE_STATE_BYTES: u64 = 1 << 48;

/// Where pins are listed. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Pins(Arc<Mutex<Slab<Listed>>>);

struct Listed {
    /// Count of replaced bytes when the pinned state was published.
    since: u64,
    value: Arc<dyn Release>,
}

trait Release: Send + Sync {
    fn release(&self);
}

impl<T: Send> Release for Mutex<Option<T>> {
    fn release(&self) {
        let value = self.lock().take();
        drop(value);
    }
}

/// Something that keeps replaced versions alive, until it is dropped or released.
pub struct Pin<T> {
    value: Arc<Mutex<Option<T>>>,
    place: usize,
    pins: Pins,
}

impl<T> Pin<T> {
    /// Calls `look` with the value; none when it was released.
    pub fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.value.lock().as_mut().map(look)
    }
}

impl<T> Drop for Pin<T> {
    fn drop(&mut self) {
        let listed = self.pins.0.lock().try_remove(self.place);
        // Outside of the lock: this may free a whole old state.
        drop(listed);
    }
}

impl Pins {
    /// Lists `value`, which keeps alive what was current when `since` bytes were replaced.
    pub(super) fn list<T: Send + 'static>(&self, since: u64, value: T) -> Pin<T> {
        let value = Arc::new(Mutex::new(Some(value)));
        let place = self.0.lock().insert(Listed { since, value: value.clone() });
        Pin { value, place, pins: self.clone() }
    }

    /// Releases what keeps alive states from before `bytes` were replaced.
    pub(super) fn release_before(&self, bytes: u64) {
        let late: Vec<_> = {
            let pins = self.0.lock();
            pins.iter().filter(|(_, listed)| listed.since < bytes).map(|(_, listed)| listed.value.clone()).collect()
        };
        late.iter().for_each(|value| value.release());
    }
}
