use std::fmt;

use tonic::{Code, Status};

use crate::api_error::ApiError;

/// Why a command ended, as far as scripts care. The numbers are etcdctl's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// Anything without a number of its own.
    Error = 1,
    /// The cluster could not be used: lost connections, failed logins, a keep-alive for a lease that is gone.
    BadConnection = 2,
    /// Unreadable input of `txn` and `watch -i`.
    InvalidInput = 3,
    /// A flag that exists with a value that does not.
    BadFeature = 4,
    /// A watch or a snapshot that the other side ended.
    Interrupted = 5,
    /// Output that could not be written.
    Io = 6,
    /// Wrong arguments.
    BadArgs = 128,
}

/// The end of a command that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Exit code of the process.
    pub(super) code: u8,
    /// What follows `Error: `; empty when everything is said already.
    pub(super) text: String,
    /// What to know before reading the text, a line of its own.
    pub(super) note: Option<String>,
    /// What follows the text: how the command is used.
    pub(super) usage: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { code: exit as u8, text: text.into(), note: None, usage: None }
    }

    /// Wrong arguments.
    pub(super) fn args(text: impl Into<String>) -> Self {
        Self::new(Exit::BadArgs, text)
    }

    /// Ends with `code` and says nothing more.
    pub(super) fn silent(code: u8) -> Self {
        Self { code, text: String::new(), note: None, usage: None }
    }

    /// A call the cluster refused or did not answer.
    pub(super) fn call(status: &Status) -> Self {
        Self { note: dial_note(status), ..Self::new(Exit::Error, status_text(status)) }
    }

    /// The same, followed by how the command is used.
    pub(super) fn with_usage(self, usage: String) -> Self {
        Self { usage: Some(usage), ..self }
    }

    /// The same with another exit code.
    pub(super) fn with(self, exit: Exit) -> Self {
        Self { code: exit as u8, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // A reader that had enough, as `ctl get | head`, is no reason for a message.
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::silent(Exit::Io as u8),
            _ => Self::new(Exit::Io, format!("write output: {error}")),
        }
    }
}

/// How the client begins the status of a call for which it found no connection.
const UNREACHABLE: &str = "no endpoint can be reached (";

/// Why no connection could be made, in grpc-go's words for the last endpoint that was tried.
fn dial_note(status: &Status) -> Option<String> {
    let reasons = status.message().strip_prefix(UNREACHABLE)?.strip_suffix(')')?;
    let (endpoint, reason) = reasons.rsplit("; ").next()?.split_once(": ")?;
    let reason = reason.split(" (os error").next().unwrap_or(reason).to_lowercase();
    Some(format!(
        "latest balancer error: connection error: desc = \"transport: Error while dialing: dial tcp {endpoint}: \
         connect: {reason}\""
    ))
}

/// Words a status as the Go client does: errors of the API by their text alone, a deadline of ours and a cluster out
/// of reach by Go's words, the rest with code and text.
pub(super) fn status_text(status: &Status) -> String {
    if status.message().starts_with(UNREACHABLE) {
        return "context deadline exceeded".to_owned();
    }
    if ApiError::from_text(status.message()).is_some() {
        return status.message().to_owned();
    }
    if let Some(text) = size_text(status) {
        return text;
    }
    match status.code() {
        Code::DeadlineExceeded => "context deadline exceeded".to_owned(),
        code => format!("rpc error: code = {} desc = {}", code_name(code), status.message()),
    }
}

/// grpc-go's code and text for a message that is longer than `--max-request-bytes` or `--max-recv-bytes`, which tonic
/// words in its own way.
fn size_text(status: &Status) -> Option<String> {
    let rest = status.message().strip_prefix("Error, ")?;
    let (direction, rest) = rest.split_once(" message length too large: found ")?;
    let (length, limit) = rest.strip_suffix(" bytes")?.split_once(" bytes, the limit is: ")?;
    let what = match direction {
        "encoded" => "trying to send message",
        "decoded" => "grpc: received message",
        _ => return None,
    };
    Some(format!("rpc error: code = ResourceExhausted desc = {what} larger than max ({length} vs. {limit})"))
}

/// grpc-go's name of a code.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_read_as_the_go_client_prints_them() {
        let api = Status::from(ApiError::LeaseNotFound);
        assert_eq!(status_text(&api), "etcdserver: requested lease not found");
        assert_eq!(status_text(&Status::deadline_exceeded("x")), "context deadline exceeded");
        let lost = Status::unavailable("no endpoint can be reached (127.0.0.1:1: Connection refused (os error 111))");
        let failure = Failure::call(&lost);
        assert_eq!(failure.text, "context deadline exceeded");
        assert_eq!(
            failure.note.as_deref(),
            Some(
                "latest balancer error: connection error: desc = \"transport: Error while dialing: dial tcp \
                 127.0.0.1:1: connect: connection refused\""
            )
        );
        let other = Status::unimplemented("unknown service");
        assert_eq!(status_text(&other), "rpc error: code = Unimplemented desc = unknown service");
    }
}
