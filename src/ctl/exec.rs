use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};

use tokio::process::Command;

use super::failure::{Exit, Failure};
use super::flags::Word;
use super::golang;
use crate::pb::mvccpb::Event;
use crate::pb::mvccpb::event::EventType;

fn command(words: &[Word]) -> Command {
    let mut words = words.iter().map(|word| OsString::from_vec(word.clone()));
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).stdin(Stdio::null());
    command
}

/// Runs the command of a watch for one event and waits for it.
///
/// # Errors
/// Ends this process with code 1 when the command fails, as etcdctl does.
pub(super) async fn for_event(words: &[Word], revision: i64, event: &Event) -> Result<(), Failure> {
    let kv = event.kv.clone().unwrap_or_default();
    let kind = match event.r#type() {
        EventType::Put => "PUT",
        EventType::Delete => "DELETE",
    };
    let outcome = command(words)
        .env("ETCD_WATCH_REVISION", revision.to_string())
        .env("ETCD_WATCH_EVENT_TYPE", golang::quote(kind.as_bytes()))
        .env("ETCD_WATCH_KEY", golang::quote(&kv.key))
        .env("ETCD_WATCH_VALUE", golang::quote(&kv.value))
        .status()
        .await;
    let why = match outcome {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => ending(status),
        Err(error) => start_error(words, &error),
    };
    let words: Vec<String> = words.iter().map(|word| golang::quote(word)).collect();
    eprintln!("command [{}] error ({why})", words.join(" "));
    Err(Failure::silent(Exit::Error as u8))
}

/// Exit code of a command that a signal killed: -1 in Go, which the system cuts to eight bits.
const KILLED: u8 = 255;

/// Runs the command that a lock protects.
///
/// # Errors
/// Carries the command's own exit code.
pub(super) async fn under_lock(words: &[Word], key: &[u8], revision: i64) -> Result<(), Failure> {
    let outcome = command(words)
        .stdin(Stdio::inherit())
        .env("ETCD_LOCK_KEY", OsStr::from_bytes(key))
        .env("ETCD_LOCK_REV", revision.to_string())
        .status()
        .await;
    match outcome {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(KILLED);
            Err(Failure { code, ..Failure::new(Exit::Error, ending(status)) })
        }
        Err(error) => Err(Failure::new(Exit::Error, start_error(words, &error))),
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal: {signal}"),
        (None, None) => "ended without a status".to_owned(),
    }
}

fn start_error(words: &[Word], error: &std::io::Error) -> String {
    let name = words.first().cloned().unwrap_or_default();
    match error.kind() {
        std::io::ErrorKind::NotFound if !name.contains(&b'/') => {
            format!("exec: {}: executable file not found in $PATH", golang::quote(&name))
        }
        _ => format!("fork/exec {}: {}", String::from_utf8_lossy(&name), golang::reason(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, key: &[u8]) -> Result<(), Failure> {
        under_lock(&["sh", "-c", script].map(|word| word.as_bytes().to_vec()), key, 7).await
    }

    #[tokio::test]
    async fn a_command_that_a_signal_killed_has_etcdctls_exit_code() {
        // Cause: without an exit code of its own the command counted as any other error, 1.
        assert_eq!(shell("kill -KILL $$", b"l/1").await.unwrap_err().code, 255);
        assert_eq!(shell("exit 7", b"l/1").await.unwrap_err().code, 7);
    }

    #[tokio::test]
    async fn a_command_gets_the_bytes_of_the_key() {
        // Cause: bytes that are not UTF-8 were replaced, so that the variable named another key.
        let script = r#"test "$(printf %s "$ETCD_LOCK_KEY" | od -An -tx1 | tr -d ' ')" = 6cff2f31"#;
        assert_eq!(shell(script, b"l\xff/1").await, Ok(()));
    }
}
