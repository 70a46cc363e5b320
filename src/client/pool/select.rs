use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::dispatch::PoolConfig;
use super::member::Member;
use crate::client::Endpoint;

/// The members of the pool, taken in turn.
#[derive(Debug)]
pub(super) struct Members {
    list: ArcSwap<Vec<Arc<Member>>>,
    next: AtomicUsize,
    /// Where requests go that should all see one member.
    home: AtomicUsize,
}

/// How to go through the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Each request the next one.
    Next,
    /// All requests the same one, for as long as it lives: its state never goes back.
    Home,
}

/// Whom to ask.
pub(super) enum Pick {
    /// This one.
    Member(Arc<Member>),
    /// All that are left failed a moment ago; the first may be tried again then.
    Wait(Instant),
    /// Nobody is left.
    Nobody,
}

impl Members {
    /// Starts at a random member, so that many processes do not all begin with the first.
    pub(super) fn new(endpoints: &[Endpoint], config: &PoolConfig) -> Self {
        let list: Vec<_> = endpoints.iter().map(|endpoint| Arc::new(Member::new(endpoint.clone(), config))).collect();
        let start = fastrand::usize(..list.len().max(1));
        Self { next: AtomicUsize::new(start), home: AtomicUsize::new(start), list: ArcSwap::from_pointee(list) }
    }

    pub(super) fn list(&self) -> Arc<Vec<Arc<Member>>> {
        self.list.load_full()
    }

    /// Replaces the members; those that stay keep their connections.
    pub(super) fn replace(&self, endpoints: &[Endpoint], config: &PoolConfig) {
        let old = self.list.load_full();
        let list: Vec<_> = endpoints
            .iter()
            .map(|endpoint| match old.iter().find(|member| member.endpoint() == endpoint) {
                Some(member) => member.clone(),
                None => Arc::new(Member::new(endpoint.clone(), config)),
            })
            .collect();
        self.list.store(Arc::new(list));
        for member in old.iter().filter(|member| !endpoints.contains(member.endpoint())) {
            member.retire();
        }
    }

    /// The first member, from whose turn it is, that is not in `avoid` and not in its back-off.
    pub(super) fn pick(&self, turn: Turn, avoid: &[Endpoint]) -> Pick {
        let list = self.list.load();
        let start = match turn {
            Turn::Next => self.next.fetch_add(1, Ordering::Relaxed),
            Turn::Home => self.home.load(Ordering::Relaxed),
        };
        let now = Instant::now();
        let mut soonest: Option<Instant> = None;
        for step in 0..list.len() {
            let at = start.wrapping_add(step);
            let member = &list[at % list.len()];
            if avoid.contains(member.endpoint()) {
                continue;
            }
            match member.retry_at(now) {
                None => {
                    if turn == Turn::Home && step > 0 {
                        self.home.store(at, Ordering::Relaxed);
                    }
                    return Pick::Member(member.clone());
                }
                Some(at) => soonest = Some(soonest.map_or(at, |other| other.min(at))),
            }
        }
        soonest.map_or(Pick::Nobody, Pick::Wait)
    }
}
