use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use tonic::Status;
use tonic::body::Body;

use super::checks::{self, CheckKind, HealthChecks};
use super::debug_vars;
use super::member_info::MemberInfo;
use super::published::Published;
use crate::core::apply::ApplyHandle;
use crate::core::raft::RaftHandle;
use crate::listener;
use crate::telemetry::{Metrics, TEXT_CONTENT_TYPE};

const PLAIN: &str = "text/plain; charset=utf-8";
const MISDIRECTED: &str = "the Host header names no host of --host-whitelist: a page may be trying to reach this \
     server through the browser (CVE-2018-5702); if the name is meant to work, start with --host-whitelist \"<host>\"\n";

/// What a member answers to plain HTTP: health, version, metrics.
#[derive(Clone)]
pub struct HttpHandler {
    pub(super) checks: Arc<HealthChecks>,
    pub(super) info: Arc<MemberInfo>,
    pub(super) raft: RaftHandle,
    pub(super) apply: ApplyHandle,
    pub(super) published: Arc<Published>,
    pub(super) metrics: Metrics,
    pub(super) rules: Arc<BrowserRules>,
}

/// What browsers, and those who abuse them, may do.
#[derive(Clone, Debug, Default)]
pub struct BrowserRules {
    /// Origins whose scripts may read answers; empty or `*` for all.
    pub origins: Vec<String>,
    /// Names under which this member may be addressed; empty or `*` for all.
    pub hosts: Vec<String>,
}

impl BrowserRules {
    /// The value of `Access-Control-Allow-Origin`.
    fn allowed_origin(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        if allows_all(&self.origins) {
            return Some(HeaderValue::from_static("*"));
        }
        origin.filter(|origin| self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes())).cloned()
    }

    fn allows_host(&self, host: Option<&HeaderValue>) -> bool {
        if allows_all(&self.hosts) {
            return true;
        }
        let Some(host) = host.and_then(|host| host.to_str().ok()) else { return false };
        let name = host
            .rsplit_once(':')
            .map_or(host, |(name, port)| if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host });
        self.hosts.iter().any(|allowed| allowed == name)
    }
}

fn allows_all(list: &[String]) -> bool {
    list.is_empty() || list.iter().any(|entry| entry == "*")
}

impl HttpHandler {
    /// Answers one request. Bodies of requests are not read: nothing here takes one.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body> {
        if !self.rules.allows_host(request.headers().get(header::HOST)) {
            return text(StatusCode::MISDIRECTED_REQUEST, PLAIN, MISDIRECTED);
        }
        let mut response = self.route(&request).await;
        let headers = response.headers_mut();
        if let Some(origin) = self.rules.allowed_origin(request.headers().get(header::ORIGIN)) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        }
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "accept, content-type, authorization"),
            (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }

    /// Answers one request to an address of `--listen-metrics-urls`: metrics and health, nothing else.
    pub async fn answer_metrics<B>(self, request: Request<B>) -> Response<Body> {
        match request.uri().path() {
            "/version" | "/debug/vars" => not_found(),
            _ => self.answer(request).await,
        }
    }

    async fn route<B>(&self, request: &Request<B>) -> Response<Body> {
        if request.method() == Method::OPTIONS {
            return Response::new(Body::empty());
        }
        let path = request.uri().path();
        if listener::asks_json_gateway(path) {
            return listener::no_json_gateway();
        }
        let known =
            matches!(path, "/version" | "/health" | "/metrics" | "/debug/vars") || checks::parse_path(path).is_some();
        if !known {
            return not_found();
        }
        // etcd gives its metrics to every method.
        if request.method() != Method::GET && path != "/metrics" {
            let mut refused = unsniffed(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return refused;
        }
        let query = checks::Query::parse(request.uri().query().unwrap_or_default());
        match path {
            "/version" => json(super::version::versions(&self.published)),
            "/metrics" => text(StatusCode::OK, TEXT_CONTENT_TYPE, self.metrics.render()),
            "/health" => self.health(&query).await,
            "/debug/vars" => text(
                StatusCode::OK,
                "application/json; charset=utf-8",
                debug_vars::page(self.info.member(), &self.raft, &self.apply),
            ),
            _ => match checks::parse_path(path) {
                Some((kind, single)) => self.checked(kind, single, &query).await,
                None => not_found(),
            },
        }
    }

    async fn health(&self, query: &checks::Query) -> Response<Body> {
        let outcome = self.checks.health(query).await;
        let reason = outcome.as_ref().err().map_or("", String::as_str);
        let body = serde_json::json!({ "health": outcome.is_ok().to_string(), "reason": reason });
        // Field order is part of what scripts compare.
        let body = format!(r#"{{"health":{},"reason":{}}}"#, body["health"], body["reason"]);
        if outcome.is_ok() {
            self.checks.metrics.server.health_success.inc();
            return text(StatusCode::OK, PLAIN, body);
        }
        self.checks.metrics.server.health_failures.inc();
        unsniffed(StatusCode::SERVICE_UNAVAILABLE, format!("{body}\n"))
    }

    async fn checked(&self, kind: CheckKind, single: Option<&str>, query: &checks::Query) -> Response<Body> {
        let report = self.checks.run(kind, single, query).await;
        if report.passed {
            let body = if query.verbose { report.lines + "ok\n" } else { "ok\n".to_owned() };
            return unsniffed(StatusCode::OK, body);
        }
        unsniffed(StatusCode::SERVICE_UNAVAILABLE, report.lines + "\n")
    }
}

/// An answer in JSON.
pub(super) fn json(body: String) -> Response<Body> {
    text(StatusCode::OK, "application/json", body)
}

/// Nothing lives there.
pub(super) fn not_found() -> Response<Body> {
    unsniffed(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn text(status: StatusCode, content: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into());
    let mut response =
        Response::new(Body::new(http_body_util::BodyExt::map_err(body, |never| -> Status { match never {} })));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    response
}

/// Text that browsers are told to take as text, as etcd tells them with refusals and checks.
fn unsniffed(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = text(status, PLAIN, body);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names_are_kept_to() {
        let rules = BrowserRules { origins: vec!["http://a".into()], hosts: vec!["a.example".into()] };
        let value = HeaderValue::from_static;
        assert_eq!(rules.allowed_origin(Some(&value("http://a"))), Some(value("http://a")));
        assert_eq!(rules.allowed_origin(Some(&value("http://b"))), None);
        assert!(rules.allows_host(Some(&value("a.example:2379"))));
        assert!(!rules.allows_host(Some(&value("b.example"))));
        assert!(!rules.allows_host(None));
        let open = BrowserRules { origins: vec!["*".into()], hosts: Vec::new() };
        assert_eq!(open.allowed_origin(None), Some(value("*")));
        assert!(open.allows_host(None));
    }
}
