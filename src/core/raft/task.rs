use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::check::PeerMessage;
use super::members::{MembersDecision, ProposedChange};
use super::node::RaftNode;
use super::peer::{PeerProgress, PeerSink, RefusedMessage};
use super::reads::ReadQueue;
use super::step::{Committed, RaftError, Stepped};
use super::wal_writer::WalWriter;
use crate::core::wal::WalSnapshot;
use crate::types::{LogIndex, LogPosition, MemberId, Term};

/// Messages to the raft thread at once.
const INBOX_MAX: usize = 8192;
/// Those of them that may come from clients; the rest is for peers, the disk and apply.
const CLIENT_MESSAGES_MAX: usize = 6144;
/// Messages taken in one turn, so that ticks are never far behind.
const TURN_MAX: usize = 1024;
/// Pause before the only voter tries again to lead.
const CAMPAIGN_RETRY: Duration = Duration::from_millis(1);

/// A request on its way into the log.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// Its id.
    pub request: u64,
    /// It enters the log in this term, or never.
    pub term: Term,
    /// The request, encoded.
    pub bytes: Bytes,
}

/// Why a proposal was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The inbox is full, or apply is too far behind.
    #[error("too many requests under way")]
    Overloaded,
    /// Another member leads now.
    #[error("not the leader")]
    NotLeader,
    /// The raft thread has ended.
    #[error("member is stopping")]
    Stopped,
}

/// Who leads, as this member sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// The leader, if one is known.
    pub leader: Option<MemberId>,
    /// The current term.
    pub term: Term,
    /// Whether this member leads.
    pub is_leader: bool,
    /// Whether nothing can have been acknowledged that this member has not applied.
    pub reads_are_local: bool,
}

impl RaftStatus {
    /// The term, if its leader is known.
    pub fn led_term(&self) -> Option<Term> {
        self.leader.map(|_| self.term)
    }
}

/// Where committed entries go.
pub trait CommitSink: Send {
    /// Takes entries in log order. Must not wait for the raft thread.
    fn committed(&mut self, entries: Vec<Committed>);
    /// Takes note of a state that replaces the present one, after everything committed so far and before anything
    /// that is committed later. The log on disk names it already.
    fn install(&mut self, position: LogPosition);
    /// Takes note that a proposal went nowhere: it is not in the log, and never will be.
    fn dropped(&mut self, request: u64);
}

enum Inbox {
    Propose(Proposal),
    /// Only while this member leads; never forwarded.
    ProposeAsLeader(Proposal),
    ProposeMembers(ProposedChange, Term),
    ReadIndex(oneshot::Sender<LogIndex>),
    Message(PeerMessage),
    /// Answered with whether the state will be installed.
    Snapshot(PeerMessage, oneshot::Sender<bool>),
    Unreachable(MemberId),
    SnapshotSent(MemberId, bool),
    TransferLeader(MemberId),
    /// Answered with whether this member may end.
    ToldRemoved(MemberId, oneshot::Sender<bool>),
    Persisted(u64),
    StateSaved(WalSnapshot, LogIndex),
    /// Something outside the inbox wants to be looked at.
    Wake,
    Stop,
}

impl Inbox {
    fn is_of_client(&self) -> bool {
        matches!(self, Self::Propose(_) | Self::ProposeAsLeader(_) | Self::ProposeMembers(..) | Self::ReadIndex(_))
    }
}

/// Numbers that many threads read and the raft thread or apply writes.
#[derive(Debug, Default)]
struct Shared {
    term: AtomicU64,
    committed: AtomicU64,
    applied: AtomicU64,
    reads_are_local: AtomicBool,
    /// Messages of clients in the inbox.
    from_clients: AtomicUsize,
    /// Apply's decisions. Not in the inbox: apply must never wait for room there. A cluster has one change under way,
    /// so only a member that catches up ever has several here.
    decisions: Mutex<VecDeque<MembersDecision>>,
    progress: ArcSwap<Vec<PeerProgress>>,
    refused: AtomicU64,
}

/// Way in to the raft thread. Cheap to clone; holds none of its state.
#[derive(Clone, Debug)]
pub struct RaftHandle {
    member: MemberId,
    inbox: SyncSender<Inbox>,
    shared: Arc<Shared>,
    status: watch::Receiver<RaftStatus>,
    behind_max: u64,
}

