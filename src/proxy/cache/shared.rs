use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::config::Periods;
use super::pair::Pair;
use super::past::Past;
use super::patience::Patience;
use super::subscribers::Subscribers;
use crate::proxy::KeptPermission;
use crate::tree::Tree;
use crate::types::{ClusterId, KeyRange, MemberId, Revision, Term};

/// Reads of the cluster's revision that progress is requested with, after one whose revision the replica had not reached.
const PROGRESS_READS: u32 = 64;

/// How far a replica is. Only a live one answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Nothing is held.
    Cold,
    Loading,
    Live,
    /// The watch is being resumed.
    Behind,
    /// What the cluster sent cannot follow what it sent before.
    Gap,
    /// The watch cannot be resumed: its position is compacted.
    Compacted,
    OverBudget,
    /// Progress of this member is not proven to come after all events.
    Untrusted,
}

impl State {
    pub const ALL: [Self; 8] = [
        Self::Cold,
        Self::Loading,
        Self::Live,
        Self::Behind,
        Self::Gap,
        Self::Compacted,
        Self::OverBudget,
        Self::Untrusted,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Loading => "loading",
            Self::Live => "live",
            Self::Behind => "behind",
            Self::Gap => "gap",
            Self::Compacted => "compacted",
            Self::OverBudget => "over_budget",
            Self::Untrusted => "untrusted",
        }
    }
}

/// How a comparison of a replica with the cluster ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    Same,
    /// Where they differ.
    Different(String),
    /// The cluster did not answer, or has compacted the revision.
    Unknown,
}

impl Checked {
    pub const LABELS: [&str; 3] = ["same", "different", "unknown"];

    pub fn label(&self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Different(_) => "different",
            Self::Unknown => "unknown",
        }
    }
}

/// The pairs of a replica at one revision, and what else an answer has.
pub(super) struct Snapshot {
    pub pairs: Tree<Pair>,
    pub position: Revision,
    /// The pairs are the same since this revision.
    pub since: Revision,
    pub cluster: ClusterId,
    pub member: MemberId,
    pub term: Term,
    /// Whether the member of the watch knows `RangeStream`.
    pub has_range_stream: bool,
    /// Shared by all snapshots since the replica was loaded.
    pub completeness: Arc<Completeness>,
    /// The states before; shared likewise.
    pub past: Arc<Mutex<Past>>,
}

impl Snapshot {
    /// The pairs at a revision up to the position; none unless they are kept.
    pub fn at(&self, revision: Revision) -> Option<Tree<Pair>> {
        if revision > self.position {
            return None;
        }
        if revision >= self.since {
            return Some(self.pairs.clone());
        }
        self.past.lock().at(revision).cloned()
    }
}

#[cfg(test)]
impl Snapshot {
    /// Without pairs, of no cluster.
    pub fn of_nobody() -> Self {
        Self {
            pairs: Tree::default(),
            position: Revision(0),
            since: Revision(0),
            cluster: ClusterId(0),
            member: MemberId(0),
            term: Term(0),
            has_range_stream: true,
            completeness: Arc::new(Completeness::new(Instant::now())),
            past: Arc::default(),
        }
    }
}

/// Until when a replica has every write that was acknowledged.
pub(super) struct Completeness {
    base: Instant,
    /// Microseconds after `base`.
    at: AtomicU64,
}

impl Completeness {
    pub fn new(at: Instant) -> Self {
        Self { base: at, at: AtomicU64::new(0) }
    }

    /// A read of the cluster's revision that was sent then has been reached.
    pub fn confirm(&self, sent_at: Instant) {
        let micros = sent_at.saturating_duration_since(self.base).as_micros();
        self.at.fetch_max(u64::try_from(micros).unwrap_or(0), Ordering::Relaxed);
    }

    /// A write that was acknowledged longer ago is there.
    pub fn age(&self) -> Duration {
        self.base.elapsed().saturating_sub(Duration::from_micros(self.at.load(Ordering::Relaxed)))
    }
}

/// Why the replica of a promoted prefix is given up for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retired {
    /// Nobody reads it any more.
    Idle,
    NotWorthIt,
}

/// What readers see of a replica, and how they reach the task that keeps it current.
pub(super) struct SharedReplica {
    /// Keys, as clients see them.
    pub range: KeyRange,
    /// The same keys, as the cluster has them.
    pub upstream: KeyRange,
    /// Whether the group itself may read all of it.
    pub permission: KeptPermission,
    /// Who else reads its watch.
    pub subscribers: Subscribers,
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
    /// Newest revision a reader waits for.
    target: AtomicI64,
    patience: Patience,
    /// A read of the cluster's revision is being sent: progress is to be requested with it.
    pub read_sent: Notify,
    /// Reads of the cluster's revision that progress is requested with.
    progress_wanted: AtomicU32,
    /// A reader waits for the target.
    pub awaited: Notify,
    /// A read came while nothing was held.
    pub wanted: Notify,
    /// The cluster's revision is below the position.
    pub went_back: Notify,
    pub evicted: Notify,
    /// Its memory was given to another one, and the task has yet to see that.
    is_evicted: AtomicBool,
    /// It was promoted because it is read often, not configured.
    pub is_promoted: bool,
    /// Reads of a promoted one.
    reads: AtomicU64,
    /// A promoted one that is given up.
    pub retired: OnceLock<Retired>,
    /// Its task runs.
    pub running: AtomicBool,
    /// It is being confirmed in the background.
    pub confirming: AtomicBool,
    /// Number of its last comparison with the cluster among those of all replicas.
    pub last_check: AtomicU64,
    /// Memory it counts with in the budget.
    pub bytes: AtomicUsize,
    /// For reports; readers go by the snapshot.
    state: AtomicU8,
    base: Instant,
    /// Milliseconds after `base`.
    last_read: AtomicU64,
}

