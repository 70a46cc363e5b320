use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture};
use parking_lot::Mutex;
use prometheus::IntGauge;
use prost::Message;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};
use tracing::info;

use super::budget::CacheBudget;
use super::cluster::Cluster;
use super::config::Periods;
use super::first_progress::{NoProgress, PROGRESS_WATCH_ID, first_progress, progress_request};
use super::metrics::CacheMetrics;
use super::pair::Pair;
use super::past::Past;
use super::progress::ProgressRequests;
use super::replica::{Disorder, Replica};
use super::shared::{Checked, Completeness, Retired, SharedReplica, Snapshot, State};
use super::subscribers::{Asked, Publisher};
use crate::api_error::ApiError;
use crate::net::Backoff;
use crate::pb::encoded::ResponseHeader;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchResponse};
use crate::pb::mvccpb::{Event, KeyValue};
use crate::proxy::watch::{MemberVersions, UpstreamStream};
use crate::proxy::{Identity, Namespace};
use crate::types::{ClusterId, KeyRange, MemberId, Revision, Term};

/// Answers of the watch that are kept while the replica is loaded; the member waits then.
const BUFFERED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Memory of the replica of a promoted prefix.
pub(super) const PROMOTED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Events for each read that are too many for a promoted prefix.
const EVENTS_PER_READ_MAX: u64 = 4;
/// Events between two looks that are never too many.
const EVENTS_FREE: u64 = 100;
/// A watch is resumed so many revisions before its position, if they have not changed the pairs: events there tell of another history.
const LOOKED_BACK: i64 = 1000;
/// Pause between two looks at whether anybody reads, and at how old the position is.
const LOOK: Duration = Duration::from_secs(5);

/// The task that keeps one replica current.
pub(super) struct Follower {
    pub replica: Arc<SharedReplica>,
    pub identity: Identity,
    pub cluster: Arc<dyn Cluster>,
    pub versions: Arc<MemberVersions>,
    pub namespace: Namespace,
    pub budget: CacheBudget,
    pub metrics: CacheMetrics,
    pub periods: Periods,
}

/// Why a replica is dropped.
#[derive(Debug)]
pub(super) enum End {
    /// Nobody reads it.
    Idle,
    /// It could not be loaded.
    Failed(Status),
    /// The group may not read it.
    Refused(String),
    Disorder(Disorder),
    /// The same, found elsewhere.
    Gap(&'static str),
    /// The cluster has other pairs at the position.
    Different(String),
    /// The cluster's revision went back: it is another one, or was restored.
    WentBack,
    Compacted,
    OverBudget,
    /// Another replica needed the memory.
    Evicted,
    /// A promoted prefix changes more often than it is read.
    Changing,
    /// Progress of this member's version is not proven to come after all events.
    Untrusted,
    /// Progress requests are not answered.
    Unanswered,
}

impl End {
    fn state(&self) -> State {
        match self {
            Self::Idle | Self::Failed(_) | Self::Refused(_) | Self::Evicted | Self::Changing => State::Cold,
            Self::Disorder(_) | Self::Gap(_) | Self::Different(_) | Self::WentBack => State::Gap,
            Self::Compacted => State::Compacted,
            Self::OverBudget => State::OverBudget,
            Self::Untrusted | Self::Unanswered => State::Untrusted,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Failed(_) => "failed",
            Self::Refused(_) => "refused",
            Self::Disorder(Disorder::Old { .. }) => "old_event",
            Self::Disorder(Disorder::Previous(_)) => "previous_pair",
            Self::Disorder(Disorder::Version(_)) => "version",
            Self::Disorder(Disorder::Fragment | Disorder::NoPair) => "malformed",
            Self::Gap(_) => "foreign_key",
            Self::Different(_) => "different",
            Self::WentBack => "revision_went_back",
            Self::Compacted => "compacted",
            Self::OverBudget => "larger_than_budget",
            Self::Evicted => "evicted",
            Self::Changing => "changes_more_than_it_is_read",
            Self::Untrusted => "member_version",
            Self::Unanswered => "no_progress",
        }
    }

    /// Whether the replica of a promoted prefix is given up.
    fn retires(&self) -> Option<Retired> {
        match self {
            Self::Idle => Some(Retired::Idle),
            Self::Refused(_)
            | Self::OverBudget
            | Self::Evicted
            | Self::Changing
            | Self::Untrusted
            | Self::Unanswered => Some(Retired::NotWorthIt),
            Self::Failed(_)
            | Self::Disorder(_)
            | Self::Gap(_)
            | Self::Different(_)
            | Self::WentBack
            | Self::Compacted => None,
        }
    }

