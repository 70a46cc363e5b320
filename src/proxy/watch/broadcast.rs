use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture, join_all};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::Status;
use tracing::{debug, warn};

use super::broadcast_handle::{BroadcastHandle, BroadcastState, Command, broadcast_channel};
use super::events::batches;
use super::group::CredentialGroup;
use super::history::UpstreamHistory;
use super::hub::HubInner;
use super::progress_schedule::{ProgressActions, ProgressSchedule};
use super::status::{is_refusal, lost, refusal_of_proxy_user};
use super::upstream::{Subscription, UpstreamStream};
use crate::eventlog::{End, EventLog, Source};
use crate::net::Backoff;
use crate::pb::encoded::ResponseHeader;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchResponse};
use crate::telemetry::Counted;
use crate::types::{ClusterId, KeyRange, MemberId, Revision, Term};

/// Attempts to begin a log where the narrower ones stand, after their positions were renewed.
const RENEWALS_MAX: u32 = 3;
/// Watch id in the answer to a progress request.
const PROGRESS_WATCH_ID: i64 = -1;

/// Keeps one upstream watch alive and its log filled, whatever member serves it.
pub(super) struct Broadcast {
    hub: Arc<HubInner>,
    group: Arc<CredentialGroup>,
    range: KeyRange,
    state: watch::Sender<BroadcastState>,
    handle: BroadcastHandle,
    commands: mpsc::Receiver<Command>,
    /// Whose history the log has, or will have; 0 while that is not known.
    cluster: ClusterId,
    /// The log begins behind this revision, or behind now when it is 0.
    begin: Revision,
    /// The broadcasts whose watchers move to this one: the log begins where the slowest of them stands.
    narrower: Vec<BroadcastHandle>,
    /// How often their positions have been renewed because the slowest was compacted.
    renewals: u32,
    /// Start with the revision after the position; see [`start`](Self::start).
    start_after: bool,
    /// The position from which the member's watch was started.
    resumed_at: Revision,
    /// Strong: watchers that come back within the linger time find it.
    source: Option<Arc<Source>>,
    idle_since: Option<Instant>,
    refreshes: Vec<Refresh>,
    progress: ProgressSchedule,
    serving: Serving,
    /// While it has an upstream watch of its own.
    counted: Option<Counted>,
}

/// What is known of the upstream stream in use.
#[derive(Default)]
struct Serving {
    member: MemberId,
    /// The member has confirmed the watch.
    confirmed: bool,
    /// The stream is that of a replica.
    of_replica: bool,
    /// The progress watch was created, and its id once the member has confirmed it.
    progress_watch_created: bool,
    progress_watch: Option<i64>,
    /// A progress request is due.
    request_progress: bool,
    /// The member has not reached the position. It may lag, or the cluster has lost the history that led there.
    is_behind: bool,
    /// The member may not have sent yet what the watch needs of the past.
    catch_up: Option<CatchUp>,
}

/// The past has come with the events up to a revision, or when none has come until a time.
struct CatchUp {
    revision: Revision,
    until: Instant,
}

struct Refresh {
    done: oneshot::Sender<()>,
    /// A progress request was sent after it came.
    requested: bool,
    /// Only of a member that answers in order.
    ordered_only: bool,
}

/// Why one upstream stream is no longer followed.
enum Stop {
    /// Try the next member.
    Broken(Status),
    /// The watch itself is over.
    Ended(End),
    /// The cluster has refused the range.
    Refused(End),
    /// The cluster has lost the history of the log. Whoever waits for that is told when all is done.
    Lost(End, Option<oneshot::Sender<()>>),
    /// Its watchers move to this wider source.
    Superseded(Arc<Source>),
    /// No watcher is left.
    Idle,
}

