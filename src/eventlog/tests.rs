//! Random histories, watchers and readers against a model of a few lines. No clock, no sockets: turns run by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proptest::prelude::*;
use prost::Message;
use tokio::time::Instant;

use super::handle::WatcherSetHandle;
use super::routes::{Routes, Subscription};
use super::send_queue::Taken;
use super::watcher_set::{Create, JobId, JobResult, StartedRead, VISITS};
use super::*;
use crate::pb::encoded::{WatchResponse, WireEncode};
use crate::pb::{etcdserverpb, mvccpb};
use crate::telemetry::{Metrics, WatchMetrics};
use crate::types::{ClusterId, KeyRange, MemberId, Revision, Term};

/// (revision, place in it, key, deleted)
type Seen = (i64, i64, String, bool);

/// Everything that was ever written.
#[derive(Default)]
struct Store {
    batches: Vec<Arc<LogBatch>>,
    events: Vec<Seen>,
    compacted: i64,
    revision: i64,
}

#[derive(Clone, Default)]
struct StoreHistory(Arc<Mutex<Store>>);

impl History for StoreHistory {
    fn events(&self, request: HistoryRequest) -> BoxFuture<'static, JobResult> {
        let store = self.0.lock();
        let result = if request.from.0 < store.compacted {
            Err(HistoryError::Compacted(Revision(store.compacted)))
        } else {
            let wanted = |b: &&Arc<LogBatch>| b.revision() >= request.from && b.revision() <= request.up_to;
            let batches: Vec<_> = store.batches.iter().filter(wanted).take(request.revisions_max).cloned().collect();
            let complete_to = match batches.last() {
                Some(last) if batches.len() == request.revisions_max => last.revision(),
                _ => request.up_to,
            };
            Ok(HistoryBatch { batches, complete_to })
        };
        async move { result }.boxed()
    }
}

