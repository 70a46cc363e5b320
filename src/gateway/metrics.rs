use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::cause::Cause;
use super::client::Unwelcome;
use super::limits::Limit;
use crate::net::Endpoint;
use crate::telemetry::{Metrics, exponential_buckets};

/// The values of the label `direction`.
const UPSTREAM: &str = "upstream";
const DOWNSTREAM: &str = "downstream";

/// What the gateway counts. Endpoint labels come from the configured list, so their number is bounded by it.
#[derive(Clone, Debug)]
pub struct GatewayMetrics {
    pub(super) accepted: IntCounter,
    pub(super) accept_errors: IntCounter,
    pub(super) refused_at_bound: IntCounter,
    refused_of_source: IntCounter,
    refused_header: IntCounter,
    refused_hello: IntCounter,
    limited_idle: IntCounter,
    limited_age: IntCounter,
    pub(super) open: IntGauge,
    pub(super) unserved: IntCounter,
    pub(super) resets: IntCounter,
    pub(super) spliced: IntCounter,
    pub(super) connect_seconds: Histogram,
    bytes: IntCounterVec,
    connected: IntCounterVec,
    connect_failures: IntCounterVec,
    check_failures: IntCounterVec,
    ejections: IntCounterVec,
    cut: IntCounterVec,
    up: IntGaugeVec,
    endpoint_open: IntGaugeVec,
    endpoint_connect_seconds: HistogramVec,
    /// How many count under each label: several routes may lead to one address, and a host that has another address now is
    /// another endpoint of the same name.
    labels: Arc<Mutex<HashMap<String, usize>>>,
}

