use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use tonic::body::Body;

/// Reads as JSON, with the fields that clients of the gateway look at; the code is gRPC's for "not implemented".
const NO_GATEWAY: &str = r#"{"error":"JSON gateway is not enabled","code":12,"message":"JSON gateway is not enabled"}"#;

/// Whether a path is one of the JSON gateway.
pub fn asks_json_gateway(path: &str) -> bool {
    ["/v3/", "/v3beta/", "/v3alpha/"].iter().any(|root| path.starts_with(root))
}

/// The answer where there is no JSON gateway.
pub fn no_json_gateway() -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(NO_GATEWAY)));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
