use std::io;
use std::path::{Path, PathBuf};

use crate::bolt::BoltError;
use crate::config::ConfigError;
use crate::core::backend::BackendError;
use crate::core::lease::LeaseError;
use crate::core::mvcc::MvccError;
use crate::core::wal::WalError;
use crate::types::MemberId;

/// Why an offline command failed. Where etcdutl has the same refusal, the text is its.
#[allow(missing_docs, reason = "the texts name the fields")]
#[derive(Debug, thiserror::Error)]
pub enum UtlError {
    /// The system refused, in Go's words for it.
    #[error("{doing} {}: {}", path.display(), go_text(source))]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("data-dir {:?} not empty or could not be read", path.display().to_string())]
    DataDirInUse { path: PathBuf },
    #[error("wal-dir {:?} exists", path.display().to_string())]
    WalDirExists { path: PathBuf },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("member exists with identical ID {0}")]
    SameId(MemberId),
    #[error(
        "snapshot missing hash but --skip-hash-check=false (a file copied from a data directory has none; a saved \
         snapshot without one is not complete)"
    )]
    NoDigest,
    #[error("expected sha256 {}, got {}", go_bytes(expected), go_bytes(found))]
    Digest { expected: Vec<u8>, found: Vec<u8> },
    /// A kind of file that this tool does not read.
    #[error("{} is neither a db snapshot nor a database of etcd or watershed", path.display())]
    Foreign { path: PathBuf },
    #[error("{} is the data directory of a stock etcd; {what}", path.display())]
    StockEtcd { path: PathBuf, what: &'static str },
    #[error("the snapshot is of version {found}, this program knows versions up to {known}")]
    Newer { found: String, known: &'static str },
    #[error("revision {latest} and --bump-revision {bump} exceed the largest revision")]
    BumpTooLarge { latest: i64, bump: u64 },
    /// `migrate` to a version whose files this program does not write.
    #[error(
        "cannot migrate {} to storage version {target}: only watershed reads its files, whose storage version is \
         {known}; for an etcd of another version save a snapshot and restore it with that version's etcdutl (docs/migrate.md)",
        path.display()
    )]
    NoMigration { path: PathBuf, target: String, known: &'static str },
    #[error(transparent)]
    Bolt(#[from] BoltError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Mvcc(#[from] MvccError),
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The locked file stayed locked.
    #[error("{} is in use by another process: stop the member first (waited {waited})", path.display())]
    Locked { path: PathBuf, waited: String },
}

impl UtlError {
    pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { doing, path, source }
    }
}

/// The usual refusals as Go prints them, which scripts look for.
fn go_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::IsADirectory => "is a directory".into(),
        io::ErrorKind::NotADirectory => "not a directory".into(),
        _ => error.to_string(),
    }
}

/// Go's notation of a byte slice.
fn go_bytes(bytes: &[u8]) -> String {
    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
    format!("[{}]", numbers.join(" "))
}

/// How a command ended that did not succeed.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Exit code of the process; the numbers are etcdutl's.
    pub code: u8,
    /// What follows `Error: `.
    pub text: String,
    /// What follows that: how the command is used.
    pub usage: Option<String>,
}

impl Refusal {
    pub(super) fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), usage: None }
    }
}

impl From<UtlError> for Refusal {
    fn from(error: UtlError) -> Self {
        let text = match &error {
            UtlError::Mvcc(MvccError::Future { .. }) => "mvcc: required revision is a future revision".to_owned(),
            UtlError::Mvcc(MvccError::Compacted { .. }) => "mvcc: required revision has been compacted".to_owned(),
            // Their texts leave the cause to whoever prints them.
            UtlError::Mvcc(_) | UtlError::Lease(_) => format!("{:#}", anyhow::Error::from(error)),
            error => error.to_string(),
        };
        Self::new(1, text)
    }
}
