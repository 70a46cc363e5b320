use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::applier::Applier;
use super::driver::{ApplyDriver, ApplyHandle, ApplyObserver, ApplyProgress, BATCH_MAX};
use super::outcome::ApplyError;
use super::pending_requests::SharedPendingRequests;
use super::prepared_snapshots::PreparedSnapshots;
use crate::core::mvcc::CompactionHash;
use crate::core::raft::{CommitSink, Committed, CommittedKind};
use crate::types::{LogIndex, LogPosition, Term};

/// Groups of committed entries on their way. Raft refuses proposals long before this many entries wait, and a group
/// holds at least one.
const QUEUE_MAX: usize = 16 * 1024;

/// What the raft thread applies itself, at most: more are applied here while it makes the next ones durable.
const ON_RAFT_THREAD_MAX: usize = 2;
/// Bytes of them.
const ON_RAFT_THREAD_BYTES_MAX: usize = 16 * 1024;

/// Where raft puts committed entries.
pub struct ApplyQueue<O> {
    jobs: SyncSender<Job>,
    pending: Arc<SharedPendingRequests>,
    shared: Arc<Shared<O>>,
}

enum Job {
    Entries(Vec<Committed>),
    Install(LogPosition),
    /// A compaction has begun on the raft thread.
    Compact,
}

/// What the apply thread and [`CommitSink::committed_while_idle`] both work with: whoever holds the lock applies.
///
/// Entries are applied in their order: raft applies only when nothing that it gave to the thread is left, and nobody else gives
/// any.
struct Shared<O> {
    /// Jobs given to the thread and not done yet.
    queued: AtomicUsize,
    /// None before the thread has started, and once the state cannot be trusted any more.
    driver: Mutex<Option<ApplyDriver<O>>>,
}

/// Works with the driver, which is gone after an error. Apply does not panic; if it does, that is one.
fn work<O: ApplyObserver>(
    slot: &mut Option<ApplyDriver<O>>,
    work: impl FnOnce(&mut ApplyDriver<O>) -> Result<(), ApplyError>,
) {
    let Some(driver) = slot else { return };
    let reason = match catch_unwind(AssertUnwindSafe(|| work(driver))) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => format!("{:#}", anyhow::Error::from(error)),
        Err(_) => "apply panicked".to_owned(),
    };
    driver.fail(reason);
    *slot = None;
}

impl<O> ApplyQueue<O> {
    /// The receiver is gone only when the member is stopping.
    fn send(&self, job: Job) {
        self.shared.queued.fetch_add(1, Ordering::Relaxed);
        let _ = self.jobs.send(job);
    }
}

impl<O: ApplyObserver> CommitSink for ApplyQueue<O> {
    fn committed(&mut self, entries: Vec<Committed>) {
        self.send(Job::Entries(entries));
    }

    fn committed_while_idle(&mut self, entries: Vec<Committed>) {
        let bytes = |entry: &Committed| match &entry.kind {
            CommittedKind::Request(bytes) => bytes.len(),
            CommittedKind::Empty | CommittedKind::Members(_) => 0,
        };
        let is_little =
            entries.len() <= ON_RAFT_THREAD_MAX && entries.iter().map(bytes).sum::<usize>() <= ON_RAFT_THREAD_BYTES_MAX;
        if !is_little || self.shared.queued.load(Ordering::Acquire) != 0 {
            return self.committed(entries);
        }
        // A slice of a compaction may hold it.
        let Some(mut slot) = self.shared.driver.try_lock().filter(|slot| slot.is_some()) else {
            return self.committed(entries);
        };
        let is_compacting = |slot: &Option<ApplyDriver<O>>| slot.as_ref().is_some_and(ApplyDriver::is_compacting);
        let compacted_before = is_compacting(&slot);
        work(&mut slot, |driver| apply_all(driver, entries.into()));
        if is_compacting(&slot) && !compacted_before {
            self.send(Job::Compact);
        }
    }

    fn install(&mut self, position: LogPosition) {
        self.send(Job::Install(position));
    }

    fn dropped(&mut self, request: u64, term: Term) {
        self.pending.dropped(request, term);
    }
}

