use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, LOCATION, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Response, StatusCode, Uri};
use http_body_util::Full;

/// Content type of text.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// Content type of JSON.
pub const JSON: &str = "application/json";

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

/// The answer to a path with empty parts, `.` or `..` in it: the way to the path without them, as Go's servers answer.
/// One that ends with `/v3` leads below it.
pub fn redirected(method: &Method, uri: &Uri) -> Option<Page> {
    let path = uri.path();
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    let is_root = clean.len() == 1;
    if !is_root && (path.ends_with('/') || clean == "/v3") {
        clean.push('/');
    }
    if clean == path {
        return None;
    }
    let target = uri.query().map_or(clean.clone(), |query| format!("{clean}?{query}"));
    let mut response = match *method {
        Method::GET => page(
            StatusCode::TEMPORARY_REDIRECT,
            "text/html; charset=utf-8",
            format!("<a href=\"{}\">Temporary Redirect</a>.\n\n", target.replace('&', "&amp;").replace('"', "&#34;")),
        ),
        _ => page(StatusCode::TEMPORARY_REDIRECT, "text/html; charset=utf-8", ""),
    };
    if *method != Method::GET && *method != Method::HEAD {
        response.headers_mut().remove(CONTENT_TYPE);
    }
    response.headers_mut().insert(LOCATION, HeaderValue::try_from(target).ok()?);
    Some(response)
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
    fn a_path_is_cleaned_by_a_redirect() {
        let of = |path: &str| {
            let page = redirected(&Method::GET, &path.parse().expect("a path"))?;
            Some(page.headers()[LOCATION].to_str().expect("text").to_owned())
        };
        for (path, clean) in [
            ("//version", "/version"),
            ("/v3/./kv/../kv//range?a=b", "/v3/kv/range?a=b"),
            ("/v3", "/v3/"),
            ("/a/../..", "/"),
            ("//", "/"),
            ("/health//", "/health/"),
        ] {
            assert_eq!(of(path).as_deref(), Some(clean), "{path}");
        }
        for path in ["/", "/version", "/v3/", "/v3/kv/range", "/health/", "/..a/.b"] {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn only_metrics_are_for_every_method() {
        assert!(refused_method(&Method::GET, "/health").is_none());
        assert!(refused_method(&Method::POST, "/proxy/metrics").is_none());
        let refused = refused_method(&Method::POST, "/health").expect("a refusal");
        assert_eq!((refused.status().as_u16(), &refused.headers()[ALLOW]), (405, &HeaderValue::from_static("GET")));
    }
}
