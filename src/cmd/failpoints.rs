//! Faults inside a running server, set from outside: the HTTP handler of etcd's gofail over the crate `fail`.
//!
//! Built with the cargo feature `failpoints` only, for test clusters. `GOFAIL_HTTP` is the address to serve,
//! `GOFAIL_FAILPOINTS` what is set from the start, as in `raftBeforeSave=panic;afterCommit=sleep("1s")`.

use anyhow::{Context as _, bail};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tonic::body::Body;

use crate::config::GoDuration;
use crate::listener::{self, ListenerConfig};
use crate::shutdown::Tasks;

/// Every failpoint of this program, under etcd's name for the same moment.
const NAMES: [&str; 11] = [
    "afterCommit",
    "beforeApplyOneConfChange",
    "beforeCommit",
    "beforeSendWatchResponse",
    "compactAfterAcquiredBatchTxLock",
    "compactBeforeSetFinishedCompact",
    "defragBeforeCopy",
    "defragOpenFileError",
    "defragdbFail",
    "raftAfterSave",
    "raftBeforeSave",
];
/// Where the value is the text of an error that the code returns.
const ERROR_NAMES: [&str; 2] = ["defragOpenFileError", "defragdbFail"];
/// Where a pause must not hold the thread, since others are served by it: the value is handed to the code instead.
const ASYNC_NAMES: [&str; 1] = ["beforeSendWatchResponse"];
/// Longest term.
const TERM_BYTES_MAX: usize = 1024;

/// Sets the failpoints of the environment, and serves the handler if it is configured.
///
/// # Errors
/// An unknown failpoint or term, or an address that cannot be bound.
pub fn start(tasks: &Tasks) -> anyhow::Result<()> {
    // A failpoint that panics simulates the end of the process, on whatever thread.
    std::panic::set_hook(Box::new(|panicked| {
        eprintln!("{panicked}");
        std::process::abort();
    }));
    for setting in std::env::var("GOFAIL_FAILPOINTS").unwrap_or_default().split(';').filter(|text| !text.is_empty()) {
        let (name, term) = setting.split_once('=').with_context(|| format!("GOFAIL_FAILPOINTS: {setting}"))?;
        set(name, term)?;
    }
    let Ok(address) = std::env::var("GOFAIL_HTTP") else { return Ok(()) };
    let socket = listener::bind(address.parse().with_context(|| format!("GOFAIL_HTTP: {address}"))?)?;
    let config = ListenerConfig { serving_threads: 1, ..ListenerConfig::default() };
    listener::serve(vec![socket], config, |_| listener::answering((), handler), tasks)?;
    tracing::warn!(address, "failpoints can be set from outside");
    Ok(())
}

fn set(name: &str, term: &str) -> anyhow::Result<()> {
    if !NAMES.contains(&name) {
        bail!("no failpoint {name}");
    }
    fail::cfg(name, &action(name, term)?).map_err(anyhow::Error::msg)
}

/// gofail's term in the words of the crate: lengths of time are milliseconds there.
fn action(name: &str, term: &str) -> anyhow::Result<String> {
    let term = term.trim();
    if let Some(time) = term.strip_prefix("sleep(").and_then(|rest| rest.strip_suffix(')')) {
        let ms = match time.strip_prefix('"').and_then(|time| time.strip_suffix('"')) {
            Some(time) => time.parse::<GoDuration>().map_err(|error| anyhow::anyhow!("{term}: {error}"))?.0.as_millis(),
            None => time.parse().with_context(|| term.to_owned())?,
        };
        let verb = if ASYNC_NAMES.contains(&name) { "return" } else { "sleep" };
        return Ok(format!("{verb}({ms})"));
    }
    if let Some(text) = term.strip_prefix("return(\"").and_then(|rest| rest.strip_suffix("\")"))
        && ERROR_NAMES.contains(&name)
    {
        return Ok(format!("return({text})"));
    }
    match term {
        "panic" | "off" => Ok(term.to_owned()),
        _ => bail!("term {term:?} is none of panic, sleep(…), off, nor an error that {name} can return"),
    }
}

fn list() -> String {
    let set = fail::list();
    let term = |name: &str| set.iter().find(|(set, _)| set == name).map_or("", |(_, term)| term);
    NAMES.map(|name| format!("{name}={}\n", term(name))).concat()
}

/// `GET /` lists, `PUT /name` sets, `DELETE /name` clears.
async fn handler((): (), request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let name = parts.uri.path().trim_start_matches('/');
    match parts.method {
        Method::GET => answer(StatusCode::OK, list()),
        Method::PUT => match Limited::new(body, TERM_BYTES_MAX).collect().await {
            Ok(term) => done(set(name, &String::from_utf8_lossy(&term.to_bytes()))),
            Err(error) => answer(StatusCode::BAD_REQUEST, error.to_string()),
        },
        Method::DELETE => done(set(name, "off")),
        _ => answer(StatusCode::METHOD_NOT_ALLOWED, String::new()),
    }
}

fn done(outcome: anyhow::Result<()>) -> Response<Body> {
    match outcome {
        Ok(()) => answer(StatusCode::NO_CONTENT, String::new()),
        Err(error) => answer(StatusCode::BAD_REQUEST, format!("{error:#}\n")),
    }
}

fn answer(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::new(http_body_util::Full::new(text.into())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_of_gofail_are_understood() {
        let told = |name, term| action(name, term).map_err(|error| error.to_string());
        assert_eq!(told("raftBeforeSave", "panic").as_deref(), Ok("panic"));
        assert_eq!(told("raftBeforeSave", r#"sleep("1s")"#).as_deref(), Ok("sleep(1000)"));
        assert_eq!(told("raftBeforeSave", "sleep(20)").as_deref(), Ok("sleep(20)"));
        assert_eq!(told("beforeSendWatchResponse", r#"sleep("1s")"#).as_deref(), Ok("return(1000)"));
        assert_eq!(told("defragdbFail", r#"return("no space")"#).as_deref(), Ok("return(no space)"));
        assert!(told("raftBeforeSave", "print").is_err());
        assert!(told("raftBeforeSave", r#"return("no space")"#).is_err());
        assert!(set("noSuchPoint", "panic").is_err());
    }
}
