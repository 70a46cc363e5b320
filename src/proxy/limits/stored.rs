use std::collections::{BTreeMap, VecDeque};
use std::ops::{AddAssign, SubAssign};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::timeout_at;

use super::refusal::Limit;
use crate::config::TenantLimits;

/// How long a put counts whose outcome is not known.
const UNKNOWN: Duration = Duration::from_secs(10);
/// Requests of a tenant that wait for room; whether there is some for one more is decided at once.
const WAITING_MAX: usize = 1024;

/// Keys, and the bytes of them and of their values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::proxy) struct Stored {
    pub keys: i64,
    pub bytes: i64,
}

/// What a tenant has stored, as far as the proxy knows: what was counted at a revision, and what it let pass that the count has
/// not seen yet.
#[derive(Debug)]
pub(in crate::proxy) struct StoredKeys {
    state: Mutex<State>,
    /// Whether anything was counted, else why not.
    counted: watch::Sender<Result<(), String>>,
    /// The highest revision that the count has to come to before somebody is refused.
    awaited: watch::Sender<i64>,
    /// The cluster was found at an older revision than it had before.
    went_back: Notify,
    /// The state has changed.
    changed: Notify,
    /// The first of those that wait for room holds it, and looks at each change.
    queue: tokio::sync::Mutex<()>,
    /// How many they are.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    counted: Stored,
    /// Revision of the newest event that is in the count.
    position: i64,
    /// There was nothing up to this revision that is not in the count.
    seen: i64,
    /// All that the count has not seen: what waits for its answer, and the two below.
    pending: Stored,
    /// Executed at these revisions.
    executed: BTreeMap<i64, Stored>,
    /// With unknown outcome; the moment from which it is not counted any more.
    unknown: VecDeque<(Instant, Stored)>,
}

/// What is too much, and how much of it there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Full {
    pub(super) limit: Limit,
    pub(super) max: u64,
}

/// Why a request gets no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum NoRoom {
    /// There is none.
    Full(Full),
    /// There is none by a count that did not come to the revision of the request in time.
    Unknown,
}

/// What keeps a request from its room.
#[derive(Clone, Copy, Debug)]
struct Lack {
    full: Full,
    /// Whether that is so without what waits for its outcome.
    is_stored: bool,
    /// Whether the count has come to the revision of the request.
    is_seen: bool,
}

/// What a request may add, until its outcome is known. Dropped, it counts as a request of unknown outcome.
#[derive(Debug)]
#[must_use]
pub(in crate::proxy) struct Growth {
    stored: Arc<StoredKeys>,
    growth: Stored,
}

impl Default for StoredKeys {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            counted: watch::Sender::new(Err("counting has not begun".to_owned())),
            awaited: watch::Sender::new(0),
            went_back: Notify::new(),
            changed: Notify::new(),
            queue: tokio::sync::Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }
}

impl StoredKeys {
    /// Waits until something was counted.
    ///
    /// # Errors
    /// Why there is no count, when `wait` has passed.
    pub async fn known(&self, wait: Duration) -> Result<(), String> {
        let mut counted = self.counted.subscribe();
        let known = tokio::time::timeout(wait, counted.wait_for(Result::is_ok)).await;
        match known {
            Ok(Ok(_)) => Ok(()),
            // The sender is here, so only the time can be up.
            Ok(Err(_)) | Err(_) => self.counted.borrow().clone(),
        }
    }

    /// The highest revision that the count has to come to.
    pub fn awaited(&self) -> watch::Receiver<i64> {
        self.awaited.subscribe()
    }

    /// What the count has come to.
    pub fn seen(&self) -> i64 {
        self.state.lock().seen
    }

    /// Has everything counted again: the cluster was found at an older revision than [it had](Self::seen) before it was asked.
    pub fn went_back(&self) {
        self.went_back.notify_one();
    }

    /// Waits until everything is to be counted again.
    pub async fn has_gone_back(&self) {
        self.went_back.notified().await;
    }

