use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::Signal;

/// Pause between two looks at a file. One that has changed is read when it is the same at the next look, so that one
/// that is being written is not taken for a shorter one.
const LOOK: Duration = Duration::from_secs(1);

/// A file that is read again when it changes. To be made when the file is read: a later change counts.
pub(super) struct ChangedFile {
    path: PathBuf,
    read: Option<Stamp>,
}

/// Why a file is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// It is another one than was read.
    Change,
    /// The process got SIGHUP.
    Hangup,
}

/// What differs when the file was written again or replaced.
type Stamp = (u64, u64, i64, i64);

impl ChangedFile {
    /// One that has been read as it is now.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: stamp(path) }
    }

    /// Completes when the file is another one than was read, and is no longer being written; or at SIGHUP.
    pub async fn next(&mut self, hangup: &mut Signal) -> Occasion {
        let mut last = self.read;
        loop {
            let hung_up = tokio::select! {
                signal = hangup.recv() => signal.is_some(),
                () = tokio::time::sleep(LOOK) => false,
            };
            let now = stamp(&self.path);
            if hung_up || (now != self.read && now == last && now.is_some()) {
                self.read = now;
                return if hung_up { Occasion::Hangup } else { Occasion::Change };
            }
            last = now;
        }
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(file).ok()?;
    Some((file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
}
