use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;

use super::step::PersistGroup;
use crate::core::wal::{HardState, Wal, WalDisk, WalError, WalSnapshot};
use crate::telemetry::DiskMetrics;
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

/// Way in to the thread that writes the WAL. Dropping it ends the thread once the queue is written.
pub struct WalWriter {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for WalWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalWriter").finish_non_exhaustive()
    }
}

/// What the writer tells the rest of the member.
pub struct WalObserver {
    /// Called with the number of the newest durable group, unless `WalWriter::persist_here` returned it.
    pub persisted: Box<dyn Fn(u64) + Send>,
    /// Called once, when a write failed; nothing is written after it.
    pub failed: Arc<dyn Fn(String) + Send + Sync>,
    /// Times and bytes.
    pub metrics: DiskMetrics,
}

/// What the thread and the caller of [`WalWriter::persist_here`] both work with.
struct Shared {
    log: Mutex<Box<dyn Log>>,
    /// Jobs given to the thread and not done yet.
    queued: AtomicUsize,
    failed: Arc<dyn Fn(String) + Send + Sync>,
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
        let WalObserver { persisted, failed, metrics } = observer;
        let log = Files { wal, segments_min, metrics };
        let shared = Arc::new(Shared { log: Mutex::new(Box::new(log)), queued: AtomicUsize::new(0), failed });
        let (jobs, queue) = sync_channel(QUEUE_MAX);
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("wal".into())
            .spawn(move || serve(&of_thread, &queue, persisted.as_ref()))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), shared })
    }

    pub(super) fn persist(&self, group: PersistGroup) {
        self.send(Job::Group(group));
    }

    /// Writes and syncs a group on the calling thread, which saves two changes of threads, and returns whether it is
    /// durable. While the thread has something to do the group goes there, behind it.
    pub(super) fn persist_here(&self, group: PersistGroup) -> bool {
        // Only the caller adds jobs.
        if self.shared.queued.load(Ordering::Acquire) > 0 {
            self.persist(group);
            return false;
        }
        match self.shared.log.lock().write(vec![Job::Group(group)]) {
            Ok(_) => true,
            Err(error) => {
                (self.shared.failed)(describe(error));
                false
            }
        }
    }

    pub(super) fn hard_state(&self, state: HardState) {
        self.send(Job::HardState(state));
    }

    pub(super) fn snapshot(&self, snapshot: WalSnapshot) {
        self.send(Job::Snapshot(snapshot));
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            self.shared.queued.fetch_add(1, Ordering::Relaxed);
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
fn serve(shared: &Shared, queue: &Receiver<Job>, persisted: &(dyn Fn(u64) + Send)) {
    while let Ok(first) = queue.recv() {
        let jobs: Vec<_> = std::iter::once(first).chain(std::iter::from_fn(|| queue.try_recv().ok())).collect();
        let count = jobs.len();
        let mut log = shared.log.lock();
        let done = log.write(jobs).and_then(|written| {
            if let Some(newest) = written.newest {
                persisted(newest);
            }
            written.release.map_or(Ok(()), |upto| log.release(upto))
        });
        drop(log);
        if let Err(error) = done {
            return (shared.failed)(describe(error));
        }
        shared.queued.fetch_sub(count, Ordering::Release);
    }
}

fn describe(error: PersistError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

/// The WAL, whatever disk it is on.
trait Log: Send {
    /// Makes jobs durable with one sync.
    fn write(&mut self, jobs: Vec<Job>) -> Result<Written, PersistError>;
    /// Deletes what the state on disk has made needless.
    fn release(&mut self, upto: LogIndex) -> Result<(), PersistError>;
}

/// What is durable now.
struct Written {
    /// The newest group.
    newest: Option<u64>,
    /// Up to where state on disk covers the log.
    release: Option<LogIndex>,
}

struct Files<D: WalDisk> {
    wal: Wal<D>,
    segments_min: usize,
    metrics: DiskMetrics,
}

impl<D: WalDisk> Files<D> {
    fn mark_snapshot(&mut self, snapshot: &WalSnapshot) -> Result<(), PersistError> {
        let began = Instant::now();
        self.wal.mark_snapshot(snapshot)?;
        self.metrics.snap_fsync.observe(began.elapsed().as_secs_f64());
        Ok(())
    }
}

impl<D: WalDisk> Log for Files<D> {
    fn write(&mut self, jobs: Vec<Job>) -> Result<Written, PersistError> {
        fail::fail_point!("raftBeforeSave");
        let written_before = self.wal.written_bytes();
        let mut newest = None;
        let mut release = None;
        for job in jobs {
            match job {
                Job::Group(group) => {
                    if let Some(snapshot) = &group.snapshot {
                        self.mark_snapshot(snapshot)?;
                    }
                    self.wal.append(&group.entries, group.hard_state.as_ref())?;
                    newest = Some(group.number);
                }
                Job::HardState(state) => self.wal.append(&[], Some(&state))?,
                Job::Snapshot(snapshot) => {
                    self.mark_snapshot(&snapshot)?;
                    release = Some(snapshot.index);
                }
            }
        }
        let began = Instant::now();
        self.wal.write()?;
        let written = Instant::now();
        self.wal.sync()?;
        self.metrics.wal_write.observe((written - began).as_secs_f64());
        self.metrics.wal_fsync.observe(written.elapsed().as_secs_f64());
        self.metrics.wal_write_bytes.add((self.wal.written_bytes() - written_before) as i64);
        fail::fail_point!("raftAfterSave");
        Ok(Written { newest, release })
    }

    fn release(&mut self, upto: LogIndex) -> Result<(), PersistError> {
        Ok(self.wal.release(upto, self.segments_min)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::core::wal::{FsDisk, WalEntry, WalEntryKind, WalMetadata};
    use crate::telemetry::Metrics;
    use crate::types::{ClusterId, LogPosition, MemberId, Term};
    use bytes::Bytes;

    fn group(number: u64) -> PersistGroup {
        let entry = WalEntry {
            kind: WalEntryKind::Normal,
            term: Term(1),
            index: LogIndex(number),
            data: Bytes::from(vec![7; 100]),
        };
        PersistGroup { number, snapshot: None, entries: vec![entry], hard_state: None }
    }

    #[test]
    fn groups_keep_their_order_wherever_they_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("wal");
        let wal =
            Wal::create(FsDisk::default(), &dir, WalMetadata { cluster: ClusterId(1), member: MemberId(2) }).unwrap();
        let (sender, reported) = channel();
        let observer = WalObserver {
            persisted: Box::new(move |number| sender.send(number).unwrap()),
            failed: Arc::new(|reason| panic!("{reason}")),
            metrics: DiskMetrics::register(&Metrics::default()),
        };
        let writer = WalWriter::start(wal, 1, observer).unwrap();
        let mut written_here = 0;
        for number in 1..=60 {
            // One in three goes to the thread, and what follows has to stay behind it.
            match number % 3 {
                0 => writer.persist(group(number)),
                _ => written_here += usize::from(writer.persist_here(group(number))),
            }
        }
        assert!(written_here >= 2, "{written_here}");
        drop(writer);
        assert_eq!(reported.iter().last(), Some(60));
        let (_, recovered) = Wal::open(FsDisk::default(), &dir, LogPosition::default()).unwrap();
        assert_eq!(recovered.entries.len(), 60, "a log with a gap does not open");
    }
}