    /// Everything was counted anew at this revision. Returns by how much the count has changed.
    pub fn set(&self, counted: Stored, revision: i64) -> Stored {
        let mut state = self.state.lock();
        let mut change = counted;
        change -= std::mem::replace(&mut state.counted, counted);
        if revision < state.seen {
            // The cluster is another one, in which nothing of this was executed.
            state.pass(i64::MAX);
            (state.position, state.seen) = (0, 0);
            self.awaited.send_replace(revision);
        }
        state.pass(revision);
        drop(state);
        self.counted.send_if_modified(|known| std::mem::replace(known, Ok(())).is_err());
        self.changed.notify_waiters();
        change
    }

    /// The events up to this revision have added so much.
    pub fn apply(&self, growth: Stored, revision: i64) {
        let mut state = self.state.lock();
        state.counted += growth;
        state.pass(revision);
        drop(state);
        self.changed.notify_waiters();
    }

    /// There were no other events up to this revision.
    pub fn see(&self, revision: i64) {
        let mut state = self.state.lock();
        state.seen = state.seen.max(revision);
        drop(state);
        self.changed.notify_waiters();
    }

    /// There is no count, for this reason; one that there is stands.
    pub fn not_counted(&self, reason: String) {
        self.counted.send_if_modified(|known| match known {
            Ok(()) => false,
            Err(present) => {
                *present = reason;
                true
            }
        });
    }

    /// Forgets the count: it will not go on. Returns by how much it has changed.
    pub fn forget(&self) -> Stored {
        let mut state = self.state.lock();
        let mut change = Stored::default();
        change -= std::mem::take(&mut state.counted);
        // What is on its way stays known: its outcome will come.
        (state.position, state.seen) = (0, 0);
        drop(state);
        self.counted.send_modify(|known| *known = Err("counting has ended".to_owned()));
        change
    }

    /// What is stored, if it was counted; without what is on its way.
    pub fn counted(&self) -> Option<Stored> {
        self.counted.borrow().is_ok().then(|| self.state.lock().counted)
    }

    /// Takes room for the most that a request can add, if that is there and nobody waits for room.
    pub(super) fn take(self: &Arc<Self>, most: Stored, allowed: &TenantLimits, now: Instant) -> Option<Growth> {
        if self.is_nobody_waiting() { self.take_at(most, allowed, 0, now).ok() } else { None }
    }

    fn is_nobody_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Takes room for what a request adds, as was found at a revision of the cluster. Without room, it waits at most so long until
    /// the count has come to that revision, and for the outcomes of others.
    ///
    /// # Errors
    /// When there is no room without those others either, or the time has passed.
    pub(super) async fn take_in_turn(
        self: &Arc<Self>,
        growth: Stored,
        revision: i64,
        wait: Duration,
        allowed: impl Fn() -> TenantLimits,
    ) -> Result<Growth, NoRoom> {
        let take = || self.take_at(growth, &allowed(), revision, Instant::now());
        let grows = growth.keys > 0 || growth.bytes > 0;
        if (!grows || self.is_nobody_waiting())
            && let Ok(taken) = take()
        {
            return Ok(taken);
        }
        let waits = Waits::new(&self.waiting);
        self.awaited.send_if_modified(|awaited| revision > std::mem::replace(awaited, revision.max(*awaited)));
        let end = tokio::time::Instant::now() + wait;
        let turn = if waits.before < WAITING_MAX { timeout_at(end, self.queue.lock()).await.ok() } else { None };
        loop {
            let changed = self.changed.notified();
            let lack = match take() {
                Ok(taken) => return Ok(taken),
                Err(lack) => lack,
            };
            let is_certain = lack.is_stored && lack.is_seen;
            if is_certain || turn.is_none() || timeout_at(end, changed).await.is_err() {
                return Err(if lack.is_seen { NoRoom::Full(lack.full) } else { NoRoom::Unknown });
            }
        }
    }

