use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::super::cluster::Cluster;
use crate::api_error::ApiError;
use crate::client::Pool;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{
    RangeRequest, RangeResponse, ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::proxy::Identity;
use crate::proxy::watch::{Upstream, UpstreamStream};
use crate::types::{KeyRange, MemberId, Revision};

const MEMBERS: usize = 3;
/// States that are kept, for members and for whoever checks answers.
const STATES_MAX: usize = 20_000;
const CLUSTER_ID: u64 = 7;
/// Id of a watch without events.
const PROGRESS_WATCH: i64 = 1;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

pub(super) type Pairs = BTreeMap<Bytes, KeyValue>;

/// What the cluster does wrong besides being slow, so that a check which misses it is found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fault {
    #[default]
    None,
    /// Progress is told ahead of events, as members before 3.4.25 and 3.5.8 do.
    ProgressAhead,
    /// Linearizable reads are answered from what the member has.
    OldReads,
}

/// A cluster of three members on the clock of the test.
#[derive(Clone)]
pub(super) struct SimCluster {
    state: Arc<Mutex<State>>,
    /// Members have applied something, or the store was compacted.
    moved: watch::Sender<()>,
    /// What is sent on watches arrives so much later than answers to reads.
    watches_late: Duration,
}

/// Sends an answer of a watch with the time at which that was.
type Answers = mpsc::Sender<(Instant, Result<WatchResponse, Status>)>;

struct State {
    rng: fastrand::Rng,
    fault: Fault,
    revision: i64,
    compacted: i64,
    /// Events and pairs of each revision, the newest last.
    history: VecDeque<(Vec<Event>, Arc<Pairs>)>,
    /// Up to which revision each member has applied.
    applied: [i64; MEMBERS],
    /// When each revision was acknowledged, the newest last.
    acknowledged: VecDeque<(Instant, i64)>,
    /// How often it was restored.
    restored: u32,
    /// Comparisons that are read now, and the most at once so far.
    comparing: usize,
    compared_at_once: usize,
}

/// One page of a comparison, which is the only one to read keys without values.
struct Comparing(SimCluster);

impl Comparing {
    fn begin(cluster: &SimCluster) -> Self {
        let mut state = cluster.state.lock();
        state.comparing += 1;
        state.compared_at_once = state.compared_at_once.max(state.comparing);
        drop(state);
        Self(cluster.clone())
    }
}

impl Drop for Comparing {
    fn drop(&mut self) {
        self.0.state.lock().comparing -= 1;
    }
}

impl State {
    fn millis(&mut self, max: u64) -> Duration {
        Duration::from_micros(self.rng.u64(..max * 1000))
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.rng.u32(..count) == 0
    }

    /// What was written at a revision, and the pairs as they were then.
    fn at(&self, revision: i64) -> Option<&(Vec<Event>, Arc<Pairs>)> {
        let back = usize::try_from(self.revision - revision).ok()?;
        self.history.len().checked_sub(back + 1).and_then(|place| self.history.get(place))
    }

    fn header(&self, member: usize) -> ResponseHeader {
        let revision = self.applied[member];
        ResponseHeader { cluster_id: CLUSTER_ID, member_id: member as u64 + 1, revision, raft_term: 2 }
    }
}

