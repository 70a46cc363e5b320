use std::ffi::OsStr;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// First port tried; below the range the kernel hands out to clients, so that nobody takes one by accident.
const PORTS_FROM: u16 = 12_000;
const PORTS_TO: u16 = 32_000;

/// A port nobody listens on, another one for each call.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run side by side start far apart.
    let offset = (std::process::id() as u16).wrapping_mul(64);
    let span = PORTS_TO - PORTS_FROM;
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS_FROM + offset.wrapping_add(step) % span;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// An address of the loopback interface that no other test uses, for a program whose ports are fixed.
pub fn free_loopback() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    // Test binaries that run side by side have addresses of their own.
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let number = u8::try_from(NEXT.fetch_add(1, Ordering::Relaxed)).expect("few tests need one");
    Ipv4Addr::new(127, 128 | high, low, number)
}

/// Allows this process as many descriptors as it may have: many tests share it.
fn raise_descriptor_limit() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    });
}

/// A running program. Killed when dropped; its output is shown when the test failed.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; both its outputs go to a file in `folder`.
    pub fn start<A: AsRef<OsStr>>(program: &Path, args: &[A], folder: &Path, name: &str) -> Self {
        Self::start_with(program, args, &[], folder, name)
    }

    /// The same with variables, which are the only ones of etcd's or ours that it sees.
    pub fn start_with<A: AsRef<OsStr>>(
        program: &Path,
        args: &[A],
        variables: &[(&str, &str)],
        folder: &Path,
        name: &str,
    ) -> Self {
        raise_descriptor_limit();
        let log = folder.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log).expect("log file");
        let mut command = Command::new(program);
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("ETCD_") || key.to_string_lossy().starts_with("WATERSHED_") {
                command.env_remove(key);
            }
        }
        let child = command
            .args(args)
            .envs(variables.iter().copied())
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("log file"))
            .stderr(out)
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", program.display()));
        Self { name: name.to_owned(), child, log }
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} still runs after {limit:?}:\n{}", self.name, self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it (`SIGKILL`) and waits until it has ended.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end (`SIGTERM`).
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Sends a signal; one that has ended gets none. After `SIGSTOP` all of its threads have stopped: until the signal has reached them
    /// they may answer another request.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal);
        if signal == rustix::process::Signal::STOP {
            let deadline = Instant::now() + super::PATIENCE;
            while !self.has_stopped() {
                assert!(Instant::now() < deadline, "{} does not stop", self.name);
                std::thread::yield_now();
            }
        }
    }

    /// Whether none of its threads runs.
    fn has_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.id())).into_iter().flatten().flatten();
        // The state stands behind the name, which is in parentheses. A thread that is gone has none.
        let mut states = threads.filter_map(|thread| {
            let line = std::fs::read_to_string(thread.path().join("stat")).ok()?;
            line.rsplit_once(") ")?.1.chars().next()
        });
        states.all(|state| matches!(state, 'T' | 't' | 'Z' | 'X'))
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let early = self.ended();
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("--- {} (ended by itself: {early:?})\n{tail}\n---", self.name);
        }
    }
}
