use std::collections::BTreeMap;

use serde::Serialize;

use super::refusal::Limit;
use super::stored::Stored;
use super::tenant_limits::Limits;

/// What a tenant may use, and uses, for people.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(in crate::proxy) struct UsageReport {
    /// Calls since the start, and bytes of their requests and answers; none of a tenant without metrics of its own.
    pub requests: Option<u64>,
    bytes: Option<u64>,
    /// Open ones.
    watches: u64,
    /// Requests at the cluster.
    in_flight: usize,
    /// Requests that wait for their turn at the cluster.
    waiting: usize,
    /// None where it is not counted.
    stored: Option<Stored>,
    /// Those that the file gives.
    limits: Vec<LimitReport>,
    /// What was refused since the start, by the limits that have refused something.
    refused: BTreeMap<&'static str, u64>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct LimitReport {
    limit: &'static str,
    max: u64,
    /// None of what is counted by the second or by the answer. Leases are those after the newest grant, none before the first.
    used: Option<u64>,
}

impl UsageReport {
    /// Of the tenant with these limits.
    pub(in crate::proxy) fn new(limits: &Limits) -> Self {
        let (allowed, watches, stored) = (limits.allowed(), limits.open_watches(), limits.stored());
        let (in_flight, waiting) = limits.turns_used();
        let limit = |limit: Limit, max: Option<u64>, used: Option<u64>| {
            max.map(|max| LimitReport { limit: limit.name(), max, used })
        };
        let of_stored = |count: fn(Stored) -> i64| stored.map(|stored| u64::try_from(count(stored)).unwrap_or(0));
        let given = [
            limit(Limit::Requests, allowed.requests_per_second, None),
            limit(Limit::Bytes, allowed.bytes_per_second, None),
            limit(Limit::Watches, allowed.watches, Some(watches)),
            limit(Limit::Leases, allowed.leases, limits.leases()),
            limit(Limit::StoredKeys, allowed.stored_keys, of_stored(|stored| stored.keys)),
            limit(Limit::StoredBytes, allowed.stored_bytes, of_stored(|stored| stored.bytes)),
            limit(Limit::AnswerBytes, allowed.answer_bytes, None),
        ];
        let counters = limits.own_counters();
        let refused = counters
            .into_iter()
            .flat_map(|counters| Limit::ALL.into_iter().map(|limit| (limit.name(), counters.refused(limit).get())));
        Self {
            requests: counters.map(|counters| counters.requests.get()),
            bytes: counters.map(|counters| counters.bytes.get()),
            watches,
            in_flight,
            waiting,
            stored,
            limits: given.into_iter().flatten().collect(),
            refused: refused.filter(|(_, count)| *count > 0).collect(),
        }
    }
}
