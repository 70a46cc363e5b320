//! HTTP headers <-> gRPC metadata, by the rules of grpc-gateway.

use std::sync::Arc;
use std::time::Duration;

use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use base64::{DecodeError, Engine};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use tonic::Status;

use crate::listener::ConnectionInfo;

const PREFIX: &str = "grpc-metadata-";
const ACCEPT: HeaderName = HeaderName::from_static("grpcgateway-accept");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Headers of HTTP itself; they arrive with `grpcgateway-` before their names.
const PERMANENT: [&str; 24] = [
    "accept",
    "accept-charset",
    "accept-language",
    "accept-ranges",
    "authorization",
    "cache-control",
    "content-type",
    "cookie",
    "date",
    "expect",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-schedule-tag-match",
    "if-unmodified-since",
    "max-forwards",
    "origin",
    "pragma",
    "referer",
    "user-agent",
    "via",
    "warning",
];

/// What a client cannot set as metadata: it belongs to gRPC, or to HTTP/2.
fn is_reserved(name: &str) -> bool {
    const RESERVED: [&str; 9] = [
        "connection",
        "content-length",
        "content-type",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "user-agent",
    ];
    RESERVED.contains(&name) || name.starts_with("grpc-") || name == "upgrade"
}

/// The metadata of the call for these headers of HTTP.
///
/// `grpcgateway-accept` is always there: it tells a service that the call came through the gateway.
///
/// # Errors
/// When binary metadata is not base64.
pub(super) fn incoming(headers: &HeaderMap, connection: Option<&Arc<ConnectionInfo>>) -> Result<HeaderMap, Status> {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        let name = name.as_str();
        if name == header::AUTHORIZATION.as_str() {
            metadata.append(header::AUTHORIZATION, value.clone());
        }
        let mapped = match name.strip_prefix(PREFIX) {
            Some(mapped) if !is_reserved(mapped) => mapped.to_owned(),
            None if PERMANENT.contains(&name) => format!("grpcgateway-{name}"),
            _ => continue,
        };
        let Ok(mapped) = HeaderName::try_from(mapped) else { continue };
        let value = if name.ends_with("-bin") { Some(binary(name, value)?) } else { printable(value) };
        if let Some(value) = value {
            metadata.append(mapped, value);
        }
    }
    if !metadata.contains_key(ACCEPT) {
        metadata.insert(ACCEPT, HeaderValue::from_static("*/*"));
    }
    if let Some(host) = headers.get(FORWARDED_HOST).or_else(|| headers.get(header::HOST)) {
        metadata.insert(FORWARDED_HOST, host.clone());
    }
    let ways: Vec<_> = headers.get_all(FORWARDED_FOR).iter().filter_map(|way| way.to_str().ok()).collect();
    let client = connection.map(|connection| connection.peer.ip().to_string());
    let ways: Vec<_> = ways.into_iter().chain(client.as_deref()).collect();
    if let Ok(value) = HeaderValue::try_from(ways.join(", "))
        && !value.is_empty()
    {
        metadata.insert(FORWARDED_FOR, value);
    }
    Ok(metadata)
}

fn printable(value: &HeaderValue) -> Option<HeaderValue> {
    value.as_bytes().iter().all(|byte| matches!(byte, 0x20..=0x7e)).then(|| value.clone())
}

fn binary(name: &str, value: &HeaderValue) -> Result<HeaderValue, Status> {
    let decoder = if value.len().is_multiple_of(4) { STANDARD } else { STANDARD_NO_PAD };
    match decoder.decode(value) {
        Ok(_) => Ok(value.clone()),
        Err(error) => {
            let at = match error {
                DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
                DecodeError::InvalidLength(length) => length,
                DecodeError::InvalidPadding => value.len(),
            };
            let text = format!("invalid binary header {}: illegal base64 data at input byte {at}", canonical(name));
            Err(Status::invalid_argument(text))
        }
    }
}

