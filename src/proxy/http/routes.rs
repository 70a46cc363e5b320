use std::sync::Arc;

use http::{HeaderMap, StatusCode, header};

use super::status::StatusReport;
use super::{fetch, probe};
use crate::client::Pool;
use crate::listener::ConnectionInfo;
use crate::pages::{
    CheckQuery, CheckReport, JSON, Page, Profiles, StatusPage, debug_vars, health_json, metrics_page, nosniff,
    not_found, page, refused_method, text,
};
use crate::telemetry::{Metrics, TEXT_CONTENT_TYPE};

/// The pages beside the API.
#[derive(Clone)]
pub(in crate::proxy) struct Pages {
    pool: Pool,
    metrics: Metrics,
    profiles: Option<Profiles>,
    status: Arc<StatusReport>,
    /// The only listener with the pages for people; none for all.
    status_listener: Option<usize>,
}

impl Pages {
    pub(in crate::proxy) fn new(
        pool: Pool,
        metrics: Metrics,
        profiles: Option<Profiles>,
        status: StatusReport,
        status_listener: Option<usize>,
    ) -> Self {
        Self { pool, metrics, profiles, status: Arc::new(status), status_listener }
    }

    /// Whether the page tells nothing of clients.
    pub(in crate::proxy) fn is_about_the_cluster(path: &str) -> bool {
        matches!(path, "/health" | "/proxy/health" | "/version") || check_name(path).is_some()
    }

    pub(in crate::proxy) async fn answer(&self, head: &http::request::Parts) -> Page {
        let path = head.uri.path();
        if let Some(profiles) = self.profiles.filter(|_| Profiles::has(path)) {
            return profiles.answer(&head.method, &head.uri).await;
        }
        let known =
            matches!(path, "/health" | "/proxy/health" | "/metrics" | "/proxy/metrics" | "/version" | "/debug/vars")
                || check_name(path).is_some()
                || self.shows_state(head);
        if !known {
            return not_found();
        }
        if let Some(refused) = refused_method(&head.method, path) {
            return refused;
        }
        match path {
            "/health" | "/proxy/health" => self.health().await,
            "/metrics" => self.member_metrics(&head.headers).await,
            "/proxy/metrics" => metrics_page(&head.headers, self.metrics.render()),
            "/proxy/status" => self.status.page(),
            "/version" => self.version().await,
            "/debug/vars" => debug_vars([]),
            _ if StatusPage::has(path) => StatusPage::answer(path),
            _ => self.check(path, &CheckQuery::parse(head.uri.query())).await,
        }
    }

    /// Whether it is a page for people, on a listener that has those.
    fn shows_state(&self, head: &http::request::Parts) -> bool {
        let path = head.uri.path();
        let listener = || head.extensions.get::<Arc<ConnectionInfo>>().map(|connection| connection.listener);
        (path == "/proxy/status" || StatusPage::has(path))
            && self.status_listener.is_none_or(|only| listener() == Some(only))
    }

    async fn health(&self) -> Page {
        let outcome = probe::linearizable_read(&self.pool).await.map_err(|reason| format!("GET ERROR:{reason}"));
        let body = health_json(&outcome);
        match outcome {
            Ok(()) => page(StatusCode::OK, JSON, body),
            Err(_) => nosniff(page(StatusCode::SERVICE_UNAVAILABLE, JSON, body)),
        }
    }

    /// A member's page, headers of the body included.
    async fn member_metrics(&self, headers: &HeaderMap) -> Page {
        match fetch::from_any_member(&self.pool, "/metrics").await {
            Ok(fetched) => {
                let kind = fetched.headers().get(header::CONTENT_TYPE).cloned();
                let mut answer = match fetched.status() {
                    StatusCode::OK => metrics_page(headers, fetched.into_body()),
                    status => page(status, TEXT_CONTENT_TYPE, fetched.into_body()),
                };
                if let Some(kind) = kind {
                    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
                }
                answer
            }
            Err(reasons) => {
                let body = format!("no member gave its metrics: {reasons}\n");
                text(StatusCode::BAD_GATEWAY, body)
            }
        }
    }

    /// The versions of the member that answers, as it would give them itself.
    async fn version(&self) -> Page {
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
                page(StatusCode::OK, JSON, body.to_string())
            }
            Err(status) => {
                let body = format!("{}\n", status.message());
                text(StatusCode::SERVICE_UNAVAILABLE, body)
            }
        }
    }

    /// `/livez`: the process answers. `/readyz`: the cluster does, too.
    async fn check(&self, path: &str, query: &CheckQuery) -> Page {
        let name = check_name(path).unwrap_or_default();
        let outcome = match name {
            "linearizable_read" if !query.excludes(name) => probe::linearizable_read(&self.pool).await,
            _ => Ok(()),
        };
        let mut report = CheckReport::default();
        report.add(name, outcome);
        report.into_page(query)
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
