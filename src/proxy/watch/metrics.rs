use prometheus::{IntCounter, IntGauge};

use crate::telemetry::{Metrics, WatchMetrics, raise_to};

/// What the hub counts, under the names of etcd's proxy where it has them.
#[derive(Clone, Debug)]
pub struct ProxyWatchMetrics {
    pub(super) watch: WatchMetrics,
    pub(super) upstream_watches: IntGauge,
    pub(super) upstream_events: IntCounter,
    pub(super) resumes: IntCounter,
}

impl ProxyWatchMetrics {
    /// Makes the metrics and registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let watch = WatchMetrics::register(metrics);
        let upstream_watches = metrics.gauge(
            "watershed_proxy_upstream_watches",
            "Upstream watches that broadcast a log, private ones and those of replicas apart.",
        );
        let upstream_events = metrics.counter("watershed_proxy_upstream_events_total", "Events the cluster sent.");
        let resumes =
            metrics.counter("watershed_proxy_upstream_watch_resumes_total", "Upstream watches taken up again.");
        let watchers_merged =
            metrics.gauge("etcd_grpc_proxy_watchers_coalescing_total", "Watchers that share an upstream watch.");
        let events_merged =
            metrics.counter("etcd_grpc_proxy_events_coalescing_total", "Events sent beyond those the cluster sent.");
        let made = Self { watch, upstream_watches, upstream_events, resumes };
        let seen = made.clone();
        metrics.before_render(move || {
            watchers_merged.set((seen.watch.watchers.get() - seen.upstream_watches.get()).max(0));
            raise_to(&events_merged, seen.watch.events.get().saturating_sub(seen.upstream_events.get()));
        });
        made
    }
}
