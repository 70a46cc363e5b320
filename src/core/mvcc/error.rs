use crate::core::backend::BackendError;
use crate::types::{Key, LeaseId, RecordId, Revision};

/// Why the store refused an operation.
#[allow(missing_docs, reason = "the messages name the fields")]
#[derive(Debug, thiserror::Error)]
pub enum MvccError {
    /// A request names no key.
    #[error("key is not provided")]
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error("key {key:?} does not exist")]
    KeyNotFound { key: Key },
    /// An operation of a transaction holds no request.
    #[error("an operation holds no request")]
    EmptyOperation,
    /// `ignore_value` together with a value.
    #[error("a value is given although it is to be kept")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("a lease is given although it is to be kept")]
    LeaseProvided,
    /// A put attaches to a lease that does not exist.
    #[error("lease {lease} does not exist")]
    LeaseNotFound { lease: LeaseId },
    /// A sort order or target outside of the protocol.
    #[error("sort order {order} with target {target}")]
    InvalidSortOption { order: i32, target: i32 },
    /// A stream of a range with a sort; `RangeStream` answers in key order only.
    #[error("RangeStream does not support custom sort orders")]
    StreamedSort,
    /// A stream of a range with bounds on revisions.
    #[error("RangeStream does not support revision filters")]
    StreamedFilter,
    /// A list of a transaction is longer than allowed at its depth, or it nests too deeply.
    #[error("{given} operations where {allowed} are allowed")]
    TooManyOps {
        given: usize,
        /// What `max-txn-ops` leaves at this depth.
        allowed: usize,
    },
    /// A transaction writes a key twice.
    #[error("key {key:?} is written twice")]
    DuplicateKey { key: Key },
    /// The revision is compacted.
    #[error("revision {asked} is compacted, oldest kept is {compacted}")]
    Compacted { asked: Revision, compacted: Revision },
    /// The revision is not written yet.
    #[error("revision {asked} is not written yet, newest is {current}")]
    Future { asked: Revision, current: Revision },
    /// A stored row is missing or unreadable; the member must stop.
    #[error("record {}/{} is {problem}", id.main, id.sub)]
    Corrupt { id: RecordId, problem: &'static str },
    /// The backend could not be read; the member must stop.
    #[error("read backend")]
    Backend(#[from] BackendError),
}

impl MvccError {
    /// Whether the member must stop: its state can no longer be trusted.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Backend(_))
    }
}
