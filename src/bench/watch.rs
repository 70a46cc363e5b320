use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::args::WatchArgs;
use super::pace::Pace;
use super::record::Record;
use super::report::{Delivery, Measured};
use super::requests::Source;
use super::setup::{Setup, within};
use super::tally::{Seen, WrittenLog};
use super::timeline::Timeline;
use super::unary::{Gate, clients, share};
use super::wire::{CallError, Connection, Route, StreamReceiver, StreamSender, frame};
use super::{scan, threads};
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest};
use crate::shutdown::Tasks;
use crate::types::KeyRange;

/// Streams that one thread sets up at a time.
const SETUPS: usize = 64;
/// Callers that share one connection for their puts.
const CALLERS_PER_CONNECTION: u32 = 16;
/// Watch ids we ask for begin here, so that ids a proxy picks itself cannot be mistaken for them.
const FIRST_ID: i64 = 1 << 40;
/// How long servers may settle before the memory of idle watches is read.
const SETTLE: Duration = Duration::from_secs(1);

/// What the two watch loads differ in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) watchers_per_stream: u32,
    /// 0 puts as fast as puts are answered.
    pub(super) put_rate: f64,
}

/// What all threads of a run share.
struct Board {
    /// Times in values count from here.
    epoch: Instant,
    written_log: WrittenLog,
    events: AtomicU64,
    last_event_nanos: AtomicU64,
    /// Cancelled when the readers may go home.
    finish: CancellationToken,
}

/// What one thread brings back.
#[derive(Default)]
struct Part {
    /// Latency of the puts, and every error.
    puts: Record,
    delivery: Record,
    seen: Vec<Seen>,
    ended: u64,
    last_put: Option<Instant>,
    setup: Duration,
    idle_bytes_per_stream: BTreeMap<String, f64>,
}

/// Sets the watches up, puts, waits for the last event and compares what was seen with what was written.
pub(super) fn run(setup: &Setup, args: &WatchArgs, shape: Shape) -> Result<Measured, CallError> {
    let common = &setup.common;
    let rate = (shape.put_rate > 0.0).then_some(shape.put_rate);
    let pace = Arc::new(Pace::new(args.put_total, common.limit(), rate));
    let board = Arc::new(Board {
        epoch: Instant::now(),
        written_log: WrittenLog::new(args.keys as usize),
        events: AtomicU64::new(0),
        last_event_nanos: AtomicU64::new(0),
        finish: CancellationToken::new(),
    });
    let run = Run {
        setup,
        args,
        shape,
        pace: &pace,
        board: &board,
        ready: Gate::new(common.threads as usize),
        go: Gate::new(1),
        stop: CancellationToken::new(),
    };
    let watchers = u64::from(args.streams) * u64::from(shape.watchers_per_stream);
    let (parts, timeline) = threads::run(
        // The last thread puts: readers that are behind must not hold the puts up.
        common.threads + 1,
        |thread, tasks| {
            let run = &run;
            async move {
                let outcome =
                    if thread < common.threads { run.read(thread, &tasks).await } else { run.write(&tasks).await };
                if outcome.is_err() {
                    run.abort();
                }
                outcome
            }
        },
        || {
            run.go.wait_aside();
            pace.drive(common.clients as usize, &run.stop);
        },
        &run.stop,
        pace.total()
            .map(|puts| puts.saturating_mul(watchers) / if args.whole_prefix { 1 } else { u64::from(args.keys) }),
        || board.events.load(Ordering::Relaxed),
        common.json,
    )?;
    Ok(Measured { timeline, ..sum_up(&run, parts, rate, watchers) })
}

/// One run, as its threads see it.
struct Run<'a> {
    setup: &'a Setup,
    args: &'a WatchArgs,
    shape: Shape,
    pace: &'a Arc<Pace>,
    board: &'a Arc<Board>,
    /// Opens when every watch is set up.
    ready: Gate,
    /// Opens when the puts begin.
    go: Gate,
    stop: CancellationToken,
}

