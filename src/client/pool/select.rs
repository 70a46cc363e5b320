use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use super::config::PoolConfig;
use super::connection::Connection;
use super::upstream_endpoint::{Keeping, UpstreamEndpoint};
use crate::client::{Endpoint, Lane};

/// The members of the pool, taken in turn.
#[derive(Debug)]
pub(super) struct UpstreamEndpoints {
    list: ArcSwap<Vec<Arc<UpstreamEndpoint>>>,
    next: AtomicUsize,
    /// Where requests go that should all see one member.
    sticky: AtomicUsize,
}

/// How to go through the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Each request the next one.
    Next,
    /// All requests the same one, for as long as it is ready: its state never goes back.
    Sticky,
}

/// The outcome of a choice.
pub(super) enum Pick {
    /// A member with a ready connection.
    Ready(Arc<UpstreamEndpoint>, Connection),
    /// No member is ready.
    Wait,
    /// Every member was asked already or cannot be reached.
    Nobody,
}

impl UpstreamEndpoints {
    /// Starts at a random member, so that many processes do not all begin with the first.
    pub(super) fn new(endpoints: &[Endpoint], config: &PoolConfig) -> Self {
        let list: Vec<_> =
            endpoints.iter().map(|endpoint| Arc::new(UpstreamEndpoint::new(endpoint.clone(), config))).collect();
        let start = fastrand::usize(..list.len().max(1));
        Self { next: AtomicUsize::new(start), sticky: AtomicUsize::new(start), list: ArcSwap::from_pointee(list) }
    }

    pub(super) fn list(&self) -> Arc<Vec<Arc<UpstreamEndpoint>>> {
        self.list.load_full()
    }

    /// Replaces the members; those that stay keep their connections.
    pub(super) fn replace(&self, endpoints: &[Endpoint], config: &PoolConfig) {
        let old = self.list.load_full();
        let list: Vec<_> = endpoints
            .iter()
            .map(|endpoint| match old.iter().find(|member| member.endpoint() == endpoint) {
                Some(member) => member.clone(),
                None => Arc::new(UpstreamEndpoint::new(endpoint.clone(), config)),
            })
            .collect();
        self.list.store(Arc::new(list));
        for member in old.iter().filter(|member| !endpoints.contains(member.endpoint())) {
            member.retire();
        }
    }

    /// Where a request begins to look.
    pub(super) fn start(&self, turn: Turn) -> usize {
        match turn {
            Turn::Next => self.next.fetch_add(1, Ordering::Relaxed),
            Turn::Sticky => self.sticky.load(Ordering::Relaxed),
        }
    }

    /// The first member, from `start` on, that is not in `avoid` and has a connection of the lane ready. Starts
    /// to dial those on the way that have none.
    pub(super) fn pick(
        &self,
        lane: Lane,
        (turn, start): (Turn, usize),
        avoid: &[Endpoint],
        keeping: &Arc<Keeping>,
    ) -> Pick {
        let list = self.list.load();
        let mut worth_waiting = false;
        for step in 0..list.len() {
            let at = start.wrapping_add(step);
            let member = &list[at % list.len()];
            if avoid.contains(member.endpoint()) {
                continue;
            }
            if let Some(connection) = member.ready(lane, keeping) {
                if turn == Turn::Sticky && step > 0 {
                    self.sticky.store(at, Ordering::Relaxed);
                }
                return Pick::Ready(member.clone(), connection);
            }
            // Once a member has answered, an endpoint that has failed before is not waited for.
            worth_waiting |= avoid.is_empty() || member.reason().is_none();
        }
        if worth_waiting { Pick::Wait } else { Pick::Nobody }
    }
}
