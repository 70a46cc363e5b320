use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use super::applier::{AppliedRequest, Applier, Batch, LeaseFact};
use super::outcome::ApplyError;
use super::pending_requests::SharedPendingRequests;
use super::prepared_snapshots::PreparedSnapshots;
use crate::core::alarm::AlarmStore;
use crate::core::cluster::ClusterStore;
use crate::core::mvcc::{Compaction, OperationCounts, Progress, RevisionEvents};
use crate::core::raft::{CommitSink, Committed, CommittedKind, MembersDecision};
use crate::types::{LogIndex, LogPosition, Revision};

/// Groups of committed entries on their way. Raft refuses proposals long before this many entries wait, and a group
/// holds at least one.
const QUEUE_MAX: usize = 16 * 1024;
/// Entries applied before their outcomes are published; bounds what one answer waits for.
const BATCH_MAX: usize = 512;

/// Where raft puts committed entries.
pub struct ApplyQueue {
    jobs: SyncSender<Job>,
    pending: Arc<SharedPendingRequests>,
}

enum Job {
    Entries(Vec<Committed>),
    Install(LogPosition),
}

impl CommitSink for ApplyQueue {
    // The receiver is gone only when the member is stopping.
    fn committed(&mut self, entries: Vec<Committed>) {
        let _ = self.jobs.send(Job::Entries(entries));
    }

    fn install(&mut self, position: LogPosition) {
        let _ = self.jobs.send(Job::Install(position));
    }

    fn dropped(&mut self, request: u64) {
        self.pending.dropped(request);
    }
}

/// What the rest of the member hears from apply; for each batch in the order of these methods. All return at once.
pub trait ApplyObserver: Send + 'static {
    /// A request of the log was applied, and is published with the rest of its batch; `took` is the time since the one
    /// before.
    fn applied_request(&mut self, request: &Bytes, applied: AppliedRequest, took: Duration);
    /// What the batch did in the store.
    fn operations(&mut self, counts: &OperationCounts);
    /// Events, in revision order; readers can see their revisions already.
    fn events(&mut self, events: Vec<RevisionEvents>);
    /// Leases granted and revoked.
    fn leases(&mut self, facts: &[LeaseFact]);
    /// Which membership changes take effect, in log order.
    fn members_decided(&mut self, decisions: Vec<MembersDecision>);
    /// Alarms or members changed.
    fn records(&mut self, cluster: &ClusterStore, alarms: &AlarmStore);
    /// Another state took the place of the one before, and readers can see it: whatever was derived from the old one
    /// is out of date.
    fn installed(&mut self, applier: &Applier);
    /// Everything up to here is published.
    fn applied(&mut self, index: LogIndex);
    /// A write was applied although the quota had no room for it.
    fn over_quota(&mut self);
    /// A slice of a compaction held entries up for so long.
    fn compaction_slice(&mut self, took: Duration);
    /// A compaction is finished: how many records it removed, and how long that took in all.
    fn compacted(&mut self, records: usize, took: Duration);
    /// The state can no longer be trusted; the thread ends after this call.
    fn failed(&mut self, reason: String);
}

/// Progress of apply. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ApplyHandle {
    applied: watch::Receiver<LogIndex>,
    compaction: watch::Receiver<Revision>,
}

impl ApplyHandle {
    /// Up to where the state is published.
    pub fn progress(&self) -> watch::Receiver<LogIndex> {
        self.applied.clone()
    }

    /// Up to where physical compaction is finished.
    pub fn compaction(&self) -> watch::Receiver<Revision> {
        self.compaction.clone()
    }
}

/// Pace of physical compaction: short slices with pauses, so that entries never wait for long.
#[derive(Clone, Copy, Debug)]
pub struct CompactionPace {
    /// Records removed in one slice.
    pub slice_records: usize,
    /// Pause between slices.
    pub pause: Duration,
}

/// What the apply thread works with beside its state.
pub struct ApplyConfig {
    /// Snapshots received from the leader.
    pub prepared_snapshots: Arc<PreparedSnapshots>,
    /// Pace of compactions.
    pub pace: CompactionPace,
}

/// The apply thread, set up before raft so that raft can hand entries to it.
#[derive(Debug)]
pub struct ApplyTask {
    handle: ApplyHandle,
    thread: Option<JoinHandle<()>>,
}

/// What [`ApplyTask::channel`] sets up before the thread can start.
pub struct ApplyInlet {
    receiver: Receiver<Job>,
    applied: watch::Sender<LogIndex>,
    compaction: watch::Sender<Revision>,
    pending: Arc<SharedPendingRequests>,
}

impl ApplyTask {
    /// The queue for raft, the handle for everyone, and the inlet to start the thread with.
    pub fn channel(pending: Arc<SharedPendingRequests>) -> (ApplyQueue, ApplyHandle, ApplyInlet) {
        let (jobs, receiver) = sync_channel(QUEUE_MAX);
        let (applied, applied_seen) = watch::channel(LogIndex(0));
        let (compaction, compaction_seen) = watch::channel(Revision(0));
        let handle = ApplyHandle { applied: applied_seen, compaction: compaction_seen };
        let queue = ApplyQueue { jobs, pending: pending.clone() };
        (queue, handle, ApplyInlet { receiver, applied, compaction, pending })
    }