impl Broadcast {
    /// A broadcast of `range` for a group, not yet running. Its log begins where the slowest of `narrower` stands if that is
    /// still to be had, else, or without any, behind now.
    pub fn new(
        hub: Arc<HubInner>,
        group: Arc<CredentialGroup>,
        range: KeyRange,
        narrower: Vec<BroadcastHandle>,
    ) -> (Self, BroadcastHandle) {
        // Spread, so that the broadcasts of a proxy do not send their requests all at once.
        let interval = hub.config.progress_interval.mul_f64(1.0 + fastrand::f64() / 10.0);
        let progress = ProgressSchedule::new(interval, hub.config.periods.position_max, Instant::now());
        let (begin, cluster) = slowest(&narrower);
        let (handle, state, commands) = broadcast_channel(begin);
        let broadcast = Self {
            hub,
            group,
            range,
            state,
            handle: handle.clone(),
            commands,
            cluster,
            begin,
            narrower,
            renewals: 0,
            start_after: false,
            resumed_at: Revision(0),
            source: None,
            idle_since: None,
            refreshes: Vec::new(),
            progress,
            serving: Serving::default(),
            counted: None,
        };
        (broadcast, handle)
    }

    /// Runs until no watcher needs it.
    pub async fn run(mut self) {
        let mut backoff = self.hub.config.periods.backoff();
        let stop = loop {
            match self.follow(&mut backoff).await {
                Stop::Broken(status) => {
                    debug!(%status, range = ?self.range, "upstream watch is resumed");
                    self.hub.note_stream_end(&status);
                    self.hub.metrics.resumes.inc();
                    if let Some(stop) = self.pause(backoff.pause()).await {
                        break stop;
                    }
                }
                stop => break stop,
            }
        };
        self.finish(stop);
    }

