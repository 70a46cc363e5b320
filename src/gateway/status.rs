use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::check::health;
use super::dial::Dialer;
use super::upstream::Upstream;
use super::upstreams::Upstreams;
use crate::config::{ListenAddress, RouteMatch};
use crate::pages::{CheckQuery, CheckReport, JSON, Page, health_json, page, text};
use crate::telemetry::Metrics;

/// Metrics that are part of a report, by the beginnings of their names, and what those of endpoints have, which their rows show.
const SHOWN: [&str; 2] = ["watershed_gateway_", "process_"];
const OF_ENDPOINT: &str = "endpoint=\"";

/// What the pages of the metrics address tell of a gateway.
#[derive(Debug)]
pub(super) struct GatewayStatus {
    pub(super) dialer: Arc<Dialer>,
    pub(super) listen_addr: ListenAddress,
    pub(super) connections_max: usize,
    pub(super) metrics: Metrics,
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
    /// Counters and gauges that are not zero, without those of endpoints.
    metrics: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct EndpointRow {
    endpoint: String,
    /// The route that leads to it; none for the default.
    route: Option<String>,
    /// `up`, `down`, or `leaving`: no longer listed.
    state: &'static str,
    /// Its last check failed or is late: others are preferred.
    suspect: bool,
    /// Why it is down.
    reason: Option<String>,
    priority: Option<u16>,
    weight: Option<u16>,
    /// Where it was learned.
    origin: Option<&'static str>,
    /// Below 1 while it gets to its full share after it came back.
    slow_start_factor: f64,
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
        let routes = self.dialer.routes.load_full();
        let endpoints = routes.all().flat_map(|(route, upstreams)| EndpointRow::of(route, upstreams)).collect();
        let shown = |name: &str| SHOWN.iter().any(|shown| name.starts_with(shown));
        let mut metrics = self.metrics.values(shown);
        metrics.retain(|name, value| *value != 0.0 && !name.contains(OF_ENDPOINT));
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            up_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            listen_addr: self.listen_addr.to_string(),
            accepting: !self.stop.is_cancelled(),
            connections: self.dialer.metrics.open.get(),
            connections_max: self.connections_max,
            endpoints,
            metrics,
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
    /// The endpoints of a route, and those that it no longer has.
    fn of(route: Option<&RouteMatch>, upstreams: &Upstreams) -> Vec<Self> {
        let route = route.map(ToString::to_string);
        let listed = upstreams.list();
        let listed = listed.iter().map(|listed| Self {
            route: route.clone(),
            priority: Some(listed.priority),
            weight: Some(listed.weight),
            origin: Some(listed.origin.name()),
            slow_start_factor: upstreams.slow_start_factor(&listed.upstream),
            ..Self::new(&listed.upstream)
        });
        let leaving = upstreams.leaving();
        let leaving =
            leaving.iter().map(|upstream| Self { route: route.clone(), state: "leaving", ..Self::new(upstream) });
        listed.chain(leaving).collect()
    }

    fn new(upstream: &Upstream) -> Self {
        let (metrics, is_down) = (&upstream.metrics, upstream.is_down());
        let ejections = metrics.ejections().filter(|&(_, count)| count > 0);
        Self {
            endpoint: upstream.endpoint().to_string(),
            route: None,
            state: if is_down { "down" } else { "up" },
            suspect: upstream.is_suspect(),
            reason: is_down.then(|| upstream.reason()),
            priority: None,
            weight: None,
            origin: None,
            slow_start_factor: 0.0,
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
