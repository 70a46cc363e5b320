use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::Instant;

use super::metrics::CacheMetrics;
use super::pair::PairMemory;
use super::shared::SharedReplica;

/// Pause between two comparisons of a replica with the cluster.
const CHECK_PERIOD: Duration = Duration::from_secs(60);

/// Replicas that are compared with the cluster at a time: for each it reads all of a range.
pub(super) const COMPARISONS_MAX: usize = 4;
/// Answers of up to so many pairs count for nothing until they are sent; those of longer ones are counted in this unit.
const ANSWER_PAIRS: usize = 1024;
/// Part of the memory that the references of long answers to their pairs may take besides.
const ANSWERS_SHARE: usize = 8;
/// Part of the room for long answers that those of one of several tenants may have, so that clients that take none of theirs leave room for
/// the other tenants'.
const TENANT_SHARE: u32 = 4;
/// Answers whose pairs are no longer than this count for nothing, whatever they keep in memory.
const SHORT_ANSWER_BYTES: usize = 64 * 1024;

/// The memory of all replicas of a proxy. Cheap to clone.
///
/// Invariant: a tenant is evicted from only while it uses more than its fair share, see `fair_share`. One that uses no more than the
/// memory divided by the number of tenants that have something cached is never evicted from, whatever the others read. While a tenant
/// is beyond its share, memory for it comes from its own replicas: what does not fit then is refused.
#[derive(Clone)]
pub struct CacheBudget {
    bytes_max: usize,
    /// Whose replicas are counted by this clone.
    tenant: u64,
    /// All pairs of the tenant.
    pairs: Arc<PairMemory>,
    /// The times of reads count from here.
    base: Instant,
    held: Arc<Mutex<Held>>,
    answers: Arc<Semaphore>,
    answers_max: u32,
    /// Of the tenant.
    own_answers: Arc<Semaphore>,
    own_answers_max: u32,
    comparisons: Arc<Semaphore>,
    metrics: CacheMetrics,
}

#[derive(Default)]
struct Held {
    bytes: usize,
    /// Comparisons with the cluster so far, and when the last one began.
    checks: u64,
    checked_at: Option<Instant>,
    replicas: Vec<Counted>,
    /// Tenants that there have ever been.
    tenants: u64,
}

/// Room for one long answer, that of its tenant and that of all, given back when it is dropped.
pub(super) struct AnswerPermits {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// A replica that has memory, and its tenant.
struct Counted {
    tenant: u64,
    /// Where the pairs of the tenant are counted.
    pairs: Arc<PairMemory>,
    replica: Arc<SharedReplica>,
}

impl CacheBudget {
    /// At most this many bytes.
    pub fn new(bytes_max: usize, metrics: &CacheMetrics) -> Self {
        let units = bytes_max / ANSWERS_SHARE / (ANSWER_PAIRS * size_of::<Bytes>());
        let answers_max = u32::try_from(units).unwrap_or(u32::MAX).max(1);
        let answers = Arc::new(Semaphore::new(answers_max as usize));
        Self {
            bytes_max,
            tenant: 0,
            pairs: Arc::default(),
            base: Instant::now(),
            held: Arc::default(),
            answers,
            answers_max,
            own_answers: Arc::new(Semaphore::new(answers_max as usize)),
            own_answers_max: answers_max,
            comparisons: Arc::new(Semaphore::new(COMPARISONS_MAX)),
            metrics: metrics.clone(),
        }
    }

    /// The same where there are several tenants. To be told before any of them has a part.
    #[must_use]
    pub fn of_several_tenants(self) -> Self {
        Self { own_answers_max: (self.answers_max / TENANT_SHARE).max(1), ..self }
    }

    /// The same memory, for the replicas of one more tenant.
    pub(super) fn of_tenant(&self) -> Self {
        let mut held = self.held.lock();
        held.tenants += 1;
        let own_answers = Arc::new(Semaphore::new(self.own_answers_max as usize));
        Self { tenant: held.tenants, pairs: Arc::default(), own_answers, ..self.clone() }
    }

    /// Where the pairs of the tenant are counted.
    pub(super) fn pairs(&self) -> Arc<PairMemory> {
        self.pairs.clone()
    }

