use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::metrics::GatewayMetrics;
use crate::discovery::{EndpointSet, ListedEndpoint};
use crate::net::HostPort;

/// An endpoint as the balancer sees it.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) listed: ListedEndpoint,
    address: HostPort,
    down: AtomicBool,
    /// When it last took a connection.
    taken: Mutex<Option<Instant>>,
    /// Why it is down.
    reason: Mutex<String>,
    removed: AtomicBool,
    /// Wakes the check of this endpoint: it went down, or it left the list.
    pub(super) changed: Notify,
    metrics: Arc<GatewayMetrics>,
}

impl Upstream {
    fn new(listed: ListedEndpoint, metrics: Arc<GatewayMetrics>) -> Self {
        let address = HostPort::from(&listed.endpoint);
        metrics.up.with_label_values(&[&address.to_string()]).set(1);
        Self {
            listed,
            address,
            down: AtomicBool::new(false),
            taken: Mutex::new(None),
            reason: Mutex::new(String::new()),
            removed: AtomicBool::new(false),
            changed: Notify::new(),
            metrics,
        }
    }

    pub(super) fn address(&self) -> &HostPort {
        &self.address
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// A connection was refused or timed out: no more clients go there until it works again.
    pub(super) fn mark_down(&self, error: &std::io::Error) {
        let label = self.address().to_string();
        self.metrics.connect_failures.with_label_values(&[&label]).inc();
        *self.reason.lock() = error.to_string();
        if !self.down.swap(true, Ordering::Relaxed) {
            warn!(endpoint = %label, %error, "endpoint is down");
            self.metrics.up.with_label_values(&[&label]).set(0);
            self.changed.notify_one();
        }
    }

    /// Whether it took a connection no longer ago than this.
    pub(super) fn took_within(&self, age: Duration) -> bool {
        self.taken.lock().is_some_and(|at| at.elapsed() <= age)
    }

    /// Why it is down.
    pub(super) fn reason(&self) -> String {
        self.reason.lock().clone()
    }

    /// A connection worked.
    pub(super) fn mark_up(&self) {
        *self.taken.lock() = Some(Instant::now());
        if self.is_down() && self.down.swap(false, Ordering::Relaxed) {
            let label = self.address().to_string();
            info!(endpoint = %label, "endpoint is back");
            self.metrics.up.with_label_values(&[&label]).set(1);
            self.changed.notify_one();
        }
    }
}

/// The endpoints that connections may go to.
#[derive(Debug)]
pub(super) struct Upstreams {
    current: ArcSwap<Vec<Arc<Upstream>>>,
    turn: AtomicUsize,
    metrics: Arc<GatewayMetrics>,
}

impl Upstreams {
    pub(super) fn new(metrics: Arc<GatewayMetrics>) -> Self {
        Self { current: ArcSwap::default(), turn: AtomicUsize::new(0), metrics }
    }

    /// Replaces the current endpoints with `set` and returns the new ones, which need a check each. What is known
    /// about the others stays, as do the connections to endpoints that are gone.
    pub(super) fn replace(&self, set: &EndpointSet) -> Vec<Arc<Upstream>> {
        let old = self.current.load_full();
        let mut added = Vec::new();
        let mut list = Vec::with_capacity(set.len());
        for listed in set.iter() {
            let known = old.iter().find(|upstream| upstream.listed == *listed);
            list.push(known.cloned().unwrap_or_else(|| {
                let upstream = Arc::new(Upstream::new(listed.clone(), self.metrics.clone()));
                added.push(upstream.clone());
                upstream
            }));
        }
        for gone in old.iter().filter(|upstream| !list.iter().any(|kept| Arc::ptr_eq(kept, upstream))) {
            gone.removed.store(true, Ordering::Relaxed);
            gone.changed.notify_one();
            if !list.iter().any(|kept| kept.address() == gone.address()) {
                let _ = self.metrics.up.remove_label_values(&[&gone.address().to_string()]);
            }
        }
        self.current.store(Arc::new(list));
        added
    }

    pub(super) fn list(&self) -> Arc<Vec<Arc<Upstream>>> {
        self.current.load_full()
    }

    /// Whether any endpoint is not known to be down.
    pub(super) fn any_live(&self) -> bool {
        self.current.load().iter().any(|upstream| !upstream.is_down())
    }

