use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tonic::Status;

use super::super::batch::{Block, LogBatch};
use super::super::history::{HistoryError, HistoryRequest};
use super::super::log::Read;
use super::super::routes::Subscription;
use super::super::send_queue::End;
use super::deliver::queue_events;
use super::jobs::{JobId, JobResult, Spot, StartedRead};
use super::{Attached, CursorState, WatchLimits, WatcherSet};
use crate::types::Revision;

/// Batches of the log looked at for one unsynced cursor before the next one has its turn.
const BATCHES_PER_STEP: usize = 256;
/// Unsynced cursors served before the watcher set lets the connections of its thread run.
const STEPS_PER_TURN: usize = 128;

/// Bytes at which a catch-up response is closed while streams have much unsent.
const SHORT_CATCH_UP_BYTES: usize = 16 * 1024;

/// Encoded events of one turn's catch-up steps: cursors that lag together share them.
type Memo = HashMap<Spot, Piece>;

/// A part of what a subscription missed.
#[derive(Clone)]
struct Piece {
    events: Bytes,
    count: u32,
    /// Of the last event; 0 without one.
    last: Revision,
    complete_to: Revision,
}

impl WatcherSet {
    /// Serves unsynced cursors of streams that have drained. Tells whether it stopped early.
    pub(in super::super) fn resume(&mut self) -> bool {
        let mut memo = Memo::new();
        for _ in 0..STEPS_PER_TURN {
            let Some(&stream) = self.ready.front() else { return false };
            let (bytes_max, responses_max) = match self.has_much_queued() {
                true => (1, 1),
                false => (self.limits.stream_bytes_max, self.limits.stream_responses_max),
            };
            let entry = &mut self.streams[stream as usize];
            let responses_max = responses_max.saturating_sub(entry.reads);
            let may = entry.hold.is_none() && entry.send_queue.has_room(bytes_max, responses_max);
            let cursor = if may { entry.unsynced.pop_front(&mut self.cursors) } else { None };
            let Some(cursor) = cursor else {
                entry.ready = false;
                self.ready.pop_front();
                continue;
            };
            self.metrics.slow_watchers.dec();
            self.step(cursor, &mut memo);
            // Streams take turns too.
            self.ready.rotate_left(1);
        }
        !self.ready.is_empty()
    }

    /// Whether streams have so much unsent that each may have little only: their clients do not read.
    fn has_much_queued(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > self.limits.set_bytes_max
    }

    /// Bytes at which a catch-up response is closed now.
    fn catch_up_bytes(&self) -> usize {
        match self.has_much_queued() {
            true => self.limits.catch_up_bytes_max.min(SHORT_CATCH_UP_BYTES),
            false => self.limits.catch_up_bytes_max,
        }
    }

    /// Moves one cursor on by one response at most; it is in no queue when this begins and in one when it ends.
    fn step(&mut self, key: u32, memo: &mut Memo) {
        let cursor = &self.cursors[key as usize];
        let attached = &self.attached[cursor.source as usize];
        if cursor.next > attached.position {
            return self.requeue(key);
        }
        let spot = Spot { source: cursor.source, group: cursor.group, from: cursor.next };
        if let Some(piece) = memo.get(&spot) {
            let piece = piece.clone();
            return self.catch_up(key, &piece);
        }
        let after = Revision(cursor.next.0 - 1);
        let log = attached.source.log();
        match log.read(after, attached.position, BATCHES_PER_STEP) {
            Read::Batches { batches, complete_to } => {
                let wanted = Wanted::by(cursor.group, attached, cursor.next);
                let piece = collect(&self.limits, self.catch_up_bytes(), &wanted, &batches, complete_to);
                memo.insert(spot, piece.clone());
                self.catch_up(key, &piece);
            }
            Read::Behind => {
                let slot = self.jobs.wait(spot, key);
                let cursor = &mut self.cursors[key as usize];
                cursor.state = CursorState::ReadingHistory(slot);
                // Those who wait for the same read share what it gives.
                cursor.reads = slot == 0;
                self.streams[cursor.stream as usize].reads += usize::from(cursor.reads);
                self.metrics.slow_watchers.inc();
                self.wake.notify_one();
            }
        }
    }

