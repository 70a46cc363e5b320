use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::shared::{Checked, State};
use crate::telemetry::Metrics;

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
        for outcome in Checked::LABELS {
            checks.with_label_values(&[outcome]).reset();
        }
        for state in State::ALL {
            replicas.with_label_values(&[state.label()]).set(0);
        }
        Self { hits, misses, keys, bytes, answered, passed, read_index, progress, events, replicas, changes, checks }
    }
}