impl Store {
    fn write(&mut self, changes: &[(u8, bool)]) -> Arc<LogBatch> {
        self.revision += 1;
        let revision = self.revision;
        let events = changes.iter().enumerate().map(|(place, &(key, deleted))| {
            let name = char::from(b'a' + key % 6).to_string();
            self.events.push((revision, place as i64, name.clone(), deleted));
            let kv = mvccpb::KeyValue {
                key: name.clone().into(),
                mod_revision: revision,
                version: place as i64,
                ..Default::default()
            };
            let kind = if deleted { EventKind::Delete } else { EventKind::Put };
            LogEvent::new(kind, name.into(), kv.encode_to_vec().into(), Some(kv.encode_to_vec().into()))
        });
        let batch = Arc::new(LogBatch::new(Revision(revision), events.collect()));
        self.batches.push(batch.clone());
        batch
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(Vec<(u8, bool)>),
    /// Lets the second log have what the first one has.
    Follow,
    Create {
        stream: usize,
        range: u8,
        start: i8,
        filter: u8,
        prev_kv: bool,
        second: bool,
    },
    Cancel {
        stream: usize,
        watch: usize,
    },
    Take {
        stream: usize,
        responses: u8,
    },
    Route,
    Resume,
    StartReads,
    FinishRead,
    Compact {
        back: u8,
    },
    Progress {
        stream: usize,
    },
    Tick,
    Move,
}

const STREAMS: usize = 3;

fn any_op() -> impl Strategy<Value = Op> {
    let stream = 0..STREAMS;
    prop_oneof![
        6 => prop::collection::vec((any::<u8>(), prop::bool::weighted(0.3)), 1..4).prop_map(Op::Write),
        2 => Just(Op::Follow),
        3 => (stream.clone(), any::<u8>(), -12..6i8, 0..4u8, any::<bool>(), prop::bool::weighted(0.3)).prop_map(
            |(stream, range, start, filter, prev_kv, second)| {
                Op::Create { stream, range, start, filter, prev_kv, second }
            }
        ),
        1 => (stream.clone(), any::<usize>()).prop_map(|(stream, watch)| Op::Cancel { stream, watch }),
        4 => (stream.clone(), 1..6u8).prop_map(|(stream, responses)| Op::Take { stream, responses }),
        3 => Just(Op::Route),
        2 => Just(Op::Resume),
        2 => Just(Op::StartReads),
        2 => Just(Op::FinishRead),
        1 => (0..10u8).prop_map(|back| Op::Compact { back }),
        1 => stream.prop_map(|stream| Op::Progress { stream }),
        1 => Just(Op::Tick),
        1 => Just(Op::Move),
    ]
}

/// What a client knows of one of its watches.
struct Client {
    range: KeyRange,
    start: i64,
    filter: u8,
    seen: Vec<Seen>,
    /// Newest revision that must not show up again.
    upto: i64,
    prev_kv: bool,
    /// Revisions of the events that told what was there before.
    told_before: Vec<i64>,
    /// Where the store was compacted when the watch was created.
    compacted: i64,
    ended: Option<i64>,
}

struct Scenario {
    store: Arc<Mutex<Store>>,
    watcher_set: WatcherSetHandle,
    first: Arc<Source>,
    second: Arc<Source>,
    moved: bool,
    reads: Vec<(JobId, JobResult)>,
    streams: Vec<u32>,
    clients: Vec<BTreeMap<i64, Client>>,
    asked: Vec<Vec<Client>>,
    /// Newest revision that an event or a progress answer of a stream has told of.
    told: Vec<i64>,
    now: Instant,
    trace: bool,
}

impl Scenario {
    fn new(now: Instant) -> Self {
        let history = StoreHistory::default();
        let store = history.0.clone();
        store.lock().revision = 1;
        let limits = WatchLimits {
            stream_bytes_max: 700,
            stream_responses_max: 6,
            catch_up_revisions_max: 3,
            catch_up_bytes_max: 250,
            set_bytes_max: 1_500,
            history_reads_max: 4,
            fragment_bytes: usize::MAX,
            progress_interval: Some(Duration::from_secs(10)),
        };
        let header_source = Arc::new(HeaderSource::new(ClusterId(1), MemberId(2), Term(3)));
        let watcher_set = WatcherSetHandle::new(limits, header_source, WatchMetrics::register(&Metrics::default()), 7);
        let source = || Source::new(EventLog::new(Revision(1), 4000), Arc::new(history.clone()));
        let streams = (0..STREAMS).map(|_| watcher_set.lock().open(false, now)).collect();
        Self {
            store,
            watcher_set,
            first: source(),
            second: source(),
            moved: false,
            reads: Vec::new(),
            streams,
            clients: (0..STREAMS).map(|_| BTreeMap::new()).collect(),
            asked: (0..STREAMS).map(|_| Vec::new()).collect(),
            told: vec![0; STREAMS],
            now,
            trace: false,
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Write(changes) => {
                let batch = self.store.lock().write(&changes);
                self.first.log().append([batch]);
            }
            Op::Follow => {
                let batches = self.store.lock().batches.clone();
                self.second.log().append(batches);
            }
            Op::Create { stream, range, start, filter, prev_kv, second } => {
                self.create(stream, range, start, filter, prev_kv, second);
            }
            Op::Cancel { stream, watch } => {
                let ids: Vec<i64> = self.clients[stream].keys().copied().collect();
                if !ids.is_empty() {
                    self.watcher_set.lock().cancel(self.streams[stream], ids[watch % ids.len()], Revision(0));
                }
            }
            Op::Take { stream, responses } => {
                for _ in 0..responses {
                    self.take(stream);
                }
            }
            Op::Route => drop(self.watcher_set.lock().route()),
            Op::Resume => drop(self.watcher_set.lock().resume()),
            Op::StartReads => {
                for StartedRead { id, history, request, .. } in self.watcher_set.lock().take_jobs(2) {
                    let result = history.events(request).now_or_never().expect("the model never waits");
                    self.reads.push((id, result));
                }
            }
            Op::FinishRead => {
                if let Some((id, result)) = self.reads.pop() {
                    self.watcher_set.lock().finish_job(id, result);
                }
            }
            Op::Compact { back } => {
                let mut store = self.store.lock();
                store.compacted = store.compacted.max(store.revision - i64::from(back)).max(0);
                for source in [&self.first, &self.second] {
                    source.log().compact(Revision(store.compacted));
                }
            }
            // Where a source is behind, the stream stays held until the next one.
            Op::Progress { stream } => drop(self.progress(stream)),
            Op::Tick => {
                self.now += Duration::from_secs(11);
                self.watcher_set.lock().tick(self.now);
            }
            Op::Move => {
                if !self.moved {
                    self.moved = true;
                    self.first.move_to(self.second.clone());
                    self.watcher_set.move_source(&self.first, &self.second);
                }
            }
        }
    }