impl Run<'_> {
    fn abort(&self) {
        self.stop.cancel();
        self.board.finish.cancel();
        self.ready.open();
        self.go.open();
    }

    /// Reads on the streams of one thread until the run is over.
    async fn read(&self, thread: u32, tasks: &Tasks) -> Result<Part, CallError> {
        let start = Instant::now();
        let connections: Vec<Arc<Connection>> =
            self.setup.connect(thread, tasks).await?.into_iter().map(Arc::new).collect();
        let streams = share(self.args.streams, self.setup.common.threads, thread);
        let delivery = Arc::new(Mutex::new(Record::default()));
        let turns = Arc::new(Semaphore::new(SETUPS));
        let set_up = Arc::new(Semaphore::new(0));
        let readers: Vec<_> = (0..streams)
            .map(|number| {
                let stream = number * self.setup.common.threads + thread;
                let reader = Reader {
                    plan: self.plan(stream),
                    connection: connections[number as usize % connections.len()].clone(),
                    board: self.board.clone(),
                    delivery: delivery.clone(),
                };
                let (turns, set_up) = (turns.clone(), set_up.clone());
                let common = self.setup.common.clone();
                tasks.spawn(async move {
                    let opened = {
                        let _turn = turns.acquire().await;
                        within(&common, reader.open()).await
                    };
                    set_up.add_permits(1);
                    reader.follow(opened).await
                })
            })
            .collect();
        // One permit for each stream that is set up, or never will be.
        let all = set_up.acquire_many(streams).await;
        drop(all.map_err(|error| CallError(format!("set up watches: {error}")))?);
        let setup = start.elapsed();
        self.ready.arrive();
        let mut part = Part { setup, ..Part::default() };
        for outcome in futures::future::join_all(readers).await {
            let outcome = outcome.map_err(|error| CallError(format!("watch stream: {error}")))?;
            part.seen.extend(outcome.seen);
            part.ended += outcome.ended;
            if let Some(error) = outcome.error {
                part.puts.failed(&error);
            }
        }
        part.delivery = std::mem::take(&mut *delivery.lock());
        Ok(part)
    }

    /// The watches of one stream: for each its create request and the number of its key.
    fn plan(&self, stream: u32) -> Vec<(Bytes, Option<u32>)> {
        let count = self.shape.watchers_per_stream;
        (0..count)
            .map(|slot| {
                let watcher = u64::from(stream) * u64::from(count) + u64::from(slot);
                let key = (watcher % u64::from(self.args.keys)) as u32;
                let range = if self.args.whole_prefix {
                    KeyRange::prefix(self.args.prefix.clone().into())
                } else {
                    KeyRange::One(watched_key(&self.args.prefix, key))
                };
                let (start, range_end) = range.to_wire();
                let create = WatchCreateRequest {
                    key: start,
                    range_end,
                    prev_kv: self.args.prev_kv,
                    watch_id: FIRST_ID + i64::from(slot),
                    ..Default::default()
                };
                let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
                (frame(&request), (!self.args.whole_prefix).then_some(key))
            })
            .collect()
    }

    /// Puts, then waits until every event has arrived or none comes any more.
    async fn write(&self, tasks: &Tasks) -> Result<Part, CallError> {
        let callers = self.setup.common.clients;
        self.ready.wait_aside();
        let mut connections = Vec::new();
        for index in 0..callers.div_ceil(CALLERS_PER_CONNECTION) {
            connections.push(Connection::open(self.setup.target(index), tasks).await?);
        }
        let mut part = Part::default();
        if !self.setup.common.server_pid.is_empty() {
            tokio::time::sleep(SETTLE).await;
            part.idle_bytes_per_stream = self.idle_memory();
        }
        let source = Arc::new(Puts {
            prefix: self.args.prefix.clone(),
            keys: self.args.keys,
            value_bytes: self.args.val_size as usize,
            board: self.board.clone(),
        });
        // The puts and their events are charged, not the set-up of the streams and their end.
        self.setup.meter.begin();
        self.go.arrive();
        let done = Arc::new(AtomicU64::new(0));
        let (record, end) = clients(self.setup, source, connections, callers, self.pace, &done, tasks).await;
        part.puts = record;
        part.last_put = Some(end);
        self.drain().await;
        self.setup.meter.end();
        self.board.finish.cancel();
        Ok(part)
    }

    fn idle_memory(&self) -> BTreeMap<String, f64> {
        let streams = f64::from(self.args.streams);
        let grown = self.setup.meter.growth();
        grown.into_iter().map(|(name, bytes)| (name, bytes / streams)).collect()
    }

    /// Waits for the events that are still on their way.
    async fn drain(&self) {
        let expected = self.expected_events();
        let patience = self.args.drain_timeout.0;
        let mut seen = self.board.events.load(Ordering::Relaxed);
        let mut since = Instant::now();
        while seen < expected && since.elapsed() < patience && !self.stop.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.board.events.load(Ordering::Relaxed);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
    }

    fn expected_events(&self) -> u64 {
        let watchers = u64::from(self.args.streams) * u64::from(self.shape.watchers_per_stream);
        let keys = u64::from(self.args.keys);
        if self.args.whole_prefix {
            return watchers * self.board.written_log.written(None);
        }
        (0..self.args.keys)
            .map(|key| {
                let watchers = watchers / keys + u64::from(u64::from(key) < watchers % keys);
                watchers * self.board.written_log.written(Some(key))
            })
            .sum()
    }
}

