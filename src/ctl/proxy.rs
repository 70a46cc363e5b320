use std::collections::BTreeMap;

use serde::Deserialize;

use super::failure::Failure;
use super::own_status::{Answers, StatusPage};
use super::print::draw_table;
use super::session::{Session, show};

const PAGE: StatusPage = StatusPage {
    path: "/proxy/status",
    missing: "a gRPC proxy with --metrics-addr or tenants has it on --metrics-addr only, and no other server has it",
};
/// Rows of the table of tenants.
const TENANTS_MAX: usize = 50;

/// What is shown of the report of a proxy; it has more.
#[derive(Deserialize)]
struct Report {
    version: String,
    up_ms: u64,
    cluster_id: Option<String>,
    endpoints: Vec<Upstream>,
    namespaces: Vec<Namespace>,
    metrics: BTreeMap<String, f64>,
    #[serde(default)]
    tenants: Vec<Tenant>,
    #[serde(default)]
    tenants_total: usize,
}

#[derive(Deserialize)]
struct Upstream {
    endpoint: String,
    state: String,
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Namespace {
    prefix: String,
    cached: Vec<CachedRange>,
}

#[derive(Deserialize)]
struct CachedRange {
    range: String,
    state: String,
    bytes: u64,
    keys: u64,
    revision: i64,
    age_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Tenant {
    name: String,
    namespace: String,
    requests: Option<u64>,
    watches: u64,
    in_flight: usize,
    waiting: usize,
    limits: Vec<Limit>,
    refused: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Limit {
    limit: String,
    max: u64,
    used: Option<u64>,
}

/// `proxy status`: what each gRPC proxy among the endpoints says about itself.
pub(super) async fn status(session: Session) -> Result<(), Failure> {
    match PAGE.ask(&session).await? {
        Answers::Json(text) => show(text),
        Answers::Reports(reports) => reports.iter().try_for_each(|(endpoint, report)| show(tables(endpoint, report))),
    }
}

fn tables(endpoint: &str, report: &Report) -> Vec<u8> {
    let mut out = draw_table(
        &["PROXY", "VERSION", "UP", "CLUSTER", "ENDPOINTS READY"],
        &[vec![
            endpoint.to_owned(),
            report.version.clone(),
            format!("{}s", report.up_ms / 1000),
            report.cluster_id.clone().unwrap_or_else(|| "unknown".to_owned()),
            ready(&report.endpoints),
        ]],
    );
    let upstream =
        |one: &Upstream| vec![one.endpoint.clone(), one.state.clone(), one.reason.clone().unwrap_or_default()];
    let endpoints: Vec<_> = report.endpoints.iter().map(upstream).collect();
    out.extend(draw_table(&["ENDPOINT", "STATE", "REASON"], &endpoints));
    let cached = |space: &Namespace| -> Vec<Vec<String>> {
        let row = |one: &CachedRange| {
            vec![
                space.prefix.clone(),
                one.range.clone(),
                one.state.clone(),
                one.keys.to_string(),
                one.bytes.to_string(),
                one.revision.to_string(),
                one.age_ms.map(|age| format!("{age}ms")).unwrap_or_default(),
            ]
        };
        space.cached.iter().map(row).collect()
    };
    let ranges: Vec<_> = report.namespaces.iter().flat_map(cached).collect();
    if !ranges.is_empty() {
        out.extend(draw_table(&["NAMESPACE", "CACHED RANGE", "STATE", "KEYS", "BYTES", "REVISION", "AGE"], &ranges));
    }
    if !report.tenants.is_empty() {
        out.extend(tenant_table(report));
    }
    let total = |name: &str| sum(&report.metrics, name).to_string();
    let counts = [
        ("calls of clients", total("grpc_server_started_total")),
        ("ranges answered from the cache", total("etcd_grpc_proxy_cache_hits_total")),
        ("ranges passed on", total("etcd_grpc_proxy_cache_misses_total")),
        ("reads of the cluster's revision", total("watershed_proxy_cache_read_index_total")),
        ("watches of clients", total("etcd_debugging_mvcc_watcher_total")),
        ("upstream watches", total("watershed_proxy_upstream_watches")),
        ("events from the cluster", total("watershed_proxy_upstream_events_total")),
        ("events to clients", total("etcd_debugging_mvcc_events_total")),
        ("memory in bytes", total("process_resident_memory_bytes")),
    ];
    let counts: Vec<_> = counts.map(|(name, count)| vec![name.to_owned(), count]).into();
    out.extend(draw_table(&["COUNT", "VALUE"], &counts));
    out
}

/// The tenants with the most calls. A limit stands with what is used of it, and how often it has refused something; one that is
/// not in the file, or not any more, with the latter.
fn tenant_table(report: &Report) -> Vec<u8> {
    let refused = |count: &u64| format!(" (refused {count})");
    let limit = |tenant: &Tenant, one: &Limit| {
        let used = one.used.map(|used| format!("{used}/")).unwrap_or_default();
        format!("{} {used}{}{}", one.limit, one.max, tenant.refused.get(&one.limit).map(refused).unwrap_or_default())
    };
    let row = |tenant: &Tenant| {
        let given = tenant.limits.iter().map(|one| limit(tenant, one));
        let others = tenant.refused.iter().filter(|(name, _)| tenant.limits.iter().all(|one| one.limit != **name));
        let limits: Vec<_> = given.chain(others.map(|(name, count)| format!("{name}{}", refused(count)))).collect();
        vec![
            tenant.name.clone(),
            tenant.namespace.clone(),
            tenant.requests.map(|count| count.to_string()).unwrap_or_default(),
            tenant.watches.to_string(),
            tenant.in_flight.to_string(),
            tenant.waiting.to_string(),
            limits.join(", "),
        ]
    };
    let mut rows: Vec<_> = report.tenants.iter().take(TENANTS_MAX).map(row).collect();
    let more = report.tenants_total.saturating_sub(rows.len());
    if more > 0 {
        let mut last = vec![String::new(); 7];
        last[0] = format!("({more} more)");
        rows.push(last);
    }
    draw_table(&["TENANT", "NAMESPACE", "CALLS", "WATCHES", "AT THE CLUSTER", "WAITING", "LIMITS"], &rows)
}

fn ready(endpoints: &[Upstream]) -> String {
    format!("{}/{}", endpoints.iter().filter(|one| one.state == "ready").count(), endpoints.len())
}

/// The sum of a metric over all its labels.
fn sum(metrics: &BTreeMap<String, f64>, name: &str) -> f64 {
    let of = |key: &str| key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
    // The sum of nothing would be -0.
    metrics.iter().filter(|(key, _)| of(key)).fold(0.0, |all, (_, value)| all + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_shown_as_tables() {
        let report = serde_json::json!({
            "version": "0.1.0", "up_ms": 60_500, "cluster_id": "cdf818194e3a8c32", "more": [],
            "endpoints": [
                {"endpoint": "a:1", "state": "ready"},
                {"endpoint": "b:1", "state": "failed", "reason": "connect timed out"},
            ],
            "namespaces": [{"prefix": "/team/", "cached": [
                {"range": "jobs*", "state": "live", "bytes": 900, "keys": 3, "revision": 17, "age_ms": 12},
            ]}],
            "tenants_total": 3,
            "tenants": [{"name": "a", "namespace": "/team/", "requests": 12, "watches": 2, "in_flight": 1, "waiting": 0,
                "limits": [{"limit": "watches", "max": 9, "used": 2}, {"limit": "leases", "max": 5}],
                "refused": {"leases": 4, "requests-waiting": 7}}],
            "metrics": {"grpc_server_started_total{grpc_method=\"Put\"}": 2.0,
                "grpc_server_started_total{grpc_method=\"Range\"}": 5.0, "grpc_server_started_total_other": 9.0},
        });
        let report = Report::deserialize(&report).unwrap();
        let text = String::from_utf8(tables("p:1", &report)).unwrap();
        for line in [
            "│   p:1 │   0.1.0 │ 60s │ cdf818194e3a8c32 │             1/2 │",
            "│      b:1 │ failed │ connect timed out │",
            "│    /team/ │        jobs* │  live │    3 │   900 │       17 │ 12ms │",
            "│        a │    /team/ │    12 │       2 │              1 │       0 │ watches 2/9, leases 5 (refused 4), requests-waiting (refused 7) │",
            "│ (2 more) │",
            "│                calls of clients │     7 │",
        ] {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
    }
}
