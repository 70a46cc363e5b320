use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError as LockError, StorageBackend};

/// Bytes written to a file before they are synced, also when nobody asks for it. A sync of the log that comes meanwhile waits for all that
/// is being synced: in one piece, that is all of a checkpoint.
const PIECE_BYTES: usize = 1024 * 1024;

/// Files and folders as the stored state needs them; a simulation replaces them.
///
/// Only what was followed by [`StorageBackend::sync_data`] (contents) or [`sync_dir`](Self::sync_dir) (names) survives
/// a power loss. The backend never repeats a call that failed.
pub trait StateDisk: Debug + Send + Sync + 'static {
    /// Whether a file of this name exists.
    ///
    /// # Errors
    /// The system's.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Makes a folder, and those above it, for the owner only; the names of all are durable then. No error when it
    /// exists.
    ///
    /// # Errors
    /// The system's.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Names in a folder, in any order.
    ///
    /// # Errors
    /// The system's.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes a new, empty file for the owner only. One of that name must not exist.
    ///
    /// # Errors
    /// The system's.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>>;
    /// Opens a file.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>>;
    /// Renames a file, over another one if there is one.
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Deletes a file; `NotFound` when there is none.
    ///
    /// # Errors
    /// The system's.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes names in a folder durable.
    ///
    /// # Errors
    /// The system's.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsStateDisk {
    unsynced: bool,
}

impl FsStateDisk {
    /// Nothing is synced: what it holds survives the end of the process, not that of the system.
    pub fn unsynced() -> Self {
        Self { unsynced: true }
    }

    fn file(self, file: File) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.any_file(file)?))
    }

    fn any_file(self, file: File) -> io::Result<AnyFile> {
        let file = Box::new(FileBackend::new(file).map_err(io::Error::other)?);
        let piece_bytes = if self.unsynced { usize::MAX } else { PIECE_BYTES };
        Ok(AnyFile { unsynced: self.unsynced, piece_bytes, ..AnyFile::new(file) })
    }
}

impl StateDisk for FsStateDisk {
    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let missing: Vec<_> = path.ancestors().take_while(|above| !above.exists()).collect();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        missing.into_iter().try_for_each(|made| self.sync_dir(folder_of(made)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        // This program writes no names that are not UTF-8; lossy ones do not parse either.
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        self.file(OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        self.file(OpenOptions::new().read(true).write(true).open(path)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.unsynced { Ok(()) } else { File::open(dir)?.sync_all() }
    }
}

/// The folder a path is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file of any disk, as the database library takes it.
#[derive(Debug)]
pub(super) struct AnyFile {
    file: Box<dyn StorageBackend>,
    unsynced: bool,
    /// Bytes after which they are synced, and those written since a sync.
    piece_bytes: usize,
    written: AtomicUsize,
    /// The system tells of lost pages once: no sync after that may succeed, whoever asked for the one that failed.
    sync_failed: AtomicBool,
}

impl AnyFile {
    pub(super) fn new(file: Box<dyn StorageBackend>) -> Self {
        Self {
            file,
            unsynced: false,
            piece_bytes: usize::MAX,
            written: AtomicUsize::new(0),
            sync_failed: AtomicBool::new(false),
        }
    }
}

impl StorageBackend for AnyFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.written.store(0, Ordering::Relaxed);
        if self.unsynced {
            return Ok(());
        }
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(io::Error::other("a sync of this file failed before"));
        }
        self.file.sync_data().inspect_err(|_| self.sync_failed.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)?;
        let written = self.written.fetch_add(data.len(), Ordering::Relaxed).saturating_add(data.len());
        if written >= self.piece_bytes { self.sync_data() } else { Ok(()) }
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, LockError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, LockError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), LockError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), LockError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), LockError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, LockError> {
        self.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe or a folder of the kernel cannot be synced, so the error is returned.
    fn syncs(disk: FsStateDisk) -> [bool; 2] {
        let (reader, _writer) = io::pipe().unwrap();
        // The library wants to lock its file, which a pipe allows.
        let file = disk.file(File::from(std::os::fd::OwnedFd::from(reader))).unwrap();
        [file.sync_data().is_err(), disk.sync_dir(Path::new("/proc")).is_err()]
    }

    #[test]
    fn what_is_written_is_synced_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        for (disk, synced) in [(FsStateDisk::default(), true), (FsStateDisk::unsynced(), false)] {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
            let half = vec![0; PIECE_BYTES / 2];
            let file = disk.any_file(file).unwrap();
            file.write(0, &half).unwrap();
            assert_eq!(file.written.load(Ordering::Relaxed), half.len());
            file.write(0, &half).unwrap();
            assert_eq!(file.written.load(Ordering::Relaxed) == 0, synced);
        }
    }

    /// A disk that loses what it was given, and tells so once.
    #[derive(Debug, Default)]
    struct Lossy {
        told: AtomicBool,
    }

    impl StorageBackend for Lossy {
        fn len(&self) -> io::Result<u64> {
            Ok(0)
        }

        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync_data(&self) -> io::Result<()> {
            if self.told.swap(true, Ordering::Relaxed) { Ok(()) } else { Err(io::Error::other("lost")) }
        }

        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
    }

    // The database library goes on after a write ahead of a commit that failed.
    #[test]
    fn nothing_is_durable_after_a_sync_that_failed() {
        let file = AnyFile { piece_bytes: 2, ..AnyFile::new(Box::new(Lossy::default())) };
        file.write(0, b"a").unwrap();
        assert_eq!(file.write(1, b"b").unwrap_err().to_string(), "lost");
        file.write(1, b"b").unwrap();
        assert!(file.sync_data().is_err());
    }

    #[test]
    fn the_disk_is_asked_to_sync_unless_told_not_to() {
        assert_eq!(syncs(FsStateDisk::default()), [true, true]);
        assert_eq!(syncs(FsStateDisk::unsynced()), [false, false]);
    }
}
