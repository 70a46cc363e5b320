use std::sync::Arc;

use tokio::time::Instant;

use super::super::send_queue::{Out, OutKind};
use super::super::source::Source;
use super::{Cursor, CursorState, WatcherSet};
use crate::types::Revision;

/// Watch id of a progress answer that speaks for the whole stream.
const ALL_WATCHERS: i64 = -1;

impl WatcherSet {
    /// Answers so many progress requests, if every watcher of the stream is up to date; says nothing otherwise.
    ///
    /// An answer speaks for all watchers: whatever is not newer has been queued for each of them, and it is not older than
    /// anything the stream was told before. Sources that are not that far yet are returned instead, and the stream is
    /// held where it is, until this is called again or [`release`](Self::release) is.
    pub(in super::super) fn progress(&mut self, stream: u32, answers: u32) -> Vec<Arc<Source>> {
        let behind = self.answer_progress(stream, answers);
        if behind.is_empty() {
            self.release(stream);
        }
        behind
    }

    /// Lets a stream go on that is held.
    pub(in super::super) fn release(&mut self, stream: u32) {
        if self.streams[stream as usize].hold.take().is_some() {
            self.held -= 1;
            self.wake_if_room(stream);
        }
    }

    fn answer_progress(&mut self, stream: u32, answers: u32) -> Vec<Arc<Source>> {
        let mut sources: Vec<u32> = Vec::new();
        for &key in self.streams[stream as usize].watchers.values() {
            let cursor = &self.cursors[key as usize];
            if cursor.state == CursorState::Cancelled {
                return Vec::new();
            }
            sources.push(cursor.source);
        }
        sources.sort_unstable();
        sources.dedup();
        // What was written before the request belongs to the answer.
        for &at in &sources {
            let mut unlimited = usize::MAX;
            self.route_source(at, &mut unlimited);
        }
        let entry = &self.streams[stream as usize];
        let told = entry.told;
        let mut revision = None;
        for &key in entry.watchers.values() {
            let cursor = &self.cursors[key as usize];
            let complete_to = match cursor.state {
                _ if self.in_sync(cursor) => self.attached[cursor.source as usize].position,
                // Only held: what it was told is all there is up to here.
                CursorState::Unsynced(_) if entry.hold.is_some_and(|hold| cursor.next > hold) => {
                    Revision(cursor.next.0 - 1)
                }
                _ => return Vec::new(),
            };
            revision = Some(revision.map_or(complete_to, |least: Revision| least.min(complete_to)));
        }
        let Some(revision) = revision else { return Vec::new() };
        if revision < told {
            let before = self.streams[stream as usize].hold.replace(told);
            self.held += usize::from(before.is_none());
            let behind = sources.iter().map(|&at| &self.attached[at as usize]);
            return behind
                .filter(|attached| attached.position < told)
                .map(|attached| attached.source.clone())
                .collect();
        }
        self.streams[stream as usize].told = revision;
        for _ in 0..answers {
            self.push(stream, Out::control(OutKind::Progress, ALL_WATCHERS, revision));
        }
        Vec::new()
    }

    /// Notifies the idle watchers of every stream whose period has passed.
    pub(in super::super) fn tick(&mut self, now: Instant) {
        while let Some(&(at, stream)) = self.ticks.first() {
            if at > now {
                return;
            }
            self.ticks.pop_first();
            let Some(period) = self.streams[stream as usize].period else { continue };
            let mut next = at + period;
            if next <= now {
                next = now + period; // the thread was stalled: ticks that were missed are not made up for
            }
            self.streams[stream as usize].next_tick = Some(next);
            self.ticks.insert((next, stream));
            self.notify(stream);
        }
    }

    /// When [`tick`](Self::tick) is due.
    pub(in super::super) fn next_tick(&self) -> Option<Instant> {
        self.ticks.first().map(|&(at, _)| at)
    }

    pub(super) fn schedule_ticks(&mut self, stream: u32, now: Instant) {
        let entry = &mut self.streams[stream as usize];
        let Some(period) = entry.period.filter(|_| entry.next_tick.is_none()) else { return };
        // The ticker counts from when the stream was opened, whenever its first watcher came.
        let elapsed = now.saturating_duration_since(entry.opened).as_nanos();
        let periods = elapsed / period.as_nanos().max(1) + 1;
        let next = entry.opened + period.saturating_mul(u32::try_from(periods).unwrap_or(u32::MAX));
        entry.next_tick = Some(next);
        self.ticks.insert((next, stream));
        self.wake.notify_one();
    }

    fn notify(&mut self, stream: u32) {
        let entry = &self.streams[stream as usize];
        let wanted: Vec<u32> =
            entry.watchers.values().copied().filter(|&key| self.cursors[key as usize].progress_notify).collect();
        if wanted.is_empty() {
            if let Some(at) = self.streams[stream as usize].next_tick.take() {
                self.ticks.remove(&(at, stream));
            }
            return;
        }
        self.notify_cursors(wanted);
    }

    /// Tells those of some watchers how far they are that are up to date, have seen no event since they were last looked at, and whose
    /// stream has room. What one watcher of a stream is told takes no room from the others: they would never be told.
    pub(super) fn notify_cursors(&mut self, cursors: Vec<u32>) {
        let due: Vec<u32> = cursors.into_iter().filter(|&key| self.is_due(key)).collect();
        for key in due {
            let cursor = &self.cursors[key as usize];
            let (stream, watch_id) = (cursor.stream, cursor.watch_id);
            let revision = self.attached[cursor.source as usize].position;
            let told = &mut self.streams[stream as usize].told;
            *told = revision.max(*told);
            self.push(stream, Out::control(OutKind::Progress, watch_id, revision));
        }
    }

    /// Whether a watcher is to be notified; looks at it, so that what it sees from now on counts for the next time.
    fn is_due(&mut self, key: u32) -> bool {
        let idle = !std::mem::take(&mut self.cursors[key as usize].active);
        let cursor = &self.cursors[key as usize];
        let send_queue = &self.streams[cursor.stream as usize].send_queue;
        let room = send_queue.has_room(self.limits.stream_bytes_max, self.limits.stream_responses_max);
        idle && room && self.in_sync(cursor)
    }

    /// Whether every event up to the position of its source has been queued for the watcher, and none later is
    /// being held back from it.
    fn in_sync(&self, cursor: &Cursor) -> bool {
        let needed = if cursor.future { cursor.next } else { Revision(cursor.next.0 - 1) };
        matches!(cursor.state, CursorState::Synced(_)) && needed <= self.attached[cursor.source as usize].position
    }

    /// Position of a source, for tests.
    #[cfg(test)]
    pub(in super::super) fn positions(&self) -> Vec<Revision> {
        self.attached.iter().map(|(_, attached)| attached.position).collect()
    }
}
