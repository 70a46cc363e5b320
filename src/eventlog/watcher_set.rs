//! The watchers of one serving thread. All of it is synchronous; `handle.rs` adds the waiting.

mod catch_up;
mod deliver;
mod jobs;
mod progress;
mod unsynced;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::Waker;
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

use super::admission::Admission;
use super::header_source::HeaderSource;
use super::permission::WatchPermission;
use super::routes::{Filters, Routes, Subscription};
use super::send_queue::{End, Out, OutKind, SendQueue, Taken};
use super::source::Source;
use crate::telemetry::WatchMetrics;
use crate::types::{KeyRange, Revision};
pub(super) use jobs::{JobId, JobResult, StartedRead};
use jobs::{Jobs, Spot};
#[cfg(test)]
pub(super) use unsynced::VISITS;
use unsynced::{Links, UnsyncedQueue};

/// Bounds and periods of a handle.
#[derive(Clone, Debug)]
pub struct WatchLimits {
    /// Unsent bytes of a stream at which its watchers stop and wait for it; one response may go beyond.
    pub stream_bytes_max: usize,
    /// Unsent responses of a stream at which its watchers stop: what comes then goes out in fewer, larger ones.
    pub stream_responses_max: usize,
    /// Revisions one catch-up response holds at most.
    pub catch_up_revisions_max: usize,
    /// Bytes at which a catch-up response is closed.
    pub catch_up_bytes_max: usize,
    /// Unsent bytes of all streams of a watcher set beyond which a stream gets a catch-up response only once it has sent
    /// everything, and a short one.
    pub set_bytes_max: usize,
    /// Reads of history a watcher set has in flight at most.
    pub history_reads_max: usize,
    /// Size from which a response is cut for a watcher that asked for fragments.
    pub fragment_bytes: usize,
    /// Period of progress notifications; each stream adds up to a tenth. None when the owner of the sources tells when
    /// they are due, with [`WatcherSetHandle::notify_source`](super::WatcherSetHandle::notify_source).
    pub progress_interval: Option<Duration>,
}

impl Default for WatchLimits {
    fn default() -> Self {
        Self {
            stream_bytes_max: 128 * 1024,
            stream_responses_max: 16,
            catch_up_revisions_max: 1000,
            catch_up_bytes_max: 1024 * 1024,
            set_bytes_max: 32 * 1024 * 1024,
            history_reads_max: 16,
            fragment_bytes: 2 * 1024 * 1024,
            progress_interval: Some(Duration::from_secs(600)),
        }
    }
}

/// A watch as a client asked for it, checked.
#[derive(Clone, Debug)]
pub(super) struct Create {
    pub range: KeyRange,
    /// 0 asks for the next free one.
    pub watch_id: i64,
    /// 0 asks for what comes after now.
    pub start: Revision,
    pub prev_kv: bool,
    pub filters: Filters,
    pub progress_notify: bool,
    pub fragment: bool,
}

/// Position of one watcher; everything else it needs is shared with its group.
#[derive(Debug)]
struct Cursor {
    stream: u32,
    source: u32,
    group: u32,
    state: CursorState,
    watch_id: i64,
    /// First revision not yet queued. While the cursor is synced the true value is the greater of
    /// this and the first revision its source has not routed.
    next: Revision,
    /// Asked for a revision that was not written yet when it came: it has no progress before that one.
    future: bool,
    progress_notify: bool,
    fragment: bool,
    /// Saw an event since the last progress tick.
    active: bool,
    /// The read of history that it waits for counts for its stream.
    reads: bool,
    permission: Option<Arc<WatchPermission>>,
    held: Option<Arc<dyn Any + Send + Sync>>,
}

/// How far along a cursor is, and so which queue holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CursorState {
    /// Up to date, or waiting for a future revision: in this slot of its group.
    Synced(u32),
    /// In the unsynced queue of its stream, between these.
    Unsynced(Links),
    /// Waits for a read of history, in this slot of those who do.
    ReadingHistory(u32),
    /// Compacted away; its id stays taken until the client cancels it.
    Cancelled,
}