    /// The detail, for the log.
    fn detail(&self) -> String {
        match self {
            Self::Failed(status) => status.to_string(),
            Self::Refused(reason) | Self::Different(reason) => reason.clone(),
            Self::Disorder(disorder) => disorder.to_string(),
            Self::Gap(what) => (*what).to_owned(),
            _ => String::new(),
        }
    }

    pub(super) fn of_status(status: Status) -> Self {
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument => {
                Self::Refused(status.message().to_owned())
            }
            _ if ApiError::from_text(status.message()) == Some(ApiError::FutureRevision) => Self::WentBack,
            _ => Self::Failed(status),
        }
    }
}

/// How following one upstream stream ended.
enum Stop {
    /// The watch is resumed.
    Broken(Status),
    Over(End),
}

impl Stop {
    /// What those are told who read the same stream.
    fn status(&self) -> Status {
        match self {
            Self::Broken(status) => status.clone(),
            Self::Over(end) => Status::unavailable(format!("the range is not cached any more: {}", end.label())),
        }
    }

    fn into_end(self) -> End {
        match self {
            Self::Broken(status) => End::Failed(status),
            Self::Over(end) => end,
        }
    }
}

impl From<Disorder> for Stop {
    fn from(disorder: Disorder) -> Self {
        Self::Over(End::Disorder(disorder))
    }
}

/// A replica from its loading to its end.
struct Life {
    replica: Replica,
    cluster: ClusterId,
    member: MemberId,
    term: Term,
    has_range_stream: bool,
    completeness: Arc<Completeness>,
    past: Arc<Mutex<Past>>,
    keys: CountedKeys,
    /// Events since the last look.
    events: u64,
}

impl Life {
    /// Who serves it, and its position.
    fn header(&self) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster.0,
            member_id: self.member.0,
            revision: self.replica.position().0,
            raft_term: self.term.0,
        }
    }

    /// What readers get of it.
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(Snapshot {
            pairs: self.replica.pairs().clone(),
            position: self.replica.position(),
            since: self.replica.since(),
            cluster: self.cluster,
            member: self.member,
            term: self.term,
            has_range_stream: self.has_range_stream,
            completeness: self.completeness.clone(),
            past: self.past.clone(),
        })
    }
}

/// Keys of a replica as the metrics have them.
struct CountedKeys {
    gauge: IntGauge,
    keys: i64,
}

impl CountedKeys {
    fn set(&mut self, keys: usize) {
        let keys = i64::try_from(keys).unwrap_or(i64::MAX);
        self.gauge.add(keys - self.keys);
        self.keys = keys;
    }
}

impl Drop for CountedKeys {
    fn drop(&mut self) {
        self.gauge.sub(self.keys);
    }
}

/// A follower that runs. However that ends, also with the tasks of its tenant, nothing is held any more.
struct Running<'f> {
    follower: &'f Follower,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Follower { replica, budget, metrics, .. } = self.follower;
        replica.publish(None);
        replica.forget_target();
        budget.release(replica);
        metrics.replicas.with_label_values(&[replica.state().label()]).dec();
        replica.note_state(State::Cold);
        replica.running.store(false, Ordering::Release);
    }
}

impl Follower {
    /// Loads and follows the replica for as long as somebody reads it.
    pub async fn run(self) {
        let mut backoff = Backoff::new(self.periods.reload_first, self.periods.reload_max);
        let mut state = State::Cold;
        self.metrics.replicas.with_label_values(&[state.label()]).inc();
        let _running = Running { follower: &self };
        loop {
            let end = self.live(&mut state, &mut backoff).await;
            self.replica.publish(None);
            self.replica.forget_target();
            self.budget.release(&self.replica);
            self.change(&mut state, end.state(), end.label(), &end.detail());
            if self.replica.is_promoted
                && let Some(retired) = end.retires()
            {
                let _ = self.replica.retired.set(retired);
                break;
            }
            let late = matches!(end, End::OverBudget | End::Untrusted | End::Unanswered);
            let pause = if late { self.periods.reload_late } else { backoff.pause() };
            if matches!(end, End::Refused(_)) {
                // What callers without rights have asked for must not keep its place until it is idle: the next read tries again.
                sleep(pause).await;
                break;
            }
            if !matches!(end, End::Idle) {
                sleep(pause).await;
                let _ = timeout(self.idle_max(), self.replica.wanted.notified()).await;
            }
            if self.replica.idle_for() >= self.idle_max() {
                if self.replica.is_promoted {
                    let _ = self.replica.retired.set(Retired::Idle);
                }
                break;
            }
        }
    }