impl RaftHandle {
    /// Puts a request on its way into the log. Its outcome comes from apply; [`CommitSink::dropped`] hears when it went
    /// nowhere.
    ///
    /// # Errors
    /// When too much is under way, or the member stops; the request is not in the log then.
    pub fn propose(&self, proposal: Proposal) -> Result<(), ProposeError> {
        self.admit()?;
        self.send_as_client(Inbox::Propose(proposal))
    }

    /// Like [`propose`](Self::propose), but only this member puts it into the log, as the leader of the proposal's
    /// term: what a leader decides by its own clock must not reach the log of the next one. Entries proposed this way
    /// keep their order among each other.
    ///
    /// # Errors
    /// As `propose`, and when it is known already that this member does not lead in that term.
    pub fn propose_as_leader(&self, proposal: Proposal) -> Result<(), ProposeError> {
        let status = *self.status.borrow();
        if !status.is_leader || status.term != proposal.term {
            return Err(ProposeError::NotLeader);
        }
        self.admit()?;
        self.send_as_client(Inbox::ProposeAsLeader(proposal))
    }

    /// Puts a membership change on its way into the log, in `term` or never; see [`propose`](Self::propose).
    ///
    /// # Errors
    /// As `propose`.
    pub fn propose_members(&self, change: ProposedChange, term: Term) -> Result<(), ProposeError> {
        self.send_as_client(Inbox::ProposeMembers(change, term))
    }

    fn admit(&self) -> Result<(), ProposeError> {
        match self.committed().0.saturating_sub(self.applied().0) > self.behind_max {
            true => Err(ProposeError::Overloaded),
            false => Ok(()),
        }
    }

    /// A full queue is an answer, not a wait: the client backs off, memory stays bounded.
    fn send_as_client(&self, message: Inbox) -> Result<(), ProposeError> {
        let queued = &self.shared.from_clients;
        if queued.fetch_add(1, Ordering::Relaxed) >= CLIENT_MESSAGES_MAX {
            queued.fetch_sub(1, Ordering::Relaxed);
            return Err(ProposeError::Overloaded);
        }
        self.inbox.try_send(message).map_err(|error| {
            queued.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => ProposeError::Overloaded,
                TrySendError::Disconnected(_) => ProposeError::Stopped,
            }
        })
    }

    /// Takes a message that came from the member `from`. With a full inbox it is dropped: consensus repeats what
    /// matters.
    ///
    /// # Errors
    /// When no honest member sends this; its connection should be closed.
    pub fn receive(&self, from: MemberId, bytes: Bytes) -> Result<(), RefusedMessage> {
        let message = PeerMessage::parse(self.member, from, &bytes).inspect_err(|_| self.count_refused())?;
        let _ = self.inbox.try_send(Inbox::Message(message));
        Ok(())
    }

    /// Takes a snapshot message whose image is prepared. The answer tells whether the state will be installed; without
    /// an answer it will not.
    pub fn receive_snapshot(&self, message: PeerMessage) -> oneshot::Receiver<bool> {
        let (reply, accepted) = oneshot::channel();
        let _ = self.inbox.try_send(Inbox::Snapshot(message, reply));
        accepted
    }

    fn count_refused(&self) {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages of peers that were refused.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Tells that log entries do not get through to `peer`.
    pub fn unreachable(&self, peer: MemberId) {
        let _ = self.inbox.try_send(Inbox::Unreachable(peer));
    }

    /// Tells that the transfer of a state to `peer` ended.
    pub fn snapshot_sent(&self, peer: MemberId, delivered: bool) {
        // Must not get lost: until then the leader sends this peer nothing else.
        let _ = self.inbox.send(Inbox::SnapshotSent(peer, delivered));
    }

    /// Tells that the member `by` says this one was removed. The answer tells whether this member may end at once;
    /// without an answer it may not yet.
    pub fn told_removed(&self, by: MemberId) -> oneshot::Receiver<bool> {
        let (reply, may_end) = oneshot::channel();
        let _ = self.inbox.try_send(Inbox::ToldRemoved(by, reply));
        may_end
    }

    /// Hands leadership to `to` if this member leads; [`status`](Self::status) tells when another one does.
    pub fn transfer_leader(&self, to: MemberId) {
        let _ = self.inbox.try_send(Inbox::TransferLeader(to));
    }

    /// Tells apply's decisions on membership changes, in log order and before
    /// [`set_applied`](Self::set_applied) reaches them.
    pub fn members_decided(&self, decisions: impl IntoIterator<Item = MembersDecision>) {
        self.shared.decisions.lock().extend(decisions);
        let _ = self.inbox.try_send(Inbox::Wake);
    }

    /// How far everybody is, about a tick ago; empty unless this member leads.
    pub fn progress(&self) -> Arc<Vec<PeerProgress>> {
        self.shared.progress.load_full()
    }

    /// The index a linearizable read must see applied, confirmed by a quorum; none when that could not be asked.
    pub async fn read_index(&self) -> Option<LogIndex> {
        let (reply, index) = oneshot::channel();
        self.send_as_client(Inbox::ReadIndex(reply)).ok()?;
        index.await.ok()
    }

    /// Whether a linearizable read may take the newest published state without asking anybody.
    pub fn reads_are_local(&self) -> bool {
        self.shared.reads_are_local.load(Ordering::Acquire)
    }

    /// Tells that state up to `snapshot` is on disk: the log keeps `keep` entries before it, no more.
    pub fn state_saved(&self, snapshot: WalSnapshot, keep: u64) {
        let compact = LogIndex(snapshot.index.0.saturating_sub(keep));
        // Lost when the inbox is full; the next one says more.
        let _ = self.inbox.try_send(Inbox::StateSaved(snapshot, compact));
    }

    /// Called by apply, once everything up to `index` is in the published state.
    pub fn set_applied(&self, index: LogIndex) {
        self.shared.applied.store(index.0, Ordering::Release);
    }

    /// How far the published state is.
    pub fn applied(&self) -> LogIndex {
        LogIndex(self.shared.applied.load(Ordering::Acquire))
    }

    /// How far the cluster agreed.
    pub fn committed(&self) -> LogIndex {
        LogIndex(self.shared.committed.load(Ordering::Acquire))
    }

    /// The current term.
    pub fn term(&self) -> Term {
        Term(self.shared.term.load(Ordering::Acquire))
    }

    /// The term, if its leader is known.
    pub fn led_term(&self) -> Option<Term> {
        self.status.borrow().led_term()
    }

    /// Changes of leader and term.
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }
}