    /// Room for the references of an answer to so many pairs, to be held until it is sent; nothing where they are few. One of more pairs
    /// than there is room for has it alone where there is one tenant.
    ///
    /// # Errors
    /// While there is none; for more pairs than there is room for the tenant, always.
    pub(super) fn room_for_answer(&self, pairs: usize) -> Result<Option<AnswerPermits>, TryAcquireError> {
        if pairs <= ANSWER_PAIRS {
            return Ok(None);
        }
        let units = u32::try_from(pairs.div_ceil(ANSWER_PAIRS)).unwrap_or(u32::MAX).min(self.answers_max);
        let own = self.own_answers.clone().try_acquire_many_owned(units)?;
        let all = self.answers.clone().try_acquire_many_owned(units)?;
        Ok(Some(AnswerPermits { _own: own, _all: all }))
    }

    /// Whether there is room for an answer that keeps pairs of so many bytes in memory. Those that a replica has, too, cost nothing. There is
    /// none while the tenant's clients keep, by not taking their answers, more than a part of the memory that no replica has any more:
    /// in the end they keep that part and, once, what the replicas had when the last of the answers was made.
    pub(super) fn has_room_for_held(&self, bytes: usize) -> bool {
        let (pairs, bytes_max) = (self.pairs.bytes(), self.bytes_max / ANSWERS_SHARE);
        if bytes <= SHORT_ANSWER_BYTES || pairs <= bytes_max {
            return true;
        }
        pairs.saturating_sub(self.pairs.counted()) <= bytes_max
    }

    /// Where the times of reads count from, for all replicas.
    pub(super) fn base(&self) -> Instant {
        self.base
    }

    /// Counts `bytes` for a replica. Those of tenants beyond their share that were read least recently are evicted to make room; false
    /// when none is left to evict, and for a replica that is evicted itself: it is not to take the place of another while its task has yet to see that.
    pub(super) fn charge(&self, replica: &Arc<SharedReplica>, bytes: usize) -> bool {
        let mut held = self.held.lock();
        if replica.is_evicted() {
            return false;
        }
        if !held.replicas.iter().any(|other| Arc::ptr_eq(&other.replica, replica)) {
            held.replicas.push(Counted { tenant: self.tenant, pairs: self.pairs.clone(), replica: replica.clone() });
        }
        held.count(&self.pairs, replica, bytes);
        while held.bytes > self.bytes_max {
            let Some(victim) = held.victim_of(replica, self.tenant, self.bytes_max) else { break };
            held.forget(&victim);
            victim.evict();
        }
        let fits = held.bytes <= self.bytes_max;
        if !fits {
            // Its task drops it: others that are counted meanwhile are not to make room for it.
            held.forget(replica);
        }
        self.metrics.bytes.set(i64::try_from(held.bytes).unwrap_or(i64::MAX));
        fits
    }

    /// Whether so many bytes for a replica leave those of all others where they are.
    pub(super) fn has_room_for(&self, replica: &SharedReplica, bytes: usize) -> bool {
        self.held.lock().bytes - replica.bytes.load(Ordering::Relaxed) + bytes <= self.bytes_max
    }

    /// Whether a replica that is being loaded may have so many bytes, when so many are expected in the end. One that will not fit is not
    /// to take the place of others before that is found out.
    pub(super) fn has_room_to_load(&self, replica: &SharedReplica, bytes: usize, expected: usize) -> bool {
        if self.has_room_for(replica, bytes) {
            return true;
        }
        let mut used = self.held.lock().used();
        // Its tenant's other replicas are the first to make room for it.
        used.insert(self.tenant, expected);
        expected <= fair_share(used.into_values().collect(), self.bytes_max)
    }

    /// Whether this replica is to be compared with the cluster now: one each minute, the live ones in turn.
    pub(super) fn takes_turn(&self, replica: &SharedReplica) -> bool {
        let mut held = self.held.lock();
        if held.checked_at.is_some_and(|at| at.elapsed() < CHECK_PERIOD) {
            return false;
        }
        let last = |replica: &SharedReplica| replica.last_check.load(Ordering::Relaxed);
        let live = held.replicas.iter().filter(|other| other.replica.snapshot().is_some());
        if live.map(|other| last(&other.replica)).min().is_some_and(|first| first < last(replica)) {
            return false;
        }
        held.checks += 1;
        held.checked_at = Some(Instant::now());
        replica.last_check.store(held.checks, Ordering::Relaxed);
        true
    }

