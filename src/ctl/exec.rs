use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
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

/// Runs the command that a lock protects.
///
/// # Errors
/// Carries the command's own exit code.
pub(super) async fn under_lock(words: &[Word], key: &str, revision: i64) -> Result<(), Failure> {
    let outcome = command(words)
        .stdin(Stdio::inherit())
        .env("ETCD_LOCK_KEY", key)
        .env("ETCD_LOCK_REV", revision.to_string())
        .status()
        .await;
    match outcome {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::Error as u8);
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