    /// The live endpoint whose turn it is, of the best priority, `tried` ones left out.
    pub(super) fn pick(&self, tried: &[Arc<Upstream>]) -> Option<Arc<Upstream>> {
        let current = self.current.load();
        let live = || {
            let fresh = |upstream: &&Arc<Upstream>| !tried.iter().any(|tried| Arc::ptr_eq(tried, upstream));
            current.iter().filter(|upstream| !upstream.is_down()).filter(fresh)
        };
        let best = live().map(|upstream| upstream.listed.priority).min()?;
        let tier = || live().filter(|upstream| upstream.listed.priority == best);
        let total: u32 = tier().map(|upstream| u32::from(upstream.listed.weight)).sum();
        if total > 0 {
            let mut ticket = fastrand::u32(..total);
            return tier()
                .find(|upstream| {
                    let weight = u32::from(upstream.listed.weight);
                    let drawn = ticket < weight;
                    ticket = ticket.wrapping_sub(weight);
                    drawn
                })
                .cloned();
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        // One may go down between the two looks.
        tier().nth(turn % tier().count().max(1)).or_else(|| tier().next()).cloned()
    }

    /// Up to `most` endpoints that are down, another selection each time.
    pub(super) fn last_resort(&self, most: usize, tried: &[Arc<Upstream>]) -> Vec<Arc<Upstream>> {
        let current = self.current.load();
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % current.len().max(1);
        let fresh = |upstream: &&Arc<Upstream>| !tried.iter().any(|tried| Arc::ptr_eq(tried, upstream));
        let rotated = current[start..].iter().chain(&current[..start]);
        rotated.filter(|upstream| upstream.is_down()).filter(fresh).take(most).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::telemetry::Metrics;

    /// `host priority weight` for each endpoint.
    fn upstreams(endpoints: &[(&str, u16, u16)]) -> Upstreams {
        let upstreams = Upstreams::new(Arc::new(GatewayMetrics::register(&Metrics::default())));
        upstreams.replace(&set(endpoints));
        upstreams
    }

    fn set(endpoints: &[(&str, u16, u16)]) -> EndpointSet {
        let listed = |&(host, priority, weight): &(&str, u16, u16)| ListedEndpoint {
            priority,
            weight,
            ..ListedEndpoint::new(format!("{host}:1").parse::<HostPort>().unwrap())
        };
        endpoints.iter().map(listed).collect()
    }

    fn shares(upstreams: &Upstreams, picks: usize) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for _ in 0..picks {
            *shares.entry(upstreams.pick(&[]).unwrap().address().host().to_owned()).or_default() += 1;
        }
        shares
    }

    fn error() -> std::io::Error {
        std::io::ErrorKind::ConnectionRefused.into()
    }

    #[test]
    fn turns_are_equal_and_leave_out_what_is_down() {
        let upstreams = upstreams(&[("a", 0, 0), ("b", 0, 0), ("c", 0, 0)]);
        assert_eq!(shares(&upstreams, 300).into_values().collect::<Vec<_>>(), [100, 100, 100]);
        let a = upstreams.current.load()[0].clone();
        a.mark_down(&error());
        assert_eq!(shares(&upstreams, 200).into_iter().collect::<Vec<_>>(), [("b".into(), 100), ("c".into(), 100)]);
        a.mark_up();
        assert_eq!(shares(&upstreams, 3).len(), 3);
    }

    #[test]
    fn a_worse_priority_waits_until_the_better_ones_are_down() {
        let upstreams = upstreams(&[("a", 10, 0), ("b", 20, 0), ("c", 10, 0)]);
        assert_eq!(shares(&upstreams, 10).into_keys().collect::<Vec<_>>(), ["a", "c"]);
        for upstream in upstreams.current.load().iter().filter(|upstream| upstream.listed.priority == 10) {
            upstream.mark_down(&error());
        }
        assert_eq!(shares(&upstreams, 10).into_keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn weights_are_shares() {
        // Etcd's gateway sends everything to the first of two equal weights.
        let upstreams = upstreams(&[("a", 0, 1), ("b", 0, 1), ("c", 0, 2)]);
        let shares = shares(&upstreams, 40_000);
        for (host, expected) in [("a", 10_000), ("b", 10_000), ("c", 20_000)] {
            assert!(shares[host].abs_diff(expected) < 1_000, "{shares:?}");
        }
    }

    #[test]
    fn what_is_known_survives_a_new_list() {
        let upstreams = upstreams(&[("a", 0, 0), ("b", 0, 0)]);
        upstreams.current.load()[0].mark_down(&error());
        let gone = upstreams.current.load()[1].clone();
        let added = upstreams.replace(&set(&[("a", 0, 0), ("c", 0, 0)]));
        assert_eq!(added.len(), 1);
        assert!(gone.is_removed());
        assert_eq!(shares(&upstreams, 4).into_keys().collect::<Vec<_>>(), ["c"]);
        assert_eq!(upstreams.last_resort(3, &[]).len(), 1);
    }
}
