//! Reading what apply last published; readers and apply never wait for each other.

use std::sync::Arc;

use super::MvccError;
use super::pins::Pin;
use super::range::{Extent, extent, range};
use super::view::{Shared, State, View};
use crate::pb::encoded::RangeResponse;
use crate::pb::etcdserverpb::RangeRequest;
use crate::types::Revision;

/// Reads the published state; cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct StoreReader {
    pub(super) shared: Arc<Shared>,
}

/// One consistent state. Holding it keeps that state's memory; take a new one rather than keeping it.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) state: Arc<State>,
    pub(super) shared: Arc<Shared>,
}

impl StoreReader {
    /// The newest published state.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { state: self.shared.published.load_full(), shared: Arc::clone(&self.shared) }
    }

    /// Newest published revision.
    pub fn revision(&self) -> Revision {
        self.shared.published.load().revision
    }

    /// Published revision of the last compaction; -1 before the first.
    pub fn compacted(&self) -> Revision {
        self.shared.published.load().compacted
    }

    /// Bytes of versions replaced since the start, as far as published, with what their replacement copied.
    pub fn replaced_bytes(&self) -> u64 {
        self.shared.published.load().replaced_bytes
    }

    /// Lists `value`, which keeps alive what was current when [`replaced_bytes`](Self::replaced_bytes) was `since`.
    pub fn pin<T: Send + 'static>(&self, since: u64, value: T) -> Pin<T> {
        self.shared.pins.list(since, value)
    }

    /// Releases every pin since which more than `bytes_max` were replaced. Frees memory: not for a thread that others
    /// wait for.
    pub fn release_pins(&self, bytes_max: u64) {
        self.shared.pins.release_before(self.replaced_bytes().saturating_sub(bytes_max));
    }
}

impl Snapshot {
    /// Newest revision of this state.
    pub fn revision(&self) -> Revision {
        self.state.revision
    }

    /// Revision of the last compaction; -1 before the first.
    pub fn compacted(&self) -> Revision {
        self.state.compacted
    }

    /// Keys that exist.
    pub fn len(&self) -> usize {
        self.state.live.len()
    }

    /// Whether no key exists.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How much answering a range looks at, at most.
    pub fn extent(&self, request: &RangeRequest) -> Extent {
        extent(self.view(), request)
    }

    /// See [`StoreReader::replaced_bytes`], of this state.
    pub fn replaced_bytes(&self) -> u64 {
        self.state.replaced_bytes
    }

    /// Answers a range.
    ///
    /// # Errors
    /// A future or compacted revision; a compaction may also overtake a read of an old revision half-way.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, MvccError> {
        range(self.view(), request)
    }

    pub(super) fn view(&self) -> View<'_> {
        View { state: &self.state, shared: &self.shared }
    }
}