    /// Follows one upstream stream to its end.
    async fn follow(&mut self, backoff: &mut Backoff) -> Stop {
        self.forget_requests();
        self.serving = Serving::default();
        if self.renewals > 0 && self.source.is_none() {
            let within = self.hub.config.periods.compaction_wait;
            join_all(self.narrower.iter().map(|broadcast| broadcast.renew(within))).await;
            (self.begin, self.cluster) = slowest(&self.narrower);
            self.state.send_replace(BroadcastState::Opening(self.begin));
        }
        let subscription = if self.position().0 == 0 { self.subscription() } else { None };
        let opened = match subscription {
            Some(subscription) => Ok(self.read_replica(subscription, backoff)),
            None => self.open().await,
        };
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(status) if self.group.identity.is_proxy() && is_refusal(&status) => {
                warn!(%status, "the cluster refuses the proxy's own user, see --user");
                let reason = refusal_of_proxy_user(&status);
                return Stop::Ended(End { compact_revision: Revision(0), reason });
            }
            Err(status) => return Stop::Broken(status),
        };
        self.resumed_at = self.position();
        let mut tick = tokio::time::interval(self.hub.config.periods.linger / 4);
        let mut again = None;
        let mut look: OptionFuture<BoxFuture<'static, ()>> = OptionFuture::default();
        let mut joining = None;
        loop {
            tokio::select! {
                answer = stream.next() => {
                    let answer = match answer {
                        Ok(answer) => answer,
                        Err(status) => return Stop::Broken(status),
                    };
                    if answer.created && !answer.canceled {
                        backoff.reset();
                    }
                    if let Err(stop) = self.receive(answer) {
                        return stop;
                    }
                }
                // What it finds comes as a command.
                Some(()) = &mut look => look = OptionFuture::default(),
                Some(command) = self.commands.recv() => {
                    if let Some(stop) = self.command(command) {
                        return stop;
                    }
                }
                _ = tick.tick() => {
                    if self.leave_if_idle() {
                        return Stop::Idle;
                    }
                    self.progress.wanted = self.wants_progress();
                    self.look_for_replica(&mut joining);
                }
                () = tokio::time::sleep_until(self.progress.next()), if self.serving.confirmed => self.progress_timer(),
                () = sleep_until(again), if again.is_some() => {
                    again = None;
                    self.forget_requests();
                }
            }
            if let Some(subscription) = joining.take_if(|subscription| self.has_reached(subscription)) {
                stream = self.read_replica(subscription, backoff);
                again = None;
            }
            if std::mem::take(&mut self.serving.is_behind) {
                look = Some(self.look_for_lost_history()).into();
            }
            self.refreshes.retain(|refresh| !refresh.done.is_closed());
            if self.serving.confirmed {
                self.send_requests(&mut stream, &mut again).await;
            }
        }
    }

    /// Finds out whether the cluster has lost the history that led to the position.
    fn look_for_lost_history(&self) -> BoxFuture<'static, ()> {
        let (hub, group, range, position) = (self.hub.clone(), self.group.clone(), self.range.clone(), self.position());
        async move { hub.look_for_lost_history(&group, &range, position).await }.boxed()
    }

    /// What the watch of a replica receives of the range from now on, if the range cache has one that covers it.
    fn subscription(&self) -> Option<Subscription> {
        let (key, range_end) = self.hub.config.namespace.upstream_range(&self.range);
        let range = KeyRange::from_wire(key, range_end);
        self.hub.config.replicas.as_ref()?.subscribe(&self.group.identity, &range)
    }

    /// Subscribes to the watch of a replica that covers the range, and has the log brought as far as that is now.
    fn look_for_replica(&mut self, joining: &mut Option<Subscription>) {
        let cluster = self.cluster.0;
        joining.take_if(|subscription| !subscription.is_open() || subscription.header.cluster_id != cluster);
        // A member that tells progress ahead of events may not have sent all that the log seems to have.
        let may_join = !self.serving.of_replica && self.source.is_some() && self.has_ordered_progress();
        if may_join && joining.is_none() {
            *joining = self.subscription();
        }
        // Again where it has waited since the last look: a request to a member that lags has no answer.
        self.serving.request_progress |= joining.is_some();
    }

    /// Whether the log has all that the watch of a replica had received when it was subscribed to.
    fn has_reached(&self, subscription: &Subscription) -> bool {
        let header = &subscription.header;
        subscription.is_open()
            && self.cluster == ClusterId(header.cluster_id)
            && self.position() >= Revision(header.revision)
    }

    /// Goes on with the watch of a replica, from which the log lacks nothing, or with which it begins.
    fn read_replica(&mut self, subscription: Subscription, backoff: &mut Backoff) -> UpstreamStream {
        let Subscription { header, stream } = subscription;
        debug!(range = ?self.range, "the upstream watch of a cached range is read");
        let (cluster, member) = (ClusterId(header.cluster_id), MemberId(header.member_id));
        self.hub.follow_member(cluster, member, Term(header.raft_term));
        self.hub.learn_version(member, &self.group.identity);
        self.counted = None;
        self.forget_requests();
        let is_behind = Revision(header.revision) < self.position();
        self.serving = Serving { member, confirmed: true, of_replica: true, is_behind, ..Serving::default() };
        self.progress.restart(self.position().0 != 0, Instant::now());
        backoff.reset();
        if self.source.is_none() {
            self.cluster = cluster;
            // Else each watch of the range would have a broadcast of its own.
            self.group.forget_refusal(&self.range);
            self.go_live(Revision(header.revision));
        }
        stream
    }

    async fn open(&mut self) -> Result<UpstreamStream, Status> {
        self.counted.get_or_insert_with(|| Counted::new(self.hub.metrics.upstream_watches.clone()));
        let mut stream = self.hub.upstream.open_watch(&self.group.identity).await?;
        stream.send(RequestUnion::CreateRequest(self.create_request())).await?;
        Ok(stream)
    }

    /// Creates the progress watch when it is wanted, and requests progress when that is due. A request that was sent is
    /// repeated at `again` while its answer is needed: a member that lags gives none. A stream that is closed reports so
    /// in its answers.
    async fn send_requests(&mut self, stream: &mut UpstreamStream, again: &mut Option<Instant>) {
        if self.progress.wanted && !self.serving.progress_watch_created {
            self.serving.progress_watch_created = true;
            let _ = stream.send(RequestUnion::CreateRequest(self.progress_watch_request())).await;
        }
        let member = self.serving.member;
        if self.hub.versions.is_known(member) && !self.has_ordered_progress() {
            // Dropped, so that their callers do not wait.
            self.refreshes.retain(|refresh| !refresh.ordered_only);
        }
        let needed = !self.refreshes.is_empty() || self.source.is_none();
        let unrequested = !self.refreshes.is_empty() && !self.refreshes.iter().any(|refresh| refresh.requested);
        let due = std::mem::take(&mut self.serving.request_progress) || (needed && (again.is_none() || unrequested));
        let request_now = due && self.may_request_progress();
        if request_now {
            let _ = stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
            self.refreshes.iter_mut().for_each(|refresh| refresh.requested = true);
        }
        if !needed {
            *again = None;
        } else if due {
            *again = Some(Instant::now() + self.hub.config.periods.progress_again);
        }
    }

    /// Whether the answer of the member would be of use. That of a member which answers out of order shows nothing while
    /// events of the past may still be on their way.
    fn may_request_progress(&self) -> bool {
        let catches_up = self.serving.catch_up.as_ref().is_some_and(|catch_up| Instant::now() < catch_up.until);
        let for_any = self.source.is_none() || self.refreshes.iter().any(|refresh| !refresh.ordered_only);
        self.has_ordered_progress() || (for_any && !catches_up)
    }

    /// Progress is to be requested anew for every refresh.
    fn forget_requests(&mut self) {
        self.refreshes.iter_mut().for_each(|refresh| refresh.requested = false);
    }

    fn command(&mut self, command: Command) -> Option<Stop> {
        match command {
            Command::Refresh(done) => self.refreshes.push(Refresh { done, requested: false, ordered_only: false }),
            Command::Renew(done) => self.refreshes.push(Refresh { done, requested: false, ordered_only: true }),
            Command::Supersede(by) => return Some(Stop::Superseded(by)),
            Command::EndLost(position, end, done) if self.position() >= position => {
                return Some(Stop::Lost(end, Some(done)));
            }
            Command::EndLost(..) => {}
        }
        None
    }

    fn has_ordered_progress(&self) -> bool {
        self.hub.versions.has_ordered_progress(self.serving.member)
    }

    fn wants_progress(&self) -> bool {
        let Some(source) = &self.source else { return false };
        let wanted = std::cell::Cell::new(false);
        self.hub.for_each_watcher_set(|watchers| wanted.set(wanted.get() || watchers.wants_progress(source)));
        wanted.get()
    }

    fn progress_timer(&mut self) {
        let ordered = self.has_ordered_progress();
        if !ordered {
            self.hub.learn_version(self.serving.member, &self.group.identity);
        }
        let actions = self.progress.timer(ordered, Instant::now());
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: ProgressActions) {
        self.serving.request_progress |= actions.request;
        if let Some(source) = self.source.as_ref().filter(|_| actions.notify) {
            self.hub.for_each_watcher_set(|watchers| watchers.notify_source(source));
        }
    }

    /// The revision to start from, 0 for now.
    ///
    /// That is the last revision the log already has, whose events are dropped when they come again: a watch from the
    /// revision after it would start in the future until something is written, and members send such watches no
    /// progress. Only if this revision is compacted, and perhaps not the next one, does the watch start after it.
    fn start(&self) -> Revision {
        let position = self.position();
        if self.start_after && position.0 != 0 { position.next() } else { position }
    }

    fn position(&self) -> Revision {
        self.source.as_ref().map_or(self.begin, |source| source.log().head())
    }

    /// A watch of a key that this one covers too, with filters that no event passes: it is always idle, so that the
    /// member notifies it at its interval.
    fn progress_watch_request(&self) -> WatchCreateRequest {
        WatchCreateRequest {
            key: self.hub.config.namespace.add_prefix(self.range.start()),
            progress_notify: true,
            filters: vec![FilterType::Noput.into(), FilterType::Nodelete.into()],
            ..Default::default()
        }
    }

    fn create_request(&self) -> WatchCreateRequest {
        let (key, range_end) = self.hub.config.namespace.upstream_range(&self.range);
        WatchCreateRequest {
            key,
            range_end,
            start_revision: self.start().0,
            prev_kv: true,
            progress_notify: true,
            ..Default::default()
        }
    }

    /// Takes one answer. The log's position comes from the events themselves, or from the header of an answer
    /// without events: the header of an event batch may be ahead of what the member has sent.
    fn receive(&mut self, mut answer: WatchResponse) -> Result<(), Stop> {
        let header = answer.header.unwrap_or_default();
        let revision = Revision(header.revision);
        if self.serving.confirmed && (answer.created || self.serving.progress_watch == Some(answer.watch_id)) {
            self.receive_progress_watch(&answer, revision);
            return Ok(());
        }
        if answer.canceled {
            return Err(self.receive_cancel(answer));
        }
        if answer.created {
            return self.receive_created(header);
        }
        if self.source.is_none() {
            // The first answer that shows that the beginning is not compacted.
            self.go_live(self.begin);
        }
        let Some(source) = &self.source else { return Ok(()) };
        if self.serving.of_replica && !answer.events.is_empty() {
            // What it had not received yet when it was subscribed to may have come since.
            let head = source.log().head().0;
            answer.events.retain(|event| event.kv.as_ref().is_some_and(|kv| kv.mod_revision > head));
            if answer.events.is_empty() {
                return Ok(());
            }
        }
        self.hub.note_revision(revision);
        self.start_after = false;
        if answer.events.is_empty() {
            source.log().advance(revision);
            let (head, answered) = (source.log().head(), answer.watch_id == PROGRESS_WATCH_ID);
            let mut actions = self.progress.reached(head, answered, Instant::now());
            if answered {
                for refresh in self.refreshes.extract_if(.., |refresh| refresh.requested) {
                    // Its client may be gone.
                    let _ = refresh.done.send(());
                }
            } else if self.serving.progress_watch.is_none() {
                actions.notify = true;
            }
            self.carry_out(actions);
            return Ok(());
        }
        self.hub.metrics.upstream_events.inc_by(answer.events.len() as u64);
        let first = answer.events.iter().find_map(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
        let head = source.log().head();
        if Revision(first) < head || (Revision(first) == head && self.resumed_at != head) {
            // Members before 3.4.25 and 3.5.8 may send progress before the events.
            warn!(first, %head, range = ?self.range, "upstream broke the order of events");
            let reason = "the cluster announced progress before it had sent all events".to_owned();
            return Err(Stop::Ended(End { compact_revision: Revision(0), reason }));
        }
        source.log().append(batches(&self.hub.config.namespace, answer.events));
        let (head, now) = (source.log().head(), Instant::now());
        match &mut self.serving.catch_up {
            Some(catch_up) if head < catch_up.revision => catch_up.until = now + self.hub.config.periods.settled,
            caught_up => *caught_up = None,
        }
        let actions = self.progress.reached(head, false, now);
        self.carry_out(actions);
        Ok(())
    }

    /// The member has cancelled the watch.
    fn receive_cancel(&mut self, answer: WatchResponse) -> Stop {
        let end = End { compact_revision: Revision(answer.compact_revision), reason: answer.cancel_reason };
        if end.compact_revision.0 != 0 {
            self.hub.note_compaction(end.compact_revision);
        }
        if end.compact_revision.0 != 0 && self.position().0 != 0 && !self.start_after {
            self.start_after = true;
            return Stop::Broken(Status::out_of_range("the revision of the position is compacted"));
        }
        if end.compact_revision.0 != 0 && self.source.is_none() {
            self.renewals += 1;
            self.start_after = false;
            if self.renewals > RENEWALS_MAX {
                // What the watchers to come have missed is read for each of them.
                self.narrower.clear();
                (self.begin, self.cluster) = (Revision(0), ClusterId(0));
                self.state.send_replace(BroadcastState::Opening(self.begin));
            }
            return Stop::Broken(Status::out_of_range("the beginning of the log is compacted"));
        }
        if end == End::default() {
            return Stop::Broken(Status::unavailable("the member cancelled the watch without a reason"));
        }
        if end.compact_revision.0 == 0 {
            return Stop::Refused(end);
        }
        Stop::Ended(end)
    }

    /// The member has confirmed the watch.
    fn receive_created(&mut self, header: ResponseHeader) -> Result<(), Stop> {
        let (cluster, revision) = (ClusterId(header.cluster_id), Revision(header.revision));
        self.hub.note_member(cluster, MemberId(header.member_id), Term(header.raft_term));
        let before = std::mem::replace(&mut self.cluster, cluster);
        if before.0 != 0 && before != cluster {
            let end = lost(revision, "the endpoints lead to another cluster than before");
            self.end_narrower_of(before, &end);
            return Err(Stop::Lost(end, None));
        }
        self.group.note_permission(&self.range);
        self.serving.confirmed = true;
        self.serving.member = MemberId(header.member_id);
        self.hub.learn_version(self.serving.member, &self.group.identity);
        let now = Instant::now();
        let (position, until) = (self.position(), now + self.hub.config.periods.settled);
        self.serving.is_behind = revision < position;
        self.serving.catch_up = (position.0 != 0).then_some(CatchUp { revision, until });
        self.progress.restart(position.0 != 0, now);
        if self.source.is_none() && self.begin.0 == 0 {
            self.go_live(revision);
        }
        Ok(())
    }

    /// Ends the broadcasts whose watchers were to move to this one, where these are at the history of a cluster that is gone.
    fn end_narrower_of(&self, cluster: ClusterId, end: &End) {
        for narrower in self.narrower.iter().filter(|narrower| narrower.cluster() == cluster) {
            let Some(position) = narrower.position() else { continue };
            let (narrower, end) = (narrower.clone(), end.clone());
            self.hub.start(async move { narrower.end_lost(position, end).await });
        }
    }

    /// Takes an answer of the progress watch. Without that watch, the broadcast makes ticks of its own.
    fn receive_progress_watch(&mut self, answer: &WatchResponse, revision: Revision) {
        if answer.canceled {
            self.serving.progress_watch = None;
        } else if answer.created {
            self.serving.progress_watch = Some(answer.watch_id);
        } else if let Some(source) = &self.source {
            let head = source.log().head();
            let actions = self.progress.tick(revision, head, self.has_ordered_progress(), Instant::now());
            self.carry_out(actions);
        }
    }

    fn go_live(&mut self, revision: Revision) {
        let log = EventLog::new(revision, self.hub.config.log_bytes_max);
        let history = UpstreamHistory::new(self.hub.history.clone(), self.group.identity.clone(), self.handle.clone());
        let source = Source::new(log, Arc::new(history));
        self.state.send_replace(BroadcastState::Live(Arc::downgrade(&source), self.cluster));
        self.source = Some(source);
    }

    /// Waits before the next attempt; ends early with the reason for which none is made.
    async fn pause(&mut self, pause: Duration) -> Option<Stop> {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => {
                    return self.leave_if_idle().then_some(Stop::Idle);
                }
                Some(command) = self.commands.recv() => {
                    if let Some(stop) = self.command(command) {
                        return Some(stop);
                    }
                }
            }
        }
    }

    /// Removes the broadcast from its group when its log has had no reader for a while.
    fn leave_if_idle(&mut self) -> bool {
        let (source, state) = (&self.source, &self.state);
        let unused = || match source {
            Some(source) => Arc::strong_count(source) == 1,
            // Nobody waits for the first answer: the handles of the group and of this broadcast are all there are.
            None => state.receiver_count() <= 2,
        };
        if !unused() {
            self.idle_since = None;
            return false;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        since.elapsed() >= self.hub.config.periods.linger && self.group.remove_if(&self.range, &self.handle, unused)
    }

    fn finish(mut self, stop: Stop) {
        let end = match stop {
            Stop::Ended(end) => {
                self.group.remove_ended(&self.range, &self.handle, self.source.is_none());
                if let Some(source) = &self.source {
                    source.end(end.clone());
                    self.hub.for_each_watcher_set(|watchers| watchers.end_source(source, &end));
                }
                end
            }
            Stop::Refused(end) => {
                self.group.remove_ended(&self.range, &self.handle, true);
                if let Some(source) = &self.source {
                    source.refuse(self.range.clone(), end.clone());
                    self.hub.for_each_watcher_set(|watchers| watchers.end_source(source, &end));
                }
                end
            }
            Stop::Lost(end, done) => {
                warn!(range = ?self.range, reason = end.reason, "the cluster has lost the history of an upstream watch");
                self.group.remove_ended(&self.range, &self.handle, false);
                if let Some(source) = &self.source {
                    source.end(end.clone());
                    self.hub.for_each_watcher_set(|watchers| watchers.end_source(source, &end));
                }
                self.state.send_replace(BroadcastState::Ended(End::default()));
                // Who waited for this finds another broadcast.
                return drop(done);
            }
            Stop::Superseded(by) => {
                if let Some(source) = self.source.take() {
                    source.move_to(by.clone());
                    self.hub.for_each_watcher_set(|watchers| watchers.move_source(&source, &by));
                }
                End::default()
            }
            Stop::Idle | Stop::Broken(_) => End::default(),
        };
        self.state.send_replace(BroadcastState::Ended(end));
    }
}

/// Where the slowest of some broadcasts stands, and in which cluster's history; 0 when none has a log.
fn slowest(broadcasts: &[BroadcastHandle]) -> (Revision, ClusterId) {
    let live = broadcasts.iter().filter_map(|broadcast| Some((broadcast.head()?, broadcast.cluster())));
    live.min().unwrap_or_default()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => ::core::future::pending().await,
    }
}