    fn progress(&self, stream: usize) -> Vec<Arc<Source>> {
        self.watcher_set.lock().progress(self.streams[stream], 1)
    }

    fn create(&mut self, stream: usize, range: u8, start: i8, filter: u8, prev_kv: bool, second: bool) {
        let key = bytes::Bytes::from(vec![b'a' + range % 6]);
        let range = match range / 6 % 4 {
            0 => KeyRange::One(key),
            1 => KeyRange::From(key),
            2 => KeyRange::From("\0".into()),
            _ => KeyRange::HalfOpen { start: key, end: "e".into() },
        };
        if range.is_empty() {
            return;
        }
        let revision = self.store.lock().revision;
        let start = if start == 0 { 0 } else { (revision + i64::from(start)).max(1) };
        let filters = Filters { no_put: filter & 1 != 0, no_delete: filter & 2 != 0 };
        let create = Create {
            range: range.clone(),
            watch_id: 0,
            start: Revision(start),
            prev_kv,
            filters,
            progress_notify: true,
            fragment: false,
        };
        // The cluster was asked a while ago; the log may have moved on since.
        let after = (revision - i64::from(filter)).max(self.store.lock().compacted).max(1);
        let source = if second { self.second.clone() } else { self.first.clone() };
        let admission =
            Admission { source, after: Revision(after), compacted: Revision(0), permission: None, held: None };
        self.watcher_set.lock().create(self.streams[stream], &create, &admission, self.now);
        let start = if start == 0 { after + 1 } else { start };
        self.asked[stream].push(Client {
            range,
            start,
            filter,
            seen: Vec::new(),
            upto: start - 1,
            prev_kv,
            told_before: Vec::new(),
            compacted: self.store.lock().compacted,
            ended: None,
        });
    }

    fn take(&mut self, stream: usize) -> bool {
        let taken = self.watcher_set.lock().pop(self.streams[stream], Waker::noop());
        match taken {
            Taken::Response { response, .. } => {
                self.receive(stream, &response);
                true
            }
            Taken::Closed(status) => panic!("closed: {status}"),
            Taken::Empty => false,
        }
    }