    /// The turn of a comparison with the cluster. When a member stops, all replicas that followed it may have to be compared: at once they
    /// would be more than the cluster answers in time, and would all begin anew.
    pub(super) async fn turn_to_compare(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        self.comparisons.clone().acquire_owned().await.ok()
    }

    /// The replica holds nothing any more.
    pub(super) fn release(&self, replica: &Arc<SharedReplica>) {
        let mut held = self.held.lock();
        held.forget(replica);
        self.metrics.bytes.set(i64::try_from(held.bytes).unwrap_or(i64::MAX));
    }
}

impl Held {
    fn count(&mut self, pairs: &PairMemory, replica: &SharedReplica, bytes: usize) {
        let before = replica.bytes.swap(bytes, Ordering::Relaxed);
        self.bytes = self.bytes - before + bytes;
        pairs.count(before, bytes);
    }

    fn forget(&mut self, replica: &Arc<SharedReplica>) {
        let place = self.replicas.iter().position(|other| Arc::ptr_eq(&other.replica, replica));
        if let Some(place) = place {
            let Counted { pairs, .. } = self.replicas.remove(place);
            self.count(&pairs, replica, 0);
        }
    }

    /// Memory of each tenant.
    fn used(&self) -> BTreeMap<u64, usize> {
        let mut used: BTreeMap<u64, usize> = BTreeMap::new();
        for Counted { tenant, replica, .. } in &self.replicas {
            *used.entry(*tenant).or_default() += replica.bytes.load(Ordering::Relaxed);
        }
        used
    }

