use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::{info, warn};

use super::pem::TlsError;

/// What was read from files, and is read again when they change: a handshake uses what they hold then.
///
/// Files that cannot be used, such as a new certificate whose key has not been written yet, leave what was read before.
pub(super) struct Followed<T> {
    /// For logs.
    what: &'static str,
    files: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    current: Mutex<Current<T>>,
}

struct Current<T> {
    value: Arc<T>,
    /// Of the files that were last read, whether they could be used or not.
    stamps: Option<Vec<Stamp>>,
}

/// What differs when a file was written again or replaced: device, inode, seconds and nanoseconds of the last change of
/// its inode.
type Stamp = (u64, u64, i64, i64);

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
        // Before the contents, so that a change in between is noticed later.
        let stamps = stamps(&files).ok();
        let value = Arc::new(read()?);
        Ok(Self { what, files, read: Box::new(read), current: Mutex::new(Current { value, stamps }) })
    }

    /// What is in no file.
    pub(super) fn fixed(value: T) -> Self {
        let read = || Err(TlsError::Unusable("there is no file".into()));
        let current = Current { value: Arc::new(value), stamps: None };
        Self { what: "", files: Vec::new(), read: Box::new(read), current: Mutex::new(current) }
    }

    /// What the files hold now.
    pub(super) fn current(&self) -> Arc<T> {
        let mut current = self.current.lock();
        if !self.files.is_empty() {
            let stamps = stamps(&self.files).ok();
            if stamps.is_some() && stamps != current.stamps {
                current.stamps = stamps;
                match (self.read)() {
                    Ok(value) => {
                        info!(files = ?self.files, "{} read again", self.what);
                        current.value = Arc::new(value);
                    }
                    Err(error) => warn!(files = ?self.files, %error, "changed {} not used", self.what),
                }
            }
        }
        current.value.clone()
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
        io::Result::Ok((file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
    };
    files.iter().map(|path| stamp(path)).collect()
}
