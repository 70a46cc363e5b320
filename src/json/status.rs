//! Errors in the form of the JSON gateway.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use http_body_util::Full;
use tonic::{Code, Status};

use super::text::push_string;

/// nginx's code for a client that left.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The HTTP status for a code of gRPC.
pub(super) fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST),
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The answer to a request that failed before the first message.
///
/// `error` repeats the message: etcd before 3.7 has it, and clients that were written for it look there.
pub(super) fn refusal(status: &Status) -> Response<Full<Bytes>> {
    let mut body = b"{\"error\":".to_vec();
    push_string(status.message(), &mut body);
    push_code_and_message(status, &mut body);
    body.push(b'}');
    let mut response = json(http_status(status.code()), body);
    if status.code() == Code::Unauthenticated
        && let Ok(message) = HeaderValue::from_str(status.message())
    {
        response.headers_mut().insert(WWW_AUTHENTICATE, message);
    }
    response
}

/// The same as a line of a stream, which may have begun. The fields beside code and message are those of etcd before 3.6.
pub(super) fn error_line(status: &Status) -> Vec<u8> {
    let http = http_status(status.code());
    let mut line = format!("{{\"error\":{{\"grpc_code\":{},\"http_code\":{}", status.code() as i32, http.as_u16());
    line += &format!(",\"http_status\":\"{}\"", http.canonical_reason().unwrap_or_default());
    let mut line = line.into_bytes();
    push_code_and_message(status, &mut line);
    line.extend(b"}}\n");
    line
}

fn push_code_and_message(status: &Status, out: &mut Vec<u8>) {
    out.extend(format!(",\"code\":{},\"message\":", status.code() as i32).bytes());
    push_string(status.message(), out);
}

/// An answer of JSON that is there as a whole.
pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The status of a gRPC answer: in the head of one without a body, else in the trailers.
pub(super) fn of_trailers(trailers: &http::HeaderMap) -> Option<Status> {
    const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
    trailers.contains_key(GRPC_STATUS).then(|| Status::from_header_map(trailers)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_json_whatever_the_text() {
        let status = Status::not_found("a \"b\"\n");
        let line: serde_json::Value = serde_json::from_slice(&error_line(&status)).expect("JSON");
        assert_eq!(line["error"]["message"], "a \"b\"\n");
        assert_eq!((&line["error"]["code"], &line["error"]["http_code"]), (&5.into(), &404.into()));
        assert_eq!(refusal(&status).status(), 404);
        assert_eq!(refusal(&Status::cancelled("")).status().as_u16(), 499);
        let refused = refusal(&Status::unauthenticated("etcdserver: invalid auth token"));
        assert_eq!(refused.headers()[WWW_AUTHENTICATE], "etcdserver: invalid auth token");
    }
}