fn apply_all<O: ApplyObserver>(
    driver: &mut ApplyDriver<O>,
    mut waiting: VecDeque<Committed>,
) -> Result<(), ApplyError> {
    while !waiting.is_empty() {
        driver.apply(&mut waiting)?;
    }
    Ok(())
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
pub struct ApplyTask(Option<JoinHandle<()>>);

/// What [`ApplyTask::channel`] sets up before the thread can start.
pub struct ApplyInlet<O> {
    receiver: Receiver<Job>,
    progress: ApplyProgress,
    shared: Arc<Shared<O>>,
}

impl ApplyTask {
    /// The queue for raft, the handle for everyone, and the inlet to start the thread with. The state is published up
    /// to `applied` already.
    pub fn channel<O: ApplyObserver>(
        pending: Arc<SharedPendingRequests>,
        applied: LogIndex,
    ) -> (ApplyQueue<O>, ApplyHandle, ApplyInlet<O>) {
        let (jobs, receiver) = sync_channel(QUEUE_MAX);
        let (progress, handle) = ApplyProgress::new(pending.clone(), applied);
        let shared = Arc::new(Shared { queued: AtomicUsize::new(0), driver: Mutex::new(None) });
        let queue = ApplyQueue { jobs, pending, shared: shared.clone() };
        (queue, handle, ApplyInlet { receiver, progress, shared })
    }

    /// Starts the thread. It ends when raft's side of the queue is gone and everything in it is applied.
    ///
    /// # Errors
    /// When the thread cannot start.
    pub fn start<O: ApplyObserver + Send + 'static>(
        applier: Applier,
        inlet: ApplyInlet<O>,
        observer: O,
        config: ApplyConfig,
    ) -> std::io::Result<Self> {
        let ApplyInlet { receiver, progress, shared } = inlet;
        let driver = ApplyDriver::new(applier, observer, progress, config.prepared_snapshots);
        let is_compacting = driver.is_compacting();
        *shared.driver.lock() = Some(driver);
        let worker = Worker { shared, receiver, pace: config.pace, is_compacting };
        let thread = std::thread::Builder::new().name("apply".into()).spawn(move || worker.run())?;
        Ok(Self(Some(thread)))
    }

    /// Waits for the end of the thread; raft must have stopped.
    pub fn join(mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join();
        }
    }
}

struct Worker<O> {
    shared: Arc<Shared<O>>,
    receiver: Receiver<Job>,
    pace: CompactionPace,
    /// Whether rows of a compaction are left to remove, as of this thread's last turn; [`Job::Compact`] tells of one that began on the
    /// raft thread. Known without the lock, which is therefore free for the raft thread while no job is left and no slice is due.
    is_compacting: bool,
}

