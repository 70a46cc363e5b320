use std::io;
use std::path::PathBuf;

/// Why a db snapshot could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    /// The system refused.
    #[error("read {path:?}: {source}")]
    Io {
        /// The db snapshot.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file does not begin with a valid meta page.
    #[error("{path:?} is not a database snapshot: invalid database")]
    NotADbSnapshot {
        /// The file.
        path: PathBuf,
    },
    /// A page is not what a page may be.
    #[error("{path:?} is corrupt at page {page}: {what}")]
    Corrupt {
        /// The db snapshot.
        path: PathBuf,
        /// The page.
        page: u64,
        /// What does not fit.
        what: String,
    },
}
