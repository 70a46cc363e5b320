use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::check::PeerMessage;
use super::handle::{Inbox, Proposal, RaftHandle, RaftInbox, RaftStatus, Shared};
use super::node::RaftNode;
use super::peer::PeerSink;
use super::reads::ReadQueue;
use super::step::{Committed, RaftError, Stepped};
use super::wal_writer::WalWriter;
use crate::types::{LogIndex, LogPosition, MemberId};

/// Messages taken in one turn, so that ticks are never far behind.
const TURN_MAX: usize = 1024;
/// Pause before the only voter tries again to lead.
const CAMPAIGN_RETRY: Duration = Duration::from_millis(1);

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
                self.note_late_heartbeats(now - next_tick, tick);
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

    /// Heartbeats go out with ticks; etcd counts those that come more than two intervals after the ones before.
    fn note_late_heartbeats(&self, late: Duration, tick: Duration) {
        let followers = self.node.progress().len().saturating_sub(1);
        if late <= tick || followers == 0 || !self.node.is_leader() {
            return;
        }
        self.shared.late_heartbeats.fetch_add(followers as u64, Ordering::Relaxed);
        tracing::warn!(
            "heartbeat-interval" = ?tick,
            "exceeded-duration" = ?(late - tick),
            "leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk"
        );
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
            Inbox::Message(message, bytes) => {
                self.shared.peer_bytes.fetch_sub(bytes, Ordering::Relaxed);
                self.step(message)?;
            }
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
            let lost = self.reads.sent(number, self.ticks, era);
            self.shared.lost_reads.fetch_add(lost as u64, Ordering::Relaxed);
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
        let member = self.node.member();
        self.status.send_if_modified(|current| {
            let changed = *current != status;
            let before = std::mem::replace(current, status);
            if changed {
                log_leader(member, &before, &status);
            }
            changed
        });
    }
}

/// In the words that scripts look for.
fn log_leader(member: MemberId, before: &RaftStatus, now: &RaftStatus) {
    let term = now.term;
    match (before.leader, now.leader) {
        (None, Some(leader)) => tracing::info!(%member, %leader, %term, "elected leader"),
        (Some(lost), None) => tracing::info!(%member, %lost, %term, "lost leader"),
        (Some(lost), Some(leader)) if lost != leader => {
            tracing::info!(%member, %leader, %lost, %term, "changed leader");
        }
        _ => {}
    }
    if now.is_leader && !before.is_leader {
        tracing::info!(%member, %term, "became leader");
    }
}