impl<O: ApplyObserver> Worker<O> {
    fn run(mut self) {
        let mut next_slice = Instant::now();
        loop {
            let received = if self.is_compacting {
                self.receiver.recv_timeout(next_slice.saturating_duration_since(Instant::now()))
            } else {
                self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            let first = match received {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut slot = self.shared.driver.lock();
            let mut done = 0;
            work(&mut slot, |driver| {
                if let Some(first) = first {
                    self.apply(driver, first, &mut done)?;
                }
                if driver.is_compacting() && Instant::now() >= next_slice {
                    driver.compact_slice(self.pace.slice_records, hash_on_thread);
                    next_slice = Instant::now() + self.pace.pause;
                }
                Ok(())
            });
            let is_compacting = slot.as_ref().map(ApplyDriver::is_compacting);
            drop(slot);
            self.shared.queued.fetch_sub(done, Ordering::Release);
            match is_compacting {
                Some(is_compacting) => self.is_compacting = is_compacting,
                None => return,
            }
        }
    }

    /// Applies everything that waits, publishing once per bounded batch, and counts the jobs in `done`.
    fn apply(&self, driver: &mut ApplyDriver<O>, first: Job, done: &mut usize) -> Result<(), ApplyError> {
        let (mut waiting, mut install) = (VecDeque::new(), None);
        let mut take = |job| {
            *done += 1;
            match job {
                Job::Entries(more) => waiting.extend(more),
                Job::Install(position) => install = Some(position),
                Job::Compact => {}
            }
            waiting.len() < BATCH_MAX && install.is_none()
        };
        let mut next = Some(first);
        while let Some(job) = next {
            next = if take(job) { self.receiver.try_recv().ok() } else { None };
        }
        apply_all(driver, waiting)?;
        install.map_or(Ok(()), |position| driver.install(position))
    }
}

/// Reads all rows, so not on the apply thread.
fn hash_on_thread(hash: CompactionHash) {
    let run = move || {
        if let Err(error) = hash.run() {
            tracing::error!(%error, "hash of a compaction cannot be computed");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("compact-hash".into()).spawn(run) {
        tracing::warn!(%error, "hash of a compaction is not computed");
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{self, ThreadId};

    use super::super::testing::{TestObserver, applier, compaction, entry, put};
    use super::*;
    use crate::types::Revision;

    const PACE: CompactionPace = CompactionPace { slice_records: 1, pause: Duration::from_millis(1) };

    fn start(observer: TestObserver) -> (ApplyQueue<TestObserver>, ApplyHandle, ApplyTask) {
        let (_, applier) = applier();
        let (queue, handle, inlet) = ApplyTask::channel(Arc::default(), LogIndex(0));
        let config = ApplyConfig { prepared_snapshots: Arc::default(), pace: PACE };
        (queue, handle, ApplyTask::start(applier, inlet, observer, config).unwrap())
    }

    /// Up to where this thread applied, of what all did.
    fn here(batches: &[(LogIndex, ThreadId)]) -> Vec<LogIndex> {
        let here = thread::current().id();
        batches.iter().filter(|(_, thread)| *thread == here).map(|(index, _)| *index).collect()
    }

    #[test]
    fn entries_keep_their_order_on_both_threads() {
        let observer = TestObserver::default();
        let batches = observer.batches.clone();
        let (mut queue, handle, task) = start(observer);
        for index in 1..=300 {
            // One in three goes to the thread, and what follows has to stay behind it.
            match index % 3 {
                0 => queue.committed(vec![entry(index, &put())]),
                _ => queue.committed_while_idle(vec![entry(index, &put())]),
            }
        }
        drop(queue);
        task.join();
        assert_eq!(handle.applied(), LogIndex(300));
        let batches = batches.lock();
        assert!(batches.is_sorted_by(|(one, _), (next, _)| one < next), "{batches:?}");
        assert!(here(&batches).starts_with(&[LogIndex(1), LogIndex(2)]), "nothing was given to the thread before");
    }

    #[test]
    fn what_is_much_is_left_to_the_thread() {
        let observer = TestObserver::default();
        let batches = observer.batches.clone();
        let (mut queue, _, task) = start(observer);
        let mut large = put();
        large.put.get_or_insert_default().value = vec![b'v'; ON_RAFT_THREAD_BYTES_MAX].into();
        queue.committed_while_idle(vec![entry(1, &large)]);
        queue.committed_while_idle((2..2 + ON_RAFT_THREAD_MAX as u64 + 1).map(|index| entry(index, &put())).collect());
        drop(queue);
        task.join();
        assert_eq!(here(&batches.lock()), []);
    }

    #[tokio::test]
    async fn a_compaction_that_begins_on_the_raft_thread_is_finished() {
        let (mut queue, handle, task) = start(TestObserver::default());
        for (request, index) in [put(), put(), compaction(3)].iter().zip(1..) {
            queue.committed_while_idle(vec![entry(index, request)]);
        }
        handle.compaction().wait_for(|done| *done == Revision(3)).await.unwrap();
        drop(queue);
        task.join();
    }

    #[test]
    fn nothing_is_applied_after_an_error_on_either_thread() {
        for fails_here in [false, true] {
            let observer = TestObserver { panics_from: Some(LogIndex(2)), ..Default::default() };
            let (batches, failed) = (observer.batches.clone(), observer.failed.clone());
            let (mut queue, _, task) = start(observer);
            for index in 1..=9 {
                match fails_here {
                    true => queue.committed_while_idle(vec![entry(index, &put())]),
                    false => queue.committed(vec![entry(index, &put())]),
                }
                if index == 1 {
                    while queue.shared.queued.load(Ordering::Acquire) != 0 {
                        thread::yield_now();
                    }
                }
            }
            drop(queue);
            task.join();
            assert_eq!(*failed.lock(), ["apply panicked"]);
            assert_eq!(batches.lock().len(), 2, "the batch of the first entry and the one that panicked");
        }
    }
}
