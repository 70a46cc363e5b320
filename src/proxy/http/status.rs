use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;
use tokio::time::Instant;

use crate::client::{EndpointReport, Pool};
use crate::pages::{JSON, Page, page};
use crate::proxy::cache::{CachedRange, RangeCache};
use crate::proxy::tenants::{Tenant, TenantReport, Tenants};
use crate::telemetry::Metrics;

/// Metrics that are part of a report, by the beginnings of their names.
const SHOWN: [&str; 6] = [
    "watershed_proxy_",
    "etcd_grpc_proxy_",
    "etcd_debugging_mvcc_watch",
    "etcd_debugging_mvcc_events_total",
    "grpc_server_started_total",
    "process_",
];

/// Metrics of tenants, which are part of their own reports.
const OF_TENANTS: &str = "watershed_proxy_tenant_";
/// Tenants in a report.
const TENANTS_MAX: usize = 1000;

/// The state of the proxy.
pub(in crate::proxy) struct StatusReport {
    pool: Pool,
    metrics: Metrics,
    tenants: Tenants,
    since: Instant,
}

/// `/proxy/status`. Fields are only ever added.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    /// Milliseconds since its start.
    up_ms: u64,
    /// Hexadecimal, as etcd shows it.
    cluster_id: Option<String>,
    endpoints: Vec<EndpointReport>,
    /// Of many tenants, those with something cached.
    namespaces: Vec<Namespace>,
    /// Those with the most calls.
    tenants: Vec<TenantReport>,
    tenants_total: usize,
    /// Counters and gauges that are not zero.
    metrics: BTreeMap<String, f64>,
}

#[derive(Serialize)]
struct Namespace {
    /// Bytes that are not printable are escaped.
    prefix: String,
    cached: Vec<CachedRange>,
}

impl StatusReport {
    /// `pool` should be one that is always in use, so that it knows the endpoints.
    pub(in crate::proxy) fn new(pool: Pool, metrics: Metrics, tenants: Tenants) -> Self {
        Self { pool, metrics, tenants, since: Instant::now() }
    }

    pub(super) fn page(&self) -> Page {
        let namespace = |tenant: &Arc<Tenant>| Namespace {
            prefix: tenant.namespace.prefix().escape_ascii().to_string(),
            cached: tenant.range_cache().map(RangeCache::report).unwrap_or_default(),
        };
        let shown = |name: &str| SHOWN.iter().any(|shown| name.starts_with(shown)) && !name.starts_with(OF_TENANTS);
        let mut metrics = self.metrics.values(shown);
        metrics.retain(|_, value| *value != 0.0);
        let current = self.tenants.current();
        let all = current.tenants();
        let is_shown = |space: &Namespace| all.len() == 1 || !space.cached.is_empty();
        let tenants = TenantReport::busiest(all.iter().map(Arc::as_ref), TENANTS_MAX);
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            up_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            cluster_id: self.pool.cluster_id().map(|id| format!("{id:x}")),
            endpoints: self.pool.report(),
            namespaces: all.iter().map(namespace).filter(is_shown).collect(),
            tenants_total: if tenants.is_empty() { 0 } else { all.len() },
            tenants,
            metrics,
        };
        match serde_json::to_vec(&report) {
            Ok(body) => page(StatusCode::OK, JSON, body),
            Err(error) => {
                page(StatusCode::INTERNAL_SERVER_ERROR, JSON, format!("{{\"error\":{:?}}}", error.to_string()))
            }
        }
    }
}
