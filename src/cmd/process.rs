use std::fmt::Display;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;

use crate::config::ConfigError;

/// Answers `--help`, or reports why the flags of `command` are refused; gives the exit code.
///
/// As etcd's gateway and proxy do, it puts a flag that cannot be read before and after the usage.
pub(super) fn without_config(command: &str, error: &ConfigError) -> u8 {
    match error {
        ConfigError::Help(text) => answer(text),
        ConfigError::Flag { .. } => {
            eprintln!("Error: {error}\nUsage:\n  watershed {command} [flags]\n");
            eprintln!("Use \"watershed {command} --help\" for the flags.\n\n{error}");
            1
        }
        error => refuse(error),
    }
}

/// Reports why a mode does not start, on one line, and gives the exit code.
pub(super) fn refuse(error: impl Display) -> u8 {
    eprintln!("watershed: {error}");
    1
}

/// Writes what was asked for and gives the exit code; a closed pipe is no failure.
pub(super) fn answer(text: &str) -> u8 {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
    0
}

/// Runs a mode on a runtime with a thread for each core.
///
/// # Errors
/// Those of the mode.
pub(super) fn run_to_end(mode: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = Runtime::new().context("start the runtime")?;
    let outcome = runtime.block_on(mode);
    // A resolver that does not answer must not hold the exit up.
    runtime.shutdown_background();
    outcome
}

/// Allows as many open files as the system lets this user have; the usual soft limit is meant for `select`.
pub(super) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "descriptor limit stays as it is");
    }
}

/// Notifies systemd that the service is up, if the unit has `Type=notify`.
pub(super) fn notify_ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match socket.as_encoded_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&socket),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd could not be notified");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn a_look_up_without_an_answer_does_not_hold_the_end_up() {
        // Cause: a proxy that was told to stop waited until the resolver of the system gave up, which takes it tens of seconds.
        let (resolver, silence) = mpsc::channel::<()>();
        let (ended, outcome) = mpsc::channel();
        std::thread::spawn(move || {
            let mode = async move {
                let (begin, begun) = oneshot::channel();
                tokio::task::spawn_blocking(move || {
                    let _ = begin.send(());
                    let _ = silence.recv();
                });
                begun.await.context("the look-up begins")
            };
            ended.send(run_to_end(mode))
        });
        // Only a failure meets the limit.
        outcome.recv_timeout(Duration::from_secs(60)).expect("it ends").expect("without an error");
        drop(resolver);
    }
}