/// A name with capitals, as Go writes it.
fn canonical(name: &str) -> String {
    let mut begins = true;
    let capital = |letter: char| {
        let letter = if begins { letter.to_ascii_uppercase() } else { letter };
        begins = letter == '-';
        letter
    };
    name.chars().map(capital).collect()
}

/// The time that `Grpc-Timeout` gives the call; none without the header, or with a zero.
///
/// # Errors
/// When it is not a number and a unit.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(GRPC_TIMEOUT).filter(|value| !value.is_empty()) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
    let refused = || Status::invalid_argument(format!("invalid grpc-timeout: {text}"));
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(refused)?;
    let nanoseconds: u64 = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => return Err(refused()),
    };
    let number: i64 = digits.parse().map_err(|_| refused())?;
    // A time before now has passed.
    let number = u64::try_from(number).unwrap_or(0);
    let zero = digits.trim_start_matches(['+', '-']).bytes().all(|digit| digit == b'0');
    Ok((!zero).then(|| Duration::from_nanos(number.saturating_mul(nanoseconds))))
}

/// The headers of HTTP for the head of a gRPC answer.
pub(super) fn outgoing(metadata: &HeaderMap, headers: &mut HeaderMap) {
    for (name, value) in metadata {
        let name = name.as_str();
        if name != "content-type" && (is_reserved(name) || name == "date" || name == "trailer") {
            continue;
        }
        if let Ok(name) = HeaderName::try_from(format!("{PREFIX}{name}")) {
            headers.append(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn headers_become_metadata_by_their_prefix() {
        let sent = headers(&[
            ("host", "a:1"),
            ("authorization", "token"),
            ("accept", "text/plain"),
            ("x-own", "dropped"),
            ("grpc-metadata-hasleader", "true"),
            ("grpc-metadata-x-bin", "aGk"),
            ("grpc-metadata-content-type", "dropped"),
            ("grpc-metadata-grpc-encoding", "dropped"),
            ("grpc-metadata-connection", "dropped"),
            ("x-forwarded-for", "1.2.3.4"),
        ]);
        let expected = headers(&[
            ("grpcgateway-host", "a:1"),
            ("authorization", "token"),
            ("grpcgateway-authorization", "token"),
            ("grpcgateway-accept", "text/plain"),
            ("hasleader", "true"),
            ("x-bin", "aGk"),
            ("x-forwarded-host", "a:1"),
            ("x-forwarded-for", "1.2.3.4"),
        ]);
        assert_eq!(incoming(&sent, None).expect("metadata"), expected);
        let bare = incoming(&HeaderMap::new(), None).expect("metadata");
        assert_eq!(bare, headers(&[("grpcgateway-accept", "*/*")]), "the mark of the gateway");
        let error = incoming(&headers(&[("grpc-metadata-x-bin", "aG!")]), None).expect_err("not base64");
        assert_eq!(error.message(), "invalid binary header Grpc-Metadata-X-Bin: illegal base64 data at input byte 2");
    }

    #[test]
    fn timeouts_are_a_number_and_a_unit() {
        let of = |text: &'static str| timeout(&headers(&[("grpc-timeout", text)])).map_err(|status| status.code());
        assert_eq!(timeout(&HeaderMap::new()).expect("none"), None);
        assert_eq!(of("5S"), Ok(Some(Duration::from_secs(5))));
        assert_eq!(of("0m"), Ok(None));
        assert_eq!(of("-5S"), Ok(Some(Duration::ZERO)));
        assert!(of("99999999999H").is_ok());
        for bad in ["S", "5", "5x", "x5S", "1.5S", "99999999999999999999S"] {
            assert_eq!(of(bad), Err(tonic::Code::InvalidArgument), "{bad}");
        }
    }

    #[test]
    fn the_head_of_an_answer_becomes_headers() {
        let mut out = HeaderMap::new();
        outgoing(&headers(&[("content-type", "application/grpc"), ("grpc-status", "0"), ("x", "y")]), &mut out);
        assert_eq!(out, headers(&[("grpc-metadata-content-type", "application/grpc"), ("grpc-metadata-x", "y")]));
    }
}
