use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::shared::{Checked, State};
use crate::telemetry::Metrics;

/// Why a replica is in the state `gap`, as `follow.rs` labels it.
const GAP_REASONS: [&str; 7] =
    ["old_event", "previous_pair", "version", "malformed", "foreign_key", "different", "revision_went_back"];
/// Why ranges are passed on, as `service.rs` labels it.
const PASSED_REASONS: [&str; 12] = [
    "unread",
    "form",
    "revision",
    "linearizable",
    "uncovered",
    "not_live",
    "permission",
    "read_index",
    "behind",
    "went_back",
    "inexact",
    "memory",
];

/// What the caches of a proxy count, under the names of etcd's proxy where it has them.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    pub(super) hits: IntCounter,
    pub(super) misses: IntCounter,
    pub(super) keys: IntGauge,
    pub(super) bytes: IntGauge,
    /// Serializable and linearizable ones: looked up once.
    pub(super) answered: [IntCounter; 2],
    pub(super) passed: IntCounterVec,
    pub(super) read_index: IntCounter,
    pub(super) progress: IntCounter,
    pub(super) events: IntCounter,
    pub(super) replicas: IntGaugeVec,
    pub(super) changes: IntCounterVec,
    pub(super) checks: IntCounterVec,
}

impl CacheMetrics {
    /// Makes the metrics and registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let hits = metrics.counter("etcd_grpc_proxy_cache_hits_total", "Ranges answered from the cache.");
        let misses = metrics.counter("etcd_grpc_proxy_cache_misses_total", "Ranges that could not be.");
        let keys = metrics.gauge("etcd_grpc_proxy_cache_keys_total", "Keys in the cache.");
        let bytes = metrics.gauge("watershed_proxy_cache_bytes", "Memory of the replicas, in bytes.");
        let answered = metrics.counter_vec(
            "watershed_proxy_cache_answers_total",
            "Ranges answered from the cache, by the kind of read.",
            &["read"],
        );
        let answered = ["serializable", "linearizable"].map(|read| answered.with_label_values(&[read]));
        let passed = metrics.counter_vec(
            "watershed_proxy_cache_passed_total",
            "Ranges that were passed on while the cache is in use, by reason.",
            &["reason"],
        );
        let read_index = metrics.counter(
            "watershed_proxy_cache_read_index_total",
            "Reads of the cluster's revision, each for many ranges.",
        );
        let progress =
            metrics.counter("watershed_proxy_cache_progress_requests_total", "Progress requests sent for replicas.");
        let events = metrics.counter("watershed_proxy_cache_events_total", "Events applied to replicas.");
        let replicas =
            metrics.gauge_vec("watershed_proxy_cache_replicas", "Replicas of cached prefixes, by state.", &["state"]);
        let changes = metrics.counter_vec(
            "watershed_proxy_cache_state_changes_total",
            "Changes of the state of a replica, by the new state and the reason.",
            &["state", "reason"],
        );
        let checks = metrics.counter_vec(
            "watershed_proxy_cache_checks_total",
            "Comparisons of a replica with the cluster, by outcome: same, different, unknown.",
            &["outcome"],
        );
        // From the start, so that the first one is an increase.
        for reason in GAP_REASONS {
            changes.with_label_values(&[State::Gap.label(), reason]).reset();
        }
        for reason in PASSED_REASONS {
            passed.with_label_values(&[reason]).reset();
        }
        for outcome in Checked::LABELS {
            checks.with_label_values(&[outcome]).reset();
        }
        for state in State::ALL {
            replicas.with_label_values(&[state.label()]).set(0);
        }
        Self { hits, misses, keys, bytes, answered, passed, read_index, progress, events, replicas, changes, checks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_alerts_look_at_is_there_before_it_happens() {
        // Cause: the series of the first gap began at 1, which is no increase, so that the alert saw the second one alone.
        let metrics = Metrics::new();
        CacheMetrics::register(&metrics);
        let values = metrics.values(|name| name.starts_with("watershed_proxy_cache_"));
        let series = |name: &str| values.iter().filter(|(series, _)| series.starts_with(name)).collect::<Vec<_>>();
        let gaps = series("watershed_proxy_cache_state_changes_total{");
        assert!(gaps.len() == 7 && gaps.iter().all(|(name, _)| name.contains("state=\"gap\"")), "{gaps:?}");
        let passed = series("watershed_proxy_cache_passed_total{");
        assert_eq!(passed.len(), 12, "{passed:?}");
        assert!(gaps.iter().chain(&passed).all(|(_, value)| **value == 0.0), "{gaps:?} {passed:?}");
    }
}