    /// A replica that is not read for so long is given up.
    fn idle_max(&self) -> Duration {
        if self.replica.is_promoted { self.periods.promoted_idle_max } else { self.periods.idle_max }
    }

    fn change(&self, state: &mut State, to: State, reason: &'static str, detail: &str) {
        let replicas = &self.metrics.replicas;
        replicas.with_label_values(&[state.label()]).dec();
        replicas.with_label_values(&[to.label()]).inc();
        self.metrics.changes.with_label_values(&[to.label(), reason]).inc();
        info!(range = ?self.replica.upstream, from = state.label(), to = to.label(), reason, detail, "cached range has changed state");
        self.replica.note_state(to);
        *state = to;
    }

    async fn live(&self, state: &mut State, backoff: &mut Backoff) -> End {
        self.change(state, State::Loading, "read", "");
        self.replica.forget_signals();
        let (mut life, mut stream) = match self.loaded().await {
            Ok(loaded) => loaded,
            Err(end) => return end,
        };
        let mut resumption = Backoff::new(self.periods.resume_first, self.periods.resume_max);
        loop {
            self.change(state, State::Live, "watch", "");
            let lived = Instant::now();
            let mut publisher = Publisher::open(&self.replica.subscribers, life.header());
            let stop = self.follow(&mut life, &mut stream, &mut publisher, &mut resumption).await;
            publisher.close(&stop.status());
            if lived.elapsed() >= self.periods.reload_max {
                backoff.reset();
            }
            let status = match stop {
                Stop::Broken(status) => status,
                Stop::Over(end) => break end,
            };
            self.replica.publish(None);
            self.change(state, State::Behind, "stream_ended", &status.to_string());
            match self.resumed(&mut life, &mut resumption).await {
                Ok(resumed) => stream = resumed,
                Err(end) => break end,
            }
        }
    }

    /// Opens the watch, then loads the pairs at a revision that it covers, and applies what came meanwhile.
    async fn loaded(&self) -> Result<(Life, UpstreamStream), End> {
        let (mut stream, header) = self.open(Revision(0)).await?;
        let sent_at = Instant::now();
        let mut replica = Replica::new(self.budget.pairs());
        let (mut answers, mut buffered) = (Vec::new(), 0);
        {
            let mut loading = pin!(self.load(&mut replica, Revision(header.revision)));
            loop {
                tokio::select! {
                    loaded = &mut loading => break loaded?,
                    answer = stream.next(), if buffered < BUFFERED_BYTES_MAX => {
                        let answer = answer.map_err(End::Failed)?;
                        buffered += answer.encoded_len();
                        answers.push(answer);
                    }
                    () = self.replica.evicted.notified() => return Err(End::Evicted),
                }
            }
        }
        self.trust(&header).await?;
        let mut life = Life {
            replica,
            cluster: ClusterId(header.cluster_id),
            member: MemberId(header.member_id),
            term: Term(header.raft_term),
            has_range_stream: self.versions.has_range_stream(MemberId(header.member_id)),
            completeness: Arc::new(Completeness::new(sent_at)),
            past: Arc::default(),
            keys: CountedKeys { gauge: self.metrics.keys.clone(), keys: 0 },
            events: 0,
        };
        for answer in answers {
            self.receive(&mut life, answer).map_err(Stop::into_end)?;
        }
        self.first_progress(&mut life, &mut stream).await?;
        self.publish(&mut life)?;
        Ok((life, stream))
    }