impl GatewayMetrics {
    /// Makes the metrics and registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let refused = metrics.counter_vec(
            "watershed_gateway_refused_total",
            "Client connections turned away: too many at once, too many from one address, or without a PROXY header or a ClientHello.",
            &["reason"],
        );
        let limited = metrics.counter_vec(
            "watershed_gateway_limited_total",
            "Connections closed because they were idle or open for too long.",
            &["limit"],
        );
        Self {
            accepted: metrics.counter("watershed_gateway_accepted_total", "Client connections accepted."),
            accept_errors: metrics.counter("watershed_gateway_accept_errors_total", "Failed calls of accept."),
            refused_at_bound: refused.with_label_values(&["connections"]),
            refused_of_source: refused.with_label_values(&["source"]),
            refused_header: refused.with_label_values(&["proxy-header"]),
            refused_hello: refused.with_label_values(&["client-hello"]),
            limited_idle: limited.with_label_values(&["idle"]),
            limited_age: limited.with_label_values(&["age"]),
            open: metrics.gauge("watershed_gateway_open_connections", "Client connections that are open."),
            unserved: metrics.counter(
                "watershed_gateway_unserved_total",
                "Client connections closed because no endpoint took them.",
            ),
            resets: metrics.counter("watershed_gateway_resets_total", "Connections that ended with an error."),
            spliced: metrics.counter("watershed_gateway_spliced_bytes_total", "Bytes that were never copied."),
            connect_seconds: metrics.histogram(
                "watershed_gateway_connect_duration_seconds",
                "Time from a client's arrival to its endpoint's acceptance.",
                exponential_buckets(0.0001, 16),
            ),
            bytes: metrics.counter_vec("watershed_gateway_bytes_total", "Bytes moved.", &["endpoint", "direction"]),
            connected: metrics.counter_vec(
                "watershed_gateway_connected_total",
                "Connections made for clients, by endpoint.",
                &["endpoint"],
            ),
            connect_failures: metrics.counter_vec(
                "watershed_gateway_connect_failures_total",
                "Connections that an endpoint did not take.",
                &["endpoint"],
            ),
            check_failures: metrics.counter_vec(
                "watershed_gateway_check_failures_total",
                "Health checks that an endpoint failed.",
                &["endpoint"],
            ),
            ejections: metrics.counter_vec(
                "watershed_gateway_ejections_total",
                "Times an endpoint that was in use went down, by cause.",
                &["endpoint", "cause"],
            ),
            cut: metrics.counter_vec(
                "watershed_gateway_cut_total",
                "Connections closed because their endpoint went down or left the list.",
                &["endpoint"],
            ),
            up: metrics.gauge_vec("watershed_gateway_endpoint_up", "1 while the endpoint is used.", &["endpoint"]),
            endpoint_open: metrics.gauge_vec(
                "watershed_gateway_endpoint_connections",
                "Connections that the endpoint has or that are on their way to it.",
                &["endpoint"],
            ),
            endpoint_connect_seconds: metrics.histogram_vec(
                "watershed_gateway_endpoint_connect_duration_seconds",
                "Time of one successful connection to the endpoint, look-up included.",
                &["endpoint"],
                exponential_buckets(0.0001, 16),
            ),
            labels: Arc::default(),
        }
    }

    /// Counts a client that is turned away.
    pub(super) fn turned_away(&self, reason: &Unwelcome) {
        match reason {
            Unwelcome::Source => self.refused_of_source.inc(),
            Unwelcome::Header(_) => self.refused_header.inc(),
            Unwelcome::Hello(_) => self.refused_hello.inc(),
            // It is gone already.
            Unwelcome::Socket(_) => {}
        }
    }

    /// Counts a connection that a limit has ended.
    pub(super) fn limited(&self, limit: Limit) {
        match limit {
            Limit::Idle => self.limited_idle.inc(),
            Limit::Age => self.limited_age.inc(),
        }
    }

    /// The metrics of one endpoint.
    pub(super) fn endpoint(&self, endpoint: &Endpoint) -> EndpointMetrics {
        let label = endpoint.to_string();
        *self.labels.lock().entry(label.clone()).or_default() += 1;
        let up = self.up.with_label_values(&[&label]);
        up.set(1);
        EndpointMetrics {
            up,
            open: self.endpoint_open.with_label_values(&[&label]),
            connected: self.connected.with_label_values(&[&label]),
            connect_failures: self.connect_failures.with_label_values(&[&label]),
            check_failures: self.check_failures.with_label_values(&[&label]),
            connect_seconds: self.endpoint_connect_seconds.with_label_values(&[&label]),
            cut: self.cut.with_label_values(&[&label]),
            bytes_up: self.bytes.with_label_values(&[&label, UPSTREAM]),
            bytes_down: self.bytes.with_label_values(&[&label, DOWNSTREAM]),
            ejections: Cause::ALL.map(|cause| self.ejections.with_label_values(&[&label, cause.label()])),
            resets: self.resets.clone(),
            spliced: self.spliced.clone(),
        }
    }

    /// Takes the metrics of an endpoint away, unless another one counts under the same label. Each fails where it is gone
    /// already.
    pub(super) fn forget(&self, endpoint: &Endpoint) {
        let label = endpoint.to_string();
        let mut labels = self.labels.lock();
        let count = labels.entry(label.clone()).or_default();
        *count = count.saturating_sub(1);
        if *count > 0 {
            return;
        }
        labels.remove(&label);
        let _ = self.up.remove_label_values(&[&label]);
        let _ = self.endpoint_open.remove_label_values(&[&label]);
        let _ = self.connected.remove_label_values(&[&label]);
        let _ = self.connect_failures.remove_label_values(&[&label]);
        let _ = self.check_failures.remove_label_values(&[&label]);
        let _ = self.endpoint_connect_seconds.remove_label_values(&[&label]);
        let _ = self.cut.remove_label_values(&[&label]);
        for direction in [UPSTREAM, DOWNSTREAM] {
            let _ = self.bytes.remove_label_values(&[&label, direction]);
        }
        for cause in Cause::ALL {
            let _ = self.ejections.remove_label_values(&[&label, cause.label()]);
        }
    }
}

/// The metrics of one endpoint, looked up once, and those of all that its connections count in.
#[derive(Debug)]
pub(super) struct EndpointMetrics {
    pub(super) up: IntGauge,
    pub(super) open: IntGauge,
    pub(super) connected: IntCounter,
    pub(super) connect_failures: IntCounter,
    pub(super) check_failures: IntCounter,
    pub(super) connect_seconds: Histogram,
    pub(super) cut: IntCounter,
    pub(super) bytes_up: IntCounter,
    pub(super) bytes_down: IntCounter,
    ejections: [IntCounter; Cause::ALL.len()],
    pub(super) resets: IntCounter,
    pub(super) spliced: IntCounter,
}

impl EndpointMetrics {
    /// Counts that the endpoint went down.
    pub(super) fn ejected(&self, cause: Cause) {
        for (_, counter) in Cause::ALL.iter().zip(&self.ejections).filter(|&(&other, _)| other == cause) {
            counter.inc();
        }
    }

    /// Times it went down, by cause.
    pub(super) fn ejections(&self) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL.into_iter().zip(self.ejections.iter().map(IntCounter::get))
    }
}
