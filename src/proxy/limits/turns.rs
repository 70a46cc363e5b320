use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Requests of one tenant that wait for their turn; more are refused.
pub(super) const WAITING_MAX: usize = 1024;

/// A tenant that has asked for a turn within this time leaves others less.
const ACTIVE: Duration = Duration::from_secs(1);

/// Turns to send requests to the cluster. All tenants together have so many at once; where more want one, tenants get them
/// in rotation, whatever number of requests each has waiting. No tenant has more than three quarters of them, so that
/// another one seldom waits even for its first, and more than an eighth only while no other one is active: what is in flight is
/// a queue at the member, in which the others' requests wait too. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Turns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    all_max: usize,
    tenant_max: usize,
    /// While others are active.
    beside_others_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_flight: usize,
    tenants: HashMap<u64, TenantTurns>,
    /// Tenants with requests that wait, each once.
    rotation: VecDeque<u64>,
    /// The tenant that asked last, and when.
    newest: Option<(u64, Instant)>,
    /// The last one before that is another, and when it asked last.
    other: Option<(u64, Instant)>,
}

impl State {
    fn note(&mut self, tenant: u64, now: Instant) {
        match &mut self.newest {
            Some((newest, at)) if *newest == tenant => *at = now,
            newest => self.other = newest.replace((tenant, now)),
        }
    }

    /// Whether another tenant is active.
    fn has_others(&self, tenant: u64, now: Instant) -> bool {
        let is_other = |(other, at): &(u64, Instant)| *other != tenant && now.duration_since(*at) < ACTIVE;
        self.newest.iter().chain(&self.other).any(is_other)
    }
}

#[derive(Debug, Default)]
struct TenantTurns {
    in_flight: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// One request's turn; it ends when this is dropped.
#[derive(Debug)]
pub(in crate::proxy) struct Turn {
    turns: Turns,
    tenant: u64,
}

/// Too many requests of the tenant wait already.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

impl Turns {
    /// So many at once.
    pub fn new(all_max: usize) -> Self {
        let all_max = all_max.max(1);
        let tenant_max = (all_max - all_max / 4).max(1);
        let beside_others_max = (all_max / 8).max(1);
        Self { inner: Arc::new(Inner { all_max, tenant_max, beside_others_max, state: Mutex::default() }) }
    }

    /// Waits for a turn of this tenant. Dropping the future gives it up.
    pub(super) async fn turn(&self, tenant: u64) -> Result<Turn, QueueFull> {
        let waiting = {
            let (mut state, now) = (self.inner.state.lock(), Instant::now());
            state.note(tenant, now);
            let its_max = self.inner.max_of(&state, tenant, now);
            let State { in_flight, tenants, rotation, .. } = &mut *state;
            let its = tenants.entry(tenant).or_default();
            if its.waiting.is_empty() && *in_flight < self.inner.all_max && its.in_flight < its_max {
                *in_flight += 1;
                its.in_flight += 1;
                return Ok(Turn { turns: self.clone(), tenant });
            }
            if its.waiting.len() >= WAITING_MAX {
                its.waiting.retain(|waiting| !waiting.is_closed());
                if its.waiting.len() >= WAITING_MAX {
                    return Err(QueueFull);
                }
            }
            let (sender, receiver) = oneshot::channel();
            its.waiting.push_back(sender);
            if !rotation.contains(&tenant) {
                rotation.push_back(tenant);
            }
            receiver
        };
        // The sender is dropped only with these turns.
        waiting.await.map_err(|_| QueueFull)
    }

    /// Requests of this tenant that have their turn, and that wait for it.
    pub(super) fn used(&self, tenant: u64) -> (usize, usize) {
        let state = self.inner.state.lock();
        state.tenants.get(&tenant).map_or((0, 0), |its| (its.in_flight, its.waiting.len()))
    }

    /// A turn has ended: gives what is free to those who wait.
    fn ended(&self, tenant: u64) {
        let mut given = Vec::new();
        {
            let (mut state, now) = (self.inner.state.lock(), Instant::now());
            state.in_flight -= 1;
            if let Some(its) = state.tenants.get_mut(&tenant) {
                its.in_flight -= 1;
                if its.in_flight == 0 && its.waiting.is_empty() {
                    state.tenants.remove(&tenant);
                }
            }
            // Tenants in a row that could not take one. More than one turn may be free: what a tenant may have changes.
            let mut passed_over = 0;
            while state.in_flight < self.inner.all_max && passed_over < state.rotation.len() {
                let Some(next) = state.rotation.pop_front() else { break };
                let next_max = self.inner.max_of(&state, next, now);
                let State { in_flight, tenants, rotation, .. } = &mut *state;
                let Some(its) = tenants.get_mut(&next) else { continue };
                if its.in_flight < next_max
                    // Others have given up.
                    && let Some(waiting) = std::iter::from_fn(|| its.waiting.pop_front()).find(|one| !one.is_closed())
                {
                    its.in_flight += 1;
                    *in_flight += 1;
                    given.push((waiting, Turn { turns: self.clone(), tenant: next }));
                    passed_over = 0;
                } else if !its.waiting.is_empty() {
                    passed_over += 1;
                }
                if !its.waiting.is_empty() {
                    rotation.push_back(next);
                } else if its.in_flight == 0 {
                    tenants.remove(&next);
                }
            }
        }
        // A turn that cannot be given ends here, outside of the lock, and goes to the next.
        given.into_iter().for_each(|(waiting, turn)| drop(waiting.send(turn)));
    }
}

impl Inner {
    /// Turns this tenant may have.
    fn max_of(&self, state: &State, tenant: u64, now: Instant) -> usize {
        if state.has_others(tenant, now) { self.beside_others_max } else { self.tenant_max }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.ended(self.tenant);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt;
    use futures::future::{BoxFuture, join_all};

    use super::*;

    fn ask(turns: &Turns, tenant: u64) -> BoxFuture<'static, Turn> {
        let turns = turns.clone();
        async move { turns.turn(tenant).await.unwrap() }.boxed()
    }

