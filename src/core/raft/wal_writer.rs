use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use prometheus::Histogram;

use super::node::PersistGroup;
use crate::core::wal::{HardState, Wal, WalDisk, WalError, WalSnapshot};
use crate::types::LogIndex;

/// Groups and marks waiting for the disk. The raft thread gives out a few groups at a time, so the bound only matters
/// for marks; a full queue makes the raft thread wait.
const QUEUE_MAX: usize = 64;

/// The log could not be written; the member must stop, nothing is retried.
#[derive(Debug, thiserror::Error)]
#[error("write-ahead log")]
pub struct PersistError(#[from] WalError);

enum Job {
    Group(PersistGroup),
    HardState(HardState),
    Snapshot(WalSnapshot),
}

/// Way in to the thread that owns the WAL files. Dropping it ends the thread once the queue is written.
#[derive(Debug)]
pub struct WalWriter {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// What the writer tells the rest of the member.
pub struct WalObserver {
    /// Called with the number of the newest durable group.
    pub persisted: Box<dyn Fn(u64) + Send>,
    /// Called once, when a write failed; the thread ends then.
    pub failed: Arc<dyn Fn(String) + Send + Sync>,
    /// Seconds per sync.
    pub sync_seconds: Histogram,
}

impl WalWriter {
    /// Starts the thread. `segments_min` whole segments are kept whatever state on disk covers.
    ///
    /// # Errors
    /// When the thread cannot start.
    pub fn start<D: WalDisk + 'static>(
        wal: Wal<D>,
        segments_min: usize,
        observer: WalObserver,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new().name("wal".into()).spawn(move || {
            let failed = observer.failed.clone();
            if let Err(error) = write_all(wal, &queue, segments_min, &observer) {
                failed(format!("{:#}", anyhow::Error::from(error)));
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    pub(super) fn persist(&self, group: PersistGroup) {
        self.send(Job::Group(group));
    }

    pub(super) fn hard_state(&self, state: HardState) {
        self.send(Job::HardState(state));
    }

    pub(super) fn snapshot(&self, snapshot: WalSnapshot) {
        self.send(Job::Snapshot(snapshot));
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The receiver is gone only after a failed write, and then the member is stopping.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for WalWriter {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes what is queued, one sync for as many groups as there are.
fn write_all<D: WalDisk>(
    mut wal: Wal<D>,
    queue: &Receiver<Job>,
    segments_min: usize,
    observer: &WalObserver,
) -> Result<(), PersistError> {
    while let Ok(first) = queue.recv() {
        fail::fail_point!("raftBeforeSave");
        let mut newest = None;
        let mut release = None;
        for job in std::iter::once(first).chain(std::iter::from_fn(|| queue.try_recv().ok())) {
            match job {
                Job::Group(group) => {
                    if let Some(snapshot) = &group.snapshot {
                        wal.mark_snapshot(snapshot)?;
                    }
                    wal.append(&group.entries, group.hard_state.as_ref())?;
                    newest = Some(group.number);
                }
                Job::HardState(state) => wal.append(&[], Some(&state))?,
                Job::Snapshot(snapshot) => {
                    wal.mark_snapshot(&snapshot)?;
                    release = Some(snapshot.index);
                }
            }
        }
        let started = Instant::now();
        wal.sync()?;
        observer.sync_seconds.observe(started.elapsed().as_secs_f64());
        fail::fail_point!("raftAfterSave");
        if let Some(number) = newest {
            (observer.persisted)(number);
        }
        if let Some(index) = release {
            wal.release(LogIndex(index.0), segments_min)?;
        }
    }
    Ok(())
}
