use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use tracing::Level;

use super::journal::Journal;
use super::output::{LogError, LogOutput};
use super::rotation::{LogRotation, RotatedFile};

/// One place where every line goes.
pub(super) enum Sink {
    Stderr,
    Stdout,
    Journal(Journal),
    File(File),
    Rotated(RotatedFile),
}

impl Sink {
    pub fn open(output: &LogOutput, rotation: Option<LogRotation>) -> Result<Self, LogError> {
        let path = match output {
            LogOutput::Default | LogOutput::Stderr => return Ok(Self::Stderr),
            LogOutput::Stdout => return Ok(Self::Stdout),
            LogOutput::Journal => {
                return Journal::connect().map(Self::Journal).map_err(|reason| LogError::Journal { reason });
            }
            LogOutput::File(path) => path,
        };
        let opened = match rotation {
            None => OpenOptions::new().create(true).append(true).open(path).map(Self::File),
            Some(rotation) => RotatedFile::open(path, rotation).map(Self::Rotated),
        };
        opened.map_err(|reason| LogError::Open { path: path.clone(), reason })
    }

    /// A log line that cannot be written has nowhere to be reported.
    pub fn write(&mut self, level: Level, line: &str) {
        let _ = match self {
            Self::Stderr => io::stderr().write_all(line.as_bytes()),
            Self::Stdout => io::stdout().write_all(line.as_bytes()),
            // The journal takes no line larger than a datagram; etcd falls back to stderr too.
            Self::Journal(journal) => {
                journal.send(level, line.trim_end()).or_else(|_| io::stderr().write_all(line.as_bytes()))
            }
            Self::File(file) => file.write_all(line.as_bytes()),
            Self::Rotated(file) => file.write(line.as_bytes()),
        };
    }
}
