use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use tonic::body::Body;

use super::{fetch, probe};
use crate::client::Pool;
use crate::listener;
use crate::shutdown::Tasks;
use crate::telemetry::{Metrics, TEXT_CONTENT_TYPE};

/// The pages beside the API.
#[derive(Clone)]
pub(in crate::proxy) struct Pages {
    pool: Pool,
    metrics: Metrics,
    tasks: Tasks,
}

impl Pages {
    pub(in crate::proxy) fn new(pool: Pool, metrics: Metrics, tasks: Tasks) -> Self {
        Self { pool, metrics, tasks }
    }

    pub(in crate::proxy) async fn answer(&self, head: &http::request::Parts) -> Response<Body> {
        let path = head.uri.path();
        if listener::asks_json_gateway(path) {
            return listener::no_json_gateway();
        }
        let known = matches!(path, "/health" | "/proxy/health" | "/metrics" | "/proxy/metrics" | "/version")
            || check_name(path).is_some();
        if !known {
            return page(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n");
        }
        // etcd gives its metrics to every method.
        if head.method != Method::GET && !path.ends_with("/metrics") {
            let mut refused = page(StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", "Method Not Allowed\n");
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return refused;
        }
        match path {
            "/health" | "/proxy/health" => self.health().await,
            "/metrics" => self.member_metrics().await,
            "/proxy/metrics" => page(StatusCode::OK, TEXT_CONTENT_TYPE, self.metrics.render()),
            "/version" => self.version().await,
            _ => self.check(path, head.uri.query().unwrap_or_default()).await,
        }
    }

    async fn health(&self) -> Response<Body> {
        match probe::linearizable_read(&self.pool).await {
            Ok(()) => page(StatusCode::OK, "application/json", r#"{"health":"true","reason":""}"#),
            Err(reason) => {
                let body = serde_json::json!({ "health": "false", "reason": format!("GET ERROR:{reason}") });
                page(StatusCode::SERVICE_UNAVAILABLE, "application/json", body.to_string())
            }
        }
    }

    /// A member's page, headers of the body included.
    async fn member_metrics(&self) -> Response<Body> {
        match fetch::from_any_member(&self.pool, "/metrics", &self.tasks).await {
            Ok(fetched) => {
                let kind = fetched.headers().get(header::CONTENT_TYPE).cloned();
                let mut answer = page(fetched.status(), TEXT_CONTENT_TYPE, fetched.into_body());
                if let Some(kind) = kind {
                    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
                }
                answer
            }
            Err(reasons) => {
                let body = format!("no member gave its metrics: {reasons}\n");
                page(StatusCode::BAD_GATEWAY, "text/plain; charset=utf-8", body)
            }
        }
    }

    /// The versions of the member that answers, as it would give them itself.
    async fn version(&self) -> Response<Body> {
        match probe::member_status(&self.pool).await {
            Ok(status) => {
                let minor = |version: &str| match version.rsplit_once('.') {
                    Some((minor, _)) => format!("{minor}.0"),
                    None => "not_decided".to_owned(),
                };
                let storage =
                    if status.storage_version.is_empty() { "unknown".to_owned() } else { status.storage_version };
                let body = serde_json::json!({
                    "etcdserver": status.version,
                    "etcdcluster": minor(&status.version),
                    "storage": storage,
                });
                page(StatusCode::OK, "application/json", body.to_string())
            }
            Err(status) => {
                let body = format!("{}\n", status.message());
                page(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", body)
            }
        }
    }

    /// `/livez`: the process answers. `/readyz`: the cluster does, too.
    async fn check(&self, path: &str, query: &str) -> Response<Body> {
        let name = check_name(path).unwrap_or_default();
        let excluded = query.split('&').any(|pair| pair == "exclude=linearizable_read");
        let verbose = query.split('&').any(|pair| pair == "verbose" || pair.starts_with("verbose="));
        let outcome = match name {
            "linearizable_read" if !excluded => probe::linearizable_read(&self.pool).await,
            _ => Ok(()),
        };
        match outcome {
            Ok(()) if verbose => page(StatusCode::OK, "text/plain; charset=utf-8", format!("[+]{name} ok\nok\n")),
            Ok(()) => page(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"),
            Err(reason) => {
                let body = format!("[-]{name} failed: {reason}\n\n");
                page(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", body)
            }
        }
    }
}

/// The one check behind a path.
fn check_name(path: &str) -> Option<&'static str> {
    match path {
        "/livez" | "/livez/ping" => Some("ping"),
        "/readyz" | "/readyz/linearizable_read" => Some("linearizable_read"),
        _ => None,
    }
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if status != StatusCode::OK {
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    response
}
