use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::telemetry::{Metrics, exponential_buckets};

/// What the gateway counts. Endpoint labels come from the configured list, so their number is bounded by it.
#[derive(Clone, Debug)]
pub struct GatewayMetrics {
    pub(super) accepted: IntCounter,
    pub(super) accept_errors: IntCounter,
    pub(super) refused: IntCounter,
    pub(super) open: IntGauge,
    pub(super) unserved: IntCounter,
    pub(super) resets: IntCounter,
    pub(super) bytes_up: IntCounter,
    pub(super) bytes_down: IntCounter,
    pub(super) spliced: IntCounter,
    pub(super) connected: IntCounterVec,
    pub(super) connect_failures: IntCounterVec,
    pub(super) up: IntGaugeVec,
    pub(super) connect_seconds: Histogram,
}

impl GatewayMetrics {
    /// Makes the metrics and registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let bytes = metrics.counter_vec("watershed_gateway_bytes_total", "Bytes moved.", &["direction"]);
        Self {
            accepted: metrics.counter("watershed_gateway_accepted_total", "Client connections accepted."),
            accept_errors: metrics.counter("watershed_gateway_accept_errors_total", "Failed calls of accept."),
            refused: metrics.counter(
                "watershed_gateway_refused_total",
                "Client connections reset because as many were open as the descriptor limit allows.",
            ),
            open: metrics.gauge("watershed_gateway_open_connections", "Client connections that are open."),
            unserved: metrics.counter(
                "watershed_gateway_unserved_total",
                "Client connections closed because no endpoint took them.",
            ),
            resets: metrics.counter("watershed_gateway_resets_total", "Connections that ended with an error."),
            bytes_up: bytes.with_label_values(&["upstream"]),
            bytes_down: bytes.with_label_values(&["downstream"]),
            spliced: metrics.counter("watershed_gateway_spliced_bytes_total", "Bytes that were never copied."),
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
            up: metrics.gauge_vec("watershed_gateway_endpoint_up", "1 while the endpoint is used.", &["endpoint"]),
            connect_seconds: metrics.histogram(
                "watershed_gateway_connect_duration_seconds",
                "Time from a client's arrival to its endpoint's acceptance.",
                exponential_buckets(0.0001, 16),
            ),
        }
    }
}
