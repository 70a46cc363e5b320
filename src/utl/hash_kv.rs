use std::path::Path;
use std::time::Duration;

use super::db_file::{kind_of, lock_stock, must_exist, open_own};
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
/// newest). Memory is some three times that of the live keys; the history of a db snapshot goes to a file among the temporary
/// ones.
///
/// # Errors
/// No such file; one that is neither; a member has it open; damage; a revision that is compacted or not there yet.
pub fn hash_kv(path: &Path, revision: Revision, timeout: Duration) -> Result<HashedFile, UtlError> {
    must_exist(path)?;
    match kind_of(path)? {
        StateFileKind::Own => hash(open_own(path, timeout)?, revision),
        StateFileKind::Bbolt => {
            let temporary = std::env::temp_dir();
            let folder = tempfile::tempdir().map_err(UtlError::file("create folder in", &temporary))?;
            let locked = lock_stock(path, timeout)?;
            let backend = copied(&BoltFile::open_whole(path)?, folder.path())?;
            drop(locked);
            hash(backend, revision)
        }
        StateFileKind::Other => Err(UtlError::Foreign { path: path.into() }),
    }
}

fn hash(backend: Backend, revision: Revision) -> Result<HashedFile, UtlError> {
    let (found, _) = Store::open(backend)?.reader().hash_kv(revision)?;
    let (hash, hash_revision, compact_revision) = (found.hash, found.hash_revision, found.compact_revision);
    Ok(HashedFile { hash, hash_revision, compact_revision })
}

/// The same state in a file of ours: the history may be many times the memory of the live keys.
fn copied(file: &BoltFile, folder: &Path) -> Result<Backend, UtlError> {
    let backend = Backend::open(&folder.join("db"))?;
    // No one reads the position: the store ends with this call.
    let prepared = backend.prepare(file, LogPosition { index: LogIndex(1), term: Term(1) })?;
    backend.install(prepared)?;
    Ok(backend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backend::{Change, ChangeSet, Table};

    // Cause: the copy was made in memory, with all of the history.
    #[test]
    fn the_history_of_a_db_snapshot_is_hashed_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let source = Backend::in_memory().unwrap();
        let position = LogPosition { index: LogIndex(5), term: Term(1) };
        let changes = vec![Change::put(Table::AuthUsers, "large", vec![7u8; 1 << 20])];
        source.submit(ChangeSet { position, changes });
        let mut snapshot = std::fs::File::create(folder.path().join("snapshot")).unwrap();
        source.write_db_snapshot(&mut snapshot).unwrap();
        let copies = tempfile::tempdir_in(folder.path()).unwrap();
        let backend = copied(&BoltFile::open_whole(&folder.path().join("snapshot")).unwrap(), copies.path()).unwrap();
        assert!(std::fs::metadata(copies.path().join("db")).unwrap().len() > 1 << 20);
        assert_eq!(backend.rows(Table::AuthUsers).unwrap().len(), 1);
    }
}