    /// Starts the thread. It ends when raft's side of the queue is gone and everything in it is applied.
    ///
    /// # Errors
    /// When the thread cannot start.
    pub fn start<O: ApplyObserver>(
        mut applier: Applier,
        inlet: ApplyInlet,
        handle: ApplyHandle,
        observer: O,
        config: ApplyConfig,
    ) -> std::io::Result<Self> {
        let compactions = applier.store().take_unfinished_compaction().into_iter().collect();
        let worker = Worker { applier, inlet, observer, config, compactions, compacting_since: None };
        let thread = std::thread::Builder::new().name("apply".into()).spawn(move || worker.run())?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// Progress.
    pub fn handle(&self) -> ApplyHandle {
        self.handle.clone()
    }

    /// Waits for the end of the thread; raft must have stopped.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker<O> {
    applier: Applier,
    inlet: ApplyInlet,
    observer: O,
    config: ApplyConfig,
    compactions: VecDeque<Compaction>,
    /// When the first slice of the oldest compaction was due.
    compacting_since: Option<Instant>,
}

impl<O: ApplyObserver> Worker<O> {
    fn run(mut self) {
        // Apply does not panic; if it does, the state cannot be trusted any more.
        match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.observer.failed(format!("{:#}", anyhow::Error::from(error))),
            Err(_) => self.observer.failed("apply panicked".to_owned()),
        }
    }

    fn serve(&mut self) -> Result<(), ApplyError> {
        let mut next_slice = Instant::now();
        loop {
            let received = if self.compactions.is_empty() {
                self.inlet.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.inlet.receiver.recv_timeout(next_slice.saturating_duration_since(Instant::now()))
            };
            match received {
                Ok(Job::Entries(first)) => self.apply_all(first)?,
                Ok(Job::Install(position)) => self.install(position)?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if !self.compactions.is_empty() && Instant::now() >= next_slice {
                self.compact_slice();
                next_slice = Instant::now() + self.config.pace.pause;
            }
        }
    }

    /// Applies everything that waits, publishing once per bounded batch.
    fn apply_all(&mut self, first: Vec<Committed>) -> Result<(), ApplyError> {
        let mut waiting = VecDeque::from(first);
        let mut install = None;
        while waiting.len() < BATCH_MAX {
            match self.inlet.receiver.try_recv() {
                Ok(Job::Entries(more)) => waiting.extend(more),
                Ok(Job::Install(position)) => {
                    install = Some(position);
                    break;
                }
                Err(_) => break,
            }
        }
        while !waiting.is_empty() {
            let mut batch = Batch::default();
            let mut began = Instant::now();
            for entry in waiting.drain(..waiting.len().min(BATCH_MAX)) {
                let request = match &entry.kind {
                    CommittedKind::Request(request) => request.clone(),
                    CommittedKind::Empty | CommittedKind::Members(_) => Bytes::new(),
                };
                let applied = self.applier.apply(entry, &mut batch)?;
                let now = Instant::now();
                if let Some(applied) = applied {
                    self.observer.applied_request(&request, applied, now - began);
                }
                began = now;
            }
            self.release(batch);
        }
        match install {
            Some(position) => self.install(position),
            None => Ok(()),
        }
    }

    /// Puts a prepared state in the place of the present one.
    fn install(&mut self, position: LogPosition) -> Result<(), ApplyError> {
        let prepared = self.config.prepared_snapshots.take(position).ok_or(ApplyError::NoDbSnapshot(position.index))?;
        self.applier.install(prepared)?;
        // What the old state was about to remove is gone with it.
        self.compacting_since = None;
        self.compactions = self.applier.store().take_unfinished_compaction().into_iter().collect();
        self.observer.installed(&self.applier);
        self.observer.applied(position.index);
        self.inlet.applied.send_replace(position.index);
        self.inlet.pending.installed(position.term);
        Ok(())
    }

    /// Publishes, then tells, then answers: whoever hears of a write can read it.
    fn release(&mut self, batch: Batch) {
        let reached = self.applier.position();
        self.applier.store().publish();
        self.observer.operations(&batch.operations);
        if !batch.events.is_empty() {
            self.observer.events(batch.events);
        }
        self.observer.leases(&batch.lease_facts);
        if !batch.decisions.is_empty() {
            self.observer.members_decided(batch.decisions);
        }
        if batch.records_changed {
            self.observer.records(self.applier.cluster(), self.applier.alarms());
        }
        self.observer.applied(reached.index);
        self.inlet.applied.send_replace(reached.index);
        self.inlet.pending.resolve(batch.outcomes, reached.term);
        if batch.over_quota {
            self.observer.over_quota();
        }
        self.compactions.extend(batch.compactions);
    }

    /// One slice of the oldest compaction that is not finished.
    fn compact_slice(&mut self) {
        let Some(compaction) = self.compactions.front_mut() else { return };
        if let Some(hash) = compaction.take_hash(self.applier.store()) {
            // Reads all rows, so not here; until it is done the store holds the rows back.
            let spawned = std::thread::Builder::new().name("compact-hash".into()).spawn(move || hash.run());
            if let Err(error) = spawned {
                tracing::warn!(%error, "hash of a compaction is not computed");
            }
        }
        let at = compaction.revision();
        let began = Instant::now();
        let compacting_since = *self.compacting_since.get_or_insert(began);
        let progress = self.applier.compaction_slice(compaction, self.config.pace.slice_records);
        self.observer.compaction_slice(began.elapsed());
        if progress == Progress::Done {
            let removed = compaction.removed();
            tracing::info!(revision = %at, removed, "finished scheduled compaction");
            self.observer.compacted(removed, compacting_since.elapsed());
            self.compacting_since = None;
            self.compactions.pop_front();
            self.inlet.compaction.send_replace(at);
        }
    }
}
