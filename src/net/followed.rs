use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::pem::TlsError;

/// From a change to the one more time that the files are read: a file that is still written then has other times, which
/// file systems keep in steps of up to two seconds. Also from a failure to the next attempt.
const SETTLED: Duration = Duration::from_secs(2);
/// At most one log line about the same failure in this time.
const LOG_PERIOD: Duration = Duration::from_secs(60);

/// What was read from files, and is read again when they change: a handshake uses what they hold then.
///
/// Files that cannot be used, such as a new certificate whose key has not been written yet, leave what was read before.
pub(super) struct Followed<T> {
    /// For logs.
    what: &'static str,
    files: Vec<PathBuf>,
    stamps: Box<Stamps>,
    read: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    current: Mutex<Current<T>>,
}

struct Current<T> {
    value: Arc<T>,
    /// Of the files that were last read, whether they could be used or not.
    stamps: Option<Vec<Stamp>>,
    /// From when on they are read even if they have these stamps.
    again: Option<Instant>,
    /// When it was logged that they cannot be used; none while they can.
    failure_logged: Option<Instant>,
}

/// Looks at the files without reading them.
type Stamps = dyn Fn(&[PathBuf]) -> io::Result<Vec<Stamp>> + Send + Sync;

/// What differs when a file was written again or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// The same of the inode.
    changed: (i64, i64),
}

impl<T> Followed<T> {
    /// Reads `files` by `read`.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) fn open(
        what: &'static str,
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        Self::with(what, files, stamps, read)
    }

    fn with(
        what: &'static str,
        files: Vec<PathBuf>,
        stamps: impl Fn(&[PathBuf]) -> io::Result<Vec<Stamp>> + Send + Sync + 'static,
        read: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        // Before the contents, so that a change in between is noticed later.
        let before = stamps(&files).ok();
        let current = Current {
            value: Arc::new(read()?),
            stamps: before,
            again: Some(Instant::now() + SETTLED),
            failure_logged: None,
        };
        Ok(Self { what, files, stamps: Box::new(stamps), read: Box::new(read), current: Mutex::new(current) })
    }

    /// What is in no file.
    pub(super) fn fixed(value: T) -> Self {
        let read = || Err(TlsError::Unusable("there is no file".into()));
        let current = Current { value: Arc::new(value), stamps: None, again: None, failure_logged: None };
        Self {
            what: "",
            files: Vec::new(),
            stamps: Box::new(stamps),
            read: Box::new(read),
            current: Mutex::new(current),
        }
    }

    /// What the files hold now.
    pub(super) fn current(&self) -> Arc<T> {
        let mut current = self.current.lock();
        if !self.files.is_empty()
            && let Ok(stamps) = (self.stamps)(&self.files)
        {
            self.follow(&mut current, stamps);
        }
        current.value.clone()
    }

    /// Reads the files if they have changed, or are to be read again: equal stamps do not prove that they are as they were
    /// when they were read, and a failure may have been one of the system, such as a lack of descriptors.
    fn follow(&self, current: &mut Current<T>, stamps: Vec<Stamp>) {
        let now = Instant::now();
        let has_changed = current.stamps.as_ref() != Some(&stamps);
        if !has_changed && current.again.is_none_or(|at| now < at) {
            return;
        }
        current.stamps = Some(stamps);
        match (self.read)() {
            Ok(value) => {
                if has_changed || current.failure_logged.is_some() {
                    info!(files = ?self.files, "{} read again", self.what);
                }
                current.value = Arc::new(value);
                current.again = has_changed.then(|| now + SETTLED);
                current.failure_logged = None;
            }
            Err(error) => {
                if has_changed || current.failure_logged.is_none_or(|at| now >= at + LOG_PERIOD) {
                    warn!(files = ?self.files, %error, "changed {} not used", self.what);
                    current.failure_logged = Some(now);
                }
                current.again = Some(now + SETTLED);
            }
        }
    }
}

impl<T> fmt::Debug for Followed<T> {
    /// Without the value: it may be a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").field("files", &self.files).finish_non_exhaustive()
    }
}

fn stamps(files: &[PathBuf]) -> io::Result<Vec<Stamp>> {
    let stamp = |path: &Path| {
        let file = std::fs::metadata(path)?;
        io::Result::Ok(Stamp {
            device: file.dev(),
            inode: file.ino(),
            length: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    };
    files.iter().map(|path| stamp(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is in no file system: its times never differ.
    struct File {
        length: u64,
        /// None where it cannot be read.
        text: Option<&'static str>,
        reads: usize,
    }

    fn followed(text: &'static str) -> (Arc<Mutex<File>>, Followed<&'static str>) {
        let file = Arc::new(Mutex::new(File { length: 1, text: Some(text), reads: 0 }));
        let (measured, read) = (file.clone(), file.clone());
        let stamps = move |_: &[PathBuf]| {
            let length = measured.lock().length;
            Ok(vec![Stamp { device: 1, inode: 1, length, modified: (1, 0), changed: (1, 0) }])
        };
        let read = move || {
            let mut file = read.lock();
            file.reads += 1;
            file.text.ok_or_else(|| TlsError::Unusable("too many open files".into()))
        };
        (file, Followed::with("text", vec!["file".into()], stamps, read).expect("readable"))
    }

    // The stamps of a file were kept when it could not be read for lack of descriptors: it was not read before it changed
    // once more, which for a renewed certificate is after its end.
    #[tokio::test(start_paused = true)]
    async fn a_file_that_could_not_be_read_is_read_later() {
        let (file, followed) = followed("old");
        *file.lock() = File { length: 2, text: None, reads: 0 };
        assert_eq!(*followed.current(), "old");
        file.lock().text = Some("new");
        assert_eq!((*followed.current(), file.lock().reads), ("old", 1), "not at once: handshakes must stay cheap");
        tokio::time::advance(SETTLED).await;
        assert_eq!((*followed.current(), file.lock().reads), ("new", 2));
        tokio::time::advance(10 * SETTLED).await;
        assert_eq!((*followed.current(), file.lock().reads), ("new", 2), "it has not changed");
    }

    // A file that was read while it was written, and was complete within the same tick of the kernel's clock, was never
    // read again.
    #[tokio::test(start_paused = true)]
    async fn a_change_that_leaves_the_stamps_as_they_are_is_noticed() {
        for is_first in [true, false] {
            let (file, followed) = followed("part");
            if !is_first {
                tokio::time::advance(SETTLED).await;
                assert_eq!(*followed.current(), "part");
                file.lock().length = 2;
                assert_eq!(*followed.current(), "part");
            }
            file.lock().text = Some("whole");
            let reads = file.lock().reads;
            tokio::time::advance(SETTLED).await;
            for _ in 0..2 {
                assert_eq!((*followed.current(), file.lock().reads), ("whole", reads + 1));
                tokio::time::advance(SETTLED).await;
            }
        }
    }

    #[test]
    fn a_stamp_has_the_length() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = [folder.path().join("file")];
        std::fs::write(&files[0], "part").expect("written");
        let before = stamps(&files).expect("there");
        std::fs::write(&files[0], "the whole").expect("written");
        let after = stamps(&files).expect("there");
        assert_eq!((before[0].length, after[0].length, before[0].inode), (4, 9, after[0].inode));
    }
}
