use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::batch::LogBatch;
use crate::types::Revision;

/// What a log keeps that nobody reads. A watch that begins further back reads the [`History`](super::History) first.
const UNREAD_BYTES: usize = 4 * 1024 * 1024;

/// The newest revisions of a key range, shared by every watcher of it.
///
/// One owner appends, whole revisions in ascending order; any number of watcher sets read. The owner never waits for a
/// reader: the oldest batches leave when the bytes are used up, and a reader that needed them asks its
/// [`History`](super::History).
#[derive(Debug)]
pub struct EventLog {
    ring: RwLock<Ring>,
    head: AtomicI64,
    compacted: AtomicI64,
    bytes_max: usize,
    readers: Mutex<Vec<Arc<Notify>>>,
}

#[derive(Debug)]
struct Ring {
    batches: VecDeque<Arc<LogBatch>>,
    bytes: usize,
    /// Every event at or above this revision is here.
    floor: Revision,
}

/// Answer of [`EventLog::read`].
#[derive(Debug)]
pub(super) enum Read {
    /// Batches after the revision asked for; every event up to `complete_to` is among them or before them.
    Batches { batches: Vec<Arc<LogBatch>>, complete_to: Revision },
    /// Some of it has left the log.
    Behind,
}

impl EventLog {
    /// A log that will hold everything after `position`, in at most `bytes_max` bytes (one batch always fits), and in a few
    /// MiB while it has no reader.
    pub fn new(position: Revision, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            ring: RwLock::new(Ring { batches: VecDeque::new(), bytes: 0, floor: position.next() }),
            head: AtomicI64::new(position.0),
            compacted: AtomicI64::new(0),
            bytes_max,
            readers: Mutex::default(),
        })
    }

    /// Adds revisions and wakes the watcher sets. Never waits for a watcher; the caller appends before it answers the
    /// writers of these revisions, so that a watch created after the answer starts behind them.
    ///
    /// A revision at or below the newest one is ignored: it was appended before.
    pub fn append(&self, batches: impl IntoIterator<Item = Arc<LogBatch>>) {
        // Freed outside the lock: dropping a large batch takes a while.
        let mut evicted = Vec::new();
        let bytes_max = if self.readers.lock().is_empty() { self.bytes_max.min(UNREAD_BYTES) } else { self.bytes_max };
        {
            let mut ring = self.ring.write();
            let mut head = self.head();
            for batch in batches {
                if batch.revision() <= head {
                    continue;
                }
                head = batch.revision();
                ring.bytes += batch.cost();
                ring.batches.push_back(batch);
            }
            while ring.bytes > bytes_max && ring.batches.len() > 1 {
                let Some(oldest) = ring.batches.pop_front() else { break };
                ring.bytes -= oldest.cost();
                ring.floor = oldest.revision().next();
                evicted.push(oldest);
            }
            self.head.store(head.0, Ordering::Release);
        }
        self.wake();
    }

    /// Declares that nothing more happens to the range up to and including `revision`.
    pub fn advance(&self, revision: Revision) {
        {
            let _ring = self.ring.write();
            if revision <= self.head() {
                return;
            }
            self.head.store(revision.0, Ordering::Release);
        }
        self.wake();
    }

    /// Goes on after `revision` without the events up to there, which only the [`History`](super::History) has.
    pub fn jump(&self, revision: Revision) {
        let dropped = {
            let mut ring = self.ring.write();
            if revision <= self.head() {
                return;
            }
            ring.floor = revision.next();
            ring.bytes = 0;
            self.head.store(revision.0, Ordering::Release);
            std::mem::take(&mut ring.batches)
        };
        drop(dropped);
        self.wake();
    }

    /// Remembers that history below `revision` is gone: watches that ask for less are cancelled, and what was there before the events
    /// up to it is not told.
    pub fn compact(&self, revision: Revision) {
        self.compacted.fetch_max(revision.0, Ordering::AcqRel);
    }

    /// The newest revision the log is complete to.
    pub fn head(&self) -> Revision {
        Revision(self.head.load(Ordering::Acquire))
    }

    /// The oldest revision the log is complete from.
    pub fn floor(&self) -> Revision {
        self.ring.read().floor
    }

    /// The newest compaction the owner reported, 0 when none.
    pub fn compacted(&self) -> Revision {
        Revision(self.compacted.load(Ordering::Acquire))
    }

    /// Up to `batches_max` batches after `after`, none above `up_to`.
    pub(super) fn read(&self, after: Revision, up_to: Revision, batches_max: usize) -> Read {
        let ring = self.ring.read();
        let up_to = up_to.min(self.head());
        if after.next() < ring.floor {
            return Read::Behind;
        }
        let from = ring.batches.partition_point(|batch| batch.revision() <= after);
        let mut batches: Vec<_> = ring
            .batches
            .range(from..)
            .take(batches_max + 1)
            .take_while(|batch| batch.revision() <= up_to)
            .cloned()
            .collect();
        let mut complete_to = up_to.max(after);
        if batches.len() > batches_max {
            batches.truncate(batches_max);
            complete_to = batches.last().map_or(after, |batch| batch.revision());
        }
        Read::Batches { batches, complete_to }
    }

    /// Has `reader` notified of every append until [`unsubscribe`](Self::unsubscribe).
    pub(super) fn subscribe(&self, reader: Arc<Notify>) {
        self.readers.lock().push(reader);
    }

    pub(super) fn unsubscribe(&self, reader: &Arc<Notify>) {
        let mut readers = self.readers.lock();
        if let Some(at) = readers.iter().position(|other| Arc::ptr_eq(other, reader)) {
            readers.swap_remove(at);
        }
    }

    fn wake(&self) {
        for reader in self.readers.lock().iter() {
            reader.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::{EventKind, LogEvent};
    use super::*;

    fn batch(revision: i64) -> Arc<LogBatch> {
        let event = LogEvent::new(EventKind::Put, "k".into(), "v".into(), None);
        Arc::new(LogBatch::new(Revision(revision), vec![event]))
    }

    fn revisions(log: &EventLog, after: i64, up_to: i64, max: usize) -> Option<(Vec<i64>, i64)> {
        match log.read(Revision(after), Revision(up_to), max) {
            Read::Batches { batches, complete_to } => {
                Some((batches.iter().map(|batch| batch.revision().0).collect(), complete_to.0))
            }
            Read::Behind => None,
        }
    }

    #[test]
    fn readers_get_whole_revisions_or_learn_that_they_are_behind() {
        let log = EventLog::new(Revision(4), 3 * batch(1).cost());
        log.append([batch(5), batch(7), batch(9)]);
        assert_eq!(revisions(&log, 4, 100, 10), Some((vec![5, 7, 9], 9)));
        assert_eq!(revisions(&log, 5, 8, 10), Some((vec![7], 8)));
        assert_eq!(revisions(&log, 4, 100, 2), Some((vec![5, 7], 7)));
        assert_eq!(revisions(&log, 3, 100, 10), None);
        log.append([batch(9), batch(10)]);
        assert_eq!(log.floor(), Revision(6), "one batch left");
        assert_eq!(revisions(&log, 4, 100, 10), None);
        assert_eq!(revisions(&log, 5, 100, 10), Some((vec![7, 9, 10], 10)), "the repeated 9 is ignored");
        log.advance(Revision(20));
        assert_eq!(revisions(&log, 10, 100, 10), Some((vec![], 20)));
    }

    #[test]
    fn a_log_without_readers_keeps_little() {
        // Cause: 100,000 puts on a member without watchers held 64 MiB of events.
        let large = |revision| {
            let event = LogEvent::new(EventKind::Put, "k".into(), vec![b'v'; 500_000].into(), None);
            Arc::new(LogBatch::new(Revision(revision), vec![event]))
        };
        let log = EventLog::new(Revision(0), 64 * 1024 * 1024);
        log.append((1..=20).map(large));
        assert_eq!(log.floor(), Revision(17), "four of a megabyte each");
        let reader = Arc::new(Notify::new());
        log.subscribe(reader.clone());
        log.append((21..=40).map(large));
        assert_eq!(log.floor(), Revision(17), "all of them since then");
        log.unsubscribe(&reader);
        log.append([large(41)]);
        assert_eq!(log.floor(), Revision(38));
    }
}