#[derive(Debug)]
struct Stream {
    send_queue: SendQueue,
    watchers: BTreeMap<i64, u32>,
    unsynced: UnsyncedQueue,
    /// Reads of history that its cursors wait for. What they give is queued when it comes, so they take room before.
    reads: usize,
    next_id: i64,
    /// Queued in `WatcherSet::ready`.
    ready: bool,
    require_leader: bool,
    opened: Instant,
    period: Option<Duration>,
    /// Set while a watcher wants progress notifications.
    next_tick: Option<Instant>,
    /// The newest revision that an event or a progress answer queued so far tells of.
    told: Revision,
    /// Set while a progress answer waits for sources that are behind: events after this revision wait too.
    hold: Option<Revision>,
}

#[derive(Debug)]
struct Attached {
    source: Arc<Source>,
    /// Everything up to here has been routed to the groups.
    position: Revision,
    routes: Routes,
    watchers: u32,
    /// Those of its cursors that asked for progress notifications.
    notified: BTreeSet<u32>,
}

/// State of the watchers of one serving thread.
#[derive(Debug)]
pub(super) struct WatcherSet {
    limits: WatchLimits,
    header_source: Arc<HeaderSource>,
    metrics: WatchMetrics,
    wake: Arc<Notify>,
    random: fastrand::Rng,
    streams: Slab<Stream>,
    cursors: Slab<Cursor>,
    attached: Slab<Attached>,
    attached_at: HashMap<usize, u32>,
    /// Streams with room and with unsynced cursors.
    ready: VecDeque<u32>,
    /// The source that used up the responses of a turn last: the next turn begins behind it.
    routed_last: u32,
    /// Streams that are held.
    held: usize,
    /// Responses with events that were queued for watchers which were up to date, since this was last asked.
    delivered: usize,
    /// Unsent bytes of all streams.
    queued: Arc<AtomicUsize>,
    jobs: Jobs,
    ticks: BTreeSet<(Instant, u32)>,
}

impl WatcherSet {
    pub fn new(
        limits: WatchLimits,
        header_source: Arc<HeaderSource>,
        metrics: WatchMetrics,
        wake: Arc<Notify>,
        seed: u64,
    ) -> Self {
        Self {
            limits,
            header_source,
            metrics,
            wake,
            random: fastrand::Rng::with_seed(seed),
            streams: Slab::new(),
            cursors: Slab::new(),
            attached: Slab::new(),
            attached_at: HashMap::new(),
            ready: VecDeque::new(),
            routed_last: u32::MAX,
            held: 0,
            delivered: 0,
            queued: Arc::default(),
            jobs: Jobs::default(),
            ticks: BTreeSet::new(),
        }
    }

    /// A stream without watchers.
    pub fn open(&mut self, require_leader: bool, now: Instant) -> u32 {
        self.metrics.streams.inc();
        let spread = 1.0 + self.random.f64() / 10.0;
        let period = self.limits.progress_interval.map(|interval| interval.mul_f64(spread));
        self.streams.insert(Stream {
            send_queue: SendQueue::new(self.queued.clone()),
            watchers: BTreeMap::new(),
            unsynced: UnsyncedQueue::default(),
            reads: 0,
            next_id: 0,
            ready: false,
            require_leader,
            opened: now,
            period,
            next_tick: None,
            told: Revision(0),
            hold: None,
        }) as u32
    }

    /// Forgets a stream and its watchers.
    pub fn close(&mut self, stream: u32) {
        let watchers: Vec<u32> = self.streams[stream as usize].watchers.values().copied().collect();
        for cursor in watchers {
            self.forget(cursor);
        }
        self.ready.retain(|&other| other != stream);
        let gone = self.streams.remove(stream as usize);
        self.held -= usize::from(gone.hold.is_some());
        if let Some(at) = gone.next_tick {
            self.ticks.remove(&(at, stream));
        }
        self.metrics.pending_events.sub(gone.send_queue.pending_events() as i64);
        self.metrics.streams.dec();
    }