    fn catch_up(&mut self, key: u32, piece: &Piece) {
        let cursor = &mut self.cursors[key as usize];
        cursor.next = piece.complete_to.next();
        cursor.future = false;
        if piece.count > 0 {
            let revision = self.attached[cursor.source as usize].position;
            self.metrics.pending_events.add(i64::from(piece.count));
            let stream = &mut self.streams[cursor.stream as usize];
            stream.told = stream.told.max(piece.last);
            queue_events(&self.limits, stream, cursor, revision, &piece.events, piece.count);
        }
        self.requeue(key);
    }

    /// Reads of history to start, while `slots` are free.
    pub(in super::super) fn take_jobs(&mut self, slots: usize) -> Vec<StartedRead> {
        let mut taken = Vec::new();
        while taken.len() < slots {
            let Some((id, spot, abandoned)) = self.jobs.next_to_start() else { break };
            let attached = &self.attached[spot.source as usize];
            let subscription = &attached.routes.group(spot.group).subscription;
            let request = HistoryRequest {
                range: subscription.range.clone(),
                prev_kv: subscription.prev_kv,
                from: spot.from,
                up_to: attached.position.max(spot.from),
                revisions_max: self.limits.catch_up_revisions_max,
                bytes_max: self.catch_up_bytes(),
            };
            taken.push(StartedRead { id, history: attached.source.history().clone(), request, abandoned });
        }
        taken
    }

    /// Hands a part of history to the cursors that waited for it.
    pub(in super::super) fn finish_job(&mut self, id: JobId, result: JobResult) {
        let Some((spot, waiting)) = self.jobs.finish(id) else { return };
        let piece = result.map(|batch| {
            let wanted = Wanted::by(spot.group, &self.attached[spot.source as usize], spot.from);
            collect(&self.limits, self.catch_up_bytes(), &wanted, &batch.batches, batch.complete_to)
        });
        for key in waiting {
            self.metrics.slow_watchers.dec();
            self.stop_reading(key);
            match &piece {
                Ok(piece) => self.catch_up(key, piece),
                Err(error) => {
                    self.requeue(key);
                    match error {
                        HistoryError::Compacted(at) => {
                            self.end_watcher(key, End { compact_revision: *at, reason: String::new() });
                        }
                        HistoryError::Refused(reason) => {
                            self.end_watcher(key, End { compact_revision: Revision(0), reason: reason.clone() });
                        }
                        HistoryError::NotOnThisStream(text) => {
                            self.end_stream_of(key, Status::unavailable(text.as_str()));
                        }
                    }
                }
            }
        }
    }
}

/// What is collected for a group of watchers.
struct Wanted<'a> {
    subscription: &'a Subscription,
    from: Revision,
    compacted: Revision,
}

impl<'a> Wanted<'a> {
    fn by(group: u32, attached: &'a Attached, from: Revision) -> Self {
        let subscription = &attached.routes.group(group).subscription;
        Self { subscription, from, compacted: attached.source.log().compacted() }
    }
}

/// The events that are wanted, as many whole revisions as one response may hold.
fn collect(
    limits: &WatchLimits,
    bytes_max: usize,
    wanted: &Wanted<'_>,
    batches: &[Arc<LogBatch>],
    complete_to: Revision,
) -> Piece {
    let Wanted { subscription, from, compacted } = *wanted;
    let mut block = Block::default();
    let mut revisions = 0;
    let mut last = Revision(0);
    let asked = |batch: &&Arc<LogBatch>| batch.revision() >= from && batch.revision() <= complete_to;
    let mut batches = batches.iter().filter(asked).peekable();
    while let Some(batch) = batches.next() {
        let before = block.events;
        let prev_kv = subscription.prev_kv && batch.knows_before(compacted);
        for event in batch.events().iter().filter(|event| subscription.wants(event)) {
            block.push(event.frame(prev_kv));
        }
        if block.events > before {
            revisions += 1;
            last = batch.revision();
        }
        if revisions >= limits.catch_up_revisions_max || block.len() >= bytes_max {
            // Nothing is between it and the next one. A history that keeps its place for the next read has it there too.
            let complete_to = batches.peek().map_or(complete_to, |next| Revision(next.revision().0 - 1));
            let (events, count) = block.finish();
            return Piece { events, count, last, complete_to };
        }
    }
    let (events, count) = block.finish();
    // A history that promises nothing would be asked for ever; it must at least cover what it was asked first.
    Piece { events, count, last, complete_to: complete_to.max(from) }
}