    /// Opens the watch behind the position again, and makes sure that the cluster still has the history that led there.
    async fn resumed(&self, life: &mut Life, pauses: &mut Backoff) -> Result<UpstreamStream, End> {
        let mut looks_back = true;
        loop {
            // At the position, not behind it: a watch of a revision that is not written yet gets no progress.
            let position = life.replica.position();
            let before = life.replica.since().max(Revision(position.0 - LOOKED_BACK));
            let start = if looks_back { before } else { position };
            let opened = async {
                let (mut stream, header) = self.open(start).await?;
                self.verify(life, &header).await?;
                self.trust(&header).await?;
                life.member = MemberId(header.member_id);
                life.term = life.term.max(Term(header.raft_term));
                life.has_range_stream = self.versions.has_range_stream(life.member);
                life.replica.resume();
                self.first_progress(life, &mut stream).await?;
                Ok::<_, End>(stream)
            };
            let opened = tokio::select! {
                opened = opened => opened,
                // What it holds is not counted any more.
                () = self.replica.evicted.notified() => Err(End::Evicted),
            };
            match opened {
                Ok(stream) => {
                    self.publish(life)?;
                    return Ok(stream);
                }
                Err(End::Failed(status)) => tracing::debug!(%status, "watch of a cached range is opened again"),
                // What is before the position may be compacted.
                Err(End::Compacted) if start < position => {
                    looks_back = false;
                    continue;
                }
                Err(end) => return Err(end),
            }
            if self.replica.idle_for() >= self.idle_max() {
                return Err(End::Idle);
            }
            tokio::select! {
                () = sleep(pauses.pause()) => {}
                () = self.replica.evicted.notified() => return Err(End::Evicted),
            }
        }
    }

    /// Whether the pair that changed last is, at the position, the one held. The read is linearizable: a cluster that
    /// was rebuilt or restored has another history, or does not reach the position. If the last change was a deletion, or is that of no pair
    /// since the replica was loaded, that pair may be older than where the histories part: then all keys are compared.
    async fn verify(&self, life: &Life, header: &ResponseHeader) -> Result<(), End> {
        if header.cluster_id != life.cluster.0 {
            return Err(End::WentBack);
        }
        let newest = life.replica.newest();
        let key = match newest {
            Some(pair) => self.namespace.add_prefix(pair.key()),
            None => self.replica.upstream.start().clone(),
        };
        let revision = life.replica.position().0;
        let request = RangeRequest { key, revision, ..Default::default() };
        let answer = match self.answered(self.cluster.range(&self.identity, request)).await {
            Ok(answer) => answer,
            Err(status) if ApiError::from_text(status.message()) == Some(ApiError::Compacted) => {
                return Err(End::Compacted);
            }
            Err(status) => return Err(End::of_status(status)),
        };
        let found = answer.kvs.into_iter().next().and_then(|kv| self.inside(kv)).map(|kv| Pair::new(&kv));
        match (newest, found) {
            (Some(held), Some(found)) if held.encoded() == found.encoded() => {}
            (None, _) => {}
            _ => return Err(End::WentBack),
        }
        if newest.is_some_and(|pair| pair.modified() == life.replica.since().0) {
            return Ok(());
        }
        match self.check(life.snapshot()).boxed().await {
            Checked::Same => Ok(()),
            Checked::Different(_) => Err(End::WentBack),
            Checked::Unknown => {
                Err(End::Failed(Status::unavailable("the keys could not be compared with the cluster's")))
            }
        }
    }

    /// Waits until it is known whether the member answers progress requests in order.
    async fn trust(&self, header: &ResponseHeader) -> Result<(), End> {
        let member = MemberId(header.member_id);
        self.versions.learn(&*self.cluster, &self.identity, member).await;
        // A proxy that does not pass headers on may merge watches in a way that loses events.
        let named = header.member_id != 0 && header.cluster_id != 0;
        if named && !self.versions.is_known(member) {
            // It may be down by now; that says nothing of the others.
            return Err(End::Failed(Status::unavailable("the version of the member is not known")));
        }
        if named && self.versions.has_ordered_progress(member) { Ok(()) } else { Err(End::Untrusted) }
    }

    /// Applies what comes until a progress request is answered.
    async fn first_progress(&self, life: &mut Life, stream: &mut UpstreamStream) -> Result<(), End> {
        let Periods { progress_max, answer_max, .. } = self.periods;
        match first_progress(stream, progress_max, answer_max, |answer| self.receive(life, answer)).await {
            Ok(()) => Ok(()),
            Err(NoProgress::Unanswered) => Err(End::Unanswered),
            Err(NoProgress::Broken(status)) => Err(End::Failed(status)),
            Err(NoProgress::Refused(stop)) => Err(stop.into_end()),
        }
    }