impl SimCluster {
    pub fn new(seed: u64, fault: Fault) -> Self {
        let state = State {
            rng: fastrand::Rng::with_seed(seed),
            fault,
            revision: 1,
            compacted: 0,
            history: VecDeque::from([(Vec::new(), Arc::default())]),
            applied: [1; MEMBERS],
            acknowledged: VecDeque::new(),
            restored: 0,
            comparing: 0,
            compared_at_once: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), moved: watch::Sender::new(()), watches_late: Duration::ZERO }
    }

    /// The same where watches are later than reads.
    pub fn with_late_watches(self, watches_late: Duration) -> Self {
        Self { watches_late, ..self }
    }

    pub fn revision(&self) -> i64 {
        self.state.lock().revision
    }

    /// The most comparisons that were read at once.
    pub fn compared_at_once(&self) -> usize {
        self.state.lock().compared_at_once
    }

    /// Below this, revisions were compacted.
    pub fn compacted(&self) -> i64 {
        self.state.lock().compacted
    }

    /// The newest revision that was acknowledged by then.
    pub fn acknowledged_by(&self, at: Instant) -> i64 {
        let state = self.state.lock();
        state
            .acknowledged
            .iter()
            .rev()
            .find(|(acknowledged, _)| *acknowledged <= at)
            .map_or(1, |(_, revision)| *revision)
    }

    /// The pairs at a revision.
    pub fn pairs(&self, revision: i64) -> Option<Arc<Pairs>> {
        self.state.lock().at(revision).map(|(_, pairs)| pairs.clone())
    }

    /// The events of a range after a revision and up to another, as they must be told.
    pub fn events(&self, range: &KeyRange, after: i64, up_to: i64) -> Vec<Event> {
        let state = self.state.lock();
        let events = (after + 1..=up_to).filter_map(|revision| state.at(revision)).flat_map(|(events, _)| events);
        events.filter(|event| event.kv.as_ref().is_some_and(|kv| range.contains(&kv.key))).cloned().collect()
    }

    /// Changes the pairs at the newest revision without an event, which no cluster should do.
    pub fn corrupt(&self, change: impl FnOnce(&mut Pairs)) {
        let mut state = self.state.lock();
        let (_, pairs) = state.history.back_mut().expect("a state");
        change(Arc::make_mut(pairs));
    }

    /// Writes one revision, and acknowledges it; none for a value deletes.
    pub fn write(&self, changes: &[(Bytes, Option<Bytes>)]) {
        let (revision, lags) = {
            let mut state = self.state.lock();
            let mut pairs = state.history.back().map(|(_, pairs)| Pairs::clone(pairs)).expect("a state");
            let revision = state.revision + 1;
            let events: Vec<_> =
                changes.iter().filter_map(|(key, value)| change(&mut pairs, key, value.as_ref(), revision)).collect();
            if events.is_empty() {
                return;
            }
            state.revision = revision;
            state.history.push_back((events, Arc::new(pairs)));
            state.acknowledged.push_back((Instant::now(), revision));
            if state.history.len() > STATES_MAX {
                state.history.pop_front();
                state.acknowledged.pop_front();
            }
            state.applied[0] = revision;
            let slow = if state.one_in(200) { 3000 } else { 40 };
            (revision, [state.millis(slow), state.millis(slow)])
        };
        self.moved.send_replace(());
        for (member, lag) in lags.into_iter().enumerate() {
            let this = self.clone();
            #[allow(clippy::disallowed_methods, reason = "ends after the lag")]
            tokio::spawn(async move {
                sleep(lag).await;
                let mut state = this.state.lock();
                let applied = &mut state.applied[member + 1];
                *applied = revision.max(*applied);
                drop(state);
                this.moved.send_replace(());
            });
        }
    }

    /// Compacts all but so many revisions.
    pub fn compact(&self, kept: i64) {
        let mut state = self.state.lock();
        state.compacted = state.compacted.max(state.revision - kept);
        drop(state);
        self.moved.send_replace(());
    }

    /// Brings the cluster back as it was at a revision, which all members had: what was written after is lost, and streams end.
    pub fn restore(&self, revision: i64) {
        let mut state = self.state.lock();
        while state.revision > revision {
            state.history.pop_back();
            state.revision -= 1;
        }
        state.acknowledged.retain(|(_, acknowledged)| *acknowledged <= revision);
        state.applied = [revision; MEMBERS];
        state.restored += 1;
        drop(state);
        self.moved.send_replace(());
    }

    /// Time on the network, and some member.
    async fn reach(&self) -> usize {
        let (delay, member) = {
            let mut state = self.state.lock();
            (state.millis(3), state.rng.usize(..MEMBERS))
        };
        sleep(delay).await;
        member
    }

    /// Waits until the member has what was acknowledged before.
    async fn until_current(&self, member: usize) {
        let floor = {
            let state = self.state.lock();
            if state.fault == Fault::OldReads { 0 } else { state.revision }
        };
        let mut moved = self.moved.subscribe();
        while self.state.lock().applied[member] < floor {
            moved.changed().await.expect("the cluster is there");
        }
    }

    async fn read(self, request: RangeRequest) -> Result<RangeResponse, Status> {
        let member = self.reach().await;
        self.until_current(member).await;
        let (answer, delay) = {
            let mut state = self.state.lock();
            if state.one_in(300) {
                return Err(Status::unavailable("the member is gone"));
            }
            let header = state.header(member);
            let revision = if request.revision > 0 { request.revision } else { header.revision };
            if revision < state.compacted {
                return Err(ApiError::Compacted.into());
            }
            if revision > header.revision {
                return Err(ApiError::FutureRevision.into());
            }
            let (_, pairs) = state.at(revision).expect("a kept state");
            (RangeResponse { header: Some(header), ..answer(pairs, &request) }, state.millis(3))
        };
        sleep(delay).await;
        Ok(answer)
    }

    /// Serves one watch stream.
    async fn serve(self, mut requests: mpsc::Receiver<WatchRequest>, answers: Answers) {
        let member = self.reach().await;
        let mut moved = self.moved.subscribe();
        let (mut range, mut next) = (None, 0);
        let (mut has_progress_watch, mut tick) = (false, tokio::time::interval(PROGRESS_INTERVAL));
        let restored = self.state.lock().restored;
        loop {
            tokio::select! {
                biased;
                request = requests.recv() => {
                    let Some(WatchRequest { request_union: Some(request) }) = request else { return };
                    let answer = match request {
                        // Without events, for the notifications of progress at the member's interval.
                        RequestUnion::CreateRequest(create) if !create.filters.is_empty() => {
                            has_progress_watch = true;
                            let header = Some(self.state.lock().header(member));
                            Some(WatchResponse { header, watch_id: PROGRESS_WATCH, created: true, ..Default::default() })
                        }
                        RequestUnion::CreateRequest(WatchCreateRequest { key, range_end, start_revision, .. }) => {
                            let header = self.state.lock().header(member);
                            next = if start_revision > 0 { start_revision } else { header.revision + 1 };
                            range = Some(KeyRange::from_wire(key, range_end));
                            Some(WatchResponse { header: Some(header), created: true, ..Default::default() })
                        }
                        RequestUnion::ProgressRequest(_) => self.progress(member, next),
                        RequestUnion::CancelRequest(_) => return,
                    };
                    if let Some(answer) = answer && !self.send(&answers, answer).await {
                        return;
                    }
                }
                _ = tick.tick(), if has_progress_watch => {
                    // Events of the other watch may still have to come when it is told, and after that.
                    let late = self.state.lock().millis(300);
                    sleep(late).await;
                    let header = Some(self.state.lock().header(member));
                    let answer = WatchResponse { header, watch_id: PROGRESS_WATCH, ..Default::default() };
                    if !self.send(&answers, answer).await {
                        return;
                    }
                }
                _ = moved.changed() => {}
                () = sleep(Duration::from_secs(1)) => {}
            }
            if self.state.lock().restored != restored {
                let _ = answers.send((Instant::now(), Err(Status::unavailable("the member is gone")))).await;
                return;
            }
            let Some(range) = &range else { continue };
            while let Some(answer) = self.news(member, range, &mut next) {
                let over = answer.canceled;
                if !self.send(&answers, answer).await || over {
                    return;
                }
            }
            if self.state.lock().one_in(300) {
                let _ = answers.send((Instant::now(), Err(Status::unavailable("cut")))).await;
                return;
            }
        }
    }

    /// The answer to a progress request: all events up to there were sent. One in ten is lost.
    fn progress(&self, member: usize, next: i64) -> Option<WatchResponse> {
        let mut state = self.state.lock();
        let behind = next <= state.applied[member];
        if state.one_in(10) || behind && state.fault != Fault::ProgressAhead {
            return None;
        }
        let mut header = state.header(member);
        if state.fault == Fault::ProgressAhead {
            header.revision = state.revision;
        }
        Some(WatchResponse { header: Some(header), watch_id: -1, ..Default::default() })
    }

    /// The next events; the header is ahead of them, as a member's is.
    fn news(&self, member: usize, range: &KeyRange, next: &mut i64) -> Option<WatchResponse> {
        let mut state = self.state.lock();
        let header = state.header(member);
        if *next < state.compacted {
            let compact_revision = state.compacted;
            return Some(WatchResponse {
                header: Some(header),
                canceled: true,
                compact_revision,
                ..Default::default()
            });
        }
        let most = state.rng.usize(1..4);
        let mut events = Vec::new();
        let mut revisions = 0;
        while *next <= header.revision && revisions < most {
            let (all, _) = state.at(*next).expect("kept");
            let inside = all.iter().filter(|event| event.kv.as_ref().is_some_and(|kv| range.contains(&kv.key)));
            let before = events.len();
            events.extend(inside.cloned());
            revisions += usize::from(events.len() > before);
            *next += 1;
        }
        (!events.is_empty()).then(|| WatchResponse { header: Some(header), events, ..Default::default() })
    }

    /// Sends an answer after a while; false when nobody takes it.
    async fn send(&self, answers: &Answers, answer: WatchResponse) -> bool {
        let delay = {
            let mut state = self.state.lock();
            let slow = if state.one_in(100) { 300 } else { 3 };
            state.millis(slow)
        };
        sleep(delay).await;
        answers.send((Instant::now(), Ok(answer))).await.is_ok()
    }
}