    /// Adds a watcher that reads the admitted source, or answers why not.
    pub fn create(&mut self, stream: u32, create: &Create, admission: &Admission, now: Instant) {
        let source = admission.source.follow();
        let newest = source.log().head();
        // A watch from now begins where the cluster stood when it was asked for, which may be behind the log.
        let from_then = create.start.0 == 0 && admission.after.0 != 0;
        let head = if from_then { admission.after } else { newest.max(admission.after) };
        if create.range.is_empty() {
            return self.refuse(stream, head, "mvcc: watcher range is empty");
        }
        let watchers = &self.streams[stream as usize].watchers;
        if create.watch_id != 0 && watchers.contains_key(&create.watch_id) {
            return self.refuse(stream, head, "mvcc: duplicate watch ID provided on the WatchStream");
        }
        let at = self.attach(&source);
        let subscription =
            Subscription { range: create.range.clone(), prev_kv: create.prev_kv, filters: create.filters };
        let group = self.attached[at as usize].routes.join(subscription);
        let entry = &mut self.streams[stream as usize];
        let watch_id = if create.watch_id != 0 { create.watch_id } else { entry.free_id() };
        let cursor = self.cursors.insert(Cursor {
            stream,
            source: at,
            group,
            state: CursorState::Unsynced(Links::NONE),
            watch_id,
            next: if create.start.0 == 0 { head.next() } else { create.start },
            future: create.start > head,
            progress_notify: create.progress_notify,
            fragment: create.fragment,
            active: false,
            reads: false,
            permission: admission.permission.clone(),
            held: admission.held.clone(),
        }) as u32;
        entry.watchers.insert(watch_id, cursor);
        self.metrics.watchers.inc();
        self.push(stream, Out::control(OutKind::Created, watch_id, head));
        if create.progress_notify {
            self.attached[at as usize].notified.insert(cursor);
            self.schedule_ticks(stream, now);
        }
        let compacted = source.log().compacted().max(admission.compacted);
        let revoked = admission.permission.as_ref().and_then(|permission| permission.revoked());
        if let Some(end) = source.ended() {
            self.requeue(cursor);
            self.end_with_source(cursor, end);
        } else if let Some(end) = revoked {
            self.requeue(cursor);
            self.end_watcher(cursor, end.clone());
        } else if create.start.0 != 0 && create.start < compacted {
            self.requeue(cursor);
            self.end_watcher(cursor, End { compact_revision: compacted, reason: String::new() });
        } else {
            self.requeue(cursor);
        }
    }

    /// Answers a create request with a refusal; the stream stays usable.
    pub fn refuse(&mut self, stream: u32, revision: Revision, reason: &str) {
        let end = End { compact_revision: Revision(0), reason: reason.to_owned() };
        let refusal = Out { end: Some(Box::new(end)), ..Out::control(OutKind::Refused, -1, revision) };
        self.push(stream, refusal);
    }

    /// Ends a watcher at its client's wish; an unknown id gets no answer. `known` is a revision the cluster has
    /// reached.
    pub fn cancel(&mut self, stream: u32, watch_id: i64, known: Revision) {
        let Some(&cursor) = self.streams[stream as usize].watchers.get(&watch_id) else { return };
        let revision = self.head_of(cursor).max(known);
        self.forget(cursor);
        self.push(stream, Out::control(OutKind::Canceled, watch_id, revision));
    }

    /// The next response of a stream; when there is none, `waker` is woken for it.
    pub fn pop(&mut self, stream: u32, waker: &Waker) -> Taken {
        let entry = &mut self.streams[stream as usize];
        let taken = entry.send_queue.take(&self.header_source);
        if let Taken::Response { events, .. } = &taken {
            self.metrics.pending_events.sub(i64::from(*events));
            self.metrics.events.inc_by(u64::from(*events));
        }
        if matches!(taken, Taken::Empty) {
            entry.send_queue.park(waker);
        }
        self.wake_if_room(stream);
        taken
    }

