use std::path::PathBuf;
use std::sync::Arc;

use super::change::LogPosition;

/// Why the stored state could not be opened, read or written.
///
/// After [`Failed`](Self::Failed), [`Corrupt`](Self::Corrupt) or [`Io`](Self::Io) the process has to stop: nothing is
/// retried, and the log brings back what no checkpoint holds.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BackendError {
    /// Another process has the store open.
    #[error("{path:?} is in use by another process")]
    Locked {
        /// The store.
        path: PathBuf,
    },
    /// The file is a database of etcd's.
    #[error(
        "{path:?} is a database of etcd (bbolt); restore a snapshot of it into a new data directory instead (etcdutl snapshot restore, see docs/migrate.md)"
    )]
    Bbolt {
        /// The file found.
        path: PathBuf,
    },
    /// The file is something else altogether.
    #[error("{path:?} is not a database of this program")]
    Foreign {
        /// The file found.
        path: PathBuf,
    },
    /// The file was written by a later version.
    #[error("{path:?} has storage format {found}, this version knows formats up to {known}")]
    Newer {
        /// The file found.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that can be read.
        known: u32,
    },
    /// A stored row, or the set of rows, is not what was written.
    #[error("{path:?} is corrupt: {what}")]
    Corrupt {
        /// The store.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The disk refused.
    #[error("{doing} {path:?}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: Arc<std::io::Error>,
    },
    /// The database library refused, or panicked.
    #[error("{doing} {path:?}: {what}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// The store.
        path: PathBuf,
        /// The library's words.
        what: String,
    },
    /// An earlier failure closed the store.
    #[error("{path:?} is closed after an earlier failure: {first}")]
    Failed {
        /// The store.
        path: PathBuf,
        /// The earlier failure.
        first: String,
    },
    /// A db snapshot cannot be loaded.
    #[error("load db snapshot: {what}")]
    DbSnapshot {
        /// What does not fit.
        what: String,
    },
    /// A state was to replace one that is as far already.
    #[error("the state at index {} does not replace the one at index {}", position.index, reached.index)]
    Outdated {
        /// Of the state offered.
        position: LogPosition,
        /// Of the state in use, with what is pending.
        reached: LogPosition,
    },
    /// A state was to be prepared for a position that another one is held for.
    #[error("a state at index {} of term {} is prepared already", position.index, position.term)]
    AlreadyPrepared {
        /// Of both.
        position: LogPosition,
    },
    /// A defragmentation could not write its copy, as without room for it; the store is as it was.
    #[error("defragment: {source}")]
    NotDefragmented {
        /// Why the copy is missing.
        source: Box<BackendError>,
    },
    /// The file of a state that was to be prepared could not be written, as without room for it; the store is as it was.
    #[error("prepare snapshot: {source}")]
    NotPrepared {
        /// Why the file is missing.
        source: Box<BackendError>,
    },
    /// The receiver of a db snapshot went away.
    #[error("write db snapshot: {source}")]
    Output {
        /// The receiver's answer.
        source: Arc<std::io::Error>,
    },
}

impl BackendError {
    /// Whether the store can no longer be trusted. Only db snapshots that are bad, outdated or there already, failed
    /// receivers of db snapshots, and copies and prepared states that could not be written leave it unharmed.
    pub fn is_fatal(&self) -> bool {
        let harmless = matches!(
            self,
            Self::Output { .. }
                | Self::NotDefragmented { .. }
                | Self::NotPrepared { .. }
                | Self::DbSnapshot { .. }
                | Self::Outdated { .. }
                | Self::AlreadyPrepared { .. }
        );
        !harmless
    }
}

/// What went wrong inside the database library, before it is tied to a file.
#[derive(Debug)]
pub(super) enum Fault {
    Redb(redb::Error),
    Corrupt(String),
    /// Already tied to a file.
    Ours(BackendError),
}

macro_rules! fault_from {
    ($($error:ty),*) => {$(
        impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Self::Redb(error.into())
            }
        }
    )*};
}
fault_from!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::CursorError,
    redb::SetDurabilityError
);
