use std::collections::{BTreeMap, VecDeque};
use std::ops::{AddAssign, SubAssign};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use super::refusal::Limit;
use crate::config::TenantLimits;

/// How long a put counts whose outcome is not known.
const UNKNOWN: Duration = Duration::from_secs(10);

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
}

#[derive(Debug, Default)]
struct State {
    counted: Stored,
    /// Revision of the count.
    position: i64,
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

/// What a request may add, until its outcome is known. Dropped, it counts as a request of unknown outcome.
#[derive(Debug)]
#[must_use]
pub(in crate::proxy) struct Growth {
    stored: Arc<StoredKeys>,
    growth: Stored,
}

impl Default for StoredKeys {
    fn default() -> Self {
        Self { state: Mutex::default(), counted: watch::Sender::new(Err("counting has not begun".to_owned())) }
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

    /// Everything was counted anew at this revision. Returns by how much the count has changed.
    pub fn set(&self, counted: Stored, revision: i64) -> Stored {
        let mut state = self.state.lock();
        let mut change = counted;
        change -= std::mem::replace(&mut state.counted, counted);
        state.pass(revision);
        drop(state);
        self.counted.send_if_modified(|known| std::mem::replace(known, Ok(())).is_err());
        change
    }

    /// The events up to this revision have added so much.
    pub fn apply(&self, growth: Stored, revision: i64) {
        let mut state = self.state.lock();
        state.counted += growth;
        state.pass(revision);
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
        state.position = 0;
        drop(state);
        self.counted.send_modify(|known| *known = Err("counting has ended".to_owned()));
        change
    }

    /// What is stored, if it was counted; without what is on its way.
    pub fn counted(&self) -> Option<Stored> {
        self.counted.borrow().is_ok().then(|| self.state.lock().counted)
    }

    /// Takes room for what a request may add.
    ///
    /// # Errors
    /// The limit that leaves none.
    pub(super) fn take(self: &Arc<Self>, growth: Stored, allowed: &TenantLimits, now: Instant) -> Result<Growth, Full> {
        let growth = Stored { keys: growth.keys.max(0), bytes: growth.bytes.max(0) };
        let mut state = self.state.lock();
        state.forget_unknown(now);
        let fits = |limit, max: Option<u64>, known: i64, growth: i64| match max {
            Some(max) if growth > 0 && known.saturating_add(growth) > i64::try_from(max).unwrap_or(i64::MAX) => {
                Err(Full { limit, max })
            }
            _ => Ok(()),
        };
        let known = state.known();
        fits(Limit::StoredKeys, allowed.stored_keys, known.keys, growth.keys)?;
        fits(Limit::StoredBytes, allowed.stored_bytes, known.bytes, growth.bytes)?;
        state.pending += growth;
        Ok(Growth { stored: self.clone(), growth })
    }
}

impl State {
    fn known(&self) -> Stored {
        let mut known = self.counted;
        known += self.pending;
        known
    }

    /// The count has come to this revision: what was executed up to it is part of it.
    fn pass(&mut self, revision: i64) {
        self.position = self.position.max(revision);
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
        } else {
            *state.executed.entry(revision).or_default() += growth;
        }
    }

    /// The request put nothing and never will.
    pub fn not_executed(mut self) {
        let growth = std::mem::take(&mut self.growth);
        self.stored.state.lock().pending -= growth;
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
    use futures::FutureExt;

    use super::*;

    const ALLOWED: (Option<u64>, Option<u64>) = (Some(3), Some(100));

    fn of(keys: i64, bytes: i64) -> Stored {
        Stored { keys, bytes }
    }

    fn allowed() -> TenantLimits {
        TenantLimits { stored_keys: ALLOWED.0, stored_bytes: ALLOWED.1, ..TenantLimits::default() }
    }

    fn take(stored: &Arc<StoredKeys>, growth: Stored, now: Instant) -> Result<Growth, &'static str> {
        stored.take(growth, &allowed(), now).map_err(|full| full.limit.name())
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
        assert_eq!(stored.state.lock().known(), of(3, 1));
        // A new count has seen what was executed before it.
        let growth = take(&stored, of(0, 5), now).unwrap();
        growth.executed(8);
        stored.set(of(3, 6), 9);
        assert_eq!(stored.state.lock().known(), of(3, 6));
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
        assert_eq!(stored.state.lock().known(), of(9, 900), "only the watch makes room");
        assert_eq!(take(&stored, of(0, 1), now).unwrap_err(), "stored-bytes");
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
