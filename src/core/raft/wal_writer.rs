use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::driver::GroupWriter;
use super::step::PersistGroup;
use super::wal_driver::{PersistError, WalDriver, WalJob};
use crate::core::wal::{Wal, WalDisk};
use crate::telemetry::DiskMetrics;

/// Groups and marks waiting for the disk. The raft thread gives out a few groups at a time, so the bound only matters
/// for marks; a full queue makes the raft thread wait.
const QUEUE_MAX: usize = 64;

/// Way in to the thread that writes the WAL. Dropping it ends the thread once the queue is written.
pub struct WalWriter<D: WalDisk> {
    jobs: Option<SyncSender<WalJob>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared<D>>,
}

impl<D: WalDisk> std::fmt::Debug for WalWriter<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalWriter").finish_non_exhaustive()
    }
}

/// Reports of the writer to the rest of the member.
pub struct WalObserver {
    /// Called with the number of the newest durable group, unless it was written on the thread that handed it over.
    pub persisted: Box<dyn Fn(u64) + Send>,
    /// Called once, when a write failed; nothing is written after it.
    pub failed: Arc<dyn Fn(String) + Send + Sync>,
    /// Times and bytes.
    pub metrics: DiskMetrics,
}

/// What the thread and [`GroupWriter::write_here`] both work with.
struct Shared<D: WalDisk> {
    log: Mutex<WalDriver<D>>,
    /// Jobs given to the thread and not done yet.
    queued: AtomicUsize,
    failed: Arc<dyn Fn(String) + Send + Sync>,
}

impl<D: WalDisk> Shared<D> {
    fn fail(&self, error: PersistError) {
        (self.failed)(format!("{:#}", anyhow::Error::from(error)));
    }
}

impl<D: WalDisk + 'static> WalWriter<D> {
    /// Starts the thread. `segments_min` whole segments are kept whatever state on disk covers.
    ///
    /// # Errors
    /// When the thread cannot start.
    pub fn start(wal: Wal<D>, segments_min: usize, observer: WalObserver) -> std::io::Result<Self> {
        let WalObserver { persisted, failed, metrics } = observer;
        let log = Mutex::new(WalDriver::new(wal, segments_min, metrics));
        let shared = Arc::new(Shared { log, queued: AtomicUsize::new(0), failed });
        let (jobs, queue) = sync_channel(QUEUE_MAX);
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("wal".into())
            .spawn(move || serve(&of_thread, &queue, persisted.as_ref()))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), shared })
    }
}

impl<D: WalDisk> GroupWriter for WalWriter<D> {
    fn is_idle(&self) -> bool {
        // Only the caller adds jobs.
        self.shared.queued.load(Ordering::Acquire) == 0
    }

    fn write_here(&mut self, group: PersistGroup) -> bool {
        let mut durable = false;
        let written = self.shared.log.lock().write([WalJob::Group(group)], |_| durable = true);
        if let Err(error) = written {
            self.shared.fail(error);
        }
        durable
    }

    fn queue(&mut self, job: WalJob) {
        if let Some(jobs) = &self.jobs {
            self.shared.queued.fetch_add(1, Ordering::Relaxed);
            // The receiver is gone only after a failed write, and then the member is stopping.
            let _ = jobs.send(job);
        }
    }
}

impl<D: WalDisk> Drop for WalWriter<D> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes what is queued, one sync for as many groups as there are.
fn serve<D: WalDisk>(shared: &Shared<D>, queue: &Receiver<WalJob>, persisted: &(dyn Fn(u64) + Send)) {
    while let Ok(first) = queue.recv() {
        let jobs: Vec<_> = std::iter::once(first).chain(std::iter::from_fn(|| queue.try_recv().ok())).collect();
        let count = jobs.len();
        let written = shared.log.lock().write(jobs, persisted);
        if let Err(error) = written {
            return shared.fail(error);
        }
        shared.queued.fetch_sub(count, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::core::wal::{FsDisk, WalEntry, WalEntryKind, WalMetadata};
    use crate::telemetry::Metrics;
    use crate::types::{ClusterId, LogIndex, LogPosition, MemberId, Term};
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
        let mut writer = WalWriter::start(wal, 1, observer).unwrap();
        let mut written_here = 0;
        for number in 1..=60 {
            // One in three goes to the thread, and what follows has to stay behind it.
            match number % 3 != 0 && writer.is_idle() {
                true => written_here += usize::from(writer.write_here(group(number))),
                false => writer.queue(WalJob::Group(group(number))),
            }
        }
        assert!(written_here >= 2, "{written_here}");
        drop(writer);
        assert_eq!(reported.iter().last(), Some(60));
        let (_, recovered) = Wal::open(FsDisk::default(), &dir, LogPosition::default()).unwrap();
        assert_eq!(recovered.entries.len(), 60, "a log with a gap does not open");
    }
}
