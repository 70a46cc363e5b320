use std::io;
use std::path::PathBuf;
use std::str::FromStr;

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error; alone in its list.
    Default,
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// The journal of systemd.
    Journal,
    /// A file, appended to.
    File(PathBuf),
}

impl FromStr for LogOutput {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("names no output"),
            "default" => Ok(Self::Default),
            "stderr" => Ok(Self::Stderr),
            "stdout" => Ok(Self::Stdout),
            "systemd/journal" => Ok(Self::Journal),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// Why logging was not set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file of `--log-outputs` does not open.
    #[error("--log-outputs: open {}: {reason}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// No journal listens here.
    #[error("--log-outputs: can't find journal ({}: {reason})", super::journal::SOCKET)]
    Journal {
        /// What the system said.
        reason: io::Error,
    },
    /// Logging was set up before.
    #[error("logging is already set up")]
    Twice,
}
