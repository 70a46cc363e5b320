use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::check::health;
use super::dial::Dialer;
use super::upstream::Upstream;
use crate::pages::{CheckQuery, CheckReport, JSON, Page, health_json, page, text};

/// What the pages of the metrics address tell of a gateway.
#[derive(Debug)]
pub(super) struct GatewayStatus {
    pub(super) dialer: Arc<Dialer>,
    pub(super) listen_addr: SocketAddr,
    pub(super) connections_max: usize,
    pub(super) since: Instant,
    /// Cancelled when no more connections are accepted.
    pub(super) stop: CancellationToken,
}

/// `/gateway/status`. Fields are only ever added.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    /// Milliseconds since its start.
    up_ms: u64,
    listen_addr: String,
    accepting: bool,
    connections: i64,
    connections_max: usize,
    endpoints: Vec<EndpointRow>,
}

#[derive(Serialize)]
struct EndpointRow {
    endpoint: String,
    /// `up`, `down`, or `leaving`: no longer listed.
    state: &'static str,
    /// Why it is down.
    reason: Option<String>,
    priority: Option<u16>,
    weight: Option<u16>,
    /// Where it was learned.
    origin: Option<&'static str>,
    /// Below 1 while it gets to its full share after it came back.
    share: f64,
    /// Connections it has or that are on their way to it.
    connections: usize,
    connected: u64,
    connect_failures: u64,
    check_failures: u64,
    /// Times it went down, by cause; those that have not happened are left out.
    ejections: BTreeMap<&'static str, u64>,
    bytes_upstream: u64,
    bytes_downstream: u64,
}

impl GatewayStatus {
    /// The endpoint table as JSON.
    pub(super) fn table(&self) -> Page {
        let upstreams = &self.dialer.upstreams;
        let listed = upstreams.list();
        let listed = listed.iter().map(|listed| EndpointRow {
            priority: Some(listed.priority),
            weight: Some(listed.weight),
            origin: Some(listed.origin.name()),
            share: upstreams.warmth(&listed.upstream),
            ..EndpointRow::new(&listed.upstream)
        });
        let leaving = upstreams.leaving();
        let leaving = leaving.iter().map(|upstream| EndpointRow { state: "leaving", ..EndpointRow::new(upstream) });
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            up_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            listen_addr: self.listen_addr.to_string(),
            accepting: !self.stop.is_cancelled(),
            connections: self.dialer.metrics.open.get(),
            connections_max: self.connections_max,
            endpoints: listed.chain(leaving).collect(),
        };
        match serde_json::to_vec(&report) {
            Ok(body) => page(StatusCode::OK, JSON, body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    /// `/health`, in etcd's form: whether a client that came now would be served.
    pub(super) async fn health(&self) -> Page {
        let outcome = self.served().await;
        let status = if outcome.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        page(status, JSON, health_json(&outcome))
    }

    /// `/livez`: the process answers.
    pub(super) fn live(query: &CheckQuery) -> Page {
        let mut report = CheckReport::default();
        report.add("ping", Ok(()));
        report.into_page(query)
    }

    /// `/readyz`: it accepts connections, and an endpoint takes them.
    pub(super) async fn ready(&self, query: &CheckQuery) -> Page {
        let mut report = CheckReport::default();
        if !query.excludes("accepting") {
            let accepting = if self.stop.is_cancelled() { Err("stopping".to_owned()) } else { Ok(()) };
            report.add("accepting", accepting);
        }
        if !query.excludes("endpoints") {
            report.add("endpoints", self.served().await);
        }
        report.into_page(query)
    }

    async fn served(&self) -> Result<(), String> {
        health(&self.dialer).await.map_err(|reasons| format!("NO LIVE ENDPOINT ({reasons})"))
    }
}

impl EndpointRow {
    fn new(upstream: &Upstream) -> Self {
        let (metrics, is_down) = (&upstream.metrics, upstream.is_down());
        let ejections = metrics.ejections().filter(|&(_, count)| count > 0);
        Self {
            endpoint: upstream.address().to_string(),
            state: if is_down { "down" } else { "up" },
            reason: is_down.then(|| upstream.reason()),
            priority: None,
            weight: None,
            origin: None,
            share: 0.0,
            connections: upstream.open(),
            connected: metrics.connected.get(),
            connect_failures: metrics.connect_failures.get(),
            check_failures: metrics.check_failures.get(),
            ejections: ejections.map(|(cause, count)| (cause.label(), count)).collect(),
            bytes_upstream: metrics.bytes_up.get(),
            bytes_downstream: metrics.bytes_down.get(),
        }
    }
}