fn watched_key(prefix: &str, key: u32) -> Bytes {
    format!("{prefix}{key:07}").into()
}

/// Puts whose values carry their number and the time they were sent.
struct Puts {
    prefix: String,
    keys: u32,
    value_bytes: usize,
    board: Arc<Board>,
}

impl Source for Puts {
    fn request(&self, index: u64, _: &mut fastrand::Rng) -> (Route, Bytes) {
        let mut value = BytesMut::with_capacity(self.value_bytes);
        value.put_u64(index);
        value.put_u64(self.board.epoch.elapsed().as_nanos() as u64);
        value.resize(self.value_bytes, b'.');
        let key = watched_key(&self.prefix, (index % u64::from(self.keys)) as u32);
        (Route::Put, frame(&PutRequest { key, value: value.freeze(), ..Default::default() }))
    }

    fn ended(&self, index: u64, well: bool) {
        self.board.written_log.ended((index % u64::from(self.keys)) as u32, index, well);
    }
}

/// One stream and its watches.
struct Reader {
    plan: Vec<(Bytes, Option<u32>)>,
    connection: Arc<Connection>,
    board: Arc<Board>,
    delivery: Arc<Mutex<Record>>,
}

/// A stream on which every watch is created: its halves, and the watch ids in the order of the plan.
type Opened = (StreamSender, StreamReceiver, BTreeMap<i64, usize>);

/// How a stream ended.
struct Followed {
    seen: Vec<Seen>,
    /// Watches that ended before the run did.
    ended: u64,
    error: Option<CallError>,
}

impl Reader {
    async fn open(&self) -> Result<Opened, CallError> {
        let (mut sender, mut receiver) = self.connection.stream(Route::Watch).await?;
        for (create, _) in &self.plan {
            sender.send(create.clone())?;
        }
        let mut slots = BTreeMap::new();
        while slots.len() < self.plan.len() {
            let message = receiver.message().await?;
            let answer = scan::watch_answer(&message, |_, _| {}).ok_or_else(unreadable)?;
            if answer.canceled {
                return Err(refused(answer.reason));
            }
            if answer.created {
                // A proxy that picks ids itself answers in the order of the requests.
                let asked = usize::try_from(answer.watch_id - FIRST_ID).ok().filter(|slot| *slot < self.plan.len());
                slots.insert(answer.watch_id, asked.unwrap_or(slots.len()));
            }
        }
        Ok((sender, receiver, slots))
    }

