use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::Instant;

use super::metrics::CacheMetrics;
use super::shared::SharedReplica;

/// Pause between two comparisons of a replica with the cluster.
const CHECK_PERIOD: Duration = Duration::from_secs(60);

/// Answers of up to so many pairs count for nothing until they are sent; those of longer ones are counted in this unit.
const ANSWER_PAIRS: usize = 1024;
/// Part of the memory that the references of long answers to their pairs may take besides.
const ANSWERS_SHARE: usize = 8;

/// The memory of all replicas of a proxy. Cheap to clone.
#[derive(Clone)]
pub struct CacheBudget {
    bytes_max: usize,
    /// The times of reads count from here.
    base: Instant,
    held: Arc<Mutex<Held>>,
    answers: Arc<Semaphore>,
    answers_max: u32,
    metrics: CacheMetrics,
}

#[derive(Default)]
struct Held {
    bytes: usize,
    /// Comparisons with the cluster so far, and when the last one began.
    checks: u64,
    checked_at: Option<Instant>,
    replicas: Vec<Arc<SharedReplica>>,
}

impl CacheBudget {
    /// At most this many bytes.
    pub fn new(bytes_max: usize, metrics: &CacheMetrics) -> Self {
        let units = bytes_max / ANSWERS_SHARE / (ANSWER_PAIRS * size_of::<Bytes>());
        let answers_max = u32::try_from(units).unwrap_or(u32::MAX).max(1);
        let answers = Arc::new(Semaphore::new(answers_max as usize));
        Self { bytes_max, base: Instant::now(), held: Arc::default(), answers, answers_max, metrics: metrics.clone() }
    }

    /// Room for the references of an answer to so many pairs, to be held until it is sent; nothing where they are few. One of more pairs
    /// than there is room for has it alone.
    ///
    /// # Errors
    /// While there is none.
    pub(super) fn room_for_answer(&self, pairs: usize) -> Result<Option<OwnedSemaphorePermit>, TryAcquireError> {
        if pairs <= ANSWER_PAIRS {
            return Ok(None);
        }
        let units = u32::try_from(pairs.div_ceil(ANSWER_PAIRS)).unwrap_or(u32::MAX).min(self.answers_max);
        self.answers.clone().try_acquire_many_owned(units).map(Some)
    }

    /// Where the times of reads count from, for all replicas.
    pub(super) fn base(&self) -> Instant {
        self.base
    }

    /// Counts `bytes` for a replica. Those that were read least recently are evicted to make room; false when none is left to
    /// evict.
    pub(super) fn charge(&self, replica: &Arc<SharedReplica>, bytes: usize) -> bool {
        let mut held = self.held.lock();
        if !held.replicas.iter().any(|other| Arc::ptr_eq(other, replica)) {
            held.replicas.push(replica.clone());
        }
        held.count(replica, bytes);
        while held.bytes > self.bytes_max {
            let others = held.replicas.iter().filter(|other| !Arc::ptr_eq(other, replica));
            let Some(oldest) = others.min_by_key(|other| other.last_read()).cloned() else { break };
            held.forget(&oldest);
            oldest.evicted.notify_one();
        }
        self.metrics.bytes.set(i64::try_from(held.bytes).unwrap_or(i64::MAX));
        held.bytes <= self.bytes_max
    }

    /// Whether so many bytes for a replica leave those of all others where they are.
    pub(super) fn has_room_for(&self, replica: &SharedReplica, bytes: usize) -> bool {
        self.held.lock().bytes - replica.bytes.load(Ordering::Relaxed) + bytes <= self.bytes_max
    }

    /// Whether so many bytes are more than all replicas together may have.
    pub(super) fn is_exceeded_by(&self, bytes: usize) -> bool {
        bytes > self.bytes_max
    }

    /// Whether this replica is to be compared with the cluster now: one each minute, the live ones in turn.
    pub(super) fn takes_turn(&self, replica: &SharedReplica) -> bool {
        let mut held = self.held.lock();
        if held.checked_at.is_some_and(|at| at.elapsed() < CHECK_PERIOD) {
            return false;
        }
        let last = |replica: &SharedReplica| replica.last_check.load(Ordering::Relaxed);
        let live = held.replicas.iter().filter(|other| other.snapshot().is_some());
        if live.map(|other| last(other)).min().is_some_and(|first| first < last(replica)) {
            return false;
        }
        held.checks += 1;
        held.checked_at = Some(Instant::now());
        replica.last_check.store(held.checks, Ordering::Relaxed);
        true
    }

