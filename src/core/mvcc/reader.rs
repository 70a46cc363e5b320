//! The way in for readers: they look at what apply last published and hold nobody up.

use std::sync::Arc;

use super::MvccError;
use super::range::{Extent, extent, range};
use super::stream::RangeStream;
use super::view::{Shared, State, View};
use super::write::{delete_extent, read_only, txn_extent};
use crate::pb::encoded::{RangeResponse, TxnResponse};
use crate::pb::etcdserverpb::{DeleteRangeRequest, RangeRequest, TxnRequest};
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

    /// How much answering a range looks at, at most.
    pub fn extent(&self, request: &RangeRequest) -> Extent {
        extent(self.view(), request)
    }

    /// How much the answer to a transaction holds at most, whichever way its compares turn out.
    pub fn txn_extent(&self, request: &TxnRequest) -> Extent {
        txn_extent(self.view(), request)
    }

    /// How much the answer to a delete holds at most.
    pub fn delete_extent(&self, request: &DeleteRangeRequest) -> Extent {
        delete_extent(self.view(), request)
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
