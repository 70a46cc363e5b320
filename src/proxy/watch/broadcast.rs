use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::Status;
use tracing::{debug, warn};

use super::events::batches;
use super::history::UpstreamHistory;
use super::hub::{CredentialGroup, HubInner};
use super::pace::{Act, Pace};
use crate::api_error::ApiError;
use crate::eventlog::{End, EventLog, Source};
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use crate::types::{ClusterId, KeyRange, MemberId, Revision, Term};

/// Requests to a broadcast that wait; the sender waits while it is full.
const COMMANDS_MAX: usize = 64;
/// How far a broadcast is.
#[derive(Clone, Debug)]
pub(super) enum BroadcastState {
    /// The member has not confirmed the watch yet.
    Opening,
    /// The log is being filled.
    Live(Weak<Source>),
    /// It is over. An empty reason means that asking again may help.
    Ended(End),
}

/// Attempts to begin a log where the narrower ones stand, after their positions were renewed.
const RENEWALS_MAX: u32 = 3;

#[derive(Debug)]
enum Command {
    /// Asks the member how far it is.
    Refresh(oneshot::Sender<()>),
    /// The same, unless what it says is not to be relied on.
    Renew(oneshot::Sender<()>),
    Supersede(Arc<Source>),
}

/// Way in to a broadcast. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct BroadcastHandle {
    state: watch::Receiver<BroadcastState>,
    commands: mpsc::Sender<Command>,
}

impl BroadcastHandle {
    /// The source, once the member has confirmed the watch.
    ///
    /// # Errors
    /// How the broadcast ended.
    pub async fn live(&self) -> Result<Arc<Source>, End> {
        let mut state = self.state.clone();
        loop {
            match &*state.borrow_and_update() {
                BroadcastState::Live(source) => return source.upgrade().ok_or_else(End::default),
                BroadcastState::Ended(end) => return Err(end.clone()),
                BroadcastState::Opening => {}
            }
            if state.changed().await.is_err() {
                return Err(End::default());
            }
        }
    }

    /// Whether watchers can still join.
    pub fn is_open(&self) -> bool {
        match &*self.state.borrow() {
            BroadcastState::Opening => true,
            BroadcastState::Live(source) => source.strong_count() > 0,
            BroadcastState::Ended(_) => false,
        }
    }

    /// Brings the log up to the newest revision of the member; false when it could not say in time.
    pub async fn refresh(&self, within: Duration) -> bool {
        self.ask(Command::Refresh, within).await
    }

    /// The same for the proxy's own sake: a member whose progress proves nothing is not asked.
    pub async fn renew(&self, within: Duration) -> bool {
        self.ask(Command::Renew, within).await
    }

    async fn ask(&self, command: fn(oneshot::Sender<()>) -> Command, within: Duration) -> bool {
        let (done, reached) = oneshot::channel();
        let refresh = async { self.commands.send(command(done)).await.is_ok() && reached.await.is_ok() };
        tokio::time::timeout(within, refresh).await.unwrap_or(false)
    }

    /// Where the log stands, once there is one.
    pub fn head(&self) -> Option<Revision> {
        match &*self.state.borrow() {
            BroadcastState::Live(source) => source.upgrade().map(|source| source.log().head()),
            BroadcastState::Opening | BroadcastState::Ended(_) => None,
        }
    }

    /// Whether both lead to the same broadcast.
    pub fn is(&self, other: &Self) -> bool {
        self.commands.same_channel(&other.commands)
    }

    /// Hands all watchers over to a wider source and ends the broadcast.
    pub async fn supersede(&self, by: Arc<Source>) {
        let _ = self.commands.send(Command::Supersede(by)).await;
    }
}

