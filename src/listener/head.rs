use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Version};
use tonic::Status;
use tonic::body::Body;

use crate::pb::methods;

// A name that is text would be parsed for each call.
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Binary metadata comes with padding or without.
const BINARY: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The answer to a gRPC call whose head no handler should see, with etcd's code and text.
pub fn refused_head<B>(request: &Request<B>) -> Option<Response<Body>> {
    // Trailers with the status, and streams in both directions, are there with HTTP/2 only.
    if request.version() != Version::HTTP_2 {
        return Some(with_code(StatusCode::HTTP_VERSION_NOT_SUPPORTED, Status::internal("gRPC requires HTTP/2")));
    }
    let headers = request.headers();
    let timeout = headers.get(&GRPC_TIMEOUT).map(|value| timeout_units(value.as_bytes()));
    if let Some(Err(text)) = &timeout {
        let status = Status::internal(format!("malformed grpc-timeout: {text}"));
        return Some(with_code(StatusCode::BAD_REQUEST, status));
    }
    if let Some(text) = broken_binary(headers) {
        return Some(with_code(StatusCode::BAD_REQUEST, Status::internal(text)));
    }
    if request.method() != Method::POST {
        let text =
            format!("Received a HEADERS frame with :method {:?} which should be POST", request.method().as_str());
        return Some(with_code(StatusCode::METHOD_NOT_ALLOWED, Status::internal(text)));
    }
    if let Some(Ok(0)) = timeout {
        return Some(Status::deadline_exceeded("context deadline exceeded").into_http());
    }
    // gRPC has no queries: what looks like one belongs to the name of the method, and no method has such a name.
    let path = request.uri().path_and_query()?;
    path.query()?;
    let text = methods::find(path.as_str()).err()?;
    Some(Status::unimplemented(text).into_http())
}

fn with_code(code: StatusCode, status: Status) -> Response<Body> {
    let mut response = status.into_http();
    *response.status_mut() = code;
    response
}

/// The number before the unit.
fn timeout_units(value: &[u8]) -> Result<u64, String> {
    let text = String::from_utf8_lossy(value);
    match value {
        [] | [_] => Err(format!("transport: timeout string is too short: {text:?}")),
        [_, _, _, _, _, _, _, _, _, _, ..] => Err(format!("transport: timeout string is too long: {text:?}")),
        [digits @ .., b'H' | b'M' | b'S' | b'm' | b'u' | b'n'] => {
            let number =
                std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            number.and_then(|digits| digits.parse().ok()).ok_or_else(|| {
                let digits = String::from_utf8_lossy(digits);
                format!("strconv.ParseUint: parsing {digits:?}: invalid syntax")
            })
        }
        _ => Err(format!("transport: timeout unit is not recognized: {text:?}")),
    }
}

fn broken_binary(headers: &HeaderMap) -> Option<String> {
    let mut binary = headers.iter().filter(|(name, _)| name.as_str().ends_with("-bin"));
    binary.find_map(|(name, value)| {
        let error = BINARY.decode(value).err()?;
        let text = String::from_utf8_lossy(value.as_bytes());
        Some(format!("malformed binary metadata {text:?} in header {:?}: {error}", name.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(path: &str, name: &'static str, value: &str) -> Option<(u16, i32, String)> {
        answer_over(Version::HTTP_2, path, name, value)
    }

    fn answer_over(version: Version, path: &str, name: &'static str, value: &str) -> Option<(u16, i32, String)> {
        let request = Request::post(path).version(version).header(name, value).body(()).expect("a request");
        let response = refused_head(&request)?;
        let status = Status::from_header_map(response.headers()).expect("a status");
        Some((response.status().as_u16(), status.code() as i32, status.message().to_owned()))
    }

    // Cause: what belongs to one connection of HTTP/1 went on to a member, and HTTP/2 cannot carry it.
    #[test]
    fn a_call_over_http_1_is_refused() {
        for version in [Version::HTTP_10, Version::HTTP_11] {
            let answer = answer_over(version, "/etcdserverpb.KV/Range", "keep-alive", "x");
            assert_eq!(answer, Some((505, 13, "gRPC requires HTTP/2".into())), "{version:?}");
        }
        assert_eq!(answer_over(Version::HTTP_2, "/etcdserverpb.KV/Range", "x", "y"), None);
    }

    #[test]
    fn timeouts_are_refused_as_etcd_refuses_them() {
        let of = |value: &str| answer("/etcdserverpb.KV/Range", "grpc-timeout", value);
        for good in ["1n", "5S", "00000001H", "99999999H"] {
            assert_eq!(of(good), None, "{good}");
        }
        assert_eq!(of("0n"), Some((200, 4, "context deadline exceeded".into())));
        for (bad, text) in [
            ("S", "transport: timeout string is too short: \"S\""),
            ("123456789S", "transport: timeout string is too long: \"123456789S\""),
            ("5x", "transport: timeout unit is not recognized: \"5x\""),
            ("soon", "strconv.ParseUint: parsing \"soo\": invalid syntax"),
            ("-1S", "strconv.ParseUint: parsing \"-1\": invalid syntax"),
        ] {
            assert_eq!(of(bad), Some((400, 13, format!("malformed grpc-timeout: {text}"))));
        }
    }

    #[test]
    fn binary_metadata_is_base64_with_padding_or_without() {
        let of = |value: &str| answer("/etcdserverpb.KV/Range", "trace-bin", value).map(|(http, code, _)| (http, code));
        assert_eq!([of("aGk="), of("aGk"), of("")], [None, None, None]);
        assert_eq!(of("!!!"), Some((400, 13)));
    }

    #[test]
    fn a_query_belongs_to_the_name_of_the_method() {
        let of = |path: &str| answer(path, "x", "y");
        assert_eq!(of("/etcdserverpb.KV/Range"), None);
        let text = "unknown method Range?x=1 for service etcdserverpb.KV";
        assert_eq!(of("/etcdserverpb.KV/Range?x=1"), Some((200, 12, text.into())));
        assert_eq!(of("/a.B/C?").map(|answer| answer.2), Some("unknown service a.B".into()));
    }
}