    /// Answers to requests that the stream has not sent yet.
    pub fn controls(&self, stream: u32) -> u32 {
        self.streams[stream as usize].send_queue.controls()
    }

    /// Ends streams with a status: all of them, or those that asked for a leader.
    pub fn end_streams(&mut self, status: &Status, only_require_leader: bool) {
        for (_, stream) in &mut self.streams {
            if stream.require_leader || !only_require_leader {
                stream.send_queue.close(status.clone());
            }
        }
    }

    /// Ends one stream with a status, after what waits is sent.
    pub fn end_stream(&mut self, stream: u32, status: Status) {
        self.streams[stream as usize].send_queue.close(status);
    }

    /// The sources the watchers of a stream read.
    pub fn sources_of(&self, stream: u32) -> Vec<Arc<Source>> {
        let mut found: Vec<u32> = self.streams[stream as usize]
            .watchers
            .values()
            .map(|&cursor| &self.cursors[cursor as usize])
            .filter(|cursor| cursor.state != CursorState::Cancelled)
            .map(|cursor| cursor.source)
            .collect();
        found.sort_unstable();
        found.dedup();
        found.into_iter().map(|at| self.attached[at as usize].source.clone()).collect()
    }

    /// Cancels every watcher of a source that has ended, or ends its stream, see [`Source::refuse`].
    pub fn end_source(&mut self, source: &Arc<Source>, end: &End) {
        for cursor in self.cursors_of(source) {
            self.end_with_source(cursor, end);
        }
    }

    fn end_with_source(&mut self, key: u32, end: &End) {
        let cursor = &self.cursors[key as usize];
        let attached = &self.attached[cursor.source as usize];
        if attached.source.ends_for(&attached.routes.group(cursor.group).subscription.range) {
            self.end_watcher(key, end.clone());
        } else {
            let text = "watched again: a watch of more keys was refused, and ended with this one in it";
            self.end_stream_of(key, Status::unavailable(text));
        }
    }

    /// Cancels every watcher that is open under a revoked permission.
    pub fn end_permission(&mut self, permission: &Arc<WatchPermission>) {
        let Some(end) = permission.revoked() else { return };
        let is_under = |cursor: &Cursor| cursor.permission.as_ref().is_some_and(|its| Arc::ptr_eq(its, permission));
        let under: Vec<usize> =
            self.cursors.iter().filter(|(_, cursor)| is_under(cursor)).map(|(key, _)| key).collect();
        for key in under {
            self.end_watcher(key as u32, end.clone());
        }
    }

    /// Carries every watcher of `from` over to `to`, each at its own position, so that it neither misses nor repeats
    /// an event.
    pub fn move_source(&mut self, from: &Arc<Source>, to: &Arc<Source>) {
        let to = to.follow();
        // Up to the end of the old log: what has happened up to there need not be in the new one.
        if let Some(&at) = self.attached_at.get(&address(from)) {
            let mut unlimited = usize::MAX;
            self.route_source(at, &mut unlimited);
        }
        for key in self.cursors_of(from) {
            let at = self.attach(&to);
            let next = self.next_of(key);
            let cursor = &mut self.cursors[key as usize];
            cursor.future &= cursor.next == next;
            let (old, old_group) = (cursor.source, cursor.group);
            self.take_out(key);
            let subscription = self.attached[old as usize].routes.group(old_group).subscription.clone();
            self.leave_group(old, old_group, key);
            if self.cursors[key as usize].progress_notify {
                self.attached[at as usize].notified.insert(key);
            }
            let group = self.attached[at as usize].routes.join(subscription);
            let cursor = &mut self.cursors[key as usize];
            (cursor.source, cursor.group, cursor.next) = (at, group, next);
            self.requeue(key);
        }
    }

