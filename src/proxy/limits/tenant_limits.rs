use std::any::Any;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::Response;
use http_body::Body as _;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;
use tonic::Status;
use tonic::body::Body;

use super::counters::TenantCounters;
use super::rate::Rate;
use super::refusal::Limit;
use super::stored::{Full, Growth, NoRoom, Stored, StoredKeys};
use super::turns::{Turn, Turns, WAITING_MAX};
use crate::config::TenantLimits;
use crate::pb::frame::PREFIX_BYTES;

/// How long a refusal for a rate is held back, chosen anew for each so that those that came together are not told together. Told at
/// once, it would be followed by the next call at once, and what the refusals of one tenant cost would be taken from the others.
const HELD_BACK_MS: RangeInclusive<u64> = 50..=150;
/// How long a stream of which too much has passed waits before it looks again.
const STREAM_WAIT_MAX: Duration = Duration::from_secs(1);
/// Refusals of one tenant that are held back; more are told at once.
const HELD_BACK_MAX: usize = 1024;

/// What one tenant may use, and uses.
#[derive(Debug)]
pub struct Limits {
    allowed: ArcSwap<TenantLimits>,
    requests: Rate,
    bytes: Rate,
    held_back: Semaphore,
    /// Of the memory for long answers, where it is shared with other tenants.
    answer_memory: OnceLock<Arc<Semaphore>>,
    watches: AtomicU64,
    /// As counted by the newest grant.
    leases: Mutex<Option<u64>>,
    stored: Arc<StoredKeys>,
    counters: Option<TenantCounters>,
    /// Shared with the other tenants, if there are any.
    turns: Option<Turns>,
    /// Different for all tenants.
    number: u64,
}

impl Default for Limits {
    /// Everything, and nothing is counted.
    fn default() -> Self {
        Self::new(TenantLimits::default(), None, None)
    }
}

