use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGaugeVec};

use super::counters::TenantCounters;
use super::refusal::Limit;
use super::tenant_limits::Limits;
use super::turns::Turns;
use crate::config::TenantLimits;
use crate::telemetry::Metrics;

/// Tenants with rows of their own; all others share those of [`OTHERS`].
const ROWS_MAX: usize = 1000;
/// No name of a tenant: names have no brackets.
const OTHERS: &str = "(others)";

/// What each tenant uses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TenantMetrics {
    requests: IntCounterVec,
    bytes: IntCounterVec,
    watches: IntGaugeVec,
    stored_keys: IntGaugeVec,
    stored_bytes: IntGaugeVec,
    refused: IntCounterVec,
    named: Arc<Mutex<HashSet<String>>>,
    turns: Turns,
}

impl TenantMetrics {
    /// Makes the metrics and registers them; the tenants share `turns`.
    pub fn register(metrics: &Metrics, turns: Turns) -> Self {
        Self {
            requests: metrics.counter_vec(
                "watershed_proxy_tenant_requests_total",
                "Calls of a tenant, refused ones too.",
                &["tenant"],
            ),
            bytes: metrics.counter_vec(
                "watershed_proxy_tenant_bytes_total",
                "Bytes of a tenant's requests and answers.",
                &["tenant"],
            ),
            watches: metrics.gauge_vec("watershed_proxy_tenant_watches", "Open watches of a tenant.", &["tenant"]),
            stored_keys: metrics.gauge_vec(
                "watershed_proxy_tenant_stored_keys",
                "Keys of a tenant that has a limit of what it stores.",
                &["tenant"],
            ),
            stored_bytes: metrics.gauge_vec(
                "watershed_proxy_tenant_stored_bytes",
                "Bytes of keys and values of a tenant that has a limit of what it stores.",
                &["tenant"],
            ),
            refused: metrics.counter_vec(
                "watershed_proxy_tenant_refused_total",
                "What a tenant was refused, by the limit that it reached.",
                &["tenant", "limit"],
            ),
            named: Arc::default(),
            turns,
        }
    }

    /// The limits of a tenant, counted under its name.
    pub fn limits(&self, name: &str, allowed: TenantLimits) -> Limits {
        let mut named = self.named.lock();
        let row = if named.contains(name) || named.len() < ROWS_MAX { name } else { OTHERS };
        if row == name {
            named.insert(name.to_owned());
        }
        drop(named);
        let counters = TenantCounters {
            own: row == name,
            requests: self.requests.with_label_values(&[row]),
            bytes: self.bytes.with_label_values(&[row]),
            watches: self.watches.with_label_values(&[row]),
            stored_keys: self.stored_keys.with_label_values(&[row]),
            stored_bytes: self.stored_bytes.with_label_values(&[row]),
            refused: Limit::ALL.map(|limit| self.refused.with_label_values(&[row, limit.name()])),
        };
        Limits::new(allowed, Some(counters), Some(self.turns.clone()))
    }

    /// Removes the rows of a tenant that is gone.
    pub fn forget(&self, name: &str) {
        if self.named.lock().remove(name) {
            // An error says that there is none.
            let _ = self.requests.remove_label_values(&[name]);
            let _ = self.bytes.remove_label_values(&[name]);
            let _ = self.watches.remove_label_values(&[name]);
            let _ = self.stored_keys.remove_label_values(&[name]);
            let _ = self.stored_bytes.remove_label_values(&[name]);
            for limit in Limit::ALL {
                let _ = self.refused.remove_label_values(&[name, limit.name()]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_bounded_and_go_with_their_tenant() {
        let metrics = Metrics::new();
        let rows = TenantMetrics::register(&metrics, Turns::new(1));
        let of = |name: &str| rows.limits(name, TenantLimits::default()).admit_call().unwrap();
        (0..ROWS_MAX + 500).for_each(|number| of(&format!("t{number}")));
        let count = |name: &str| {
            let page = metrics.render();
            let line = format!("watershed_proxy_tenant_requests_total{{tenant=\"{name}\"}} ");
            page.lines().find_map(|found| found.strip_prefix(&line).map(str::to_owned))
        };
        assert_eq!(count("t0").as_deref(), Some("1"));
        assert_eq!((count("t1000"), count("(others)").as_deref()), (None, Some("500")));
        rows.forget("t0");
        rows.forget("t1000");
        assert_eq!((count("t0"), count("(others)").as_deref()), (None, Some("500")));
        of("new");
        assert_eq!(count("new").as_deref(), Some("1"));
    }

    #[test]
    fn limits_have_the_numbers_of_their_rows() {
        for (number, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, number);
        }
    }
}
