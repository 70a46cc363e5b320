//! Watching clients: they resume on any member, and every response is held against the log's events.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};

use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use prost::Message;
use tonic::Status;
use watershed::core::watch::CoreWatch;
use watershed::eventlog::{Admission, Admit, WatchAdmission, WatchStream};
use watershed::pb::encoded::{WatchResponse as Encoded, WireEncode};
use watershed::pb::etcdserverpb::watch_request::RequestUnion;
use watershed::pb::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use watershed::pb::mvccpb;
use watershed::types::{KeyRange, Revision};

use super::checkers::WatchRecord;
use super::context::{Context, Event, MILLI, must};
use super::history;
use super::process::Process;

/// A client that watches a range for the whole simulation.
pub struct Watcher {
    range: KeyRange,
    prev_kv: bool,
    connection: Option<Connection>,
    /// Every event up to here was delivered, or belongs to nobody.
    pub seen: i64,
    /// Began somewhere; before that it asks for "from now".
    begun: bool,
    /// Deletions by leases that ran out.
    expired: BTreeSet<(i64, Bytes)>,
    /// Revisions that compactions took before they were delivered, and those before the watch began.
    missed: BTreeSet<i64>,
    /// What it asked and heard, if the simulation keeps it.
    pub recorded: Vec<WatchRecord>,
    /// The only member it connects to.
    pub only: Option<usize>,
}

struct Connection {
    member: usize,
    boot: u32,
    requests: Requests,
    stream: WatchStream<Requests>,
}

#[derive(Clone, Default)]
struct Requests(Arc<Mutex<VecDeque<WatchRequest>>>);

impl Requests {
    fn push(&self, request: RequestUnion) {
        self.0.lock().push_back(WatchRequest { request_union: Some(request) });
    }
}

impl Stream for Requests {
    type Item = Result<WatchRequest, Status>;

    fn poll_next(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        // The reader polls again and again: no waker is needed.
        self.0.lock().pop_front().map_or(Poll::Pending, |request| Poll::Ready(Some(Ok(request))))
    }
}

struct SimWatchAdmission(CoreWatch);

impl WatchAdmission for SimWatchAdmission {
    fn admit(&mut self, _: &KeyRange, _: Revision) -> Admit {
        Admit::Now(Ok(Admission {
            source: self.0.source(),
            after: Revision(0),
            compacted: Revision(0),
            permission: None,
            held: None,
        }))
    }

    fn revision(&self) -> Revision {
        self.0.revision()
    }

    fn canceled(&self) -> Status {
        Status::cancelled("client went away")
    }
}

impl Watcher {
    pub fn new(context: &mut Context) -> Self {
        let range = match context.random.u8(..4) {
            0 => KeyRange::One("k1".into()),
            1 => KeyRange::prefix("k".into()),
            2 => KeyRange::HalfOpen { start: "k4".into(), end: "l2".into() },
            _ => KeyRange::From("\0".into()),
        };
        Self {
            range,
            prev_kv: context.random.bool(),
            connection: None,
            seen: 0,
            begun: false,
            expired: BTreeSet::new(),
            missed: BTreeSet::new(),
            recorded: Vec::new(),
            only: None,
        }
    }

    /// A watch of scripts: from a revision on, at one member.
    pub fn at(range: KeyRange, start: i64, member: usize) -> Self {
        Self {
            range,
            prev_kv: true,
            connection: None,
            seen: start - 1,
            begun: true,
            expired: BTreeSet::new(),
            missed: (1..start).collect(),
            recorded: Vec::new(),
            only: Some(member),
        }
    }

    /// The process it is connected to, if that still runs.
    pub fn connected_to(&self) -> Option<(usize, u32)> {
        self.connection.as_ref().map(|connection| (connection.member, connection.boot))
    }

    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    pub fn connect(&mut self, context: &mut Context, process: &Process) {
        let requests = Requests::default();
        let start = if self.begun { self.seen + 1 } else { 0 };
        let (key, range_end) = self.range.to_wire();
        requests.push(RequestUnion::CreateRequest(WatchCreateRequest {
            key,
            range_end,
            start_revision: start,
            prev_kv: self.prev_kv,
            ..Default::default()
        }));
        let admission = Box::new(SimWatchAdmission(process.watch.clone()));
        let stream = WatchStream::new(process.watchers.clone(), requests.clone(), admission, false);
        context.counts.streams += 1;
        if context.settings.recorded {
            self.recorded.push(history::watch(process.index, &self.range, start, self.begun, self.prev_kv));
        }
        self.connection = Some(Connection { member: process.index, boot: process.boot, requests, stream });
    }

