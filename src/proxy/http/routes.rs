use std::sync::Arc;

use http::{Extensions, HeaderMap, Request, StatusCode, header};

use super::status::StatusReport;
use super::{fetch, probe};
use crate::client::Pool;
use crate::listener::ConnectionInfo;
use crate::pages::{
    CheckQuery, CheckReport, JSON, Page, Profiles, StatusPage, debug_vars, health_json, metrics_page, nosniff,
    not_found, page, refused_method, text,
};
use crate::pb::etcdserverpb::StatusResponse;
use crate::telemetry::{Metrics, TEXT_CONTENT_TYPE};

/// On which listeners pages are served. Those that tell nothing of clients (health, checks, version) are served on all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageListeners {
    /// Those with the state of the proxy: `/proxy/status` and `/ui`. Where only some have it, these have pages alone, and no API.
    pub status: Listeners,
    /// Those with metrics, variables and profiles.
    pub metrics: Listeners,
}

/// Some of the listeners of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listeners {
    /// Every one.
    All,
    /// Those with the numbers from the first of these to the last.
    Only(usize, usize),
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

    /// With many tenants: what tells of all clients is on the listeners for metrics alone, which have the numbers from the first of
    /// these to the last, or nowhere.
    pub fn of_tenants(metrics_listeners: Option<(usize, usize)>) -> Self {
        let listeners = metrics_listeners.map_or(Listeners::None, |(first, last)| Listeners::Only(first, last));
        Self { status: listeners, metrics: listeners }
    }

    /// Whether a listener has pages alone: one for metrics, which may ask clients for no certificate where the others do.
    fn are_alone_at(self, listener: Option<usize>) -> bool {
        matches!(self.status, Listeners::Only(..)) && self.status.include(listener)
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
            Self::Only(first, last) => listener.is_some_and(|listener| (first..=last).contains(&listener)),
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

    /// Whether a request came to a listener that has pages alone.
    pub(in crate::proxy) fn are_alone_for<B>(&self, request: &Request<B>) -> bool {
        self.listeners.are_alone_at(listener_of(request.extensions()))
    }

    pub(in crate::proxy) async fn answer(&self, head: &http::request::Parts) -> Page {
        let path = head.uri.path();
        if !self.listeners.of(path).include(listener_of(&head.extensions)) {
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
            Ok(status) => page(StatusCode::OK, JSON, versions(status).to_string()),
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

/// The number of the listener that a request with these extensions came to.
fn listener_of(extensions: &Extensions) -> Option<usize> {
    extensions.get::<Arc<ConnectionInfo>>().map(|connection| connection.listener)
}

/// The versions by a member's `Status`, which does not name that of the cluster. From 3.6 on it is the storage version; a member
/// before that has none, and its own version without the patch stands for it.
fn versions(status: StatusResponse) -> serde_json::Value {
    let StatusResponse { version, storage_version: storage, .. } = status;
    let mut parts = version.split('.');
    let cluster = match (parts.next(), parts.next()) {
        _ if !storage.is_empty() => storage.clone(),
        (Some(major), Some(minor)) => format!("{major}.{minor}.0"),
        _ => "not_decided".to_owned(),
    };
    let storage = if storage.is_empty() { "unknown".to_owned() } else { storage };
    serde_json::json!({ "etcdserver": version, "etcdcluster": cluster, "storage": storage })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Cause: the listener for metrics served the whole API, also where that for clients demands certificates and it does not; later the
    /// second one of a surplus member did.
    #[test]
    fn the_listeners_for_metrics_have_pages_alone() {
        let of = |last| PageListeners { status: Listeners::Only(1, last), ..PageListeners::all() };
        for (listeners, last) in [(of(1), 1), (PageListeners::of_tenants(Some((1, 1))), 1), (of(2), 2)] {
            let alone = [None, Some(0), Some(1), Some(2), Some(3)].map(|listener| listeners.are_alone_at(listener));
            assert_eq!(alone, [false, false, true, last == 2, false], "{listeners:?}");
        }
        for listeners in [PageListeners::all(), PageListeners::of_tenants(None)] {
            assert!(!listeners.are_alone_at(Some(0)), "{listeners:?}");
        }
    }

    /// Cause: the version of the cluster was made of the member's alone, so that one of 3.6 with a member of 3.7 was of 3.7.
    #[test]
    fn the_version_of_the_cluster_is_that_of_its_storage() {
        for (version, storage, cluster, shown) in [
            ("3.7.1", "3.6.0", "3.6.0", "3.6.0"),
            ("3.7.0-alpha.0", "3.7.0", "3.7.0", "3.7.0"),
            ("3.5.21", "", "3.5.0", "unknown"),
            ("3.6.0-rc.1", "", "3.6.0", "unknown"),
            ("", "", "not_decided", "unknown"),
        ] {
            let (own, storage) = (version.to_owned(), storage.to_owned());
            let status = StatusResponse { version: own, storage_version: storage, ..Default::default() };
            let expected = serde_json::json!({ "etcdserver": version, "etcdcluster": cluster, "storage": shown });
            assert_eq!(versions(status), expected);
        }
    }
}