    #[test]
    fn a_tenant_leaves_a_quarter_to_others() {
        let turns = Turns::new(8);
        let noisy: Vec<_> = (0..6).map(|_| ask(&turns, 1).now_or_never().unwrap()).collect();
        let mut more = ask(&turns, 1);
        assert!((&mut more).now_or_never().is_none(), "three quarters are taken");
        assert_eq!((turns.used(1), turns.used(2)), ((6, 1), (0, 0)));
        let quiet = ask(&turns, 2).now_or_never().expect("at once");
        drop(noisy);
        drop((more.now_or_never().unwrap(), quiet));
        assert!(turns.inner.state.lock().tenants.is_empty());
        assert_eq!(turns.inner.state.lock().in_flight, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_has_an_eighth_while_others_are_active() {
        let turns = Turns::new(16);
        let noisy: Vec<_> = (0..12).map(|_| ask(&turns, 1).now_or_never().expect("alone")).collect();
        let mut waiting: Vec<_> = (0..20).map(|_| ask(&turns, 1)).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()));
        drop(ask(&turns, 2).now_or_never().expect("at once"));
        drop(noisy);
        let mut open = Vec::new();
        let mut take = |open: &mut Vec<Turn>| {
            waiting.retain_mut(|one| match one.now_or_never() {
                Some(turn) => {
                    open.push(turn);
                    false
                }
                None => true,
            });
        };
        take(&mut open);
        assert_eq!((open.len(), turns.used(1)), (2, (2, 18)));
        tokio::time::advance(ACTIVE).await;
        // The next turn that ends brings all that it may have again.
        open.pop();
        take(&mut open);
        assert_eq!(turns.used(1), (12, 7));
        drop((open, waiting));
        assert_eq!(turns.inner.state.lock().in_flight, 0);
    }

    #[test]
    fn turns_go_round() {
        let turns = Turns::new(2);
        let mut open = vec![ask(&turns, 1).now_or_never().unwrap(), ask(&turns, 2).now_or_never().unwrap()];
        // A hundred requests of one tenant came first, then one each of two others.
        let mut waiting: Vec<(u64, BoxFuture<'static, Turn>)> = (0..100).map(|_| (1, ask(&turns, 1))).collect();
        waiting.extend([(2, ask(&turns, 2)), (3, ask(&turns, 3))]);
        let mut order = Vec::new();
        for _ in 0..3 {
            for (_, one) in &mut waiting {
                assert!(one.now_or_never().is_none());
            }
            drop(open.remove(0));
            let (at, turn) =
                waiting.iter_mut().enumerate().find_map(|(at, (_, one))| Some((at, one.now_or_never()?))).unwrap();
            order.push(waiting.remove(at).0);
            open.push(turn);
        }
        order.sort_unstable();
        assert_eq!(order, [1, 2, 3], "one turn each");
    }

    #[test]
    fn who_gives_up_keeps_no_turn() {
        let turns = Turns::new(1);
        let open = ask(&turns, 1).now_or_never().unwrap();
        let (mut first, mut second) = (ask(&turns, 1), ask(&turns, 2));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        drop(first);
        drop(open);
        drop(second.now_or_never().expect("the next one's turn"));
        assert_eq!(turns.inner.state.lock().in_flight, 0);
        assert!(turns.inner.state.lock().tenants.is_empty() && turns.inner.state.lock().rotation.is_empty());
    }

    #[test]
    fn a_queue_is_bounded() {
        let turns = Turns::new(1);
        let _open = ask(&turns, 1).now_or_never().unwrap();
        let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| ask(&turns, 1)).collect();
        for one in &mut waiting {
            assert!(one.now_or_never().is_none());
        }
        assert_eq!(pin!(turns.turn(1)).now_or_never().map(|turn| turn.err()), Some(Some(QueueFull)));
        waiting.truncate(10);
        assert!(pin!(turns.turn(1)).now_or_never().is_none(), "those that gave up do not count");
    }

    #[tokio::test]
    async fn every_request_gets_its_turn() {
        let turns = Turns::new(3);
        let work = (0..300).map(|number| {
            let turns = turns.clone();
            async move {
                let _turn = turns.turn(number % 7).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        join_all(work).await;
        let state = turns.inner.state.lock();
        assert!(state.in_flight == 0 && state.tenants.is_empty() && state.rotation.is_empty(), "{state:?}");
    }
}