    /// Reads up to `responses` of what is there.
    pub fn read(&mut self, context: &mut Context, responses: usize) {
        if let Some(connection) = &self.connection
            && (!context.faulty || context.one_in(4))
        {
            connection.requests.push(RequestUnion::ProgressRequest(WatchProgressRequest {}));
        }
        for _ in 0..responses {
            let Some(connection) = &mut self.connection else { return };
            let mut task = TaskContext::from_waker(Waker::noop());
            match Pin::new(&mut connection.stream).poll_next(&mut task) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(response))) => self.take(context, &response),
                Poll::Ready(Some(Err(_)) | None) => self.connection = None,
            }
        }
    }

    fn take(&mut self, context: &mut Context, response: &Encoded) {
        let mut bytes = Vec::new();
        response.write(&mut bytes);
        let response = WatchResponse::decode(bytes.as_slice()).expect("the same message");
        if let Some(record) = self.recorded.last_mut() {
            record.answers.push(history::watch_answer(context.now, &response));
        }
        let header = response.header.as_ref().map_or(0, |header| header.revision);
        let newest = context.truth.model.revision();
        must!(context, header <= newest, "a watch speaks of revision {header}, which nobody wrote");
        if response.created {
            if !self.begun {
                (self.begun, self.seen) = (true, header);
                self.missed.extend(1..=header);
            }
            return;
        }
        if response.canceled {
            let compacted = response.compact_revision;
            let right = compacted > self.seen + 1 && compacted <= context.truth.model.compacted;
            must!(context, right, "a watch from {} was cancelled: {response:?}", self.seen + 1);
            self.missed.extend(self.seen + 1..compacted);
            self.seen = compacted - 1;
            self.connection = None;
            return;
        }
        let Some(last) = response.events.last() else {
            // Progress: everything up to here was delivered.
            must!(context, header >= self.seen, "progress {header} after {} was seen", self.seen);
            let missed = context.truth.model.events(&self.range, self.seen, header);
            must!(context, missed.is_empty(), "progress {header}, but {missed:?} were not delivered");
            self.seen = header;
            return;
        };
        let upto = last.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let expected = context.truth.model.events(&self.range, self.seen, upto);
        let same = expected.len() == response.events.len()
            && expected.iter().zip(&response.events).all(|(expected, event)| {
                let kv = match &expected.kv {
                    Some(kv) => (0, kv.clone()),
                    None => (1, deletion(expected.key.clone(), expected.revision)),
                };
                let prev = match &event.prev_kv {
                    Some(prev) => self.prev_kv && expected.prev.as_ref() == Some(prev),
                    // A compaction may have taken it.
                    None => {
                        !self.prev_kv || expected.prev.is_none() || expected.revision <= context.truth.model.compacted
                    }
                };
                (event.r#type, event.kv.as_ref()) == (kv.0, Some(&kv.1)) && prev
            });
        let (seen, events) = (self.seen, &response.events);
        must!(context, same, "after {seen} a watch of {:?} got {events:?} instead of {expected:?}", self.range);
        for event in &expected {
            let deletion = (event.revision, event.key.clone());
            if context.truth.expired_keys.contains(&deletion) {
                context.counts.expiries_watched += 1;
                must!(context, self.expired.insert(deletion.clone()), "the expiry {deletion:?} was seen twice");
            }
        }
        self.seen = upto;
        context.counts.events += response.events.len() as u64;
        context.truth.shown = context.truth.shown.max(upto);
        context.note("events", [upto as u64, response.events.len() as u64, 0]);
    }

    /// Expiries in its range that it should have seen, and has not.
    pub fn unseen_expiries<'a>(&'a self, context: &'a Context) -> impl Iterator<Item = &'a (i64, Bytes)> {
        let mine = |(revision, key): &&(i64, Bytes)| self.range.contains(key) && *revision <= self.seen;
        let expired = context.truth.expired_keys.iter().filter(mine);
        expired.filter(|expiry| self.begun && !self.missed.contains(&expiry.0) && !self.expired.contains(expiry))
    }

    /// When it looks again.
    pub fn schedule(context: &mut Context, watcher: usize) {
        let pause = context.random.u64(50 * MILLI..600 * MILLI);
        context.after(pause, Event::Watch(watcher));
    }
}

fn deletion(key: Bytes, revision: i64) -> mvccpb::KeyValue {
    mvccpb::KeyValue { key, mod_revision: revision, ..Default::default() }
}