impl SharedReplica {
    /// `base` is the same for all replicas of a process.
    pub fn new(range: KeyRange, upstream: KeyRange, base: Instant) -> Self {
        Self {
            range,
            upstream,
            permission: KeptPermission::default(),
            subscribers: Subscribers::default(),
            snapshot: watch::Sender::new(None),
            target: AtomicI64::new(0),
            patience: Patience::default(),
            read_sent: Notify::new(),
            progress_wanted: AtomicU32::new(PROGRESS_READS),
            awaited: Notify::new(),
            wanted: Notify::new(),
            went_back: Notify::new(),
            evicted: Notify::new(),
            is_evicted: AtomicBool::new(false),
            is_promoted: false,
            reads: AtomicU64::new(0),
            retired: OnceLock::new(),
            running: AtomicBool::new(false),
            confirming: AtomicBool::new(false),
            last_check: AtomicU64::new(0),
            bytes: AtomicUsize::new(0),
            state: AtomicU8::new(State::Cold as u8),
            base,
            last_read: AtomicU64::new(0),
        }
    }

    /// The same of a prefix that is read often.
    pub fn promoted(range: KeyRange, upstream: KeyRange, base: Instant) -> Self {
        Self { is_promoted: true, ..Self::new(range, upstream, base) }
    }

    /// How far it is.
    pub fn state(&self) -> State {
        State::ALL[usize::from(self.state.load(Ordering::Relaxed)) % State::ALL.len()]
    }

    pub fn note_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// The pairs at the current revision; none unless it is live.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.borrow().clone()
    }

    /// Readers get this from now on.
    pub fn publish(&self, snapshot: Option<Arc<Snapshot>>) {
        self.snapshot.send_replace(snapshot);
    }

    /// The first state at or after `revision`, which a read told that took so long; none when it does not come in time or the replica
    /// is dropped. Dropping the future is safe.
    pub async fn reached(&self, revision: Revision, took: Duration, periods: &Periods) -> Option<Arc<Snapshot>> {
        let is_there =
            |snapshot: &Option<Arc<Snapshot>>| snapshot.as_ref().is_none_or(|snapshot| snapshot.position >= revision);
        let now = self.snapshot();
        if is_there(&now) {
            self.patience.reached(Duration::ZERO);
            return now;
        }
        self.target.fetch_max(revision.0, Ordering::AcqRel);
        self.progress_wanted.store(PROGRESS_READS, Ordering::Relaxed);
        self.awaited.notify_one();
        let mut changes = self.snapshot.subscribe();
        let (began, within) = (Instant::now(), self.patience.wait(took, periods));
        let Ok(reached) = timeout(within, changes.wait_for(is_there)).await else {
            self.patience.missed(within, periods);
            return None;
        };
        let reached = reached.ok()?.clone()?;
        self.patience.reached(began.elapsed());
        Some(reached)
    }

    /// A read of the cluster's revision is being sent. Where reads find the position at that revision, events alone keep it
    /// there, and progress would cost a message each way for nothing.
    pub fn note_read_sent(&self) {
        let one_less = |wanted: u32| wanted.checked_sub(1);
        if self.progress_wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
            self.read_sent.notify_one();
        }
    }

    pub fn target(&self) -> Revision {
        Revision(self.target.load(Ordering::Acquire))
    }

    /// Its memory is given to another one. Nothing counts for it any more until the task begins anew.
    pub fn evict(&self) {
        self.is_evicted.store(true, Ordering::Relaxed);
        self.evicted.notify_one();
    }

    /// Whether the task has yet to see that it was evicted.
    pub fn is_evicted(&self) -> bool {
        self.is_evicted.load(Ordering::Relaxed)
    }

    /// What was told to the task about the state before does not concern the next one.
    pub fn forget_signals(&self) {
        self.is_evicted.store(false, Ordering::Relaxed);
        for signal in [&self.evicted, &self.went_back, &self.wanted] {
            let _ = signal.notified().now_or_never();
        }
    }

    /// The target was that of a cluster that is gone.
    pub fn forget_target(&self) {
        self.target.store(0, Ordering::Release);
    }

    pub fn note_read(&self) {
        let millis = self.base.elapsed().as_millis();
        self.last_read.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
        if self.is_promoted {
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads since the last call; of a promoted one.
    pub fn take_reads(&self) -> u64 {
        self.reads.swap(0, Ordering::Relaxed)
    }

    /// Milliseconds after the common base.
    pub fn last_read(&self) -> u64 {
        self.last_read.load(Ordering::Relaxed)
    }

    pub fn idle_for(&self) -> Duration {
        self.base.elapsed().saturating_sub(Duration::from_millis(self.last_read()))
    }
}