/// The event of a change, if it changes anything.
fn change(pairs: &mut Pairs, key: &Bytes, value: Option<&Bytes>, revision: i64) -> Option<Event> {
    let previous = pairs.get(key).cloned();
    let Some(value) = value else {
        let prev_kv = Some(pairs.remove(key)?);
        let kv = KeyValue { key: key.clone(), mod_revision: revision, ..Default::default() };
        return Some(Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv });
    };
    let (create_revision, version) =
        previous.as_ref().map_or((revision, 1), |previous| (previous.create_revision, previous.version + 1));
    let (key, value) = (key.clone(), value.clone());
    let kv = KeyValue { key: key.clone(), value, create_revision, mod_revision: revision, version, lease: 0 };
    pairs.insert(key, kv.clone());
    Some(Event { kv: Some(kv), prev_kv: previous, ..Default::default() })
}

/// What a member answers to the forms of a request that are used here.
pub(super) fn answer(pairs: &Pairs, request: &RangeRequest) -> RangeResponse {
    let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    let mut kvs: Vec<_> = pairs.values().filter(|kv| range.contains(&kv.key)).cloned().collect();
    let count = kvs.len() as i64;
    if request.count_only {
        return RangeResponse { count, ..Default::default() };
    }
    let limit = usize::try_from(request.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeResponse { header: None, kvs, more, count }
}

impl Upstream for SimCluster {
    fn open_watch(&self, identity: &Identity) -> BoxFuture<'static, Result<UpstreamStream, Status>> {
        let (this, has_token) = (self.clone(), !identity.is_anonymous());
        async move {
            // There are no users.
            if has_token {
                return Err(ApiError::InvalidAuthToken.into());
            }
            if this.state.lock().one_in(20) {
                return Err(Status::unavailable("nobody there"));
            }
            let (requests, received) = mpsc::channel(16);
            let (answers, sent) = mpsc::channel(256);
            let late = this.watches_late;
            #[allow(clippy::disallowed_methods, reason = "ends with its stream")]
            tokio::spawn(this.serve(received, answers));
            let arriving = move |(sent_at, answer)| async move {
                sleep_until(sent_at + late).await;
                answer
            };
            Ok(UpstreamStream { requests, answers: ReceiverStream::new(sent).then(arriving).boxed() })
        }
        .boxed()
    }

    fn read_index(&self, _: &Identity, key: Bytes, at: Revision) -> BoxFuture<'static, Result<ResponseHeader, Status>> {
        let request = RangeRequest { key, revision: at.0, count_only: true, ..Default::default() };
        let header = |answer: RangeResponse| answer.header.expect("a header");
        self.clone().read(request).map(move |answer| answer.map(header)).boxed()
    }

    fn version(&self, _: &Identity) -> BoxFuture<'static, Result<(MemberId, String), Status>> {
        let this = self.clone();
        async move { Ok((MemberId(this.reach().await as u64 + 1), "3.7.1".to_owned())) }.boxed()
    }
}

impl Cluster for SimCluster {
    fn range(&self, _: &Identity, request: RangeRequest) -> BoxFuture<'static, Result<RangeResponse, Status>> {
        let comparing = request.keys_only.then(|| Comparing::begin(self));
        let read = self.clone().read(request);
        async move {
            let answer = read.await;
            drop(comparing);
            answer
        }
        .boxed()
    }

    fn on_worker(&self, _: &Pool) -> Option<Arc<dyn Upstream>> {
        None
    }
}
