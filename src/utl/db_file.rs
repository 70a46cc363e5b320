use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::error::UtlError;
use crate::bolt::{self, BoltFile, SnapshotStatus};
use crate::core::backend::{Backend, BackendError, StateFileKind};

/// Bytes of the SHA-256 digest behind a saved db snapshot.
const DIGEST_BYTES: u64 = 32;
/// A database is whole sectors, so that a rest of 32 bytes is a digest.
const SECTOR_BYTES: u64 = 512;
/// Pause before a locked file is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const COPY_BYTES: usize = 256 * 1024;

/// Decides what a file is by its first bytes.
pub(super) fn kind_of(path: &Path) -> Result<StateFileKind, UtlError> {
    let mut file = File::open(path).map_err(UtlError::file("open", path))?;
    let mut head = Vec::new();
    file.by_ref().take(64).read_to_end(&mut head).map_err(UtlError::file("read", path))?;
    Ok(StateFileKind::of(&head))
}

/// Fails as etcdutl does when there is no such file.
pub(super) fn must_exist(path: &Path) -> Result<(), UtlError> {
    fs::metadata(path).map(|_| ()).map_err(UtlError::file("stat", path))
}

/// Opens the database of a member that does not run; waits up to `timeout` (zero: for ever) for whoever has it open.
pub(super) fn open_own(path: &Path, timeout: Duration) -> Result<Backend, UtlError> {
    let began = Instant::now();
    loop {
        match Backend::open_existing(path) {
            Err(BackendError::Locked { path }) if !timeout.is_zero() && began.elapsed() >= timeout => {
                return Err(UtlError::Locked { path, waited: format!("{timeout:?}") });
            }
            Err(BackendError::Locked { .. }) => std::thread::sleep(LOCK_PAUSE),
            other => return Ok(other?),
        }
    }
}

/// Locks a database of etcd as its own tools do, so that nobody changes it while it is read; waits up to `timeout` (zero: for
/// ever) for the member that has it open.
pub(super) fn lock_stock(path: &Path, timeout: Duration) -> Result<File, UtlError> {
    let file = File::open(path).map_err(UtlError::file("open", path))?;
    let began = Instant::now();
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if !timeout.is_zero() && began.elapsed() >= timeout => {
                return Err(UtlError::Locked { path: path.into(), waited: format!("{timeout:?}") });
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(source)) => return Err(UtlError::file("lock", path)(source)),
        }
    }
}

/// Compares the digest behind a saved db snapshot with the rest. The length shows whether there is one.
pub(super) fn check_digest(path: &Path) -> Result<(), UtlError> {
    let io = |source| UtlError::file("read", path)(source);
    let mut file = File::open(path).map_err(UtlError::file("open", path))?;
    let bytes = file.metadata().map_err(io)?.len();
    if bytes % SECTOR_BYTES != DIGEST_BYTES {
        return Err(UtlError::NoDigest);
    }
    let mut rest = bytes - DIGEST_BYTES;
    let mut sum = Sha256::new();
    let mut chunk = vec![0; COPY_BYTES];
    while rest > 0 {
        let part = chunk.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        file.read_exact(&mut chunk[..part]).map_err(io)?;
        sum.update(&chunk[..part]);
        rest -= part as u64;
    }
    let mut expected = vec![0; DIGEST_BYTES as usize];
    file.seek(SeekFrom::Start(bytes - DIGEST_BYTES)).map_err(io)?;
    file.read_exact(&mut expected).map_err(io)?;
    let found = sum.finalize().to_vec();
    if expected == found { Ok(()) } else { Err(UtlError::Digest { expected, found }) }
}

/// A db snapshot file, or one made of a database of ours for as long as it is needed.
pub(super) struct AsBolt {
    path: PathBuf,
    _kept: Kept,
}

/// What goes with the file.
enum Kept {
    Made { _file: tempfile::TempPath },
    Locked { _file: File },
}

impl AsBolt {
    /// Takes the file as it is, or writes its db snapshot into `folder`.
    pub(super) fn of(path: &Path, folder: &Path, timeout: Duration) -> Result<Self, UtlError> {
        match kind_of(path)? {
            StateFileKind::Bbolt => {
                let locked = lock_stock(path, timeout)?;
                Ok(Self { path: path.into(), _kept: Kept::Locked { _file: locked } })
            }
            StateFileKind::Other => Err(UtlError::Foreign { path: path.into() }),
            StateFileKind::Own => {
                let backend = open_own(path, timeout)?;
                let made = tempfile::NamedTempFile::new_in(folder).map_err(UtlError::file("create file in", folder))?;
                let (mut file, made) = made.into_parts();
                backend.write_db_snapshot(&mut file)?;
                Ok(Self { path: made.to_path_buf(), _kept: Kept::Made { _file: made } })
            }
        }
    }

    pub(super) fn open(&self) -> Result<BoltFile, UtlError> {
        Ok(BoltFile::open_whole(&self.path)?)
    }
}

/// What `snapshot status` shows of a db snapshot, or about the database of a member that does not run.
///
/// # Errors
/// No such file; one that is neither; a member has it open; damage.
pub fn status(path: &Path, timeout: Duration) -> Result<SnapshotStatus, UtlError> {
    must_exist(path)?;
    let file = AsBolt::of(path, &std::env::temp_dir(), timeout)?;
    file.open()?;
    Ok(bolt::status(&file.path)?)
}
