//! The way in for readers: they look at what apply last published and hold nobody up.

use std::sync::Arc;

use super::MvccError;
use super::range::range;
use super::stream::RangeStream;
use super::view::{Shared, State, View};
use super::write::read_only;
use crate::pb::encoded::{RangeResponse, TxnResponse};
use crate::pb::etcdserverpb::{RangeRequest, TxnRequest};
use crate::types::Revision;

/// Way in to the published state; cheap to clone, usable from any thread.
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

    /// Answers a range in chunks at one revision; `chunk_bytes` is what a chunk should roughly measure.
    ///
    /// # Errors
    /// A future or compacted revision.
    pub fn range_stream(&self, request: &RangeRequest, chunk_bytes: usize) -> Result<RangeStream, MvccError> {
        RangeStream::open(self.clone(), request, chunk_bytes)
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

    /// Answers a range.
    ///
    /// # Errors
    /// A future or compacted revision; a compaction may also overtake a read of an old revision half-way.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, MvccError> {
        range(self.view(), request)
    }

    /// Answers a transaction for which [`is_read_only`](super::is_read_only) holds.
    ///
    /// # Errors
    /// As for [`range`](Self::range); an operation that is not a range.
    pub fn read_only_txn(&self, request: &TxnRequest) -> Result<TxnResponse, MvccError> {
        read_only(self.view(), request)
    }

    pub(super) fn view(&self) -> View<'_> {
        View { state: &self.state, shared: &self.shared }
    }
}
