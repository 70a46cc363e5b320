use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::super::batch::{Block, LogBatch, cut_frames};
use super::super::log::Read;
use super::super::routes::Wanted;
use super::super::send_queue::{Out, OutKind};
use super::{Cursor, CursorState, Stream, WatchLimits, WatcherSet};
use crate::pb::{encoded, etcdserverpb};
use crate::types::Revision;

/// Batches taken from a log at a time.
const BATCHES_PER_READ: usize = 64;
/// Bytes of pairs in batches that are delivered together.
const TOGETHER_BYTES_MAX: usize = 64 * 1024;
/// Responses queued before the watcher set lets the connections of its thread run.
const RESPONSES_PER_TURN: usize = 1024;

impl WatcherSet {
    /// Brings new batches to the watchers that are up to date. Tells whether it stopped early.
    pub(in super::super) fn route(&mut self) -> bool {
        let mut left = RESPONSES_PER_TURN;
        let mut behind: Vec<u32> = self
            .attached
            .iter()
            .filter(|(_, attached)| attached.position < attached.source.log().head())
            .map(|(at, _)| at as u32)
            .collect();
        // Sources take turns: one that has events in every turn, and watchers enough to use it up, has the others before it in the next.
        let first = behind.partition_point(|&at| at <= self.routed_last);
        behind.rotate_left(first);
        for at in behind {
            if !self.route_source(at, &mut left) {
                self.routed_last = at;
                return true;
            }
        }
        false
    }

    /// Responses that were queued for watchers which were up to date, since this was last asked.
    pub(in super::super) fn take_delivered(&mut self) -> usize {
        std::mem::take(&mut self.delivered)
    }

    /// Routes until nothing is left of `at` or of the budget; tells whether the source was the first to end.
    pub(super) fn route_source(&mut self, at: u32, left: &mut usize) -> bool {
        let mut wanted = Vec::new();
        loop {
            let attached = &self.attached[at as usize];
            let log = attached.source.log();
            if attached.position >= log.head() {
                return true;
            }
            match log.read(attached.position, Revision(i64::MAX), BATCHES_PER_READ) {
                Read::Behind => self.fall_behind(at),
                Read::Batches { batches, complete_to } => {
                    let mut rest = batches.as_slice();
                    while !rest.is_empty() {
                        let together = &rest[..self.delivered_together(rest)];
                        let routed = self.attached[at as usize].routes.route(together, &mut wanted);
                        let (together, later) = rest.split_at(routed);
                        rest = later;
                        let sent = self.deliver_batches(at, together, &wanted);
                        self.delivered += sent;
                        self.attached[at as usize].position = together[together.len() - 1].revision();
                        *left = left.saturating_sub(sent + 1);
                        if *left == 0 {
                            return false;
                        }
                    }
                    let position = &mut self.attached[at as usize].position;
                    *position = complete_to.max(*position);
                }
            }
        }
    }

    /// How many of the first batches are delivered together, one at least. A response with several revisions costs little more than
    /// one with a single revision, so that a watcher set which is behind does not fall further behind.
    fn delivered_together(&self, batches: &[Arc<LogBatch>]) -> usize {
        if self.held > 0 {
            // A stream may be held between any two of them.
            return 1;
        }
        let mut bytes = 0;
        let fitting = batches.iter().take_while(|batch| {
            bytes += batch.pair_bytes();
            bytes <= TOGETHER_BYTES_MAX
        });
        fitting.count().max(1)
    }

    fn deliver_batches(&mut self, at: u32, batches: &[Arc<LogBatch>], wanted: &[Wanted]) -> usize {
        let mut sent = 0;
        let compacted = self.attached[at as usize].source.log().compacted();
        for same_group in wanted.chunk_by(|a, b| a.group == b.group) {
            let group = same_group[0].group;
            if self.attached[at as usize].routes.group(group).synced.is_empty() {
                continue;
            }
            let prev_kv = self.attached[at as usize].routes.group(group).subscription.prev_kv;
            let mut block = Block::default();
            for wanted in same_group {
                let batch = &batches[wanted.batch as usize];
                block.push(batch.events()[wanted.event as usize].frame(prev_kv && batch.knows_before(compacted)));
            }
            let [first, last] = [same_group[0], same_group[same_group.len() - 1]].map(|wanted| wanted.batch as usize);
            let (events, count) = block.finish();
            sent += self.deliver(at, group, batches[first].revision()..=batches[last].revision(), &events, count);
        }
        sent
    }

