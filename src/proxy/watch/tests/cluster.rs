//! A cluster of a few dozen lines: one list of events, watch streams that read it, and ways to misbehave.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::super::upstream::{Upstream, UpstreamStream};
use crate::api_error::{ApiError, cancel_reason};
use crate::pb::encoded::ResponseHeader;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use crate::pb::mvccpb::{Event, KeyValue};
use crate::proxy::Identity;
use crate::types::{KeyRange, MemberId, Revision};

/// Revisions a lagging watch gets in one answer.
const BATCH: usize = 3;

#[derive(Clone, Default)]
pub(in crate::proxy) struct FakeCluster {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    events: Vec<(i64, Vec<Event>)>,
    live: HashMap<Bytes, KeyValue>,
    revision: i64,
    /// What watch streams see; a member that lags sees less than `revision`.
    visible: i64,
    lagging: bool,
    compacted: i64,
    denied: Vec<KeyRange>,
    /// Why, if not for a permission.
    denial: Option<ApiError>,
    refuse_streams: Option<Status>,
    refuse_reads: Option<Status>,
    /// When streams and reads were refused.
    refused: Vec<Instant>,
    break_streams: u64,
    opened: usize,
    read_index_reads: usize,
    member: u64,
    clocks: usize,
    /// Periods of progress notifications that have passed.
    ticks: u64,
    progress_requests: usize,
    /// Whether watches that begin in the past get nothing yet.
    holds_history: bool,
    version: Option<&'static str>,
    /// How often the cluster was rebuilt, with another id each time.
    rebuilt: u64,
}

impl FakeCluster {
    /// Writes one revision; an empty value deletes.
    pub(super) fn write(&self, changes: &[(&str, &str)]) -> i64 {
        let mut state = self.state.lock();
        state.revision = state.revision.max(1) + 1;
        let revision = state.revision;
        let mut events = Vec::new();
        for (key, value) in changes {
            let key = Bytes::from((*key).to_owned());
            let prev_kv = state.live.remove(&key);
            let mut kv = KeyValue { key: key.clone(), mod_revision: revision, ..Default::default() };
            if !value.is_empty() {
                kv.value = Bytes::from((*value).to_owned());
                kv.create_revision = prev_kv.as_ref().map_or(revision, |prev| prev.create_revision);
                kv.version = prev_kv.as_ref().map_or(1, |prev| prev.version + 1);
                state.live.insert(key, kv.clone());
            }
            events.push(Event { r#type: i32::from(value.is_empty()), kv: Some(kv), prev_kv });
        }
        state.events.push((revision, events));
        if !state.lagging {
            state.visible = revision;
        }
        drop(state);
        self.change();
        revision
    }

    pub(super) fn compact(&self, at: i64) {
        self.state.lock().compacted = at;
    }

    /// The member that serves watches stands still, or catches up.
    pub(super) fn lag(&self, lagging: bool) {
        let mut state = self.state.lock();
        state.lagging = lagging;
        if !lagging {
            state.visible = state.revision;
        }
        drop(state);
        self.change();
    }

    /// Breaks every watch stream; another member takes over.
    pub(super) fn fail_over(&self) {
        let mut state = self.state.lock();
        state.break_streams += 1;
        state.member += 1;
        drop(state);
        self.change();
    }

    /// The same, to a member that is so many revisions behind.
    pub(super) fn fail_over_to_one_behind(&self, by: i64) {
        let mut state = self.state.lock();
        state.lagging = true;
        state.visible = state.revision - by;
        drop(state);
        self.fail_over();
    }

    /// Restores the cluster from a db snapshot of a revision; it has the same id, and its tokens are good.
    pub(super) fn restore(&self, revision: i64) {
        let mut state = self.state.lock();
        state.events.retain(|(at, _)| *at <= revision);
        state.live.retain(|_, kv| kv.mod_revision <= revision);
        (state.revision, state.visible) = (revision, revision);
        drop(state);
        self.fail_over();
    }

    /// The same as a cluster with another id.
    pub(super) fn rebuild(&self, revision: i64) {
        self.state.lock().rebuilt += 1;
        self.restore(revision);
    }

    pub(super) fn deny(&self, ranges: Vec<KeyRange>) {
        self.state.lock().denied = ranges;
    }

    /// The error of denied watches.
    pub(super) fn deny_with(&self, error: ApiError) {
        self.state.lock().denial = Some(error);
    }

    /// Answers new streams with a status, and breaks the old ones.
    pub(super) fn refuse_streams(&self, status: Option<Status>) {
        self.state.lock().refuse_streams = status;
        self.fail_over();
    }

    /// Answers reads of the revision with a status.
    pub(super) fn refuse_reads(&self, status: Option<Status>) {
        self.state.lock().refuse_reads = status;
    }

    /// The times between the refusals since this was asked last.
    pub(super) fn pauses(&self) -> Vec<Duration> {
        let refused = std::mem::take(&mut self.state.lock().refused);
        refused.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// How many streams and reads were refused since the pauses were asked for last.
    pub(super) fn refusals(&self) -> usize {
        self.state.lock().refused.len()
    }

    pub(super) fn opened(&self) -> usize {
        self.state.lock().opened
    }

    /// The member's interval of progress notifications has passed.
    pub(super) fn tick(&self) {
        self.state.lock().ticks += 1;
        self.change();
    }

    /// Keeps events from watches that begin in the past, as an old member does until it looks for what they need.
    pub(super) fn hold_history(&self, holds: bool) {
        self.state.lock().holds_history = holds;
        self.changed.send_modify(|version| *version += 1);
    }

    pub(super) fn set_version(&self, version: &'static str) {
        self.state.lock().version = Some(version);
    }

    /// Watches created of which no event passes.
    pub(super) fn clocks(&self) -> usize {
        self.state.lock().clocks
    }

    pub(super) fn progress_requests(&self) -> usize {
        self.state.lock().progress_requests
    }

    pub(super) fn read_index_reads(&self) -> usize {
        self.state.lock().read_index_reads
    }

    fn change(&self) {
        self.changed.send_modify(|version| *version += 1);
    }
}

impl State {
    fn refused_with(&mut self, status: impl Fn(&Self) -> &Option<Status>) -> Result<(), Status> {
        let Some(status) = status(self).clone() else { return Ok(()) };
        self.refused.push(Instant::now());
        Err(status)
    }

    fn header(&self, revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: 7 + self.rebuilt, member_id: 100 + self.member, revision, raft_term: 3 })
    }
}

impl Upstream for FakeCluster {
    fn open_watch(&self, _: &Identity) -> BoxFuture<'static, Result<UpstreamStream, Status>> {
        let cluster = self.clone();
        async move {
            cluster.state.lock().refused_with(|state| &state.refuse_streams)?;
            let (requests, incoming) = mpsc::channel(16);
            // Small: a reader that does not read holds the stream up.
            let (answers, outgoing) = mpsc::channel(2);
            let seen = cluster.changed.subscribe();
            #[allow(clippy::disallowed_methods, reason = "ends with its stream")]
            tokio::spawn(serve(cluster, incoming, answers, seen));
            Ok(UpstreamStream { requests, answers: ReceiverStream::new(outgoing).boxed() })
        }
        .boxed()
    }

