use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};

use super::disk::{FsDisk, FsFile, WalDisk, WalFile};

/// Bytes of zeroes written at a time.
const PIECE_BYTES: u64 = 256 * 1024;
/// Bytes of zeroes between two syncs: more at once would hold up the syncs of the log.
const SYNC_BYTES: u64 = 2 * 1024 * 1024;

/// A file of zeroes that is made beside the work of the log.
///
/// A sync behind a write to reserved space has to change the file's metadata, which a sync behind a write to written zeroes does not:
/// it takes half the time, and does not wait for what others sync in the same file system.
pub trait Preparing<F>: Debug + Send {
    /// Lets it go on until so many bytes are written.
    fn allow(&mut self, bytes: u64);
    /// The file once it is complete, or why it never will be. Not called again after that.
    ///
    /// # Errors
    /// The system's.
    fn finished(&mut self) -> Option<io::Result<F>>;
}

/// A thread that writes zeroes to a file. Dropping it ends the thread and removes the file.
#[derive(Debug)]
pub(super) struct ZeroWriter {
    path: PathBuf,
    pace: Arc<Pace>,
    thread: Option<JoinHandle<io::Result<FsFile>>>,
}

#[derive(Debug)]
struct Pace {
    /// Bytes of the file.
    size: u64,
    /// Pieces that may be written; the last one may be shorter.
    allowed: AtomicU64,
    stop: AtomicBool,
}

impl ZeroWriter {
    pub(super) fn start(disk: FsDisk, path: &Path, size: u64) -> io::Result<Self> {
        let (pace, path) = (Arc::new(Pace::new(size)), path.to_owned());
        let (of_thread, made_as) = (pace.clone(), path.clone());
        let thread = Builder::new().name("wal-zeroes".into()).spawn(move || {
            let made = disk.create(&made_as, size).and_then(|mut file| of_thread.write(&mut file).map(|()| file));
            // A disk that is full lacks the room that an incomplete file takes.
            made.inspect_err(|_| drop(disk.remove(&made_as)))
        })?;
        Ok(Self { path, pace, thread: Some(thread) })
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Pace {
    fn new(size: u64) -> Self {
        Self { size, allowed: AtomicU64::new(0), stop: AtomicBool::new(false) }
    }

    /// Whether more pieces may be written than before.
    fn allow(&self, bytes: u64) -> bool {
        let pieces = if bytes < self.size { bytes / PIECE_BYTES } else { self.size.div_ceil(PIECE_BYTES) };
        self.allowed.fetch_max(pieces, Ordering::Release) < pieces
    }

    fn write(&self, file: &mut FsFile) -> io::Result<()> {
        let (zeroes, size) = (vec![0; PIECE_BYTES as usize], self.size);
        let (mut written, mut synced) = (0, 0);
        while written < size {
            let piece = PIECE_BYTES.min(size - written);
            while self.allowed.load(Ordering::Acquire) <= written / PIECE_BYTES {
                if self.stop.load(Ordering::Acquire) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                std::thread::park();
            }
            file.write_at(written, &zeroes[..piece as usize])?;
            written += piece;
            if written - synced >= SYNC_BYTES || written == size {
                file.sync_data()?;
                synced = written;
            }
        }
        Ok(())
    }
}

impl Preparing<FsFile> for ZeroWriter {
    fn allow(&mut self, bytes: u64) {
        if self.pace.allow(bytes) {
            self.wake();
        }
    }

    fn finished(&mut self) -> Option<io::Result<FsFile>> {
        let thread = self.thread.take_if(|thread| thread.is_finished())?;
        Some(thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that writes zeroes panicked"))))
    }
}

impl Drop for ZeroWriter {
    fn drop(&mut self) {
        self.pace.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
            // It has no name that anybody looks for.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 5 * PIECE_BYTES / 2;

    fn until_finished(writer: &mut ZeroWriter) -> io::Result<FsFile> {
        loop {
            if let Some(result) = writer.finished() {
                return result;
            }
            std::thread::yield_now();
        }
    }

    fn writer(path: &Path) -> ZeroWriter {
        ZeroWriter::start(FsDisk::default(), path, SIZE).unwrap()
    }

    // Once the last piece, which is shorter, was allowed without a wake-up.
    #[test]
    fn each_piece_that_may_be_written_is_a_reason_to_wake_the_thread() {
        let pace = Pace::new(SIZE);
        let allowed = [0, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, SIZE - 1, SIZE, SIZE, PIECE_BYTES];
        assert_eq!(
            allowed.map(|bytes| pace.allow(bytes)),
            [false, false, true, false, true, true, false, false],
            "{allowed:?}"
        );
    }

    #[test]
    fn a_file_is_finished_when_all_of_it_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.tmp");
        let mut writer = writer(&path);
        writer.allow(SIZE - 1);
        assert!(writer.finished().is_none());
        writer.allow(SIZE);
        let file = until_finished(&mut writer).unwrap();
        drop(writer);
        assert_eq!(file.size().unwrap(), SIZE);
        assert!(std::fs::read(path).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_not_finished_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.tmp");
        let mut unfinished = writer(&path);
        unfinished.allow(PIECE_BYTES);
        drop(unfinished);
        assert!(!path.exists());
    }

    // Cause: on a full disk the incomplete file kept the last free room from the state, and the member ended.
    #[test]
    fn what_cannot_be_completed_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.tmp");
        // No file can be as long.
        let mut writer = ZeroWriter::start(FsDisk::default(), &path, u64::MAX).unwrap();
        until_finished(&mut writer).unwrap_err();
        drop(writer);
        assert!(!path.exists());
    }

    #[test]
    fn what_the_disk_refuses_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(&folder.path().join("no folder/1.tmp"));
        assert_eq!(until_finished(&mut writer).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
