use std::sync::Arc;

use futures::future::BoxFuture;

use super::batch::LogBatch;
use crate::types::{KeyRange, Revision};

/// Where a cursor reads what has left the log: the store of a member, or an upstream watch of a proxy.
pub trait History: Send + Sync {
    /// The events of a range, oldest first, whole revisions.
    ///
    /// An implementation repeats what failed for a passing reason, until the future is dropped, which is safe.
    fn events(&self, request: HistoryRequest) -> BoxFuture<'static, Result<HistoryBatch, HistoryError>>;

    /// Brings the log up to date with the cluster before a progress request is answered. None when it always is;
    /// false when it was not possible, which leaves the request unanswered.
    fn refresh(&self) -> Option<BoxFuture<'static, bool>> {
        None
    }
}

/// What a cursor has missed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HistoryRequest {
    /// Keys watched.
    pub range: KeyRange,
    /// First revision wanted.
    pub from: Revision,
    /// Last revision wanted; at least `from`.
    pub up_to: Revision,
    /// Whether the pairs before the events are wanted.
    pub prev_kv: bool,
    /// At most so many revisions.
    pub revisions_max: usize,
    /// Stop after the revision that reaches so many bytes.
    pub bytes_max: usize,
}

/// A part of history.
#[derive(Clone, Debug)]
pub struct HistoryBatch {
    /// Revisions that touched the range; events outside it are allowed and skipped.
    pub batches: Vec<Arc<LogBatch>>,
    /// Everything up to this revision is in `batches`; at least `from`, at most `up_to`.
    pub complete_to: Revision,
}

/// Why history could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// Revisions below this one are gone.
    #[error("history below revision {0} is compacted")]
    Compacted(Revision),
    /// It never can be; the text goes to the client as the reason of the cancellation.
    #[error("{0}")]
    Refused(String),
    /// Not with what the client gave when it opened its stream: the stream ends as `Unavailable` with this text, so that the
    /// client opens another one and goes on at its own revision.
    #[error("{0}")]
    NotOnThisStream(String),
}
