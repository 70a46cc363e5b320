use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use fastrand::Rng;
use parking_lot::Mutex;

use super::balance::{Candidate, Division, choose};
use super::metrics::GatewayMetrics;
use super::upstream::{Assigned, Upstream};
use crate::discovery::{EndpointSet, ListedEndpoint, Origin};
use crate::net::Endpoint;

/// The endpoints that connections may go to.
#[derive(Debug)]
pub(super) struct Upstreams {
    current: ArcSwap<Vec<Listed>>,
    /// No longer listed, with connections that may still be open. Locked while the list changes.
    leaving: Mutex<Vec<Arc<Upstream>>>,
    turn: AtomicUsize,
    random: Mutex<Rng>,
    division: Division,
    metrics: Arc<GatewayMetrics>,
}

/// An endpoint and what its source says of it.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) upstream: Arc<Upstream>,
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) origin: Origin,
}

impl Upstreams {
    pub(super) fn new(division: Division, random: Rng, metrics: Arc<GatewayMetrics>) -> Self {
        Self {
            current: ArcSwap::default(),
            leaving: Mutex::default(),
            turn: AtomicUsize::new(0),
            random: Mutex::new(random),
            division,
            metrics,
        }
    }

    /// Replaces the current endpoints with `set` and returns the new ones, which need someone to look after each. What
    /// is known about the others stays, as do the connections to endpoints that are gone.
    pub(super) fn replace(&self, set: &EndpointSet) -> Vec<Arc<Upstream>> {
        let mut leaving = self.leaving.lock();
        let old = self.current.load_full();
        let mut added = Vec::new();
        let mut list = Vec::with_capacity(set.len());
        for listed in set.iter() {
            let is_same = |upstream: &Arc<Upstream>| *upstream.endpoint() == listed.endpoint;
            let known = old.iter().map(|listed| &listed.upstream).find(|upstream| is_same(upstream)).cloned();
            let returned = || leaving.iter().position(is_same).map(|at| leaving.swap_remove(at));
            let upstream = known.or_else(returned).unwrap_or_else(|| {
                let new = Upstream::new(listed.endpoint.clone(), &self.division, &self.metrics);
                let new = Arc::new(new);
                added.push(new.clone());
                new
            });
            if upstream.is_removed() {
                upstream.set_removed(false);
            }
            let &ListedEndpoint { priority, weight, origin, .. } = listed;
            list.push(Listed { upstream, priority, weight, origin });
        }
        for Listed { upstream: gone, .. } in old.iter() {
            if !list.iter().any(|kept| Arc::ptr_eq(&kept.upstream, gone)) {
                leaving.push(gone.clone());
                gone.set_removed(true);
            }
        }
        self.current.store(Arc::new(list));
        added
    }

    /// Gives up an endpoint that left the list; false if it has returned to it.
    pub(super) fn forget(&self, upstream: &Arc<Upstream>) -> bool {
        let mut leaving = self.leaving.lock();
        let Some(at) = leaving.iter().position(|other| Arc::ptr_eq(other, upstream)) else { return false };
        leaving.swap_remove(at);
        self.metrics.forget(upstream.endpoint());
        true
    }

    /// Whether these are the endpoints now, in this order.
    pub(super) fn are(&self, endpoints: &[Endpoint]) -> bool {
        self.current.load().iter().map(|listed| listed.upstream.endpoint()).eq(endpoints)
    }

    pub(super) fn list(&self) -> Arc<Vec<Listed>> {
        self.current.load_full()
    }

    /// Those that are no longer listed and may have open connections.
    pub(super) fn leaving(&self) -> Vec<Arc<Upstream>> {
        self.leaving.lock().clone()
    }

    /// How much of its full share an endpoint gets, at most 1.
    pub(super) fn slow_start_factor(&self, upstream: &Upstream) -> f64 {
        upstream.slow_start_factor(self.division.slow_start)
    }

