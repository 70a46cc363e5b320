use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use super::config::PoolConfig;
use super::connection::Connection;
use super::standing::Standing;
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

/// What a request asks of the member it goes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) lane: Lane,
    pub(super) turn: Turn,
    /// Whether a learner answers it.
    pub(super) on_learner: bool,
    /// Those that were asked already.
    pub(super) avoid: &'a [Endpoint],
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

    /// The first member, from `start` on, that was not asked yet, has a connection of the lane ready and takes any
    /// request; without one, the first of those with another standing that the request may go to. Starts to dial those on
    /// the way that have no connection.
    pub(super) fn pick(&self, wanted: Wanted<'_>, start: usize, keeping: &Arc<Keeping>) -> Pick {
        let list = self.list.load();
        let (mut worth_waiting, mut second) = (false, None);
        // From where the others are gone through: else the one behind an endpoint that is down would get its share.
        let mut skip = 0;
        for step in 0..list.len() {
            if step == 1 && wanted.turn == Turn::Next {
                skip = fastrand::usize(..list.len() - 1);
            }
            let at = if step == 0 { start } else { start.wrapping_add(1 + (step - 1 + skip) % (list.len() - 1)) };
            let member = &list[at % list.len()];
            if wanted.avoid.contains(member.endpoint()) {
                continue;
            }
            let ready = member.ready(wanted.lane, keeping);
            match (ready, member.standing()) {
                (Some(connection), Standing::Full) => {
                    if wanted.turn == Turn::Sticky && step > 0 {
                        self.sticky.store(at, Ordering::Relaxed);
                    }
                    return Pick::Ready(member.clone(), connection);
                }
                // The only endpoint there is refuses for itself.
                (Some(_), Standing::Learner) if !wanted.on_learner && list.len() > 1 => {}
                (Some(connection), _) => {
                    second.get_or_insert_with(|| (member.clone(), connection));
                    continue;
                }
                (None, _) => {}
            }
            // Once a member has answered, an endpoint that has failed before is not waited for.
            worth_waiting |= wanted.avoid.is_empty() || member.reason().is_none();
        }
        match second {
            Some((member, connection)) => Pick::Ready(member, connection),
            None if worth_waiting => Pick::Wait,
            None => Pick::Nobody,
        }
    }

    /// Whether a request would find another member than `this` that takes any request at once.
    pub(super) fn has_better(&self, lane: Lane, this: &Endpoint, avoid: &[Endpoint]) -> bool {
        self.list.load().iter().any(|member| {
            let endpoint = member.endpoint();
            let other = endpoint != this && !avoid.contains(endpoint);
            other && member.standing() == Standing::Full && member.has_ready(lane)
        })
    }
}