/// What the raft thread works with.
pub struct TaskConfig<S> {
    /// Length of a tick.
    pub tick: Duration,
    /// Entries that may be committed and not yet applied before proposals are refused.
    pub behind_max: u64,
    /// Where committed entries go.
    pub sink: S,
    /// Where messages to other members go.
    pub peers: Box<dyn PeerSink>,
    /// Called once when consensus cannot go on; the member must stop.
    pub failed: Arc<dyn Fn(String) + Send + Sync>,
}

/// The raft thread, between being set up and being stopped.
#[derive(Debug)]
pub struct RaftTask {
    handle: RaftHandle,
    thread: Option<JoinHandle<()>>,
}

/// Set up before the thread starts, so that the WAL writer can report to it.
pub struct RaftInbox {
    sender: SyncSender<Inbox>,
    receiver: Receiver<Inbox>,
}

impl RaftInbox {
    /// An empty inbox.
    pub fn new() -> Self {
        let (sender, receiver) = sync_channel(INBOX_MAX);
        Self { sender, receiver }
    }

    /// For [`WalObserver::persisted`](super::WalObserver).
    pub fn persisted(&self) -> Box<dyn Fn(u64) + Send> {
        let sender = self.sender.clone();
        Box::new(move |number| {
            // The raft thread always empties its inbox, and outlives the writer.
            let _ = sender.send(Inbox::Persisted(number));
        })
    }
}

impl Default for RaftInbox {
    fn default() -> Self {
        Self::new()
    }
}