    /// Opens the watch and waits for its confirmation.
    async fn open(&self, start: Revision) -> Result<(UpstreamStream, ResponseHeader), End> {
        let opening = async {
            let mut stream = self.cluster.open_watch(&self.identity).await?;
            let (key, range_end) = self.replica.upstream.to_wire();
            let create = WatchCreateRequest {
                key,
                range_end,
                start_revision: start.0,
                prev_kv: true,
                progress_notify: true,
                ..Default::default()
            };
            stream.send(RequestUnion::CreateRequest(create)).await?;
            let created = stream.next().await?;
            Ok((stream, created))
        };
        let (stream, created) = self.answered(opening).await.map_err(End::of_status)?;
        if created.canceled {
            return Err(match created.compact_revision {
                0 => End::Refused(created.cancel_reason),
                _ => End::Compacted,
            });
        }
        let header = created.header.filter(|_| created.created);
        header.map(|header| (stream, header)).ok_or(End::Gap("the watch was not confirmed first"))
    }

    /// Follows one upstream stream to its end.
    async fn follow(
        &self,
        life: &mut Life,
        stream: &mut UpstreamStream,
        publisher: &mut Publisher<'_>,
        resumption: &mut Backoff,
    ) -> Stop {
        let mut progress = ProgressRequests::new(self.periods.progress_first, self.periods.progress_max);
        let (mut look, mut moved) = (tokio::time::interval(LOOK), Instant::now());
        let SharedReplica { read_sent, awaited, evicted, went_back, .. } = &*self.replica;
        let mut check: OptionFuture<BoxFuture<'_, Checked>> = OptionFuture::default();
        loop {
            tokio::select! {
                answer = stream.next() => {
                    let answer = match answer {
                        Ok(answer) => answer,
                        Err(status) => return Stop::Broken(status),
                    };
                    if publisher.takes(&answer) {
                        continue;
                    }
                    let copy = publisher.copy(&answer, Instant::now());
                    let answered = answer.watch_id == PROGRESS_WATCH_ID;
                    let before = life.replica.position();
                    if let Err(stop) = self.receive(life, answer) {
                        return stop;
                    }
                    resumption.reset();
                    if life.replica.position() > before {
                        moved = Instant::now();
                        if let Err(end) = self.publish(life) {
                            return Stop::Over(end);
                        }
                    }
                    publisher.forward(life.replica.position(), life.term, copy);
                    progress.reached(answered, life.replica.position(), self.replica.target(), Instant::now());
                }
                Some(request) = publisher.request() => match publisher.take(request) {
                    Asked::Nothing => {}
                    Asked::Progress => progress.read_sent(),
                    Asked::Request(request) => {
                        if stream.requests.try_send(request).is_err() {
                            publisher.not_sent();
                        }
                    }
                },
                () = read_sent.notified() => progress.read_sent(),
                () = awaited.notified() => {
                    progress.awaited(life.replica.position(), self.replica.target(), Instant::now());
                }
                () = progress.is_due() => progress.again(life.replica.position(), self.replica.target()),
                () = evicted.notified() => return Stop::Over(End::Evicted),
                () = went_back.notified() => return Stop::Over(End::WentBack),
                Some(checked) = &mut check => {
                    check = OptionFuture::default();
                    self.metrics.checks.with_label_values(&[checked.label()]).inc();
                    if let Checked::Different(where_) = checked {
                        return Stop::Over(End::Different(where_));
                    }
                }
                _ = look.tick() => {
                    life.past.lock().expire(Instant::now());
                    if let Err(end) = self.charge_with_past(life) {
                        return Stop::Over(end);
                    }
                    if self.budget.takes_turn(&self.replica) {
                        check = self.replica.snapshot().map(|state| self.check(state).boxed()).into();
                    }
                    if self.replica.idle_for() >= self.idle_max() {
                        return Stop::Over(End::Idle);
                    }
                    if self.replica.is_promoted && !is_worth_it(&mut life.events, self.replica.take_reads()) {
                        return Stop::Over(End::Changing);
                    }
                    if moved.elapsed() >= self.periods.position_max {
                        moved = Instant::now();
                        progress.read_sent();
                    }
                }
            }
            if progress.take(Instant::now()) {
                self.metrics.progress.inc();
                publisher.progress_sent(Instant::now());
                // A stream that takes no more requests sends no answers either, and is cut for that.
                let _ = stream.requests.try_send(progress_request());
            }
        }
    }