    /// Reads events until the run is over.
    async fn follow(self, opened: Result<Opened, CallError>) -> Followed {
        let mut seen: Vec<Seen> = self.plan.iter().map(|(_, key)| Seen::new(*key)).collect();
        let watches = seen.len() as u64;
        let (_sender, mut receiver, mut slots) = match opened {
            Ok(opened) => opened,
            Err(error) => return Followed { seen, ended: watches, error: Some(error) },
        };
        loop {
            let message = tokio::select! {
                message = receiver.message() => message,
                () = self.board.finish.cancelled() => break,
            };
            let outcome = message.and_then(|message| self.count(&message, &slots, &mut seen));
            let ended = match outcome {
                Ok(None) => continue,
                Ok(Some((id, error))) => {
                    slots.remove(&id);
                    error
                }
                Err(error) => {
                    slots.clear();
                    error
                }
            };
            if slots.is_empty() {
                return Followed { seen, ended: watches, error: Some(ended) };
            }
        }
        Followed { seen, ended: watches - slots.len() as u64, error: None }
    }

    /// Takes note of the events of one message. A watch that ended comes back with the reason.
    fn count(
        &self,
        message: &[u8],
        slots: &BTreeMap<i64, usize>,
        seen: &mut [Seen],
    ) -> Result<Option<(i64, CallError)>, CallError> {
        let now = self.board.epoch.elapsed();
        let mut events = 0;
        let mut delivery = self.delivery.lock();
        let answer = scan::watch_answer(message, |id, event| {
            let Some(slot) = slots.get(&id) else { return };
            let Some((number, sent)) = stamp(event.value) else { return };
            if seen[*slot].event(event.mod_revision, number) {
                events += 1;
                delivery.answered(now.saturating_sub(sent));
            }
        });
        drop(delivery);
        let answer = answer.ok_or_else(unreadable)?;
        if events > 0 {
            self.board.events.fetch_add(events, Ordering::Relaxed);
            self.board.last_event_nanos.fetch_max(now.as_nanos() as u64, Ordering::Relaxed);
        }
        Ok(answer.canceled.then(|| (answer.watch_id, refused(answer.reason))))
    }
}

/// Number and send time in a value.
fn stamp(value: &[u8]) -> Option<(u64, Duration)> {
    let number = u64::from_be_bytes(value.get(..8)?.try_into().ok()?);
    let sent = u64::from_be_bytes(value.get(8..16)?.try_into().ok()?);
    Some((number, Duration::from_nanos(sent)))
}

fn unreadable() -> CallError {
    CallError("watch answer is not understood".into())
}

fn refused(reason: &[u8]) -> CallError {
    CallError(format!("watch canceled: {}", String::from_utf8_lossy(reason)))
}

fn sum_up(run: &Run<'_>, parts: Vec<Part>, offered: Option<f64>, watchers: u64) -> Measured {
    let start = run.pace.start();
    let mut record = Record::default();
    let mut arrived = Record::default();
    let mut last_put = start;
    let mut delivery = Delivery { streams: run.args.streams, watchers, ..Default::default() };
    for part in parts {
        record.merge(&part.puts);
        arrived.merge(&part.delivery);
        last_put = last_put.max(part.last_put.unwrap_or(start));
        delivery.ended_watches += part.ended;
        delivery.setup_seconds = delivery.setup_seconds.max(part.setup.as_secs_f64());
        delivery.idle_bytes_per_stream.extend(part.idle_bytes_per_stream);
        for seen in part.seen {
            let comparison = run.board.written_log.judge(&seen);
            delivery.missing += comparison.missing;
            delivery.duplicate_or_disordered += comparison.surplus;
        }
    }
    delivery.events = arrived.answers();
    let last_event = run.board.epoch + Duration::from_nanos(run.board.last_event_nanos.load(Ordering::Relaxed));
    let span = last_event.saturating_duration_since(start).as_secs_f64();
    delivery.events_per_second = if span > 0.0 { delivery.events as f64 / span } else { 0.0 };
    delivery.latency_ms = arrived.latency();
    let elapsed = run.pace.elapsed(last_put);
    Measured { record, elapsed, offered, delivery: Some(delivery), timeline: Timeline::default() }
}
