use std::path::Path;
use std::time::Duration;

use super::db_file::{kind_of, must_exist, open_own};
use super::error::UtlError;
use crate::bolt::BoltFile;
use crate::core::backend::{Backend, StateFileKind};
use crate::core::mvcc::Store;
use crate::types::{LogIndex, LogPosition, Revision, Term};

/// The hash of a history in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashedFile {
    /// The value that `HashKV` answers for the same history.
    pub hash: u32,
    /// Up to where.
    pub hash_revision: Revision,
    /// The last compaction; -1 before the first.
    pub compact_revision: Revision,
}

/// Hashes the history of a db snapshot, or of the database of a member that does not run, up to `revision` (0: the
/// newest). Memory is some three times that of the live keys.
///
/// # Errors
/// No such file; one that is neither; damage; a revision that is compacted or not there yet.
pub fn hash_kv(path: &Path, revision: Revision, timeout: Duration) -> Result<HashedFile, UtlError> {
    must_exist(path)?;
    let backend = match kind_of(path)? {
        StateFileKind::Own => open_own(path, timeout)?,
        StateFileKind::Bbolt => in_memory(&BoltFile::open_whole(path)?)?,
        StateFileKind::Other => return Err(UtlError::Foreign { path: path.into() }),
    };
    let (found, _) = Store::open(backend)?.reader().hash_kv(revision)?;
    let (hash, hash_revision, compact_revision) = (found.hash, found.hash_revision, found.compact_revision);
    Ok(HashedFile { hash, hash_revision, compact_revision })
}

fn in_memory(file: &BoltFile) -> Result<Backend, UtlError> {
    let backend = Backend::in_memory()?;
    // No one reads the position: the store ends with this call.
    let prepared = backend.prepare(file, LogPosition { index: LogIndex(1), term: Term(1) })?;
    backend.install(prepared)?;
    Ok(backend)
}