    fn take_at(
        self: &Arc<Self>,
        growth: Stored,
        allowed: &TenantLimits,
        revision: i64,
        now: Instant,
    ) -> Result<Growth, Lack> {
        let growth = Stored { keys: growth.keys.max(0), bytes: growth.bytes.max(0) };
        let mut state = self.state.lock();
        state.forget_unknown(now);
        match state.lack(growth, allowed) {
            Some((full, is_stored)) => Err(Lack { full, is_stored, is_seen: state.seen >= revision }),
            None => {
                state.pending += growth;
                Ok(Growth { stored: self.clone(), growth })
            }
        }
    }
}

impl State {
    /// The limit that leaves no room, and whether that is so without what is pending.
    fn lack(&self, growth: Stored, allowed: &TenantLimits) -> Option<(Full, bool)> {
        let of = |limit, max: Option<u64>, count: fn(Stored) -> i64| {
            let (max, growth) = (max?, count(growth));
            let most = i64::try_from(max).unwrap_or(i64::MAX);
            let is_beyond = |present: i64| growth > 0 && present.saturating_add(growth) > most;
            let stored = count(self.counted);
            is_beyond(stored.saturating_add(count(self.pending))).then(|| (Full { limit, max }, is_beyond(stored)))
        };
        let keys = of(Limit::StoredKeys, allowed.stored_keys, |stored| stored.keys);
        let bytes = of(Limit::StoredBytes, allowed.stored_bytes, |stored| stored.bytes);
        let of_stored = |lack: &(Full, bool)| lack.1;
        keys.filter(of_stored).or(bytes.filter(of_stored)).or(keys).or(bytes)
    }

    /// The count has come to this revision: what was executed up to it is part of it.
    fn pass(&mut self, revision: i64) {
        self.position = self.position.max(revision);
        self.seen = self.seen.max(revision);
        while let Some(first) = self.executed.first_entry().filter(|first| *first.key() <= self.position) {
            self.pending -= first.remove();
        }
    }

    fn forget_unknown(&mut self, now: Instant) {
        while let Some((_, growth)) = self.unknown.pop_front_if(|(until, _)| *until <= now) {
            self.pending -= growth;
        }
    }
}

impl Growth {
    /// The request was executed at this revision.
    pub fn executed(mut self, revision: i64) {
        let growth = std::mem::take(&mut self.growth);
        let mut state = self.stored.state.lock();
        if revision <= state.position {
            state.pending -= growth;
        } else if growth != Stored::default() {
            *state.executed.entry(revision).or_default() += growth;
        }
        drop(state);
        self.stored.changed.notify_waiters();
    }

    /// The request put nothing and never will.
    pub fn not_executed(mut self) {
        let growth = std::mem::take(&mut self.growth);
        self.stored.state.lock().pending -= growth;
        self.stored.changed.notify_waiters();
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        let growth = std::mem::take(&mut self.growth);
        if growth != Stored::default() {
            self.stored.state.lock().unknown.push_back((Instant::now() + UNKNOWN, growth));
        }
    }
}

/// One that waits for room.
struct Waits<'s> {
    waiting: &'s AtomicUsize,
    /// How many have waited already.
    before: usize,
}

