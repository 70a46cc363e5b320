use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::types::LogPosition;

/// Why the log could not be made, read or written. Every one of them ends the process; nothing is retried.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WalError {
    /// There is a log already where a new one was to be made.
    #[error("{dir:?} exists already")]
    Exists {
        /// The log's folder.
        dir: PathBuf,
    },
    /// There is no log, or none that reaches back to the position asked for.
    #[error("{dir:?} has no segment that begins at or before index {index}")]
    Missing {
        /// The log's folder.
        dir: PathBuf,
        /// Where reading was to begin.
        index: u64,
    },
    /// Another process has the log open.
    #[error("{path:?} is in use by another process")]
    Locked {
        /// The segment.
        path: PathBuf,
    },
    /// A record is not what was written, and it is not the torn end of the log.
    #[error("{path:?} is corrupt at offset {offset}: {what}")]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Where the record begins.
        offset: u64,
        /// What does not fit.
        what: String,
    },
    /// The stored state is not one this log leads to: it is of another log, or the log lost its end.
    #[error("{dir:?} does not lead to the stored state at index {} of term {}: {what}", from.index, from.term)]
    Unrelated {
        /// The log's folder.
        dir: PathBuf,
        /// Where the stored state is.
        from: LogPosition,
        /// What does not fit.
        what: String,
    },
    /// The log goes on from a state that is newer than the stored one.
    #[error(
        "{dir:?} goes on from a state at index {} of term {}, and the stored state is at index {}",
        mark.index, mark.term, from.index
    )]
    Superseded {
        /// The log's folder.
        dir: PathBuf,
        /// Where the stored state is.
        from: LogPosition,
        /// The log's newest snapshot mark.
        mark: LogPosition,
    },
    /// The caller appends entries that do not follow the log.
    #[error("entry {index} of term {term} does not follow the log, which ends at {last}")]
    OutOfOrder {
        /// Index of the entry.
        index: u64,
        /// Its term.
        term: u64,
        /// Last index of the log.
        last: u64,
    },
    /// The caller appends an entry that no reader would accept.
    #[error("entry {index} has {bytes} bytes, more than a record may hold")]
    TooLarge {
        /// Index of the entry.
        index: u64,
        /// Its size.
        bytes: usize,
    },
    /// The disk refused.
    #[error("{doing} {path:?}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// The system's answer.
        source: Arc<std::io::Error>,
    },
    /// An earlier failure closed the log.
    #[error("the log is closed after an earlier failure: {first}")]
    Poisoned {
        /// The earlier failure.
        first: String,
    },
}

impl WalError {
    /// What the disk answered, to what.
    pub fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { doing, path: path.into(), source: Arc::new(source) }
    }
}
