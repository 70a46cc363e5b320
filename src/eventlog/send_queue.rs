use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use bytes::Bytes;
use tonic::Status;

use super::header_source::HeaderSource;
use crate::pb::encoded::WatchResponse;
use crate::types::Revision;

/// What a queued response costs next to its events.
const RESPONSE_OVERHEAD_BYTES: usize = 96;
/// A queue that grew beyond this many responses gives its memory back once it is empty.
const RESPONSES_KEPT: usize = 64;

/// A response that waits for its stream, without the facts all responses of a stream share.
#[derive(Debug)]
pub(super) struct Out {
    pub watch_id: i64,
    pub revision: Revision,
    pub events: Bytes,
    pub event_count: u32,
    pub kind: OutKind,
    pub end: Option<Box<End>>,
}

/// What a response tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutKind {
    Events,
    /// Events of which more pieces follow.
    Fragment,
    Created,
    /// Created and cancelled at once.
    Refused,
    Canceled,
    Progress,
}

/// Why a watch ended or never began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Set when compaction ended it.
    pub compact_revision: Revision,
    /// The text for the client, empty when it asked for the end itself.
    pub reason: String,
}

impl Out {
    pub fn control(kind: OutKind, watch_id: i64, revision: Revision) -> Self {
        Self { watch_id, revision, events: Bytes::new(), event_count: 0, kind, end: None }
    }

    fn cost(&self) -> usize {
        RESPONSE_OVERHEAD_BYTES + self.events.len()
    }

    /// Answers to requests; a stream reads no further request while many of them wait.
    fn is_control(&self) -> bool {
        !matches!(self.kind, OutKind::Events | OutKind::Fragment)
    }

    fn into_response(self, header_source: &HeaderSource) -> WatchResponse {
        let end = self.end.map(|end| *end).unwrap_or_default();
        WatchResponse {
            header: Some(header_source.header(self.revision)),
            watch_id: self.watch_id,
            created: matches!(self.kind, OutKind::Created | OutKind::Refused),
            canceled: matches!(self.kind, OutKind::Canceled | OutKind::Refused),
            compact_revision: end.compact_revision.0,
            cancel_reason: end.reason,
            fragment: self.kind == OutKind::Fragment,
            events: self.events,
        }
    }
}

/// Responses one stream has not sent yet.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    queue: VecDeque<Out>,
    bytes: usize,
    controls: u32,
    closed: Option<Status>,
    waker: Option<Waker>,
    /// Bytes of all queues of the watcher set, whose lock is held for every change: no two change it at once.
    all: Arc<AtomicUsize>,
}

/// What a stream finds in its send queue.
#[derive(Debug)]
pub(super) enum Taken {
    Response { response: Box<WatchResponse>, events: u32 },
    Closed(Status),
    Empty,
}

impl SendQueue {
    /// An empty queue, counted in `all`.
    pub fn new(all: Arc<AtomicUsize>) -> Self {
        Self { queue: VecDeque::new(), bytes: 0, controls: 0, closed: None, waker: None, all }
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.all.store(self.all.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
    }

    fn subtract(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.all.store(self.all.load(Ordering::Relaxed) - bytes, Ordering::Relaxed);
    }

    /// Queues a response and wakes the stream.
    pub fn push(&mut self, out: Out) {
        self.add(out.cost());
        self.controls += u32::from(out.is_control());
        self.queue.push_back(out);
        self.wake();
    }

    /// Whether events may be added. The last response may exceed the bound, so that a large one always goes. A stream that is to end
    /// gets none: while there are always some, it would not end.
    pub fn has_room(&self, bytes_max: usize, responses_max: usize) -> bool {
        self.closed.is_none() && self.bytes < bytes_max && self.queue.len() < responses_max
    }

    pub fn controls(&self) -> u32 {
        self.controls
    }

    pub fn take(&mut self, header_source: &HeaderSource) -> Taken {
        let Some(out) = self.queue.pop_front() else {
            return self.closed.clone().map_or(Taken::Empty, Taken::Closed);
        };
        self.subtract(out.cost());
        self.controls -= u32::from(out.is_control());
        if self.queue.is_empty() && self.queue.capacity() > RESPONSES_KEPT {
            self.queue = VecDeque::new();
        }
        let events = out.event_count;
        Taken::Response { response: Box::new(out.into_response(header_source)), events }
    }

    /// Ends the stream with `status` once what waits is sent.
    pub fn close(&mut self, status: Status) {
        self.closed.get_or_insert(status);
        self.wake();
    }

    pub fn park(&mut self, waker: &Waker) {
        match &mut self.waker {
            Some(parked) => parked.clone_from(waker),
            None => self.waker = Some(waker.clone()),
        }
    }

    pub fn pending_events(&self) -> u64 {
        self.queue.iter().map(|out| u64::from(out.event_count)).sum()
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for SendQueue {
    fn drop(&mut self) {
        self.subtract(self.bytes);
    }
}
