use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use super::prepare::{Preparing, ZeroWriter};

/// etcd's segment size.
const SEGMENT_BYTES: u64 = 64 * 1000 * 1000;

/// Files and folders as the log needs them; a simulation replaces them.
///
/// Only what was followed by [`WalFile::sync_data`] (contents) or [`sync_dir`](Self::sync_dir) (names) survives a
/// power loss. The log never repeats a call that failed.
pub trait WalDisk: Send {
    /// An open file.
    type File: WalFile;

    /// Size at which a segment is closed, and space reserved for it.
    fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES
    }
    /// Whether a file or folder of this name exists.
    ///
    /// # Errors
    /// The system's.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Makes a folder, and those above it, for the owner only; all but the folder's own name are durable then.
    ///
    /// # Errors
    /// The system's.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Names in a folder, in any order.
    ///
    /// # Errors
    /// The system's.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes and locks a new file of zeroes of this size, for the owner only. A file of that name is replaced.
    ///
    /// # Errors
    /// The system's.
    fn create(&self, path: &Path, size: u64) -> io::Result<Self::File>;
    /// Begins to make a file as [`create`](Self::create) does whose zeroes are written, too. None where that gains nothing, or cannot be done: the log
    /// does without.
    fn prepare(&self, _path: &Path, _size: u64) -> Option<Box<dyn Preparing<Self::File>>> {
        None
    }
    /// Opens and locks a file; `WouldBlock` when another process holds it.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    /// Renames a file or folder.
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Deletes a file, or a folder with all in it; it is no error when there is none.
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

/// An open file of the log.
pub trait WalFile: Send {
    /// Bytes in the file.
    ///
    /// # Errors
    /// The system's.
    fn size(&self) -> io::Result<u64>;
    /// Reads up to `into.len()` bytes; fewer only at the end of the file.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;
    /// Writes all bytes.
    ///
    /// # Errors
    /// The system's.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts the file off.
    ///
    /// # Errors
    /// The system's.
    fn truncate(&mut self, size: u64) -> io::Result<()>;
    /// Extends the file with zeroes to `size`, with the space reserved on disk.
    ///
    /// # Errors
    /// The system's.
    fn reserve(&mut self, size: u64) -> io::Result<()>;
    /// Makes the contents and the size durable.
    ///
    /// # Errors
    /// The system's.
    fn sync_data(&self) -> io::Result<()>;
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsDisk {
    unsynced: bool,
}

impl FsDisk {
    /// Nothing is synced: what it holds survives the end of the process, not that of the system.
    pub fn unsynced() -> Self {
        Self { unsynced: true }
    }

    fn file(self, file: File) -> FsFile {
        FsFile { file, unsynced: self.unsynced }
    }
}

impl WalDisk for FsDisk {
    type File = FsFile;

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let missing: Vec<_> = path.ancestors().take_while(|above| !above.exists()).collect();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        missing.into_iter().skip(1).try_for_each(|made| {
            self.sync_dir(made.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        // Names that are not UTF-8 are none of ours; lossy ones do not parse either.
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, path: &Path, size: u64) -> io::Result<FsFile> {
        self.remove(path)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        lock(&file)?;
        let mut file = self.file(file);
        file.reserve(size)?;
        Ok(file)
    }

    fn prepare(&self, path: &Path, size: u64) -> Option<Box<dyn Preparing<FsFile>>> {
        if self.unsynced {
            return None;
        }
        Some(Box::new(ZeroWriter::start(*self, path, size).ok()?))
    }

    fn open(&self, path: &Path) -> io::Result<FsFile> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        lock(&file)?;
        Ok(self.file(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.unsynced { Ok(()) } else { File::open(dir)?.sync_all() }
    }
}

fn lock(file: &File) -> io::Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether the log goes on without the space that could not be reserved, as etcd's does: some file systems cannot do it,
/// and on some a signal to the process ends the call.
fn is_dispensable(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::OPNOTSUPP | Errno::INVAL | Errno::INTR)
}

/// A file of the real file system, locked while it is open.
#[derive(Debug)]
pub struct FsFile {
    file: File,
    unsynced: bool,
}

impl WalFile for FsFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    fn reserve(&mut self, size: u64) -> io::Result<()> {
        let current = self.size()?;
        if current >= size {
            return Ok(());
        }
        use rustix::fs::{FallocateFlags, fallocate};
        match fallocate(&self.file, FallocateFlags::empty(), current, size - current) {
            Err(error) if is_dispensable(error) => self.file.set_len(size),
            other => Ok(other?),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.unsynced { Ok(()) } else { self.file.sync_data() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Neither a pipe nor a folder of the kernel can be synced, and the system says so.
    fn syncs(disk: FsDisk) -> [bool; 2] {
        let (reader, _writer) = io::pipe().unwrap();
        let file = disk.file(File::from(std::os::fd::OwnedFd::from(reader)));
        [file.sync_data().is_err(), disk.sync_dir(Path::new("/proc")).is_err()]
    }

    // A signal that came while space was reserved closed the log, and ended the member.
    #[test]
    fn a_signal_while_space_is_reserved_is_no_failure_and_a_full_disk_is_one() {
        use rustix::io::Errno;
        assert!([Errno::INTR, Errno::OPNOTSUPP, Errno::INVAL].into_iter().all(is_dispensable));
        assert!(![Errno::NOSPC, Errno::DQUOT, Errno::IO].into_iter().any(is_dispensable));
    }

    #[test]
    fn the_disk_is_asked_to_sync_unless_told_not_to() {
        assert_eq!(syncs(FsDisk::default()), [true, true]);
        assert_eq!(syncs(FsDisk::unsynced()), [false, false]);
    }
}