impl RaftTask {
    /// Starts the thread on `node`, writing through `writer`.
    ///
    /// # Errors
    /// When the thread cannot start.
    pub fn start<S: CommitSink + 'static>(
        node: RaftNode,
        writer: WalWriter,
        inbox: RaftInbox,
        config: TaskConfig<S>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (status_sender, status) = watch::channel(RaftStatus::default());
        let behind_max = config.behind_max;
        let member = node.member();
        let handle = RaftHandle { member, inbox: inbox.sender, shared: shared.clone(), status, behind_max };
        let failed = config.failed.clone();
        let worker = Worker {
            node,
            writer,
            inbox: inbox.receiver,
            shared,
            status: status_sender,
            sink: config.sink,
            peers: config.peers,
            reads: ReadQueue::default(),
            ticks: 0,
        };
        let tick = config.tick;
        let thread = std::thread::Builder::new().name("raft".into()).spawn(move || {
            // The library panics where it finds itself in an impossible state. Half a member is worse than none.
            match catch_unwind(AssertUnwindSafe(|| worker.run(tick))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed(format!("{:#}", anyhow::Error::from(error))),
                Err(_) => failed("consensus panicked".to_owned()),
            }
        })?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// The way in.
    pub fn handle(&self) -> RaftHandle {
        self.handle.clone()
    }