    fn read_index(
        &self,
        _: &Identity,
        _key: Bytes,
        at: Revision,
    ) -> BoxFuture<'static, Result<ResponseHeader, Status>> {
        let cluster = self.clone();
        async move {
            // As over a network: others may come meanwhile.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            let mut state = cluster.state.lock();
            state.refused_with(|state| &state.refuse_reads)?;
            state.read_index_reads += 1;
            if at.0 != 0 && at.0 < state.compacted {
                return Err(ApiError::Compacted.into());
            }
            if at.0 > state.revision.max(1) {
                return Err(ApiError::FutureRevision.into());
            }
            Ok(state.header(state.revision.max(1)).unwrap())
        }
        .boxed()
    }

    fn version(&self, _: &Identity) -> BoxFuture<'static, Result<(MemberId, String), Status>> {
        let state = self.state.lock();
        let answer = (MemberId(100 + state.member), state.version.unwrap_or("3.7.1").to_owned());
        async move { Ok(answer) }.boxed()
    }
}

async fn serve(
    cluster: FakeCluster,
    mut incoming: mpsc::Receiver<WatchRequest>,
    answers: mpsc::Sender<Result<WatchResponse, Status>>,
    mut changed: watch::Receiver<u64>,
) {
    let (generation, mut ticks) = {
        let state = cluster.state.lock();
        (state.break_streams, state.ticks)
    };
    let mut watching: Vec<Watching> = Vec::new();
    let mut request = None;
    loop {
        let out: Vec<Result<WatchResponse, Status>> = {
            changed.borrow_and_update();
            let mut state = cluster.state.lock();
            if state.break_streams != generation {
                vec![Err(Status::unavailable("the connection is lost"))]
            } else {
                let mut out: Vec<_> =
                    watching.iter_mut().filter_map(|watching| advance(&state, watching)).map(Ok).collect();
                if out.is_empty() && ticks < state.ticks {
                    ticks += 1;
                    out.extend(watching.iter_mut().filter_map(|watching| notify(&state, watching)).map(Ok));
                    // In no particular order, as with a member.
                    if ticks.is_multiple_of(2) {
                        out.reverse();
                    }
                }
                // Only when nothing is left to send, under the same lock: a write between the two would be missing
                // from the events before the answer to a progress request, which names its revision.
                if out.is_empty()
                    && let Some(request) = request.take()
                {
                    out.extend(handle(&mut state, request, &mut watching).map(Ok));
                }
                out
            }
        };
        if !out.is_empty() {
            let over = out.iter().any(|answer| !matches!(answer, Ok(answer) if !answer.canceled || answer.created));
            for answer in out {
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
            if over {
                return;
            }
            continue;
        }
        tokio::select! {
            next = incoming.recv() => {
                let Some(next) = next else { return };
                request = Some(next);
            }
            _ = changed.changed() => {}
            () = answers.closed() => return,
        }
    }
}

/// One watch.
struct Watching {
    id: i64,
    range: KeyRange,
    /// No event passes.
    silent: bool,
    /// Has caught up once.
    synced: bool,
    progress_notify: bool,
    /// Had an event since the last tick.
    active: bool,
    /// As asked for. While it lies in the future there is no progress, as with a member.
    start: i64,
    next: i64,
}

/// The next answer with events, or the end by compaction.
fn advance(state: &State, watching: &mut Watching) -> Option<WatchResponse> {
    let Watching { id, range, next, silent, active, synced, .. } = watching;
    let watch_id = *id;
    // A lagging member has not applied the compaction yet, and a synced watch is not affected by one.
    if !*synced && *next < state.compacted && state.compacted <= state.visible.max(1) {
        let header = state.header(0);
        let compact_revision = state.compacted;
        return Some(WatchResponse { header, watch_id, canceled: true, compact_revision, ..Default::default() });
    }
    if state.holds_history && !*synced {
        return None;
    }
    let wanted = |event: &&Event| !*silent && range.contains(&event.kv.as_ref().unwrap().key);
    let mut events = Vec::new();
    let mut revisions = 0;
    let due = *next..=state.visible;
    for (revision, all) in state.events.iter().filter(|(revision, _)| due.contains(revision)) {
        if revisions == BATCH {
            break;
        }
        let before = events.len();
        events.extend(all.iter().filter(wanted).cloned());
        revisions += usize::from(events.len() > before);
        *next = revision + 1;
    }
    // The header is ahead of the events, as a member's is while a watch catches up.
    *active |= !events.is_empty();
    *synced |= events.is_empty();
    let header = state.header(state.visible);
    (!events.is_empty()).then(|| WatchResponse { header, watch_id, events, ..Default::default() })
}

/// The progress notification of a watch at a tick.
fn notify(state: &State, watching: &mut Watching) -> Option<WatchResponse> {
    let idle = !std::mem::take(&mut watching.active);
    let visible = state.visible.max(1);
    let told = watching.progress_notify && idle && watching.start <= visible;
    told.then(|| WatchResponse { header: state.header(visible), watch_id: watching.id, ..Default::default() })
}

fn handle(state: &mut State, request: WatchRequest, watching: &mut Vec<Watching>) -> Option<WatchResponse> {
    let visible = state.visible.max(1);
    match request.request_union? {
        RequestUnion::CreateRequest(request) => {
            let WatchCreateRequest { key, range_end, start_revision, filters, progress_notify, .. } = request;
            let silent = filters.len() == 2;
            state.opened += usize::from(!silent);
            state.clocks += usize::from(silent);
            let range = KeyRange::from_wire(key, range_end);
            let id = watching.len() as i64;
            let created =
                WatchResponse { header: state.header(visible), watch_id: id, created: true, ..Default::default() };
            if state.denied.contains(&range) {
                let cancel_reason = cancel_reason(&state.denial.unwrap_or(ApiError::PermissionDenied).into());
                return Some(WatchResponse { canceled: true, watch_id: -1, cancel_reason, ..created });
            }
            let next = if start_revision == 0 { visible + 1 } else { start_revision };
            watching.push(Watching {
                id,
                range,
                silent,
                synced: next > visible,
                progress_notify,
                active: false,
                start: start_revision,
                next,
            });
            Some(created)
        }
        // Events up to the header went out before: `advance` had nothing more to send.
        RequestUnion::ProgressRequest(_) => {
            state.progress_requests += 1;
            let synced = !watching.is_empty() && watching.iter().all(|watching| watching.start <= visible);
            synced.then(|| WatchResponse { header: state.header(visible), watch_id: -1, ..Default::default() })
        }
        RequestUnion::CancelRequest(_) => None,
    }
}