    /// Tells the idle watchers of a source that asked for it how far they are, as the tick of their stream would.
    pub fn notify_source(&mut self, source: &Arc<Source>) {
        let Some(&at) = self.attached_at.get(&address(source)) else { return };
        let mut unlimited = usize::MAX;
        self.route_source(at, &mut unlimited);
        let notified: Vec<u32> = self.attached[at as usize].notified.iter().copied().collect();
        self.notify_cursors(notified);
    }

    /// Whether any watcher of a source asked for progress notifications.
    pub fn wants_progress(&self, source: &Arc<Source>) -> bool {
        let attached = self.attached_at.get(&address(source));
        attached.is_some_and(|&at| !self.attached[at as usize].notified.is_empty())
    }

    fn cursors_of(&self, source: &Arc<Source>) -> Vec<u32> {
        let Some(&at) = self.attached_at.get(&address(source)) else { return Vec::new() };
        let alive =
            self.cursors.iter().filter(|(_, cursor)| cursor.state != CursorState::Cancelled && cursor.source == at);
        alive.map(|(key, _)| key as u32).collect()
    }

    /// One watcher more on `source`.
    fn attach(&mut self, source: &Arc<Source>) -> u32 {
        if let Some(&at) = self.attached_at.get(&address(source)) {
            self.attached[at as usize].watchers += 1;
            return at;
        }
        source.log().subscribe(self.wake.clone());
        let attached = Attached {
            source: source.clone(),
            position: source.log().head(),
            routes: Routes::default(),
            watchers: 1,
            notified: BTreeSet::new(),
        };
        let at = self.attached.insert(attached) as u32;
        self.attached_at.insert(address(source), at);
        at
    }

    /// One watcher less in a group and on its source; the last one lets go of the source.
    fn leave_group(&mut self, at: u32, group: u32, key: u32) {
        let attached = &mut self.attached[at as usize];
        attached.notified.remove(&key);
        attached.routes.leave(group);
        attached.watchers -= 1;
        if attached.watchers == 0 {
            let gone = self.attached.remove(at as usize);
            self.attached_at.remove(&address(&gone.source));
            gone.source.log().unsubscribe(&self.wake);
        }
    }

    /// Puts a cursor where its position belongs: among the synced watchers of its group, or into the unsynced queue.
    fn requeue(&mut self, key: u32) {
        let cursor = &mut self.cursors[key as usize];
        let attached = &mut self.attached[cursor.source as usize];
        let entry = &mut self.streams[cursor.stream as usize];
        if cursor.next > attached.position {
            let synced = &mut attached.routes.group_mut(cursor.group).synced;
            cursor.state = CursorState::Synced(synced.len() as u32);
            synced.push(key);
            return;
        }
        let stream = cursor.stream;
        entry.unsynced.push_back(&mut self.cursors, key);
        self.metrics.slow_watchers.inc();
        self.wake_if_room(stream);
    }

    /// Takes a cursor out of the queue it is kept in.
    fn take_out(&mut self, key: u32) {
        let cursor = &self.cursors[key as usize];
        match cursor.state {
            CursorState::Synced(slot) => {
                let synced = &mut self.attached[cursor.source as usize].routes.group_mut(cursor.group).synced;
                synced.swap_remove(slot as usize);
                if let Some(&moved) = synced.get(slot as usize) {
                    self.cursors[moved as usize].state = CursorState::Synced(slot);
                }
            }
            CursorState::Unsynced(_) => {
                let stream = cursor.stream as usize;
                self.streams[stream].unsynced.remove(&mut self.cursors, key);
                self.metrics.slow_watchers.dec();
            }
            CursorState::ReadingHistory(slot) => {
                let spot = Spot { source: cursor.source, group: cursor.group, from: cursor.next };
                if let Some(moved) = self.jobs.leave(spot, slot) {
                    self.cursors[moved as usize].state = CursorState::ReadingHistory(slot);
                }
                self.metrics.slow_watchers.dec();
                self.stop_reading(key);
            }
            CursorState::Cancelled => {}
        }
    }