    /// What is evicted when this replica of a tenant has made the memory too small: what was read least recently of the tenant itself, if that
    /// is beyond its share, else of the one that uses the most, which is beyond it then.
    fn victim_of(&self, replica: &Arc<SharedReplica>, tenant: u64, bytes_max: usize) -> Option<Arc<SharedReplica>> {
        let used = self.used();
        let share = fair_share(used.values().copied().collect(), bytes_max);
        let (most, _) = used.iter().max_by_key(|(_, bytes)| **bytes)?;
        let from = if used.get(&tenant).is_some_and(|bytes| *bytes > share) { tenant } else { *most };
        let replicas = self.replicas.iter().filter(|other| other.tenant == from).map(|other| &other.replica);
        let others = replicas.filter(|other| !Arc::ptr_eq(other, replica) && other.bytes.load(Ordering::Relaxed) > 0);
        others.min_by_key(|other| other.last_read()).cloned()
    }
}

/// What each tenant may use (max-min fairness): the memory in equal parts, where those that use less than theirs leave the rest to the
/// others. No bound where all that is used fits.
fn fair_share(mut used: Vec<usize>, bytes_max: usize) -> usize {
    used.sort_unstable();
    let (mut left, mut tenants) = (bytes_max, used.len());
    for bytes in used {
        let share = left / tenants;
        if bytes > share {
            return share;
        }
        (left, tenants) = (left - bytes, tenants - 1);
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::time::advance;

    use super::super::pair::Pair;
    use super::super::shared::Snapshot;
    use super::*;
    use crate::pb::mvccpb::KeyValue;
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
        assert_eq!((evicted(&a), gauge.get()), (true, 0));
        budget.release(&c);
        assert_eq!(gauge.get(), 0);
    }

    /// The tenants of the next test, and the replicas of each.
    const TENANTS: usize = 4;
    const REPLICAS: usize = 3;

    /// What is held, by the number of the replica, and when it was read; the replicas of a tenant have numbers that follow each other.
    struct Model {
        bytes: [usize; TENANTS * REPLICAS],
        read: [usize; TENANTS * REPLICAS],
    }

    impl Model {
        const BYTES_MAX: usize = 100;

        fn sum(&self) -> usize {
            self.bytes.iter().sum()
        }

        fn used(&self) -> Vec<usize> {
            self.bytes.chunks(REPLICAS).map(|of_tenant| of_tenant.iter().sum()).collect()
        }

        /// The greatest bound for each tenant with which all of them fit, found by trying.
        fn share(&self) -> usize {
            let fits = |share: &usize| self.used().iter().map(|used| used.min(share)).sum::<usize>() <= Self::BYTES_MAX;
            (0..=Self::BYTES_MAX).rev().find(fits).expect("nothing fits")
        }

        fn charge(&mut self, replica: usize, bytes: usize) {
            self.bytes[replica] = bytes;
            while self.sum() > Self::BYTES_MAX {
                let (used, own) = (self.used(), replica / REPLICAS);
                let most = (0..TENANTS).max_by_key(|tenant| used[*tenant]).expect("tenants");
                let from = if used[own] > self.share() { own } else { most };
                assert!(used[from] > self.share(), "evicted from within its share: {used:?}");
                let others = (from * REPLICAS..(from + 1) * REPLICAS).filter(|other| *other != replica);
                let others = others.filter(|other| self.bytes[*other] > 0);
                let Some(victim) = others.min_by_key(|other| self.read[*other]) else { break };
                self.bytes[victim] = 0;
            }
        }
    }

    /// Cause: the replicas of one tenant that took nine tenths of the memory evicted those of all others, again and again.
    #[tokio::test(start_paused = true)]
    async fn a_tenant_loses_only_what_is_beyond_its_share() {
        let budget = CacheBudget::new(Model::BYTES_MAX, &CacheMetrics::register(&Metrics::new()));
        let tenants = [(); TENANTS].map(|()| budget.of_tenant());
        let range = || KeyRange::prefix("p".into());
        let replicas: Vec<_> =
            (0..TENANTS * REPLICAS).map(|_| Arc::new(SharedReplica::new(range(), range(), budget.base()))).collect();
        let mut model = Model { bytes: Default::default(), read: Default::default() };
        let (mut rng, mut evicted) = (fastrand::Rng::with_seed(11), 0);
        for round in 1..=5_000 {
            let number = rng.usize(..replicas.len());
            advance(Duration::from_millis(1)).await;
            replicas[number].note_read();
            model.read[number] = round;
            let before = model.bytes;
            if rng.u8(..4) == 0 {
                budget.release(&replicas[number]);
                model.bytes[number] = 0;
            } else {
                // Some are larger than any share, a few than all of the memory.
                let bytes = if rng.u8(..8) == 0 { rng.usize(..120) } else { rng.usize(..30) };
                let fits = tenants[number / REPLICAS].charge(&replicas[number], bytes);
                model.charge(number, bytes);
                assert_eq!(fits, model.sum() <= Model::BYTES_MAX);
                if !fits {
                    model.bytes[number] = 0;
                }
            }
            for (other, replica) in replicas.iter().enumerate() {
                assert_eq!(replica.bytes.load(Ordering::Relaxed), model.bytes[other], "replica {other}, round {round}");
                let is_lost = other != number && before[other] > 0 && model.bytes[other] == 0;
                assert_eq!(replica.is_evicted(), is_lost, "replica {other}, round {round}");
                evicted += usize::from(is_lost);
                replica.forget_signals();
            }
        }
        assert!(evicted > 500, "{evicted}");
    }

    #[test]
    fn what_a_tenant_leaves_is_shared_by_the_others() {
        for (used, share) in [
            (vec![], usize::MAX),
            (vec![100], usize::MAX),
            (vec![101], 100),
            (vec![90, 11], 89),
            (vec![90, 10, 10], 80),
            (vec![60, 60, 10], 45),
            (vec![34, 34, 34], 33),
        ] {
            assert_eq!(fair_share(used.clone(), 100), share, "{used:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_not_fit_into_a_share_is_not_loaded_at_the_cost_of_others() {
        let all = CacheBudget::new(100, &CacheMetrics::register(&Metrics::new()));
        let [one, other] = [all.of_tenant(), all.of_tenant()];
        let range = || KeyRange::prefix("p".into());
        let [a, b, c] = [(); 3].map(|()| Arc::new(SharedReplica::new(range(), range(), all.base())));
        assert!(one.charge(&a, 90) && other.charge(&b, 5));
        let may_load = |bytes, expected| other.has_room_to_load(&c, bytes, expected);
        assert!(may_load(5, 1000), "there is room so far");
        assert_eq!((may_load(6, 50), may_load(6, 51)), (true, false));
        // For one's own there is all that the others leave.
        let may_load = |expected| one.has_room_to_load(&c, 6, expected);
        assert_eq!((may_load(95), may_load(96)), (true, false));
    }

    /// Cause: a replica that was evicted, and got an event before its task saw that, was counted again, and evicted another one.
    #[tokio::test(start_paused = true)]
    async fn an_evicted_replica_takes_the_place_of_none() {
        let metrics = CacheMetrics::register(&Metrics::new());
        let (budget, gauge) = (CacheBudget::new(100, &metrics), metrics.bytes.clone());
        let range = || KeyRange::prefix("p".into());
        let [a, b, c] = [(); 3].map(|()| Arc::new(SharedReplica::new(range(), range(), budget.base())));
        for replica in [&a, &b, &c] {
            advance(Duration::from_millis(10)).await;
            replica.note_read();
            assert!(budget.charge(replica, 45));
        }
        assert!(a.is_evicted() && !budget.charge(&a, 46));
        assert_eq!((b.is_evicted(), c.is_evicted(), gauge.get()), (false, false, 90));
        // As the task does before it loads the pairs again.
        budget.release(&a);
        a.forget_signals();
        assert!(budget.charge(&a, 10));
        assert_eq!(gauge.get(), 100);
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

    /// Cause: while the clients of one tenant took none of their answers, no long one of any other tenant was answered from the cache.
    #[test]
    fn the_long_answers_of_one_tenant_leave_room_for_those_of_others() {
        let bytes_max = 8 * ANSWERS_SHARE * ANSWER_PAIRS * size_of::<Bytes>();
        let all = CacheBudget::new(bytes_max, &CacheMetrics::register(&Metrics::new())).of_several_tenants();
        let [one, other] = [(); 2].map(|()| all.of_tenant());
        assert!(one.room_for_answer(2 * ANSWER_PAIRS + 1).is_err(), "longer than its part");
        let room = one.room_for_answer(2 * ANSWER_PAIRS);
        assert!(room.is_ok() && one.room_for_answer(ANSWER_PAIRS + 1).is_err());
        assert!(other.room_for_answer(2 * ANSWER_PAIRS).is_ok());
        drop(room);
        assert!(one.room_for_answer(2 * ANSWER_PAIRS).is_ok());
    }

    #[test]
    fn what_answers_keep_and_no_replica_has_counts_for_its_tenant() {
        let all = CacheBudget::new(ANSWERS_SHARE * 1000, &CacheMetrics::register(&Metrics::new()));
        let [budget, other] = [all.of_tenant(), all.of_tenant()];
        let range = || KeyRange::prefix("p".into());
        let replica = Arc::new(SharedReplica::new(range(), range(), budget.base()));
        let long = SHORT_ANSWER_BYTES + 1;
        let kv = KeyValue { key: "p".into(), value: vec![b'v'; 2000].into(), ..Default::default() };
        let pair = Pair::counted(&kv, &budget.pairs());
        assert!(budget.charge(&replica, pair.bytes()));
        // Keys only: a part keeps all of it.
        let answer = pair.encoded().slice(..1);
        // Cause: each long answer walked through all replicas of all tenants, and the others waited for that.
        let held = budget.held.lock();
        assert!(budget.has_room_for_held(long), "the replica has it, too");
        drop(held);
        drop(pair);
        assert!(budget.charge(&replica, 0));
        assert!(!budget.has_room_for_held(long) && budget.has_room_for_held(SHORT_ANSWER_BYTES));
        assert!(other.has_room_for_held(long), "another tenant");
        drop(answer);
        assert!(budget.has_room_for_held(long));
        assert_eq!((budget.pairs().bytes(), budget.pairs().counted()), (0, 0));
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