/// Keeps one upstream watch alive and its log filled, whatever member serves it.
pub(super) struct Broadcast {
    hub: Arc<HubInner>,
    group: Arc<CredentialGroup>,
    range: KeyRange,
    state: watch::Sender<BroadcastState>,
    handle: BroadcastHandle,
    commands: mpsc::Receiver<Command>,
    /// Where the log begins: behind this revision, or behind now when it is 0.
    begin: Revision,
    /// The broadcasts whose watchers this one takes over: the log begins where the slowest of them stands.
    narrower: Vec<BroadcastHandle>,
    /// How often their positions have been renewed because the slowest was compacted.
    renewals: u32,
    /// Start with the revision after the position; see [`start`](Self::start).
    exactly: bool,
    /// The position from which the member's watch was started.
    resumed_at: Revision,
    /// Strong: watchers that come back within the linger time find it.
    source: Option<Arc<Source>>,
    idle_since: Option<Instant>,
    waiting: Vec<Waiter>,
    pace: Pace,
    serving: Serving,
}

/// What is known of the upstream stream in use.
#[derive(Default)]
struct Serving {
    member: MemberId,
    /// The member has confirmed the watch.
    confirmed: bool,
    /// The watch without events was asked for, and its id once it is there.
    clock_asked: bool,
    clock: Option<i64>,
    /// A progress request is due.
    ask: bool,
}

struct Waiter {
    done: oneshot::Sender<()>,
    /// A progress request was sent after it came.
    asked: bool,
}