    /// A cursor waits for its read of history no longer: its stream may ask for another one.
    fn stop_reading(&mut self, key: u32) {
        let cursor = &mut self.cursors[key as usize];
        if std::mem::take(&mut cursor.reads) {
            let stream = cursor.stream;
            self.streams[stream as usize].reads -= 1;
            self.wake_if_room(stream);
        }
    }

    /// Removes a watcher and frees its id.
    fn forget(&mut self, key: u32) {
        self.take_out(key);
        let cursor = self.cursors.remove(key as usize);
        self.streams[cursor.stream as usize].watchers.remove(&cursor.watch_id);
        if cursor.state != CursorState::Cancelled {
            self.leave_group(cursor.source, cursor.group, key);
            self.metrics.watchers.dec();
        }
    }

    /// Cancels a watcher from this side; its id stays taken until the client cancels it too.
    fn end_watcher(&mut self, key: u32, end: End) {
        let revision = if end.compact_revision.0 != 0 { Revision(0) } else { self.head_of(key) };
        let (stream, watch_id) = self.stop_watcher(key);
        self.push(stream, Out { end: Some(Box::new(end)), ..Out::control(OutKind::Canceled, watch_id, revision) });
    }

    /// Ends the stream of a watcher, which reads nothing more.
    fn end_stream_of(&mut self, key: u32, status: Status) {
        let (stream, _) = self.stop_watcher(key);
        self.end_stream(stream, status);
    }

    /// Lets go of all that a watcher reads; tells its stream and its id.
    fn stop_watcher(&mut self, key: u32) -> (u32, i64) {
        self.take_out(key);
        let cursor = &mut self.cursors[key as usize];
        cursor.state = CursorState::Cancelled;
        cursor.permission = None;
        cursor.held = None;
        let (stream, watch_id, at, group) = (cursor.stream, cursor.watch_id, cursor.source, cursor.group);
        self.leave_group(at, group, key);
        self.metrics.watchers.dec();
        (stream, watch_id)
    }

    fn next_of(&self, key: u32) -> Revision {
        let cursor = &self.cursors[key as usize];
        match cursor.state {
            CursorState::Synced(_) => cursor.next.max(self.attached[cursor.source as usize].position.next()),
            CursorState::Unsynced(_) | CursorState::ReadingHistory(_) | CursorState::Cancelled => cursor.next,
        }
    }

    fn head_of(&self, key: u32) -> Revision {
        let cursor = &self.cursors[key as usize];
        match cursor.state {
            CursorState::Cancelled => Revision(0),
            CursorState::Synced(_) | CursorState::Unsynced(_) | CursorState::ReadingHistory(_) => {
                self.attached[cursor.source as usize].source.log().head()
            }
        }
    }

    fn push(&mut self, stream: u32, out: Out) {
        self.metrics.pending_events.add(i64::from(out.event_count));
        self.streams[stream as usize].send_queue.push(out);
    }

    /// Has the watcher set task look after the unsynced cursors of a stream that has drained.
    fn wake_if_room(&mut self, stream: u32) {
        let entry = &mut self.streams[stream as usize];
        // Half: a stream that trickles is refilled in larger pieces.
        let (bytes, responses) = (self.limits.stream_bytes_max / 2, self.limits.stream_responses_max.div_ceil(2));
        let may_read = entry.reads < self.limits.stream_responses_max;
        let waits = entry.hold.is_none() && !entry.unsynced.is_empty() && may_read;
        if !entry.ready && waits && entry.send_queue.has_room(bytes, responses) {
            entry.ready = true;
            self.ready.push_back(stream);
            self.wake.notify_one();
        }
    }
}

impl Stream {
    fn free_id(&mut self) -> i64 {
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }
}

fn address(source: &Arc<Source>) -> usize {
    Arc::as_ptr(source) as usize
}
