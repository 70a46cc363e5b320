//! Processes of a set-up, which end with it.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Time that a program gets to answer for the first time.
const START_MAX: Duration = Duration::from_secs(60);
/// Pause between two questions whether it answers.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// The programs that take part, and where their files go.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Programs {
    /// This program; it is the generator too.
    pub(in crate::bench) ours: PathBuf,
    /// The one it is measured against.
    pub(in crate::bench) peer: PathBuf,
    pub(in crate::bench) folder: PathBuf,
    pub(in crate::bench) haproxy: Option<PathBuf>,
    pub(in crate::bench) nginx: Option<PathBuf>,
}

impl Programs {
    /// A folder for the files of a process that is about to start; no two get the same.
    pub(in crate::bench) fn folder(&self, name: &str) -> Result<PathBuf, String> {
        let number = std::fs::read_dir(&self.folder).map_err(|error| at(&self.folder, &error))?.count();
        let folder = self.folder.join(format!("{number}-{name}"));
        std::fs::create_dir_all(&folder).map_err(|error| at(&folder, &error))?;
        Ok(folder)
    }
}

/// An error with the path it is about.
pub(in crate::bench) fn at(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// The first of these that is a file: a path, or a name in `PATH` and where Debian has servers.
pub(in crate::bench) fn find(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A program with its words, and without the variables that etcd and its tools read as flags.
pub(in crate::bench) fn command(program: &Path, words: &[String]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD") {
            command.env_remove(name);
        }
    }
    command.args(words).stdin(Stdio::null());
    command
}

/// A free port of the loopback interface.
pub(in crate::bench) fn port() -> Result<u16, String> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(|error| format!("find a free port: {error}"))?;
    Ok(listener.local_addr().map_err(|error| format!("find a free port: {error}"))?.port())
}

/// A process that runs until this is dropped.
#[derive(Debug)]
pub(in crate::bench) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts a program; what it prints goes to a file of the folder.
    pub(in crate::bench) fn start(program: &Path, words: &[String], folder: &Path) -> Result<Self, String> {
        let log = folder.join("log");
        let file = File::create(&log).map_err(|error| at(&log, &error))?;
        let other = file.try_clone().map_err(|error| at(&log, &error))?;
        let child = command(program, words)
            .current_dir(folder)
            .stdout(file)
            .stderr(other)
            .spawn()
            .map_err(|error| format!("start {}", at(program, &error)))?;
        Ok(Self { child, log })
    }

    pub(in crate::bench) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks until the answer is yes.
    pub(in crate::bench) fn until(&mut self, mut ready: impl FnMut() -> bool) -> Result<(), String> {
        let end = Instant::now() + START_MAX;
        while !ready() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("process ended with {status}: {}", self.last_lines()));
            }
            if Instant::now() > end {
                return Err(format!("no answer within {START_MAX:?}: {}", self.last_lines()));
            }
            std::thread::sleep(ASK_AGAIN);
        }
        Ok(())
    }

    /// Stops or continues it, as if its machine hung.
    pub(in crate::bench) fn hang(&self, hang: bool) -> Result<(), String> {
        use rustix::process::{Pid, Signal, kill_process};
        let signal = if hang { Signal::STOP } else { Signal::CONT };
        let pid = Pid::from_raw(self.child.id().cast_signed()).ok_or("the process has no number")?;
        kill_process(pid, signal).map_err(|error| format!("signal process {}: {error}", self.child.id()))
    }

    fn last_lines(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        format!("{} ends with {:?}", self.log.display(), lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ends_is_named_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let words = ["-c".to_owned(), "echo no such flag; exit 3".to_owned()];
        let mut running = Running::start(Path::new("/bin/sh"), &words, folder.path()).unwrap();
        let error = running.until(|| false).unwrap_err();
        assert!(error.contains("exit status: 3") && error.contains("no such flag"), "{error}");
    }

    #[test]
    fn programs_are_found_by_path_and_by_name() {
        assert_eq!(find("/bin/sh"), Some(PathBuf::from("/bin/sh")));
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-of-any-kind"), None);
        assert_eq!(find("/no/such/file"), None);
    }
}