/// Why one upstream stream is over.
enum Over {
    /// Try the next member.
    Broken(Status),
    /// The watch itself is over.
    Ended(End),
    /// A wider source takes its watchers.
    Superseded(Arc<Source>),
    /// Nobody reads any more.
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
        let (state, seen) = watch::channel(BroadcastState::Opening);
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let handle = BroadcastHandle { state: seen, commands: sender };
        // Spread: the broadcasts of a proxy do not ask all at once.
        let interval = hub.config.progress_interval.mul_f64(1.0 + fastrand::f64() / 10.0);
        let pace = Pace::new(interval, hub.config.periods.position_max, Instant::now());
        let begin = slowest(&narrower);
        let broadcast = Self {
            hub,
            group,
            range,
            state,
            handle: handle.clone(),
            commands,
            begin,
            narrower,
            renewals: 0,
            exactly: false,
            resumed_at: Revision(0),
            source: None,
            idle_since: None,
            waiting: Vec::new(),
            pace,
            serving: Serving::default(),
        };
        (broadcast, handle)
    }

    /// Runs until nobody needs it.
    pub async fn run(mut self) {
        self.hub.metrics.upstream_watches.inc();
        let mut pause = self.hub.config.periods.retry_first;
        let over = loop {
            match self.follow(&mut pause).await {
                Over::Broken(status) => {
                    debug!(%status, range = ?self.range, "upstream watch is taken up again");
                    self.hub.saw_status(&status);
                    self.hub.metrics.resumes.inc();
                    let jitter = pause.mul_f64(fastrand::f64() / 2.0);
                    if let Some(over) = self.rest(pause + jitter).await {
                        break over;
                    }
                    pause = (pause * 2).min(self.hub.config.periods.retry_max);
                }
                over => break over,
            }
        };
        self.hub.metrics.upstream_watches.dec();
        self.finish(over);
    }

    /// Follows one upstream stream to its end.
    async fn follow(&mut self, pause: &mut Duration) -> Over {
        for waiter in &mut self.waiting {
            waiter.asked = false;
        }
        self.serving = Serving::default();
        if self.renewals > 0 && self.source.is_none() {
            let within = self.hub.config.periods.compaction_wait;
            join_all(self.narrower.iter().map(|broadcast| broadcast.renew(within))).await;
            self.begin = slowest(&self.narrower);
        }
        let opened = self.hub.upstream.open_watch(self.group.identity.metadata());
        let mut stream = match opened.await {
            Ok(stream) => stream,
            Err(status) => return Over::Broken(status),
        };
        if let Err(status) = ask(&stream.requests, RequestUnion::CreateRequest(self.create_request())).await {
            return Over::Broken(status);
        }
        self.resumed_at = self.position();
        let mut tick = tokio::time::interval(self.hub.config.periods.linger / 4);
        let mut again = None;
        loop {
            tokio::select! {
                answer = stream.answers.next() => {
                    let answer = match answer {
                        Some(Ok(answer)) => answer,
                        Some(Err(status)) => return Over::Broken(status),
                        None => return Over::Broken(Status::unavailable("the member ended the watch stream")),
                    };
                    if answer.created && !answer.canceled {
                        *pause = self.hub.config.periods.retry_first;
                    }
                    if let Err(over) = self.take(answer) {
                        return over;
                    }
                }
                Some(command) = self.commands.recv() => {
                    if let Some(over) = self.obey(command) {
                        return over;
                    }
                }
                _ = tick.tick() => {
                    if self.leave_if_idle() {
                        return Over::Idle;
                    }
                    self.pace.wanted = self.wants_progress();
                }
                () = tokio::time::sleep_until(self.pace.next()), if self.serving.confirmed => self.alarm(),
                () = sleep_until(again), if again.is_some() => {
                    again = None;
                    for waiter in &mut self.waiting {
                        waiter.asked = false;
                    }
                }
            }
            self.waiting.retain(|waiter| !waiter.done.is_closed());
            if !self.serving.confirmed {
                continue;
            }
            if self.pace.wanted && !self.serving.clock_asked {
                self.serving.clock_asked = true;
                // One that is closed says why in its answers.
                let _ = ask(&stream.requests, RequestUnion::CreateRequest(self.clock_request())).await;
            }
            let insists = !self.waiting.is_empty() || self.source.is_none();
            let unasked = !self.waiting.is_empty() && !self.waiting.iter().any(|waiter| waiter.asked);
            let ask_now = std::mem::take(&mut self.serving.ask) || (insists && (again.is_none() || unasked));
            if ask_now {
                let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
                let _ = ask(&stream.requests, progress).await;
                self.waiting.iter_mut().for_each(|waiter| waiter.asked = true);
            }
            if !insists {
                again = None;
            } else if ask_now {
                again = Some(Instant::now() + self.hub.config.periods.progress_again);
            }
        }
    }

    fn obey(&mut self, command: Command) -> Option<Over> {
        match command {
            Command::Refresh(done) => self.waiting.push(Waiter { done, asked: false }),
            Command::Renew(done) if self.is_proven() => self.waiting.push(Waiter { done, asked: false }),
            // Dropped: whoever asks need not wait.
            Command::Renew(_) => {}
            Command::Supersede(by) => return Some(Over::Superseded(by)),
        }
        None
    }

    /// Whether the progress the member tells shows that all events before were sent.
    fn is_proven(&self) -> bool {
        self.hub.trust.is_proven(self.serving.member)
    }

    fn wants_progress(&self) -> bool {
        let Some(source) = &self.source else { return false };
        let wanted = std::cell::Cell::new(false);
        self.hub.for_each_watcher_set(|watchers| wanted.set(wanted.get() || watchers.wants_progress(source)));
        wanted.get()
    }

    fn alarm(&mut self) {
        let proven = self.is_proven();
        if !proven {
            self.hub.learn_trust(self.serving.member, self.group.identity.metadata());
        }
        let act = self.pace.alarm(proven, Instant::now());
        self.act(act);
    }

    fn act(&mut self, act: Act) {
        self.serving.ask |= act.ask;
        if let Some(source) = self.source.as_ref().filter(|_| act.tell) {
            self.hub.for_each_watcher_set(|watchers| watchers.notify_source(source));
        }
    }

    /// The revision to start from, 0 for now.
    ///
    /// That is the last revision the log already has, whose events are dropped when they come again: a watch from
    /// the revision after it would be one of the future until something is written, and members tell those no
    /// progress. Only if this very revision is compacted, and perhaps not the next one, is it taken exactly.
    fn start(&self) -> Revision {
        let position = self.position();
        if self.exactly && position.0 != 0 { position.next() } else { position }
    }

    fn position(&self) -> Revision {
        self.source.as_ref().map_or(self.begin, |source| source.log().head())
    }

    /// A watch of a key that this one covers too, of which no event passes: idle whatever happens, it is notified at the
    /// member's interval.
    fn clock_request(&self) -> WatchCreateRequest {
        WatchCreateRequest {
            key: self.hub.namespace.add_prefix(self.range.start()),
            progress_notify: true,
            filters: vec![FilterType::Noput.into(), FilterType::Nodelete.into()],
            ..Default::default()
        }
    }

    fn create_request(&self) -> WatchCreateRequest {
        let (key, range_end) = self.range.to_wire();
        let (key, range_end) = self.hub.namespace.enter_range(&key, &range_end);
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
    fn take(&mut self, answer: WatchResponse) -> Result<(), Over> {
        let header = answer.header.unwrap_or_default();
        if self.serving.confirmed && (answer.created || self.serving.clock == Some(answer.watch_id)) {
            self.take_clock(&answer, Revision(header.revision));
            return Ok(());
        }
        if answer.canceled {
            let end = End { compact_revision: Revision(answer.compact_revision), reason: answer.cancel_reason };
            if end.compact_revision.0 != 0 && self.position().0 != 0 && !self.exactly {
                self.exactly = true;
                return Err(Over::Broken(Status::out_of_range("the last revision seen is compacted")));
            }
            if end.compact_revision.0 != 0 && self.source.is_none() {
                self.renewals += 1;
                self.exactly = false;
                if self.renewals > RENEWALS_MAX {
                    // What the watchers to come have missed is read for each of them.
                    self.narrower.clear();
                    self.begin = Revision(0);
                }
                return Err(Over::Broken(Status::out_of_range("the beginning of the log is compacted")));
            }
            return Err(if end == End::default() {
                Over::Broken(Status::unavailable("the member cancelled the watch without a reason"))
            } else {
                Over::Ended(end)
            });
        }
        let revision = Revision(header.revision);
        if answer.created {
            if !self.hub.saw_member(ClusterId(header.cluster_id), MemberId(header.member_id), Term(header.raft_term)) {
                let reason = "the endpoints lead to another cluster than before".to_owned();
                return Err(Over::Ended(End { compact_revision: Revision(0), reason }));
            }
            self.group.saw_permission(&self.range);
            self.serving.confirmed = true;
            self.serving.member = MemberId(header.member_id);
            self.hub.learn_trust(self.serving.member, self.group.identity.metadata());
            self.pace.restart(self.position().0 != 0, Instant::now());
            if self.source.is_none() && self.begin.0 == 0 {
                self.go_live(revision);
            }
            return Ok(());
        }
        if self.source.is_none() {
            // The first answer that shows that the beginning is not compacted.
            self.go_live(self.begin);
        }
        let Some(source) = &self.source else { return Ok(()) };
        self.hub.saw_revision(revision);
        self.exactly = false;
        if answer.events.is_empty() {
            source.log().advance(revision);
            let (head, asked) = (source.log().head(), answer.watch_id == -1);
            let mut act = self.pace.reached(head, asked, Instant::now());
            if asked {
                for waiter in self.waiting.extract_if(.., |waiter| waiter.asked) {
                    // Its client may be gone.
                    let _ = waiter.done.send(());
                }
            } else if self.serving.clock.is_none() {
                act.tell = true;
            }
            self.act(act);
            return Ok(());
        }
        self.hub.metrics.upstream_events.inc_by(answer.events.len() as u64);
        let first = answer.events.iter().find_map(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
        let head = source.log().head();
        if Revision(first) < head || (Revision(first) == head && self.resumed_at != head) {
            // Members before 3.4.25 and 3.5.8 may announce progress before they have sent the events.
            warn!(first, %head, range = ?self.range, "upstream broke the order of events");
            let reason = "the cluster announced progress before it had sent all events".to_owned();
            return Err(Over::Ended(End { compact_revision: Revision(0), reason }));
        }
        source.log().append(batches(&self.hub.namespace, answer.events));
        let act = self.pace.reached(source.log().head(), false, Instant::now());
        self.act(act);
        Ok(())
    }

    /// Takes an answer of the watch without events. Without it, the broadcast makes ticks of its own.
    fn take_clock(&mut self, answer: &WatchResponse, revision: Revision) {
        if answer.canceled {
            self.serving.clock = None;
        } else if answer.created {
            self.serving.clock = Some(answer.watch_id);
        } else if let Some(source) = &self.source {
            let act = self.pace.tick(revision, source.log().head(), self.is_proven(), Instant::now());
            self.act(act);
        }
    }

    fn go_live(&mut self, revision: Revision) {
        let log = EventLog::new(revision, self.hub.config.log_bytes_max);
        let history = UpstreamHistory::new(self.hub.clone(), self.group.identity.clone(), self.handle.clone());
        let source = Source::new(log, Arc::new(history));
        self.state.send_replace(BroadcastState::Live(Arc::downgrade(&source)));
        self.source = Some(source);
    }

    /// Waits before the next attempt; ends early with what makes the attempt pointless.
    async fn rest(&mut self, pause: Duration) -> Option<Over> {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => {
                    return self.leave_if_idle().then_some(Over::Idle);
                }
                Some(command) = self.commands.recv() => {
                    if let Some(over) = self.obey(command) {
                        return Some(over);
                    }
                }
            }
        }
    }

    /// Takes the broadcast off the table when nobody has read its log for a while.
    fn leave_if_idle(&mut self) -> bool {
        let (source, state) = (&self.source, &self.state);
        let unused = || match source {
            Some(source) => Arc::strong_count(source) == 1,
            // Nobody waits for the first answer: the table's and this broadcast's own handles are all there are.
            None => state.receiver_count() <= 2,
        };
        if !unused() {
            self.idle_since = None;
            return false;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        since.elapsed() >= self.hub.config.periods.linger && self.group.remove_if(&self.range, &self.handle, unused)
    }

    fn finish(mut self, over: Over) {
        let end = match over {
            Over::Ended(end) => {
                self.group.remove_ended(&self.range, &self.handle, self.source.is_none());
                if let Some(source) = &self.source {
                    source.end(end.clone());
                    self.hub.for_each_watcher_set(|watchers| watchers.end_source(source, &end));
                }
                end
            }
            Over::Superseded(by) => {
                if let Some(source) = self.source.take() {
                    source.move_to(by.clone());
                    self.hub.for_each_watcher_set(|watchers| watchers.move_source(&source, &by));
                }
                End::default()
            }
            Over::Idle | Over::Broken(_) => End::default(),
        };
        self.state.send_replace(BroadcastState::Ended(end));
    }
}

/// Where the slowest of some broadcasts stands, 0 when none has a log.
fn slowest(broadcasts: &[BroadcastHandle]) -> Revision {
    broadcasts.iter().filter_map(BroadcastHandle::head).min().unwrap_or_default()
}

async fn ask(requests: &mpsc::Sender<WatchRequest>, union: RequestUnion) -> Result<(), Status> {
    let request = WatchRequest { request_union: Some(union) };
    requests.send(request).await.map_err(|_| Status::unavailable("the watch stream is closed"))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => ::core::future::pending().await,
    }
}

/// Whether a status says that the member knows no leader.
pub(super) fn is_no_leader(status: &Status) -> bool {
    ApiError::from_text(status.message()) == Some(ApiError::NoLeader)
}