    /// Queues one encoded block, with all that a group wants of these revisions, for every synced watcher of it; those whose stream
    /// is full, or held, or which want a part of it only, become unsynced.
    fn deliver(
        &mut self,
        at: u32,
        group: u32,
        revisions: RangeInclusive<Revision>,
        events: &Bytes,
        count: u32,
    ) -> usize {
        let (first, last) = revisions.into_inner();
        let synced = &mut self.attached[at as usize].routes.group_mut(group).synced;
        let (mut sent, mut waiting) = (0, Vec::new());
        // From the end: `swap_remove` then only moves synced that were served.
        let mut slot = synced.len();
        while slot > 0 {
            slot -= 1;
            let key = synced[slot];
            let cursor = &mut self.cursors[key as usize];
            if last < cursor.next {
                continue;
            }
            let stream = &mut self.streams[cursor.stream as usize];
            let held = stream.hold.is_some_and(|hold| last > hold);
            let wants_all = cursor.next <= first;
            let has_room =
                || stream.send_queue.has_room(self.limits.stream_bytes_max, self.limits.stream_responses_max);
            if !held && wants_all && has_room() {
                stream.told = stream.told.max(last);
                self.metrics.pending_events.add(i64::from(count));
                queue_events(&self.limits, stream, cursor, last, events, count);
                sent += 1;
            } else {
                cursor.next = cursor.next.max(first);
                cursor.future = false;
                if !wants_all {
                    // Nothing that it sends would have it looked after.
                    waiting.push(cursor.stream);
                }
                stream.unsynced.push_back(&mut self.cursors, key);
                self.metrics.slow_watchers.inc();
                synced.swap_remove(slot);
                if let Some(&moved) = synced.get(slot) {
                    self.cursors[moved as usize].state = CursorState::Synced(slot as u32);
                }
            }
        }
        waiting.into_iter().for_each(|stream| self.wake_if_room(stream));
        sent
    }

    /// The log has dropped revisions before this watcher set routed them: every synced watcher becomes unsynced at its position.
    fn fall_behind(&mut self, at: u32) {
        let attached = &mut self.attached[at as usize];
        let floor = attached.source.log().floor();
        let was = attached.position.next();
        attached.position = Revision(floor.0 - 1).max(attached.position);
        let synced: Vec<u32> = self
            .cursors
            .iter()
            .filter(|(_, cursor)| cursor.source == at && matches!(cursor.state, CursorState::Synced(_)))
            .map(|(key, _)| key as u32)
            .collect();
        for key in synced {
            self.take_out(key);
            let cursor = &mut self.cursors[key as usize];
            cursor.next = cursor.next.max(was);
            self.requeue(key);
        }
    }
}

/// Adds events to a stream's send queue, in fragments where the watcher wants them.
pub(super) fn queue_events(
    limits: &WatchLimits,
    stream: &mut Stream,
    cursor: &mut Cursor,
    revision: Revision,
    events: &Bytes,
    count: u32,
) {
    cursor.active = true;
    let out = |events: Bytes, event_count: u32, kind: OutKind| Out {
        watch_id: cursor.watch_id,
        revision,
        events,
        event_count,
        kind,
        end: None,
    };
    if cursor.fragment && count > 1 {
        let head = etcdserverpb::WatchResponse {
            // Widest header: the piece must stay below the bound whatever the ids are.
            header: Some(encoded::ResponseHeader {
                cluster_id: u64::MAX,
                member_id: u64::MAX,
                revision: revision.0,
                raft_term: u64::from(u32::MAX),
            }),
            watch_id: cursor.watch_id,
            fragment: true,
            ..Default::default()
        };
        let head_bytes = head.encoded_len();
        if head_bytes + events.len() >= limits.fragment_bytes {
            let pieces = cut_frames(events, limits.fragment_bytes.saturating_sub(head_bytes));
            let last = pieces.len() - 1;
            for (number, (piece, count)) in pieces.into_iter().enumerate() {
                let kind = if number == last { OutKind::Events } else { OutKind::Fragment };
                stream.send_queue.push(out(piece, count, kind));
            }
            return;
        }
    }
    stream.send_queue.push(out(events.clone(), count, OutKind::Events));
}
