use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::applier::Applier;
use super::driver::{ApplyDriver, ApplyHandle, ApplyObserver, ApplyProgress, BATCH_MAX};
use super::outcome::ApplyError;
use super::pending_requests::SharedPendingRequests;
use super::prepared_snapshots::PreparedSnapshots;
use crate::core::mvcc::CompactionHash;
use crate::core::raft::{CommitSink, Committed};
use crate::types::{LogIndex, LogPosition, Term};

/// Groups of committed entries on their way. Raft refuses proposals long before this many entries wait, and a group
/// holds at least one.
const QUEUE_MAX: usize = 16 * 1024;

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

    fn dropped(&mut self, request: u64, term: Term) {
        self.pending.dropped(request, term);
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
pub struct ApplyTask(Option<JoinHandle<()>>);

/// What [`ApplyTask::channel`] sets up before the thread can start.
pub struct ApplyInlet {
    receiver: Receiver<Job>,
    progress: ApplyProgress,
}

impl ApplyTask {
    /// The queue for raft, the handle for everyone, and the inlet to start the thread with. The state is published up
    /// to `applied` already.
    pub fn channel(pending: Arc<SharedPendingRequests>, applied: LogIndex) -> (ApplyQueue, ApplyHandle, ApplyInlet) {
        let (jobs, receiver) = sync_channel(QUEUE_MAX);
        let (progress, handle) = ApplyProgress::new(pending.clone(), applied);
        (ApplyQueue { jobs, pending }, handle, ApplyInlet { receiver, progress })
    }

    /// Starts the thread. It ends when raft's side of the queue is gone and everything in it is applied.
    ///
    /// # Errors
    /// When the thread cannot start.
    pub fn start<O: ApplyObserver + Send + 'static>(
        applier: Applier,
        inlet: ApplyInlet,
        observer: O,
        config: ApplyConfig,
    ) -> std::io::Result<Self> {
        let ApplyInlet { receiver, progress } = inlet;
        let driver = ApplyDriver::new(applier, observer, progress, config.prepared_snapshots);
        let worker = Worker { driver, receiver, pace: config.pace };
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
    driver: ApplyDriver<O>,
    receiver: Receiver<Job>,
    pace: CompactionPace,
}

impl<O: ApplyObserver> Worker<O> {
    fn run(mut self) {
        // Apply does not panic; if it does, the state cannot be trusted any more.
        match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.driver.fail(format!("{:#}", anyhow::Error::from(error))),
            Err(_) => self.driver.fail("apply panicked".to_owned()),
        }
    }

    fn serve(&mut self) -> Result<(), ApplyError> {
        let mut next_slice = Instant::now();
        loop {
            let received = if self.driver.is_compacting() {
                self.receiver.recv_timeout(next_slice.saturating_duration_since(Instant::now()))
            } else {
                self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match received {
                Ok(Job::Entries(first)) => self.apply_all(first)?,
                Ok(Job::Install(position)) => self.driver.install(position)?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.driver.is_compacting() && Instant::now() >= next_slice {
                self.driver.compact_slice(self.pace.slice_records, hash_on_thread);
                next_slice = Instant::now() + self.pace.pause;
            }
        }
    }

    /// Applies everything that waits, publishing once per bounded batch.
    fn apply_all(&mut self, first: Vec<Committed>) -> Result<(), ApplyError> {
        let mut waiting = VecDeque::from(first);
        let mut install = None;
        while waiting.len() < BATCH_MAX && install.is_none() {
            match self.receiver.try_recv() {
                Ok(Job::Entries(more)) => waiting.extend(more),
                Ok(Job::Install(position)) => install = Some(position),
                Err(_) => break,
            }
        }
        while !waiting.is_empty() {
            self.driver.apply(&mut waiting)?;
        }
        install.map_or(Ok(()), |position| self.driver.install(position))
    }
}

/// Reads all rows, so not on the apply thread.
fn hash_on_thread(hash: CompactionHash) {
    let spawned = std::thread::Builder::new().name("compact-hash".into()).spawn(move || hash.run());
    if let Err(error) = spawned {
        tracing::warn!(%error, "hash of a compaction is not computed");
    }
}