impl Limits {
    /// What is used is counted in `counters`.
    pub(super) fn new(allowed: TenantLimits, counters: Option<TenantCounters>, turns: Option<Turns>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let now = Instant::now();
        Self {
            allowed: ArcSwap::from_pointee(allowed),
            requests: Rate::new(now),
            bytes: Rate::new(now),
            held_back: Semaphore::new(HELD_BACK_MAX),
            answer_memory: OnceLock::new(),
            watches: AtomicU64::new(0),
            leases: Mutex::default(),
            stored: Arc::default(),
            counters,
            turns,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Allows something else from now on. What is open stays open.
    pub fn replace(&self, allowed: TenantLimits) {
        let before = self.allowed.swap(Arc::new(allowed));
        let now = Instant::now();
        if before.bytes_per_second != allowed.bytes_per_second {
            self.bytes.drop_excess(now);
        }
        if before.requests_per_second != allowed.requests_per_second {
            self.requests.drop_excess(now);
        }
    }

    /// Counts a call, if it may be made.
    pub(in crate::proxy) fn admit_call(&self) -> Result<(), Status> {
        let (allowed, now) = (self.allowed.load(), Instant::now());
        if let Some(counters) = &self.counters {
            counters.requests.inc();
        }
        if let Some(max) = allowed.bytes_per_second {
            self.bytes.check(now).map_err(|retry| self.refuse(Limit::Bytes, max, Some(retry)))?;
        }
        if let Some(max) = allowed.requests_per_second {
            self.requests.take(1, max, now).map_err(|retry| self.refuse(Limit::Requests, max, Some(retry)))?;
        }
        Ok(())
    }

    /// Waits before a call is told that [it may not be made](Self::admit_call).
    pub(in crate::proxy) async fn hold_back(&self) {
        if let Ok(_held) = self.held_back.try_acquire() {
            sleep(Duration::from_millis(fastrand::u64(HELD_BACK_MS))).await;
        }
    }

    /// Waits for a turn to send a request to the cluster; none where there is one tenant.
    pub(in crate::proxy) async fn turn(&self) -> Result<Option<Turn>, Status> {
        let Some(turns) = &self.turns else { return Ok(None) };
        let full = |_| self.refuse(Limit::Waiting, WAITING_MAX as u64, None);
        turns.turn(self.number).await.map(Some).map_err(full)
    }

    /// The tenant's share of the memory for long answers, of so many units; none where there is one tenant.
    pub(in crate::proxy) fn answer_memory(&self, units: usize) -> Option<&Arc<Semaphore>> {
        self.turns.as_ref()?;
        Some(self.answer_memory.get_or_init(|| Arc::new(Semaphore::new(units))))
    }

    /// Whether the bytes of calls have to be counted.
    pub(super) fn counts_bytes(&self) -> bool {
        self.counters.is_some()
    }

    /// Notes bytes of a call.
    pub(super) fn charge_bytes(&self, bytes: usize) {
        if let Some(counters) = &self.counters {
            counters.bytes.inc_by(bytes as u64);
        }
        if let Some(max) = self.allowed.load().bytes_per_second {
            self.bytes.charge(bytes as u64, max, Instant::now());
        }
    }

    /// How long a stream waits before it looks again, because more bytes have passed than may; pending where it need not.
    pub(super) fn stream_wait(&self) -> Poll<Duration> {
        // The limit may change meanwhile.
        let wait = |excess: Duration| Poll::Ready(excess.min(STREAM_WAIT_MAX));
        match self.allowed.load().bytes_per_second {
            Some(_) => self.bytes.check(Instant::now()).map_or_else(wait, |()| Poll::Pending),
            None => Poll::Pending,
        }
    }

    /// Counts a watch for as long as what is returned exists; nothing where nothing is counted.
    ///
    /// # Errors
    /// Why there may be no more; for the client.
    pub(in crate::proxy) fn hold_watch(self: &Arc<Self>) -> Result<Option<Arc<dyn Any + Send + Sync>>, String> {
        if self.counters.is_none() && self.allowed.load().watches.is_none() {
            return Ok(None);
        }
        let max = self.allowed.load().watches.unwrap_or(u64::MAX);
        let one_more = |open: u64| Some(open + 1).filter(|open| *open <= max);
        match self.watches.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => {
                if let Some(counters) = &self.counters {
                    counters.watches.inc();
                }
                Ok(Some(Arc::new(HeldWatch { limits: self.clone() })))
            }
            Err(_) => Err(self.refuse(Limit::Watches, max, None).message().to_owned()),
        }
    }

    /// Leases at once.
    pub(in crate::proxy) fn leases_max(&self) -> Option<u64> {
        self.allowed.load().leases
    }

    /// So many leases were counted in the cluster.
    pub(in crate::proxy) fn note_leases(&self, leases: u64) {
        *self.leases.lock() = Some(leases);
    }

    /// Bytes of one answer.
    pub(in crate::proxy) fn answer_bytes_max(&self) -> Option<u64> {
        self.allowed.load().answer_bytes
    }

    /// Whether what is stored has to be counted.
    pub(in crate::proxy) fn counts_stored(&self) -> bool {
        let allowed = self.allowed.load();
        allowed.stored_keys.is_some() || allowed.stored_bytes.is_some()
    }

    /// Waits until what is stored was counted.
    ///
    /// # Errors
    /// Why it is not, when `wait` has passed.
    pub(in crate::proxy) async fn stored_known(&self, wait: Duration) -> Result<(), String> {
        self.stored.known(wait).await
    }

    /// Everything that is stored was counted at this revision.
    pub(in crate::proxy) fn set_stored(&self, stored: Stored, revision: i64) {
        self.note_stored(self.stored.set(stored, revision));
    }

    /// The events up to this revision have added so much.
    pub(in crate::proxy) fn add_stored(&self, growth: Stored, revision: i64) {
        self.stored.apply(growth, revision);
        self.note_stored(growth);
    }

    /// There were no other events up to this revision.
    pub(in crate::proxy) fn see_stored(&self, revision: i64) {
        self.stored.see(revision);
    }

    /// The highest revision that the count has to come to before somebody is refused.
    pub(in crate::proxy) fn stored_awaited(&self) -> watch::Receiver<i64> {
        self.stored.awaited()
    }

    /// The revision that the count of what is stored has come to.
    pub(in crate::proxy) fn stored_seen(&self) -> i64 {
        self.stored.seen()
    }

    /// Has everything counted again: the cluster was found at an older revision than it had before it was asked.
    pub(in crate::proxy) fn stored_went_back(&self) {
        self.stored.went_back();
    }

    /// Waits until everything is to be counted again.
    pub(in crate::proxy) async fn stored_has_gone_back(&self) {
        self.stored.has_gone_back().await;
    }

    /// What is stored is not counted, for this reason; a count that there is stands.
    pub(in crate::proxy) fn stored_not_counted(&self, reason: String) {
        self.stored.not_counted(reason);
    }

    /// What is stored will not be counted any further.
    pub(in crate::proxy) fn forget_stored(&self) {
        self.note_stored(self.stored.forget());
    }

    fn note_stored(&self, added: Stored) {
        if let Some(counters) = &self.counters {
            counters.stored_keys.add(added.keys);
            counters.stored_bytes.add(added.bytes);
        }
    }

    /// Takes room for the most that a request can add to what is stored; none if that has to be looked at.
    pub(in crate::proxy) fn take_room(&self, most: Stored) -> Option<Growth> {
        self.stored.take(most, &self.allowed.load(), Instant::now())
    }

    /// Takes room for what a request adds, as was found at a revision of the cluster; waits at most so long.
    ///
    /// # Errors
    /// When there is none.
    pub(in crate::proxy) async fn take_room_in_turn(
        &self,
        growth: Stored,
        revision: i64,
        wait: Duration,
    ) -> Result<Growth, NoRoom> {
        self.stored.take_in_turn(growth, revision, wait, || self.allowed()).await
    }

    /// Counts a refusal for want of room.
    pub(in crate::proxy) fn refuse_full(&self, full: Full) -> Status {
        self.refuse(full.limit, full.max, None)
    }

    pub(super) fn allowed(&self) -> TenantLimits {
        **self.allowed.load()
    }

    pub(super) fn open_watches(&self) -> u64 {
        self.watches.load(Ordering::Relaxed)
    }

    /// None before the first grant under a limit.
    pub(super) fn leases(&self) -> Option<u64> {
        *self.leases.lock()
    }

    pub(super) fn stored(&self) -> Option<Stored> {
        self.stored.counted()
    }

    /// Requests that have their turn, and that wait for it.
    pub(super) fn turns_used(&self) -> (usize, usize) {
        self.turns.as_ref().map_or((0, 0), |turns| turns.used(self.number))
    }

    pub(super) fn own_counters(&self) -> Option<&TenantCounters> {
        self.counters.as_ref().filter(|counters| counters.own)
    }

    /// An answer made here, unless it is too long.
    pub(in crate::proxy) fn answer(&self, answer: Response<Body>) -> Response<Body> {
        let Some(max) = self.answer_bytes_max() else { return answer };
        let bytes = answer.body().size_hint().lower().saturating_sub(PREFIX_BYTES as u64);
        if bytes > max { self.refuse(Limit::AnswerBytes, max, None).into_http() } else { answer }
    }

    /// Counts a refusal.
    pub(in crate::proxy) fn refuse(&self, limit: Limit, max: u64, retry: Option<Duration>) -> Status {
        if let Some(counters) = &self.counters {
            counters.refused(limit).inc();
        }
        limit.status(max, retry)
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        // The row may be one of several tenants.
        self.forget_stored();
    }
}

struct HeldWatch {
    limits: Arc<Limits>,
}

impl Drop for HeldWatch {
    fn drop(&mut self) {
        self.limits.watches.fetch_sub(1, Ordering::Relaxed);
        if let Some(counters) = &self.limits.counters {
            counters.watches.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tonic::Code;

    use super::*;

    #[test]
    fn a_watch_counts_while_it_is_held() {
        let allowed = TenantLimits { watches: Some(2), ..TenantLimits::default() };
        let limits = Arc::new(Limits::new(allowed, None, None));
        let held = [limits.hold_watch().unwrap(), limits.hold_watch().unwrap()];
        assert_eq!(limits.hold_watch().err().unwrap(), "the tenant's limit \"watches\" of 2 is reached");
        drop(held);
        let held = limits.hold_watch().unwrap();
        limits.replace(TenantLimits { watches: Some(1), ..allowed });
        assert!(limits.hold_watch().is_err(), "a lower limit counts what is open");
        limits.replace(TenantLimits::default());
        assert!(limits.hold_watch().is_ok());
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_held_back_up_to_a_number() {
        let limits = Limits::default();
        let mut held: Vec<_> = (0..HELD_BACK_MAX).map(|_| Box::pin(limits.hold_back())).collect();
        assert!(held.iter_mut().all(|one| one.now_or_never().is_none()));
        assert!(limits.hold_back().now_or_never().is_some(), "one more is told at once");
        let start = tokio::time::Instant::now();
        futures::future::join_all(held).await;
        let longest = start.elapsed().as_millis();
        assert!((140..=151).contains(&longest), "{longest} ms");
        assert!(limits.hold_back().now_or_never().is_none());
    }

    #[test]
    fn calls_and_bytes_are_refused_by_name() {
        let allowed =
            TenantLimits { requests_per_second: Some(2), bytes_per_second: Some(1000), ..TenantLimits::default() };
        let limits = Limits::new(allowed, None, None);
        limits.admit_call().unwrap();
        limits.charge_bytes(100_000);
        let refused = limits.admit_call().unwrap_err();
        assert_eq!((refused.code(), refused.message().contains("bytes-per-second")), (Code::ResourceExhausted, true));
        assert_eq!(limits.stream_wait(), Poll::Ready(STREAM_WAIT_MAX));
        let other = TenantLimits { requests_per_second: Some(3), ..allowed };
        limits.replace(other);
        assert!(limits.admit_call().is_err(), "of a limit that stays an excess does, too");
        limits.replace(TenantLimits { bytes_per_second: Some(2000), ..allowed });
        assert!(limits.stream_wait().is_pending(), "under another limit there is none");
        limits.replace(TenantLimits { bytes_per_second: None, ..allowed });
        limits.admit_call().unwrap();
        assert!(limits.admit_call().unwrap_err().message().contains("requests-per-second"));
        assert!(limits.stream_wait().is_pending());
    }
}
