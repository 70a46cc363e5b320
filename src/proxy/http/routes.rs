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

/// On which listeners pages are served. Those that tell nothing of clients (health, checks, version) are served on all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageListeners {
    /// Those with the state of the proxy: `/proxy/status` and `/ui`.
    pub status: Listeners,
    /// Those with metrics, variables and profiles.
    pub metrics: Listeners,
}

/// Some of the listeners of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listeners {
    /// Every one.
    All,
    /// The one with this number.
    Only(usize),
    /// None of them.
    None,
}

/// The pages beside the API.
#[derive(Clone)]
pub(in crate::proxy) struct Pages {
    pool: Pool,
    metrics: Metrics,
    profiles: Option<Profiles>,
    status: Arc<StatusReport>,
    listeners: PageListeners,
}

impl PageListeners {
    /// Every page on every listener.
    pub fn all() -> Self {
        Self { status: Listeners::All, metrics: Listeners::All }
    }

    /// With many tenants: what tells of all clients is on the listener for metrics alone, or nowhere.
    pub fn of_tenants(metrics_listener: Option<usize>) -> Self {
        let listeners = metrics_listener.map_or(Listeners::None, Listeners::Only);
        Self { status: listeners, metrics: listeners }
    }

    fn of(self, path: &str) -> Listeners {
        match path {
            "/health" | "/proxy/health" | "/version" => Listeners::All,
            _ if check_name(path).is_some() => Listeners::All,
            _ if is_status(path) => self.status,
            _ => self.metrics,
        }
    }
}

impl Listeners {
    fn include(self, listener: Option<usize>) -> bool {
        match self {
            Self::All => true,
            Self::Only(only) => listener == Some(only),
            Self::None => false,
        }
    }
}

impl Pages {
    pub(in crate::proxy) fn new(
        pool: Pool,
        metrics: Metrics,
        profiles: Option<Profiles>,
        status: StatusReport,
        listeners: PageListeners,
    ) -> Self {
        Self { pool, metrics, profiles, status: Arc::new(status), listeners }
    }

    pub(in crate::proxy) async fn answer(&self, head: &http::request::Parts) -> Page {
        let path = head.uri.path();
        let listener = head.extensions.get::<Arc<ConnectionInfo>>().map(|connection| connection.listener);
        if !self.listeners.of(path).include(listener) {
            return not_found();
        }
        if let Some(profiles) = self.profiles.filter(|_| Profiles::has(path)) {
            return profiles.answer(&head.method, &head.uri).await;
        }
        let known =
            matches!(path, "/health" | "/proxy/health" | "/metrics" | "/proxy/metrics" | "/version" | "/debug/vars")
                || check_name(path).is_some()
                || is_status(path);
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
            _ if StatusPage::PROXY.has(path) => StatusPage::PROXY.answer(path),
            _ => self.check(path, &CheckQuery::parse(head.uri.query())).await,
        }
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

/// Whether it is a page with the state of the proxy.
fn is_status(path: &str) -> bool {
    path == "/proxy/status" || StatusPage::PROXY.has(path)
}

/// The one check behind a path.
fn check_name(path: &str) -> Option<&'static str> {
    match path {
        "/livez" | "/livez/ping" => Some("ping"),
        "/readyz" | "/readyz/linearizable_read" => Some("linearizable_read"),
        _ => None,
    }
}