    /// Takes one answer. The position comes from the events themselves, or from the header of an answer without events.
    fn receive(&self, life: &mut Life, answer: WatchResponse) -> Result<(), Stop> {
        if answer.canceled {
            return Err(match answer.compact_revision {
                0 if answer.cancel_reason.is_empty() => {
                    Stop::Broken(Status::unavailable("the member cancelled the watch without a reason"))
                }
                0 => Stop::Over(End::Refused(answer.cancel_reason)),
                _ => Stop::Over(End::Compacted),
            });
        }
        if answer.fragment {
            return Err(Disorder::Fragment.into());
        }
        let header = answer.header.unwrap_or_default();
        life.term = life.term.max(Term(header.raft_term));
        if answer.events.is_empty() {
            life.replica.advance(Revision(header.revision));
            return Ok(());
        }
        self.metrics.events.inc_by(answer.events.len() as u64);
        life.events += answer.events.len() as u64;
        let events: Option<Vec<Event>> = answer.events.into_iter().map(|event| self.event_inside(event)).collect();
        let events = events.ok_or(Stop::Over(End::Gap("an event outside of the range came")))?;
        Ok(life.replica.apply(events)?)
    }

    fn event_inside(&self, mut event: Event) -> Option<Event> {
        event.kv = Some(self.inside(event.kv?)?);
        if let Some(previous) = event.prev_kv {
            event.prev_kv = Some(self.inside(previous)?);
        }
        Some(event)
    }

    /// A pair as clients see it.
    fn inside(&self, mut kv: KeyValue) -> Option<KeyValue> {
        kv.key = self.namespace.strip_prefix(&kv.key)?;
        Some(kv)
    }

    fn publish(&self, life: &mut Life) -> Result<(), End> {
        if let Some(changes) = life.replica.take_changes()
            && let Some(before) = self.replica.snapshot()
        {
            let revisions = (before.since, Revision(changes.first.0 - 1));
            life.past.lock().keep(before.pairs.clone(), revisions, changes.bytes, Instant::now());
        }
        self.charge_with_past(life)?;
        life.keys.set(life.replica.pairs().len());
        self.replica.publish(Some(life.snapshot()));
        Ok(())
    }

    /// Counts the memory of the replica and of its states before, which are the first to go.
    fn charge_with_past(&self, life: &Life) -> Result<(), End> {
        let past = life.past.lock().bytes();
        if self.is_too_large(life.replica.bytes() + past)
            || !self.budget.has_room_for(&self.replica, life.replica.bytes() + past)
        {
            life.past.lock().clear();
            return self.charge(&life.replica);
        }
        self.charge_bytes(life.replica.bytes() + past)
    }

    /// Counts the memory of the replica.
    pub(super) fn charge(&self, replica: &Replica) -> Result<(), End> {
        if self.is_too_large(replica.bytes()) {
            return Err(End::OverBudget);
        }
        self.charge_bytes(replica.bytes())
    }

    fn charge_bytes(&self, bytes: usize) -> Result<(), End> {
        if self.budget.charge(&self.replica, bytes) {
            return Ok(());
        }
        Err(if self.replica.is_evicted() { End::Evicted } else { End::OverBudget })
    }

    /// Whether so much is too much for a promoted prefix.
    pub(super) fn is_too_large(&self, bytes: usize) -> bool {
        self.replica.is_promoted && bytes > PROMOTED_BYTES_MAX
    }

    /// The answer, if it comes in time.
    pub(super) async fn answered<T>(&self, asking: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let late = |_| Err(Status::deadline_exceeded("a member did not answer in time"));
        timeout(self.periods.answer_max, asking).await.unwrap_or_else(late)
    }
}

/// Whether a promoted prefix was read as often as it pays for so many events; they are taken.
fn is_worth_it(events: &mut u64, reads: u64) -> bool {
    std::mem::take(events) <= reads.saturating_mul(EVENTS_PER_READ_MAX).max(EVENTS_FREE)
}

/// The rest of a range behind a key.
pub(super) fn after(range: &KeyRange, key: &[u8]) -> KeyRange {
    let start = [key, b"\0"].concat().into();
    match range {
        KeyRange::HalfOpen { end, .. } => KeyRange::HalfOpen { start, end: end.clone() },
        KeyRange::One(_) | KeyRange::From(_) => KeyRange::From(start),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promoted_prefix_has_to_be_read() {
        assert!(is_worth_it(&mut 100, 0) && is_worth_it(&mut 4000, 1000));
        let mut events = 101;
        assert!(!is_worth_it(&mut events, 25) && events == 0);
        assert!(is_worth_it(&mut 101, 26));
    }
}