impl<'s> Waits<'s> {
    fn new(waiting: &'s AtomicUsize) -> Self {
        Self { waiting, before: waiting.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AddAssign for Stored {
    fn add_assign(&mut self, other: Self) {
        self.keys += other.keys;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

impl SubAssign for Stored {
    fn sub_assign(&mut self, other: Self) {
        self.keys -= other.keys;
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures::FutureExt;

    use super::*;

    const ALLOWED: (Option<u64>, Option<u64>) = (Some(3), Some(100));
    const WAIT: Duration = Duration::from_secs(2);

    fn of(keys: i64, bytes: i64) -> Stored {
        Stored { keys, bytes }
    }

    fn allowed() -> TenantLimits {
        TenantLimits { stored_keys: ALLOWED.0, stored_bytes: ALLOWED.1, ..TenantLimits::default() }
    }

    fn take(stored: &Arc<StoredKeys>, growth: Stored, now: Instant) -> Result<Growth, &'static str> {
        stored.take_at(growth, &allowed(), 0, now).map_err(|lack| lack.full.limit.name())
    }

    fn known(stored: &StoredKeys) -> Stored {
        let state = stored.state.lock();
        let mut known = state.counted;
        known += state.pending;
        known
    }

    fn in_turn(
        stored: &Arc<StoredKeys>,
        keys: i64,
        revision: i64,
    ) -> Pin<Box<impl Future<Output = Result<Growth, NoRoom>>>> {
        Box::pin(stored.take_in_turn(of(keys, 0), revision, WAIT, allowed))
    }

    fn full() -> Option<NoRoom> {
        Some(NoRoom::Full(Full { limit: Limit::StoredKeys, max: 3 }))
    }

    #[test]
    fn what_is_on_its_way_counts() {
        let (stored, now) = (Arc::new(StoredKeys::default()), Instant::now());
        stored.set(of(1, 10), 5);
        let [first, second] = [take(&stored, of(1, 10), now).unwrap(), take(&stored, of(1, 10), now).unwrap()];
        assert_eq!(take(&stored, of(1, 1), now).unwrap_err(), "stored-keys");
        assert_eq!(take(&stored, of(0, 71), now).unwrap_err(), "stored-bytes");
        take(&stored, of(0, 70), now).unwrap().not_executed();
        // Executed is not yet counted, and it counts once.
        first.executed(6);
        assert_eq!(take(&stored, of(1, 1), now).unwrap_err(), "stored-keys");
        stored.apply(of(1, 10), 6);
        assert_eq!(take(&stored, of(1, 1), now).unwrap_err(), "stored-keys");
        second.not_executed();
        take(&stored, of(1, 80), now).unwrap().not_executed();
        assert_eq!(take(&stored, of(1, 81), now).unwrap_err(), "stored-bytes");
        assert_eq!(stored.counted(), Some(of(2, 20)));
    }

    #[test]
    fn an_answer_may_come_after_its_event() {
        let (stored, now) = (Arc::new(StoredKeys::default()), Instant::now());
        stored.set(of(2, 0), 5);
        let growth = take(&stored, of(1, 1), now).unwrap();
        stored.apply(of(1, 1), 7);
        growth.executed(7);
        assert_eq!(known(&stored), of(3, 1));
        // A new count has seen what was executed before it.
        let growth = take(&stored, of(0, 5), now).unwrap();
        growth.executed(8);
        stored.set(of(3, 6), 9);
        assert_eq!(known(&stored), of(3, 6));
    }

    #[test]
    fn what_nobody_knows_counts_for_a_while() {
        let (stored, now) = (Arc::new(StoredKeys::default()), Instant::now());
        stored.set(of(2, 0), 5);
        drop(take(&stored, of(1, 1), now).unwrap());
        assert_eq!(take(&stored, of(1, 1), now + UNKNOWN / 2).unwrap_err(), "stored-keys");
        // The drop was a moment later.
        let after = now + 2 * UNKNOWN;
        take(&stored, of(1, 1), after).unwrap().not_executed();
        assert_eq!(stored.state.lock().pending, Stored::default());
    }

    #[test]
    fn a_full_tenant_may_shrink() {
        let (stored, now) = (Arc::new(StoredKeys::default()), Instant::now());
        stored.set(of(9, 900), 5);
        take(&stored, of(0, 0), now).unwrap().not_executed();
        take(&stored, of(-1, -10), now).unwrap().executed(6);
        assert_eq!(known(&stored), of(9, 900), "only the watch makes room");
        assert_eq!(take(&stored, of(0, 1), now).unwrap_err(), "stored-bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_refused_by_a_count_that_is_behind() {
        let stored = Arc::<StoredKeys>::default();
        stored.set(of(3, 0), 5);
        let mut awaited = stored.awaited();
        let mut waiting = in_turn(&stored, 1, 7);
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(*awaited.borrow_and_update(), 7);
        stored.see(6);
        assert!((&mut waiting).now_or_never().is_none());
        stored.apply(of(-1, 0), 7);
        waiting.await.unwrap().executed(8);
        stored.apply(of(1, 0), 8);
        // One that asks for what is seen already asks for nothing, and is told at once.
        assert_eq!(in_turn(&stored, 1, 8).now_or_never().unwrap().err(), full());
        let mut waiting = in_turn(&stored, 1, 9);
        assert!((&mut waiting).now_or_never().is_none());
        stored.see(10);
        assert_eq!(waiting.await.err(), full());
        assert_eq!(in_turn(&stored, 1, 11).await.err(), Some(NoRoom::Unknown), "the count did not come to it");
    }

    #[tokio::test(start_paused = true)]
    async fn the_outcomes_of_others_are_waited_for() {
        let (stored, now) = (Arc::<StoredKeys>::default(), Instant::now());
        stored.set(of(2, 0), 5);
        for is_executed in [false, true] {
            let first = take(&stored, of(1, 0), now).unwrap();
            let mut waiting = in_turn(&stored, 1, 5);
            assert!((&mut waiting).now_or_never().is_none());
            if is_executed {
                first.executed(6);
                stored.apply(of(1, 0), 6);
                assert_eq!(waiting.await.err(), full());
            } else {
                first.not_executed();
                waiting.await.unwrap().not_executed();
            }
        }
        stored.apply(of(-1, 0), 7);
        drop(take(&stored, of(1, 0), now).unwrap());
        assert_eq!(in_turn(&stored, 1, 7).await.err(), full(), "its outcome is not known in time");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_are_not_overtaken() {
        let (stored, now) = (Arc::<StoredKeys>::default(), Instant::now());
        stored.set(of(0, 0), 5);
        let first = take(&stored, of(2, 0), now).unwrap();
        let mut waiting = in_turn(&stored, 2, 5);
        assert!((&mut waiting).now_or_never().is_none());
        assert!(stored.take(of(1, 0), &allowed(), now).is_none(), "there would be room for one");
        let mut next = in_turn(&stored, 1, 5);
        assert!((&mut next).now_or_never().is_none());
        in_turn(&stored, 0, 5).now_or_never().expect("it takes no room").unwrap().not_executed();
        first.not_executed();
        let (waiting, next) = (waiting.await.unwrap(), next.await.unwrap());
        assert_eq!(known(&stored), of(3, 0));
        // More of them than may wait are told what is known.
        let mut all: Vec<_> = (0..WAITING_MAX).map(|_| in_turn(&stored, 1, 5)).collect();
        all.iter_mut().for_each(|one| assert!(one.now_or_never().is_none()));
        assert_eq!(in_turn(&stored, 1, 5).now_or_never().unwrap().err(), full());
        waiting.not_executed();
        assert!(all.remove(0).await.is_ok());
        next.not_executed();
    }

    #[tokio::test(start_paused = true)]
    async fn another_cluster_is_counted_from_its_own_revisions() {
        let (stored, now) = (Arc::<StoredKeys>::default(), Instant::now());
        stored.set(of(1, 0), 90);
        take(&stored, of(2, 0), now).unwrap().executed(91);
        stored.set(of(2, 0), 4);
        assert_eq!(known(&stored), of(2, 0));
        take(&stored, of(1, 0), now).unwrap().executed(5);
        let mut waiting = in_turn(&stored, 1, 5);
        assert!((&mut waiting).now_or_never().is_none(), "seen up to 4");
        stored.apply(of(1, 0), 5);
        assert_eq!(waiting.await.err(), full());
    }

    #[tokio::test(start_paused = true)]
    async fn a_put_waits_for_the_first_count() {
        let stored = StoredKeys::default();
        let wait = Duration::from_secs(5);
        stored.not_counted("denied".to_owned());
        assert_eq!(stored.known(wait).await, Err("denied".to_owned()));
        let mut waiting = Box::pin(stored.known(wait));
        assert!((&mut waiting).now_or_never().is_none());
        stored.set(of(0, 0), 1);
        assert_eq!(waiting.await, Ok(()));
        stored.not_counted("denied".to_owned());
        assert_eq!(stored.known(wait).await, Ok(()), "a count stands");
        stored.forget();
        assert!(stored.known(wait).await.is_err());
    }
}