    /// What a client may rely on, response by response.
    fn receive(&mut self, stream: usize, response: &WatchResponse) {
        let mut wire = Vec::new();
        response.write(&mut wire);
        let response = etcdserverpb::WatchResponse::decode(wire.as_slice()).expect("decodes");
        if self.trace {
            println!("{stream}: {response:?}");
        }
        let header = response.header.expect("a header").revision;
        if response.created {
            let client = self.asked[stream].remove(0);
            assert!(self.clients[stream].insert(response.watch_id, client).is_none(), "id in use");
            return;
        }
        if response.watch_id == -1 && response.events.is_empty() {
            assert!(header >= self.told[stream], "progress {header} after revision {}", self.told[stream]);
            self.told[stream] = header;
            for (id, client) in &self.clients[stream] {
                assert!(client.ended.is_none(), "progress although watch {id} is cancelled");
                self.check_complete(client, header);
            }
            return;
        }
        if response.canceled {
            if response.compact_revision == 0 {
                self.clients[stream].remove(&response.watch_id).expect("cancelled once");
                return;
            }
            assert_eq!(header, 0);
            let client = self.clients[stream].get_mut(&response.watch_id).expect("known");
            client.ended = Some(response.compact_revision);
            return;
        }
        if response.events.is_empty() {
            self.told[stream] = self.told[stream].max(header);
            return self.check_complete(&self.clients[stream][&response.watch_id], header);
        }
        let compacted = self.store.lock().compacted;
        let client = self.clients[stream].get_mut(&response.watch_id).expect("events after created");
        assert!(client.ended.is_none(), "events after the end");
        let first = response.events[0].kv.as_ref().expect("kv").mod_revision;
        assert!(first > client.upto, "revision {first} was split or repeated");
        for event in response.events {
            let kv = event.kv.expect("kv");
            let key = String::from_utf8(kv.key.to_vec()).expect("text");
            client.upto = kv.mod_revision;
            assert!(header >= kv.mod_revision);
            let (revision, tells_before) = (kv.mod_revision, event.prev_kv.is_some());
            if tells_before {
                client.told_before.push(revision);
                assert!(client.prev_kv && revision > client.compacted, "what was before {revision}");
            }
            assert!(tells_before || !client.prev_kv || revision <= compacted, "nothing before {revision}");
            client.seen.push((kv.mod_revision, kv.version, key, event.r#type == 1));
        }
        let revision = client.upto;
        self.told[stream] = self.told[stream].max(revision);
        self.check_complete(&self.clients[stream][&response.watch_id], revision);
    }

    /// The client has seen exactly the model's events from its start to `upto`.
    fn check_complete(&self, client: &Client, upto: i64) {
        let store = self.store.lock();
        let expected: Vec<&Seen> = store
            .events
            .iter()
            .filter(|(revision, _, key, deleted)| {
                (client.start..=upto).contains(revision)
                    && client.range.contains(key.as_bytes())
                    && client.filter & (if *deleted { 2 } else { 1 }) == 0
            })
            .collect();
        assert_eq!(client.seen.iter().collect::<Vec<_>>(), expected, "{:?} up to {upto}", client.range);
    }

    /// Lets everything come to rest and checks that nobody misses anything.
    fn settle(&mut self) {
        self.run(Op::Follow);
        for &stream in &self.streams {
            self.watcher_set.release(stream);
        }
        for _ in 0..10_000 {
            let mut busy = self.watcher_set.lock().route();
            busy |= self.watcher_set.lock().resume();
            self.run(Op::StartReads);
            while !self.reads.is_empty() {
                busy = true;
                self.run(Op::FinishRead);
            }
            for stream in 0..STREAMS {
                while self.take(stream) {
                    busy = true;
                }
            }
            if !busy {
                break;
            }
        }
        let revision = self.store.lock().revision;
        for client in self.clients.iter().flat_map(BTreeMap::values) {
            match client.ended {
                None => self.check_complete(client, revision),
                Some(compacted) => assert!(
                    client.upto < compacted,
                    "cancelled by compaction at {compacted}, but it had seen everything up to {}",
                    client.upto
                ),
            }
        }
        assert!(self.asked.iter().all(Vec::is_empty), "every create was answered");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn every_watcher_sees_exactly_the_history_it_asked_for(ops in prop::collection::vec(any_op(), 1..150)) {
        let mut scenario = Scenario::new(Instant::now());
        for op in ops {
            scenario.run(op);
        }
        scenario.settle();
    }
}

/// One stream on an otherwise empty store, as a person would write it down.
struct Script {
    scenario: Scenario,
}

impl Script {
    fn new() -> Self {
        Self { scenario: Scenario::new(Instant::now()) }
    }

    fn put(&mut self, key: u8) -> &mut Self {
        self.scenario.run(Op::Write(vec![(key - b'a', false)]));
        self.scenario.run(Op::Route);
        self
    }

    fn watch(&mut self, watch_id: i64, start: i64) -> &mut Self {
        let source = self.scenario.first.clone();
        self.watch_on(source, watch_id, start)
    }

    fn watch_on(&mut self, source: Arc<Source>, watch_id: i64, start: i64) -> &mut Self {
        let create = Create {
            range: KeyRange::One("a".into()),
            watch_id,
            start: Revision(start),
            prev_kv: false,
            filters: Filters::default(),
            progress_notify: false,
            fragment: false,
        };
        let now = self.scenario.now;
        let admission = Admission { source, after: Revision(0), compacted: Revision(0), permission: None, held: None };
        self.scenario.watcher_set.lock().create(0, &create, &admission, now);
        self
    }

    /// Everything the stream has to say, one line per response.
    fn said(&mut self) -> String {
        let mut lines = Vec::new();
        loop {
            let mut watcher_set = self.scenario.watcher_set.lock();
            while watcher_set.route() | watcher_set.resume() {}
            drop(watcher_set);
            self.scenario.run(Op::StartReads);
            self.scenario.run(Op::FinishRead);
            let taken = self.scenario.watcher_set.lock().pop(0, Waker::noop());
            let Taken::Response { response, events } = taken else { break };
            let mut line = format!("{}@{}", response.watch_id, response.header.expect("header").revision);
            for (set, word) in [(response.created, " created"), (response.canceled, " canceled")] {
                line += if set { word } else { "" };
            }
            if response.compact_revision != 0 {
                line += &format!(" compact {}", response.compact_revision);
            }
            if events != 0 {
                line += &format!(" {events} events");
            }
            line += &response.cancel_reason;
            lines.push(line);
        }
        lines.join("; ")
    }
}

#[test]
fn ids_are_counted_from_zero_past_those_in_use() {
    let mut script = Script::new();
    script.watch(0, 0).watch(1, 0).watch(2, 0).watch(0, 0).watch(2, 0);
    assert_eq!(
        script.said(),
        "0@1 created; 1@1 created; 2@1 created; 3@1 created; \
         -1@1 created canceledmvcc: duplicate watch ID provided on the WatchStream"
    );
}

#[test]
fn a_start_below_the_compaction_is_created_then_cancelled_and_blocks_progress() {
    let mut script = Script::new();
    for _ in 0..5 {
        script.put(b'a');
    }
    script.scenario.run(Op::Compact { back: 1 });
    script.watch(0, 5).watch(0, 4);
    assert_eq!(script.said(), "0@6 created; 1@6 created; 1@0 canceled compact 5; 0@6 2 events");
    script.scenario.run(Op::Progress { stream: 0 });
    assert_eq!(script.said(), "");
    script.scenario.watcher_set.lock().cancel(0, 1, Revision(6));
    script.scenario.run(Op::Progress { stream: 0 });
    assert_eq!(script.said(), "1@6 canceled; -1@6");
    script.scenario.watcher_set.lock().cancel(0, 1, Revision(6));
    assert_eq!(script.said(), "", "a repeated cancel gets no answer");
}

/// Cause: events that a log still had came with what was there before, though a member no longer knows that.
#[test]
fn what_was_there_before_a_compaction_is_not_told() {
    let mut script = Script::new();
    let watch = |start| Op::Create { stream: 1, range: 0, start, filter: 0, prev_kv: true, second: false };
    script.scenario.run(watch(0));
    script.put(b'a');
    // Not sent yet when it is compacted.
    script.scenario.run(Op::Write(vec![(0, false)]));
    script.scenario.run(Op::Compact { back: 0 });
    script.put(b'a');
    script.scenario.run(watch(-1));
    script.scenario.settle();
    let told_before = |watch_id| script.scenario.clients[1][&watch_id].told_before.clone();
    assert_eq!((told_before(0), told_before(1)), (vec![2, 4], vec![4]));
}

#[test]
fn a_future_start_holds_events_and_progress_back() {
    let mut script = Script::new();
    script.watch(0, 4);
    script.put(b'a').put(b'b');
    script.scenario.run(Op::Progress { stream: 0 });
    assert_eq!(script.said(), "0@1 created");
    script.put(b'a');
    assert_eq!(script.said(), "0@4 1 events");
    script.scenario.run(Op::Progress { stream: 0 });
    assert_eq!(script.said(), "-1@4");
}

#[test]
fn progress_is_not_older_than_what_another_source_has_told() {
    let mut script = Script::new();
    let second = script.scenario.second.clone();
    script.watch(0, 0).watch_on(second.clone(), 1, 0).put(b'a');
    assert_eq!(script.said(), "0@1 created; 1@1 created; 0@2 1 events");
    let behind = script.scenario.progress(0);
    assert!(behind.len() == 1 && Arc::ptr_eq(&behind[0], &second));
    script.put(b'a');
    assert_eq!(script.said(), "", "held until the second source is at 2");
    script.scenario.run(Op::Follow);
    assert_eq!(script.said(), "1@2 1 events");
    assert!(script.scenario.progress(0).is_empty());
    assert_eq!(script.said(), "-1@2; 0@3 1 events; 1@3 1 events");
    script.put(b'a');
    assert_eq!(script.scenario.progress(0).len(), 1);
    script.scenario.watcher_set.release(0);
    script.put(b'a');
    assert_eq!(script.said(), "0@4 1 events; 0@5 1 events", "no answer, and nothing is held");
}

#[test]
fn a_tick_notifies_the_idle_only() {
    let mut script = Script::new();
    script.scenario.run(Op::Create { stream: 0, range: 0, start: 0, filter: 0, prev_kv: false, second: false });
    script.scenario.run(Op::Create { stream: 0, range: 1, start: 0, filter: 0, prev_kv: false, second: false });
    script.put(b'a');
    assert_eq!(script.said(), "0@1 created; 1@1 created; 0@2 1 events");
    script.scenario.run(Op::Tick);
    assert_eq!(script.said(), "1@2");
    script.scenario.run(Op::Tick);
    assert_eq!(script.said(), "0@2; 1@2");
}

/// Cause: each notification took room of the stream, so that the first watchers had them at every tick and the others never.
#[test]
fn a_tick_notifies_more_watchers_than_a_stream_has_room_for_responses() {
    const WATCHERS: usize = 20;
    let mut script = Script::new();
    for _ in 0..WATCHERS {
        script.scenario.run(Op::Create { stream: 0, range: 0, start: 0, filter: 0, prev_kv: false, second: false });
    }
    assert_eq!(script.said().split("; ").count(), WATCHERS, "created");
    let all = (0..WATCHERS).map(|id| format!("{id}@1")).collect::<Vec<_>>().join("; ");
    script.scenario.run(Op::Tick);
    assert_eq!(script.said(), all);
    // As the proxy does.
    script.scenario.watcher_set.notify_source(&script.scenario.first);
    assert_eq!(script.said(), all);
    // One that is not read is not given more and more.
    script.scenario.run(Op::Tick);
    script.scenario.run(Op::Tick);
    assert_eq!(script.said(), all);
}

#[test]
fn a_stream_that_is_not_read_holds_a_bounded_amount_and_slows_nobody() {
    let mut script = Script::new();
    script.watch(0, 0);
    script.scenario.run(Op::Create { stream: 1, range: 0, start: 0, filter: 0, prev_kv: false, second: false });
    for _ in 0..200 {
        script.put(b'a');
        script.scenario.run(Op::Take { stream: 1, responses: 2 });
    }
    let client = &script.scenario.clients[1][&0];
    assert_eq!(client.seen.len(), 200);
    let said = script.said();
    assert!(said.starts_with("0@1 created; 0@2 1 events; 0@3 1 events"), "{said}");
    assert!(said.split("; ").count() < 100, "what was missed comes in larger pieces: {said}");
    assert_eq!(script.scenario.watcher_set.lock().positions(), vec![Revision(201)]);
}

#[test]
fn a_cancelled_source_cancels_whoever_joins_later_too() {
    let mut script = Script::new();
    script.watch(0, 0);
    let end = End { compact_revision: Revision(0), reason: "gone".into() };
    script.scenario.first.end(end.clone());
    script.scenario.watcher_set.end_source(&script.scenario.first, &end);
    script.watch(0, 0);
    assert_eq!(script.said(), "0@1 created; 0@1 canceledgone; 1@1 created; 1@1 canceledgone");
}

/// Cause: each watcher of a stream that was closed was looked for among all others, under the lock of the watcher set: a client
/// with 100,000 watches that did not read stopped the serving thread for seconds.
#[test]
fn a_watcher_that_goes_is_not_looked_for_among_the_others() {
    const WATCHERS: usize = 1000;
    let unsynced = || {
        let mut script = Script::new();
        for _ in 0..WATCHERS {
            script.watch(0, 0);
        }
        // Nobody reads the stream, which has no room for the event.
        script.put(b'a');
        VISITS.set(0);
        script
    };
    let each: [(_, fn(&Scenario)); 4] = [
        ("closed", |script: &Scenario| script.watcher_set.lock().close(0)),
        ("ended", |script: &Scenario| script.watcher_set.end_source(&script.first, &End::default())),
        ("moved", |script: &Scenario| script.watcher_set.move_source(&script.first, &script.second)),
        ("cancelled", |script: &Scenario| {
            // From the middle to both ends.
            let (first, second) = (0..WATCHERS as i64 / 2, WATCHERS as i64 / 2..WATCHERS as i64);
            let ids = first.rev().zip(second).flat_map(|(one, other)| [one, other]);
            ids.for_each(|id| script.watcher_set.lock().cancel(0, id, Revision(0)));
        }),
    ];
    for (what, goes) in each {
        let script = unsynced();
        goes(&script.scenario);
        let visits = VISITS.get();
        // Itself and its two neighbours, and once more where it is queued again.
        assert!((WATCHERS..=4 * WATCHERS).contains(&visits), "{visits} for {WATCHERS} that are {what}");
    }
}

/// Cause: each revision was a response of its own, also where several waited: a watcher set that was short of CPU time fell
/// further and further behind.
#[test]
fn revisions_that_wait_come_in_one_response() {
    let mut script = Script::new();
    // From now, from the second of them, and from one that is still to come.
    script.watch(0, 0).watch(0, 3).watch(0, 9);
    for _ in 2..=4 {
        script.scenario.run(Op::Write(vec![(0, false)]));
    }
    let created = "0@1 created; 1@1 created; 2@1 created";
    assert_eq!(script.said(), format!("{created}; 0@4 3 events; 1@4 2 events"));
    script.put(b'a');
    assert_eq!(script.said(), "1@5 1 events; 0@5 1 events");
}

/// Cause: what waiting revisions hold was copied for each range that covers them, however many those are: one client with very many
/// of them held up its serving thread.
#[test]
fn revisions_that_very_many_ranges_want_come_one_by_one() {
    let mut store = Store::default();
    let batches = [store.write(&[(0, false)]), store.write(&[(0, false)])];
    let mut routes = Routes::default();
    let mut routed = |ranges: std::ops::Range<u32>| {
        for number in ranges {
            let range = KeyRange::HalfOpen { start: "a".into(), end: format!("b{number}").into() };
            routes.join(Subscription { range, prev_kv: false, filters: Filters::default() });
        }
        let mut wanted = Vec::new();
        (routes.route(&batches, &mut wanted), wanted.len())
    };
    assert_eq!(routed(0..10), (2, 20));
    assert_eq!(routed(10..5000), (1, 5000));
}

/// Cause: each turn began with the same source. While that had events in every turn, and watchers enough to use it up, the watchers of
/// all other sources got none.
#[test]
fn sources_take_turns() {
    let limits = WatchLimits { stream_bytes_max: 1 << 30, stream_responses_max: 10_000, ..WatchLimits::default() };
    let set = WatcherSetHandle::new(limits, Arc::default(), WatchMetrics::register(&Metrics::default()), 7);
    let now = Instant::now();
    let watched = |watchers: usize| {
        let source = Source::new(EventLog::new(Revision(1), 1 << 20), Arc::new(StoreHistory::default()));
        let stream = set.lock().open(false, now);
        for _ in 0..watchers {
            let create = Create {
                range: KeyRange::One("a".into()),
                watch_id: 0,
                start: Revision(0),
                prev_kv: false,
                filters: Filters::default(),
                progress_notify: false,
                fragment: false,
            };
            let source = source.clone();
            let admission =
                Admission { source, after: Revision(0), compacted: Revision(0), permission: None, held: None };
            set.lock().create(stream, &create, &admission, now);
        }
        (source, stream)
    };
    let ((busy, _), (quiet, stream)) = (watched(1100), watched(1));
    let mut store = Store { revision: 1, ..Store::default() };
    quiet.log().append([store.write(&[(0, false)])]);
    for _ in 0..2 {
        busy.log().append([store.write(&[(0, false)])]);
        assert!(set.lock().route(), "it used up the turn");
    }
    let mut seen = 0;
    while let Taken::Response { events, .. } = set.lock().pop(stream, Waker::noop()) {
        seen += events;
    }
    assert_eq!(seen, 1);
}

/// Cause: a stream of a damaged member, or one with a watch that can only be taken up by another stream, went on for as long as its
/// client was slower than the events.
#[test]
fn a_stream_that_is_to_end_gets_no_more_events() {
    let mut script = Script::new();
    script.watch(0, 0).put(b'a');
    script.scenario.watcher_set.end_stream(0, tonic::Status::unavailable("over"));
    script.put(b'a');
    assert_eq!(script.said(), "0@1 created; 0@2 1 events");
    let taken = script.scenario.watcher_set.lock().pop(0, Waker::noop());
    let Taken::Closed(status) = taken else { panic!("{taken:?}") };
    assert_eq!(status.message(), "over");
}

/// Cause: once a stream had room, all of its watchers that the log had left behind had history read for them, and a response queued,
/// however many they were and whether the client read on or not.
#[test]
fn history_is_read_for_what_a_stream_has_room_for() {
    let mut scenario = Scenario::new(Instant::now());
    // More than the log holds.
    for _ in 0..20 {
        scenario.run(Op::Write((0..6).map(|key| (key, false)).collect()));
    }
    for range in 0..24 {
        for prev_kv in [false, true] {
            scenario.run(Op::Create { stream: 0, range, start: -15, filter: 0, prev_kv, second: false });
        }
    }
    // The client takes the answers to its requests, and then nothing for a while.
    while !scenario.asked[0].is_empty() {
        assert!(scenario.take(0));
    }
    for _ in 0..200 {
        for op in [Op::Resume, Op::StartReads, Op::FinishRead, Op::FinishRead] {
            scenario.run(op);
        }
    }
    let mut queued = 0;
    while scenario.take(0) {
        queued += 1;
    }
    assert_eq!(queued, 6, "as many as a stream has room for");
    // It misses nothing.
    scenario.settle();
}

/// A history from which the first read never returns.
#[derive(Default)]
struct StuckHistory {
    begun: tokio::sync::Notify,
    first: std::sync::atomic::AtomicBool,
}

impl History for Arc<StuckHistory> {
    fn events(&self, request: HistoryRequest) -> BoxFuture<'static, JobResult> {
        let is_first = !self.first.swap(true, std::sync::atomic::Ordering::Relaxed);
        self.begun.notify_one();
        async move {
            if is_first {
                std::future::pending::<()>().await;
            }
            Err(HistoryError::Compacted(request.up_to))
        }
        .boxed()
    }
}

/// Cause: a read of history went on when its watchers had gone, and kept one of the few slots, for ever where the cluster
/// refused it.
#[tokio::test(start_paused = true)]
async fn a_read_that_nobody_waits_for_frees_its_slot() {
    let history = Arc::new(StuckHistory::default());
    let limits = WatchLimits { history_reads_max: 1, ..WatchLimits::default() };
    let (tasks, metrics) = (crate::shutdown::Tasks::new(), WatchMetrics::register(&Metrics::default()));
    let stopped = tonic::Status::unavailable("stopped");
    let set = WatcherSetHandle::start(limits, Arc::default(), metrics, 7, stopped, &tasks);
    let source = Source::new(EventLog::new(Revision(10), 4000), Arc::new(history.clone()));
    let read = |key: &'static str| {
        let (source, stream) = (source.clone(), set.open(false));
        let create = Create {
            range: KeyRange::One(key.into()),
            watch_id: 0,
            start: Revision(5),
            prev_kv: false,
            filters: Filters::default(),
            progress_notify: false,
            fragment: false,
        };
        let admission = Admission { source, after: Revision(0), compacted: Revision(0), permission: None, held: None };
        set.create(stream, &create, &admission);
        stream
    };
    let begun = async || {
        let begun = tokio::time::timeout(Duration::from_secs(60), history.begun.notified()).await;
        begun.expect("the read begins");
    };
    let stuck = read("a");
    begun().await;
    read("b");
    set.close(stuck);
    begun().await;
    tasks.stop();
}

/// What a watch without a history can be told.
#[derive(Clone)]
struct NoHistory(HistoryError);

impl History for NoHistory {
    fn events(&self, _: HistoryRequest) -> BoxFuture<'static, JobResult> {
        let error = self.0.clone();
        async move { Err(error) }.boxed()
    }
}

/// Cause: a slow watch was cancelled because the token of its stream had expired, though its client had another one.
#[test]
fn history_that_another_stream_may_read_ends_the_stream() {
    let mut script = Script::new();
    let error = HistoryError::NotOnThisStream("an old token".into());
    let source = Source::new(EventLog::new(Revision(10), 4000), Arc::new(NoHistory(error)));
    script.watch(0, 0).watch_on(source.clone(), 0, 5).watch_on(source, 0, 5);
    assert_eq!(script.said(), "0@1 created; 1@10 created; 2@10 created");
    let taken = script.scenario.watcher_set.lock().pop(0, Waker::noop());
    let Taken::Closed(status) = taken else { panic!("{taken:?}") };
    assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "an old token"));
    assert!(script.scenario.watcher_set.lock().take_jobs(9).is_empty(), "nothing more is read for it");
    script.scenario.watcher_set.lock().close(0);
}