    /// Ends the thread after what it has begun is on disk. Blocks until then.
    pub fn stop(mut self) {
        let _ = self.handle.inbox.send(Inbox::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker<S> {
    node: RaftNode,
    // Dropped before the writer: its thread must not wait for room in an inbox that nobody empties.
    inbox: Receiver<Inbox>,
    writer: WalWriter,
    shared: Arc<Shared>,
    status: watch::Sender<RaftStatus>,
    sink: S,
    peers: Box<dyn PeerSink>,
    reads: ReadQueue<oneshot::Sender<LogIndex>>,
    ticks: u64,
}

/// What one turn took from the inbox.
#[derive(Default)]
struct Turn {
    proposals: Vec<Proposal>,
    stop: bool,
}

impl<S: CommitSink> Worker<S> {
    fn run(mut self, tick: Duration) -> Result<(), RaftError> {
        let mut next_tick = Instant::now() + tick;
        let mut stopping = false;
        while !stopping {
            self.drive()?;
            let mut wait = next_tick.saturating_duration_since(Instant::now());
            if self.node.is_sole_voter() && !self.node.is_leader() {
                // Nobody else can win, so nothing is gained by an election timeout. The library refuses while a
                // membership change from the log is not applied yet; apply does not wake this thread.
                self.node.campaign()?;
                self.drive()?;
                wait = wait.min(CAMPAIGN_RETRY);
            }
            let first = match self.inbox.recv_timeout(wait) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            stopping = self.take_turn(first)?;
            let now = Instant::now();
            if now >= next_tick {
                self.tick();
                // Ticks missed during a pause of the whole process are not made up for: nobody else saw them either.
                next_tick = now + tick;
            }
        }
        self.drive()?;
        if let Some(state) = self.node.take_deferred() {
            self.writer.hard_state(state);
        }
        Ok(())
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.node.tick();
        self.reads.retain(|reader| !reader.is_closed());
        let progress = self.node.progress();
        if !progress.is_empty() || !self.shared.progress.load().is_empty() {
            self.shared.progress.store(Arc::new(progress));
        }
    }

    /// Takes everything that waits, up to a bound; tells whether to stop.
    fn take_turn(&mut self, first: Option<Inbox>) -> Result<bool, RaftError> {
        // In this order: decisions up to what is applied are there once that is.
        let applied = LogIndex(self.shared.applied.load(Ordering::Acquire));
        let decisions = std::mem::take(&mut *self.shared.decisions.lock());
        for decision in decisions {
            self.node.members_decided(decision)?;
        }
        self.node.applied(applied);
        let mut turn = Turn::default();
        let mut next = first;
        for _ in 0..TURN_MAX {
            let Some(message) = next.or_else(|| self.inbox.try_recv().ok()) else { break };
            if message.is_of_client() {
                self.shared.from_clients.fetch_sub(1, Ordering::Relaxed);
            }
            self.take(message, &mut turn)?;
            next = None;
        }
        self.propose(turn.proposals);
        self.ask_for_reads();
        Ok(turn.stop)
    }

    fn take(&mut self, message: Inbox, turn: &mut Turn) -> Result<(), RaftError> {
        match message {
            Inbox::Propose(proposal) => turn.proposals.push(proposal),
            Inbox::ProposeAsLeader(Proposal { request, term, bytes }) => {
                let proposed = self.node.propose_as_leader(vec![bytes], term);
                self.tell_dropped(proposed, [request]);
            }
            Inbox::ProposeMembers(change, term) => {
                // Not told: another copy of it may be in the log.
                if let Err(error) = self.node.propose_members(&change, term) {
                    tracing::debug!(%error, "membership change dropped");
                }
            }
            Inbox::ReadIndex(reader) => self.reads.push(reader),
            Inbox::Message(message) => self.step(message)?,
            Inbox::Snapshot(message, reply) => {
                let position = message.snapshot_position();
                self.step(message)?;
                let _ = reply.send(self.node.is_installing(position));
            }
            Inbox::Unreachable(peer) => self.node.unreachable(peer),
            Inbox::SnapshotSent(peer, delivered) => self.node.snapshot_sent(peer, delivered),
            Inbox::TransferLeader(to) => self.node.transfer_leader(to),
            Inbox::ToldRemoved(by, reply) => {
                let _ = reply.send(self.node.told_removed(by));
            }
            Inbox::Persisted(number) => self.node.persisted(number),
            Inbox::StateSaved(snapshot, compact) => {
                self.node.state_saved(&snapshot, compact);
                self.writer.snapshot(snapshot);
            }
            Inbox::Wake => {}
            Inbox::Stop => turn.stop = true,
        }
        Ok(())
    }

    fn step(&mut self, message: PeerMessage) -> Result<(), RaftError> {
        if let Stepped::Refused(reason) = self.node.step(message)? {
            self.shared.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(reason, "message of a peer refused");
        }
        Ok(())
    }

    /// All requests of a turn are one batch. Those for another term go nowhere.
    fn propose(&mut self, mut proposals: Vec<Proposal>) {
        let term = self.node.term();
        for late in proposals.extract_if(.., |proposal| proposal.term != term) {
            self.sink.dropped(late.request);
        }
        let (requests, bytes): (Vec<u64>, Vec<Bytes>) =
            proposals.into_iter().map(|proposal| (proposal.request, proposal.bytes)).unzip();
        let proposed = self.node.propose(bytes, term);
        self.tell_dropped(proposed, requests);
    }

    /// Without a leader, with too much under way or during a hand-over proposals are dropped.
    fn tell_dropped(&mut self, proposed: Result<(), RaftError>, requests: impl IntoIterator<Item = u64>) {
        if let Err(error) = proposed {
            tracing::debug!(%error, "proposals dropped");
            requests.into_iter().for_each(|request| self.sink.dropped(request));
        }
    }

    fn ask_for_reads(&mut self) {
        let era = (self.node.term().0, self.node.leader().map_or(0, |leader| leader.0));
        if self.reads.wants_request(self.ticks, era) {
            let number = self.node.read_index();
            self.reads.sent(number, self.ticks, era);
        }
    }

    /// Does what the node asks for until it asks for nothing more.
    fn drive(&mut self) -> Result<(), RaftError> {
        if !self.node.is_alone() {
            // Before anything leaves that lets another member lead.
            self.shared.reads_are_local.store(false, Ordering::Release);
        }
        while let Some(step) = self.node.poll()? {
            let mut written_here = None;
            if !step.send.is_empty() {
                self.peers.send(step.send);
            }
            if let Some(group) = step.persist {
                // Nobody else waits for this thread while there are no other members.
                match self.node.is_alone() {
                    true => {
                        let number = group.number;
                        written_here = self.writer.persist_here(group).then_some(number);
                    }
                    false => self.writer.persist(group),
                }
            }
            if let Some(position) = step.install {
                self.sink.install(position);
            }
            // Readable before apply acknowledges anything from this step.
            self.shared.committed.store(self.node.committed().0, Ordering::Release);
            if !step.committed.is_empty() {
                self.sink.committed(step.committed);
            }
            for (number, index) in step.reads {
                for reader in self.reads.confirmed(number) {
                    let _ = reader.send(index);
                }
                self.ask_for_reads();
            }
            // Last: what this step hands out goes before what follows from it.
            if let Some(number) = written_here {
                self.node.persisted(number);
            }
        }
        self.publish_status();
        Ok(())
    }

    fn publish_status(&mut self) {
        let status = RaftStatus {
            leader: self.node.leader(),
            term: self.node.term(),
            is_leader: self.node.is_leader(),
            reads_are_local: self.node.reads_are_local(),
        };
        self.shared.term.store(status.term.0, Ordering::Release);
        self.shared.reads_are_local.store(status.reads_are_local, Ordering::Release);
        self.status.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }
}