    /// Whether any endpoint is not known to be down.
    pub(super) fn any_live(&self) -> bool {
        self.current.load().iter().any(|listed| !listed.upstream.is_down())
    }

    /// The live endpoint that gets the next connection, of the best priority, `tried` ones left out.
    pub(super) fn pick(&self, tried: &[Arc<Upstream>]) -> Option<Assigned> {
        let current = self.current.load();
        let mut tier: Vec<&Listed> = current.iter().filter(|listed| !listed.upstream.is_down()).collect();
        tier.retain(|listed| is_fresh(&listed.upstream, tried));
        let best = tier.iter().map(|listed| listed.priority).min()?;
        tier.retain(|listed| listed.priority == best);
        if tier.iter().any(|listed| !listed.upstream.is_suspect()) {
            tier.retain(|listed| !listed.upstream.is_suspect());
        }
        let candidates: Vec<Candidate> = tier
            .iter()
            .map(|listed| Candidate {
                weight: listed.weight,
                open: listed.upstream.open(),
                slow_start_factor: self.slow_start_factor(&listed.upstream),
            })
            .collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let chosen = choose(self.division.balance, &candidates, turn, &mut self.random.lock())?;
        Some(Assigned::new(tier[chosen].upstream.clone()))
    }

    /// Up to `most` endpoints that are down, another selection each time.
    pub(super) fn last_resort(&self, most: usize, tried: &[Arc<Upstream>]) -> Vec<Assigned> {
        let current = self.current.load();
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % current.len().max(1);
        let rotated = current[start..].iter().chain(&current[..start]).map(|listed| &listed.upstream);
        let usable =
            rotated.filter(|upstream| upstream.is_down() && !upstream.is_looped() && is_fresh(upstream, tried));
        usable.take(most).cloned().map(Assigned::new).collect()
    }
}

