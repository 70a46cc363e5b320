use std::io;
use std::path::PathBuf;

/// Why a db snapshot could not be read.
#[allow(missing_docs, reason = "the texts say what the variants and fields are")]
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    #[error("read {path:?}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// The file does not begin with a valid meta page.
    #[error("{path:?} is not a database snapshot: invalid database")]
    NotADbSnapshot { path: PathBuf },
    /// The file ends before the pages that are in use.
    #[error("{path:?} is truncated: {bytes} of {expected} bytes are there")]
    Truncated { path: PathBuf, bytes: u64, expected: u64 },
    /// A page is not what a page may be.
    #[error("{path:?} is corrupt at page {page}: {what}")]
    Corrupt { path: PathBuf, page: u64, what: String },
}