    /// The replica holds nothing any more.
    pub(super) fn release(&self, replica: &Arc<SharedReplica>) {
        let mut held = self.held.lock();
        held.forget(replica);
        self.metrics.bytes.set(i64::try_from(held.bytes).unwrap_or(i64::MAX));
    }
}

impl Held {
    fn count(&mut self, replica: &SharedReplica, bytes: usize) {
        let before = replica.bytes.swap(bytes, Ordering::Relaxed);
        self.bytes = self.bytes - before + bytes;
    }

    fn forget(&mut self, replica: &Arc<SharedReplica>) {
        self.count(replica, 0);
        self.replicas.retain(|other| !Arc::ptr_eq(other, replica));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::time::advance;

    use super::super::shared::Snapshot;
    use super::*;
    use crate::telemetry::Metrics;
    use crate::types::KeyRange;

    #[tokio::test(start_paused = true)]
    async fn the_least_recently_read_goes_first() {
        let metrics = CacheMetrics::register(&Metrics::new());
        let (budget, gauge) = (CacheBudget::new(100, &metrics), metrics.bytes.clone());
        let range = || KeyRange::prefix("p".into());
        let [a, b, c] = [(); 3].map(|()| Arc::new(SharedReplica::new(range(), range(), budget.base())));
        let evicted = |replica: &Arc<SharedReplica>| replica.evicted.notified().now_or_never().is_some();
        for replica in [&a, &b] {
            advance(Duration::from_millis(10)).await;
            replica.note_read();
            assert!(budget.charge(replica, 50));
        }
        advance(Duration::from_millis(10)).await;
        a.note_read();
        assert_eq!((budget.has_room_for(&a, 50), budget.has_room_for(&a, 51)), (true, false));
        assert!(budget.charge(&c, 40));
        assert_eq!((evicted(&a), evicted(&b), gauge.get()), (false, true, 90));
        assert!(!budget.charge(&c, 101), "larger than all of it");
        assert_eq!((evicted(&a), gauge.get()), (true, 101));
        budget.release(&c);
        assert_eq!(gauge.get(), 0);
    }

    /// Cause: clients that asked for long ranges and did not read the answers had the proxy hold one reference for each pair of each.
    #[test]
    fn long_answers_that_are_not_sent_are_bounded() {
        let bytes_max = 2 * ANSWERS_SHARE * ANSWER_PAIRS * size_of::<Bytes>();
        let budget = CacheBudget::new(bytes_max, &CacheMetrics::register(&Metrics::new()));
        let [one, other] = [(); 2].map(|()| budget.room_for_answer(ANSWER_PAIRS + 1));
        assert!(one.is_ok_and(|room| room.is_some()));
        assert!(other.is_err(), "the first one is not sent yet");
        let all = budget.room_for_answer(usize::MAX);
        assert!(all.is_ok() && budget.room_for_answer(ANSWER_PAIRS + 1).is_err());
        assert!(budget.room_for_answer(ANSWER_PAIRS).is_ok_and(|room| room.is_none()), "short ones always pass");
        drop(all);
        assert!(budget.room_for_answer(ANSWER_PAIRS + 1).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn live_replicas_are_checked_in_turn() {
        let metrics = CacheMetrics::register(&Metrics::new());
        let budget = CacheBudget::new(100, &metrics);
        let range = || KeyRange::prefix("p".into());
        let [a, b, cold] = [(); 3].map(|()| Arc::new(SharedReplica::new(range(), range(), budget.base())));
        for replica in [&a, &b, &cold] {
            assert!(budget.charge(replica, 1));
        }
        for replica in [&a, &b] {
            replica.publish(Some(Arc::new(Snapshot::of_nobody())));
        }
        for expected in [[true, false], [false, true], [true, false]] {
            assert_eq!([&a, &b].map(|replica| budget.takes_turn(replica)), expected);
            advance(CHECK_PERIOD).await;
        }
    }
}