fn is_fresh(upstream: &Arc<Upstream>, tried: &[Arc<Upstream>]) -> bool {
    !tried.iter().any(|tried| Arc::ptr_eq(tried, upstream))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::super::cause::Cause;
    use super::*;
    use crate::config::Balance;
    use crate::net::HostPort;
    use crate::telemetry::Metrics;

    const SLOW_START: Duration = Duration::from_secs(10);

    /// `host priority weight` for each endpoint.
    fn upstreams(endpoints: &[(&str, u16, u16)]) -> Upstreams {
        let division =
            Division { balance: Balance::Listed, slow_start: SLOW_START, closes_when_down: false, checked: false };
        let metrics = Arc::new(GatewayMetrics::register(&Metrics::default()));
        let upstreams = Upstreams::new(division, Rng::with_seed(1), metrics);
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

    fn shares(upstreams: &Upstreams, picks: usize) -> Vec<(String, usize)> {
        let mut shares = BTreeMap::new();
        for _ in 0..picks {
            let assigned = upstreams.pick(&[]).unwrap();
            *shares.entry(assigned.upstream().endpoint().host().to_owned()).or_default() += 1;
        }
        shares.into_iter().collect()
    }

    fn upstream(upstreams: &Upstreams, host: &str) -> Arc<Upstream> {
        let list = upstreams.list();
        list.iter().find(|listed| listed.upstream.endpoint().host() == host).unwrap().upstream.clone()
    }

    fn set_down(upstreams: &Upstreams, host: &str) {
        upstream(upstreams, host).mark_down(Cause::Refused, "connection refused");
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_equal_and_leave_out_what_is_down() {
        let upstreams = upstreams(&[("a", 0, 0), ("b", 0, 0), ("c", 0, 0)]);
        let equal = |count| ["a", "b", "c"].map(|host| (host.to_owned(), count));
        assert_eq!(shares(&upstreams, 300), equal(100));
        set_down(&upstreams, "a");
        assert_eq!(shares(&upstreams, 200), equal(100)[1..]);
        upstream(&upstreams, "a").mark_up();
        tokio::time::advance(SLOW_START).await;
        assert_eq!(shares(&upstreams, 300), equal(100));
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_comes_back_gets_to_its_full_share_slowly() {
        let upstreams = upstreams(&[("a", 0, 0), ("b", 0, 0)]);
        set_down(&upstreams, "a");
        upstream(&upstreams, "a").mark_up();
        let mut of_a = Vec::new();
        for _ in 0..5 {
            of_a.push(shares(&upstreams, 2_000)[0].1);
            tokio::time::advance(SLOW_START / 4).await;
        }
        assert!(of_a.is_sorted() && of_a[0] > 0 && of_a[0] < 150 && of_a[4] == 1_000, "{of_a:?}");
    }

    #[tokio::test]
    async fn a_worse_priority_serves_only_while_the_better_ones_are_down() {
        let upstreams = upstreams(&[("a", 10, 0), ("b", 20, 0), ("c", 10, 5)]);
        let hosts = || shares(&upstreams, 4_000).into_iter().map(|(host, _)| host).collect::<String>();
        assert_eq!(hosts(), "ac");
        set_down(&upstreams, "a");
        set_down(&upstreams, "c");
        assert_eq!(hosts(), "b");
        set_down(&upstreams, "b");
        assert!(upstreams.pick(&[]).is_none());
        assert_eq!(upstreams.last_resort(2, &[]).len(), 2);
        upstream(&upstreams, "b").mark_up();
        upstream(&upstreams, "c").mark_up();
        assert_eq!(hosts(), "c");
    }

    #[tokio::test]
    async fn suspects_are_passed_over_while_another_of_their_priority_is_none() {
        let upstreams = upstreams(&[("a", 10, 0), ("b", 10, 0), ("c", 20, 0)]);
        upstream(&upstreams, "a").set_suspect(true);
        assert_eq!(shares(&upstreams, 20), [("b".to_owned(), 20)]);
        upstream(&upstreams, "b").set_suspect(true);
        assert_eq!(shares(&upstreams, 20), ["a", "b"].map(|host| (host.to_owned(), 10)));
        upstream(&upstreams, "a").set_suspect(false);
        assert_eq!(shares(&upstreams, 20), [("a".to_owned(), 20)]);
    }

    #[tokio::test]
    async fn what_is_known_survives_a_new_list() {
        let upstreams = upstreams(&[("a", 0, 0), ("b", 0, 0)]);
        set_down(&upstreams, "a");
        let gone = upstream(&upstreams, "b");
        let added = upstreams.replace(&set(&[("a", 0, 7), ("c", 0, 0)]));
        assert_eq!(added.len(), 1);
        assert!(gone.is_removed());
        assert_eq!(shares(&upstreams, 4), [("c".to_owned(), 4)]);
        assert_eq!(upstreams.last_resort(3, &[]).len(), 1, "a is down, whatever its weight is now");
    }

    #[tokio::test]
    async fn an_endpoint_that_returns_to_the_list_is_the_same_one() {
        let upstreams = upstreams(&[("a", 0, 0), ("b", 0, 0)]);
        let b = upstream(&upstreams, "b");
        let open = upstreams.pick(&[upstream(&upstreams, "a")]).unwrap();
        upstreams.replace(&set(&[("a", 0, 0)]));
        assert!(b.is_removed());
        assert!(upstreams.replace(&set(&[("a", 0, 0), ("b", 0, 0)])).is_empty(), "nothing new");
        assert!(!b.is_removed() && Arc::ptr_eq(&b, &upstream(&upstreams, "b")) && b.open() == 1);
        assert!(!upstreams.forget(&b), "it is listed");
        drop(open);
        assert_eq!(b.open(), 0);
        upstreams.replace(&set(&[("a", 0, 0)]));
        assert!(upstreams.forget(&b) && !upstreams.forget(&b));
    }
}
