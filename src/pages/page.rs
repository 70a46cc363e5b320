use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Response, StatusCode};
use http_body_util::Full;

/// Content type of text.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// Content type of JSON.
pub const JSON: &str = "application/json";

/// Reads as JSON, with the fields that clients of the gateway look at; the code is gRPC's for "not implemented".
const NO_JSON_GATEWAY: &str =
    r#"{"error":"JSON gateway is not enabled","code":12,"message":"JSON gateway is not enabled"}"#;

/// An answer that is there as a whole.
pub type Page = Response<Full<Bytes>>;

/// An answer of this content type.
pub fn page(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Page {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Tells browsers to take the content type as it is, as etcd does with refusals and checks.
pub fn nosniff(mut page: Page) -> Page {
    page.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    page
}

/// A refusal or a check, as text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Page {
    nosniff(page(status, TEXT, body))
}

/// The answer to a path that the port does not have.
pub fn not_found() -> Page {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// The answer to a path that is not known: another one for those of the JSON gateway, which no port has yet.
pub fn refused_path(path: &str) -> Page {
    match ["/v3/", "/v3beta/", "/v3alpha/"].iter().any(|root| path.starts_with(root)) {
        true => page(StatusCode::NOT_FOUND, JSON, NO_JSON_GATEWAY),
        false => not_found(),
    }
}

/// The answer to a method that a known path does not have. etcd gives its metrics to every method.
pub fn refused_method(method: &Method, path: &str) -> Option<Page> {
    if method == Method::GET || path.ends_with("/metrics") {
        return None;
    }
    let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    Some(refused)
}

/// The body of `/health`. The order of the fields is part of what scripts compare.
pub fn health_json(outcome: &Result<(), String>) -> String {
    let reason = serde_json::Value::from(outcome.as_ref().err().map_or("", String::as_str));
    format!(r#"{{"health":"{}","reason":{reason}}}"#, outcome.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_json_whatever_the_reason() {
        assert_eq!(health_json(&Ok(())), r#"{"health":"true","reason":""}"#);
        assert_eq!(health_json(&Err("a \"b\"".into())), r#"{"health":"false","reason":"a \"b\""}"#);
    }

    #[test]
    fn only_metrics_are_for_every_method() {
        assert!(refused_method(&Method::GET, "/health").is_none());
        assert!(refused_method(&Method::POST, "/proxy/metrics").is_none());
        let refused = refused_method(&Method::POST, "/health").expect("a refusal");
        assert_eq!((refused.status().as_u16(), &refused.headers()[ALLOW]), (405, &HeaderValue::from_static("GET")));
    }
}
