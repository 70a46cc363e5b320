use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::caller::Caller;
use super::proposer::Proposer;
use crate::config::AutoCompaction;
use crate::core::mvcc::StoreReader;
use crate::core::raft::RaftHandle;
use crate::pb::etcdserverpb::CompactionRequest;
use crate::shutdown::Tasks;
use crate::types::Revision;

/// Pause between compactions in mode `revision`.
const REVISION_PERIOD: Duration = Duration::from_secs(5 * 60);
/// Longest pause between compactions in mode `periodic`.
const LONGEST_STEP: Duration = Duration::from_secs(60 * 60);
/// Samples of the newest revision per pause.
const SAMPLES: u32 = 10;

/// Compacts history by `--auto-compaction-mode` and `--auto-compaction-retention`, while this member leads.
pub(super) struct AutoCompactor {
    pub(super) raft: RaftHandle,
    pub(super) store: StoreReader,
    pub(super) proposer: Arc<Proposer>,
}

/// Compacts until `tasks` stop.
pub(super) async fn run(compactor: AutoCompactor, policy: AutoCompaction, tasks: Tasks) {
    match policy {
        AutoCompaction::Off => {}
        AutoCompaction::Revision(kept) => by_revision(compactor, kept, tasks).await,
        AutoCompaction::Periodic(period) => periodic(compactor, period, tasks).await,
    }
}

async fn by_revision(compactor: AutoCompactor, kept: u64, tasks: Tasks) {
    let stop = tasks.stop_signal();
    let mut ticks = interval(REVISION_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let newest = compactor.store.revision().0;
        compactor.compact(Revision(newest.saturating_sub_unsigned(kept))).await;
    }
}

async fn periodic(compactor: AutoCompactor, period: Duration, tasks: Tasks) {
    let stop = tasks.stop_signal();
    let mut history = History::new(period);
    let mut ticks = interval(history.sample);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let started = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if !compactor.raft.status().borrow().is_leader {
            // A deposed leader starts over when it leads again.
            history = History::new(period);
            continue;
        }
        let now = started.elapsed();
        if let Some(at) = history.sampled(now, compactor.store.revision())
            && compactor.compact(at).await
        {
            history.compacted(now);
        }
    }
}

impl AutoCompactor {
    /// Compacts if this member leads and that is not done yet; whether nothing is left to be tried again.
    async fn compact(&self, at: Revision) -> bool {
        if !self.raft.status().borrow().is_leader || at.0 <= self.store.compacted().0.max(0) {
            return true;
        }
        let compaction = CompactionRequest { revision: at.0, physical: false };
        match self.proposer.propose(&Caller::Member, compaction).await {
            Ok(_) => {
                info!(revision = %at, "history compacted automatically");
                true
            }
            Err(error) => {
                warn!(revision = %at, %error, "automatic compaction failed");
                false
            }
        }
    }
}

/// Revisions over time: which one was the newest a retention period ago.
struct History {
    period: Duration,
    step: Duration,
    sample: Duration,
    samples: VecDeque<(Duration, Revision)>,
    first: Option<Duration>,
    last_compaction: Option<Duration>,
}

impl History {
    fn new(period: Duration) -> Self {
        let step = period.min(LONGEST_STEP);
        let sample = (step / SAMPLES).max(Duration::from_millis(1));
        Self { period, step, sample, samples: VecDeque::new(), first: None, last_compaction: None }
    }

    /// Records the newest revision; returns the revision to compact to when a compaction is due. It is due again with the next
    /// sample, until [`compacted`](Self::compacted) is called.
    fn sampled(&mut self, now: Duration, newest: Revision) -> Option<Revision> {
        let first = *self.first.get_or_insert(now);
        self.samples.push_back((now, newest));
        let horizon = now.checked_sub(self.period)?;
        if now - first < self.period || self.last_compaction.is_some_and(|last| now - last < self.step) {
            return None;
        }
        let mut at = None;
        while self.samples.front().is_some_and(|(taken, _)| *taken <= horizon) {
            at = self.samples.pop_front().map(|(_, revision)| revision);
        }
        at
    }

    /// The compaction that was due at `now` is done.
    fn compacted(&mut self, now: Duration) {
        self.last_compaction = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_of_a_period_ago_is_forgotten() {
        let minute = Duration::from_secs(60);
        let mut history = History::new(10 * minute);
        assert_eq!(history.sample, minute);
        for at in 0..10 {
            assert_eq!(history.sampled(at * minute, Revision(i64::from(at))), None);
        }
        assert_eq!(history.sampled(10 * minute, Revision(10)), Some(Revision(0)));
        history.compacted(10 * minute);
        assert_eq!(history.sampled(11 * minute, Revision(11)), None, "once per step");
        for at in 12..20 {
            assert_eq!(history.sampled(at * minute, Revision(i64::from(at))), None);
        }
        assert_eq!(history.sampled(20 * minute, Revision(20)), Some(Revision(10)));
    }

    // Cause: it was tried again after the next whole period; etcd tries again after a tenth of it.
    #[test]
    fn a_compaction_that_failed_is_due_with_the_next_sample() {
        let minute = Duration::from_secs(60);
        let mut history = History::new(10 * minute);
        let mut sampled = |at: u32| history.sampled(at * minute, Revision(at.into()));
        assert!((0..10).all(|at| sampled(at).is_none()));
        assert_eq!(sampled(10), Some(Revision(0)));
        assert_eq!(sampled(11), Some(Revision(1)));
        history.compacted(11 * minute);
        let mut sampled = |at: u32| history.sampled(at * minute, Revision(at.into()));
        assert!((12..21).all(|at| sampled(at).is_none()));
        assert_eq!(sampled(21), Some(Revision(11)));
    }
}
