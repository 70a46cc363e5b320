use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::check::PeerMessage;
use super::handle::{Inbox, Proposal, RaftHandle, RaftInbox, RaftStatus, Shared};
use super::node::RaftNode;
use super::peer::PeerSink;
use super::planted::{PlantedFault, is_planted};
use super::reads::ReadQueue;
use super::step::{Committed, PersistGroup, RaftError, Step, Stepped};
use super::wal_driver::WalJob;
use crate::core::reply::{self, Reply};
use crate::types::{LogIndex, LogPosition, MemberId, Term};

/// Messages taken in one turn, so that ticks are never far behind.
const TURN_MAX: usize = 1024;
/// What a request that is forwarded takes in its message beside its own bytes, at most.
const FORWARDED_OVERHEAD_BYTES: usize = 64;

/// Makes groups of entries durable.
pub trait GroupWriter {
    /// Whether all that was queued is durable. Only then may a group be written on this thread: it would overtake others.
    fn is_idle(&self) -> bool;
    /// Writes and syncs a group on this thread, which saves two changes of threads; returns whether it is durable.
    fn write_here(&mut self, group: PersistGroup) -> bool;
    /// Has this written behind all that was queued before. What becomes durable is reported to the inbox.
    fn queue(&mut self, job: WalJob);
}

/// Takes committed entries.
pub trait CommitSink {
    /// Takes entries in log order. Must not wait for the raft thread.
    fn committed(&mut self, entries: Vec<Committed>);
    /// The same while nobody waits for this thread, which may apply them itself and save a change of threads.
    fn committed_while_idle(&mut self, entries: Vec<Committed>) {
        self.committed(entries);
    }
    /// A snapshot replaces the present state, after everything committed so far and before anything that is committed
    /// later. The log on disk names it already.
    fn install(&mut self, position: LogPosition);
    /// The proposal of a request for `term` was dropped: it is not in the log, and never will be. Another proposal of the
    /// same request, for a later term, may be in progress.
    fn dropped(&mut self, request: u64, term: Term);
}

/// What the raft thread does, without its channel and its clock: messages and ticks come in, and whatever the node wants
/// done goes to the writer, to apply and to the peers.
///
/// Invariants:
/// - Within a step the order is: messages, group, snapshot, committed entries, reads; last the report of a group that was
///   written here.
/// - That reads are local is taken back before anything leaves that lets another member lead or acknowledge.
/// - The commit index is readable before apply can acknowledge anything of the step.
/// - A group is written on this thread only while the member is alone and nothing is queued.
/// - Apply's decisions on membership changes reach the node before the applied index that covers them.
pub struct RaftDriver<W, S, P> {
    node: RaftNode,
    writer: W,
    sink: S,
    peers: P,
    shared: Arc<Shared>,
    status: watch::Sender<RaftStatus>,
    reads: ReadQueue<Reply<LogIndex>>,
    ticks: u64,
}

impl<W: GroupWriter, S: CommitSink, P: PeerSink> RaftDriver<W, S, P> {
    /// The driver of `node`, and the handle that reaches it through `inbox`. With more than `behind_max` entries
    /// committed and not yet applied, the handle refuses proposals.
    pub fn new(node: RaftNode, writer: W, sink: S, peers: P, inbox: &RaftInbox, behind_max: u64) -> (Self, RaftHandle) {
        let shared = Arc::new(Shared::default());
        let (status, status_seen) = watch::channel(RaftStatus::default());
        let handle = RaftHandle {
            member: node.member(),
            inbox: inbox.sender.clone(),
            shared: shared.clone(),
            status: status_seen,
            behind_max,
        };
        (Self { node, writer, sink, peers, shared, status, reads: ReadQueue::default(), ticks: 0 }, handle)
    }

    /// The state machine.
    pub fn node(&self) -> &RaftNode {
        &self.node
    }

    /// Lets logical time pass.
    pub fn tick(&mut self) {
        self.ticks += 1;
        self.node.tick();
        self.reads.retain(|reader| !reader.is_closed());
        let progress = self.node.progress();
        if !progress.is_empty() || !self.shared.progress.load().is_empty() {
            self.shared.progress.store(Arc::new(progress));
        }
    }

    /// Heartbeats go out with ticks; etcd counts those that come more than two intervals after the ones before. This tick
    /// was `late`.
    pub fn note_late_heartbeats(&self, late: Duration, tick: Duration) {
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

    /// Takes messages, up to a bound; returns whether to stop.
    ///
    /// # Errors
    /// Only fatal ones: the member must stop.
    pub fn take(&mut self, messages: impl Iterator<Item = Inbox>) -> Result<bool, RaftError> {
        // In this order: decisions up to what is applied are there once that is.
        let applied = LogIndex(self.shared.applied.load(Ordering::Acquire));
        let decisions = std::mem::take(&mut *self.shared.decisions.lock());
        for decision in decisions {
            self.node.members_decided(decision)?;
        }
        self.node.applied(applied);
        let mut turn = Turn::default();
        for message in messages.take(TURN_MAX) {
            if message.is_of_client() {
                self.shared.from_clients.fetch_sub(1, Ordering::Relaxed);
            }
            self.take_one(message, &mut turn)?;
        }
        self.propose(turn.proposals);
        self.ask_for_reads();
        Ok(turn.stop)
    }

    fn take_one(&mut self, message: Inbox, turn: &mut Turn) -> Result<(), RaftError> {
        match message {
            Inbox::Propose(proposal) => turn.proposals.push(proposal),
            Inbox::ProposeAsLeader(Proposal { request, term, bytes }) => {
                let proposed = self.node.propose_as_leader(vec![bytes], term);
                self.tell_dropped(proposed, [request], term);
            }
            Inbox::ProposeMembers(change, term) => {
                // Not told: another copy of it may be in the log.
                if let Err(error) = self.node.propose_members(&change, term) {
                    tracing::debug!(%error, "membership change dropped");
                }
            }
            Inbox::ReadIndex(reader) => self.reads.push(reader),
            Inbox::Progress(reply) => {
                let _ = reply.send(self.node.progress());
            }
            Inbox::Details(reply) => {
                let _ = reply.send(self.node.details());
            }
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
                self.writer.queue(WalJob::Covered(snapshot));
            }
            Inbox::BoundLog(snapshot) => self.node.bound_log(&snapshot),
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

    /// All requests of a turn are one batch. Those for another term are dropped.
    fn propose(&mut self, mut proposals: Vec<Proposal>) {
        let term = self.node.term();
        for late in proposals.extract_if(.., |proposal| proposal.term != term) {
            self.sink.dropped(late.request, late.term);
        }
        self.drop_without_room(&mut proposals);
        let (requests, bytes): (Vec<u64>, Vec<Bytes>) =
            proposals.into_iter().map(|proposal| (proposal.request, proposal.bytes)).unzip();
        let proposed = self.node.propose(bytes, term);
        self.tell_dropped(proposed, requests, term);
    }

    /// Drops what does not fit into the queue to the leader, so that it is proposed again. The queue would drop it without a word,
    /// and its clients would wait for their timeout.
    fn drop_without_room(&mut self, proposals: &mut Vec<Proposal>) {
        if proposals.is_empty() {
            return;
        }
        let Some(leader) = self.node.leader().filter(|leader| *leader != self.node.member()) else { return };
        let mut room = self.peers.append_room(leader);
        let fitting = proposals.iter().take_while(|proposal| {
            let left = room.checked_sub(proposal.bytes.len() + FORWARDED_OVERHEAD_BYTES);
            room = left.unwrap_or_default();
            left.is_some()
        });
        let fitting = fitting.count();
        for proposal in proposals.drain(fitting..) {
            self.sink.dropped(proposal.request, proposal.term);
        }
    }

    /// Without a leader, with too much in flight or during a leader transfer proposals are dropped.
    fn tell_dropped(&mut self, proposed: Result<(), RaftError>, requests: impl IntoIterator<Item = u64>, term: Term) {
        if let Err(error) = proposed {
            tracing::debug!(%error, "proposals dropped");
            requests.into_iter().for_each(|request| self.sink.dropped(request, term));
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

    /// Does what the node asks for until it asks for nothing more. Returns whether to call again soon: the only voter is not
    /// the leader yet.
    ///
    /// # Errors
    /// Only fatal ones: the member must stop.
    pub fn drive(&mut self) -> Result<bool, RaftError> {
        self.carry_out()?;
        if !self.node.is_sole_voter() || self.node.is_leader() {
            return Ok(false);
        }
        // No other member can win the election, so there is no reason to wait for the timeout. The library refuses while a membership change
        // from the log is not applied yet; apply does not wake this thread.
        self.node.campaign()?;
        self.carry_out()?;
        Ok(true)
    }

    /// Does what the node still asks for, and leaves nothing unwritten that a start would have to work out again.
    ///
    /// # Errors
    /// Only fatal ones.
    pub fn finish(&mut self) -> Result<(), RaftError> {
        self.carry_out()?;
        if let Some(state) = self.node.take_deferred() {
            self.writer.queue(WalJob::HardState(state));
        }
        Ok(())
    }

    fn carry_out(&mut self) -> Result<(), RaftError> {
        if !self.node.is_alone() {
            // Before anything leaves that lets another member lead.
            self.shared.reads_are_local.store(false, Ordering::Release);
        }
        while let Some(step) = self.node.poll()? {
            self.hand_out(step);
        }
        self.publish_status();
        Ok(())
    }

    fn hand_out(&mut self, step: Step) {
        if !step.send.is_empty() {
            self.peers.send(step.send);
        }
        // On this thread as in etcd: a pause here stops heartbeats and elections, too.
        fail::fail_point!("raftBeforeSave");
        let written_here = step.persist.and_then(|group| self.persist(group));
        if let Some(position) = step.install {
            self.sink.install(position);
        }
        // Readable before apply acknowledges anything from this step.
        self.shared.committed.store(self.node.committed().0, Ordering::Release);
        match step.committed {
            none if none.is_empty() => {}
            entries if self.is_awaited_by_nobody() => self.sink.committed_while_idle(entries),
            entries => self.sink.committed(entries),
        }
        for (number, index) in step.reads {
            reply::send_all(self.reads.confirmed(number).into_iter().map(|reader| (reader, index)));
            self.ask_for_reads();
        }
        // Last: what this step hands out goes before what follows from it.
        if let Some(number) = written_here {
            self.node.persisted(number);
        }
    }

    /// Whether there are no other members, and no requests to take.
    fn is_awaited_by_nobody(&self) -> bool {
        self.node.is_alone() && self.shared.from_clients.load(Ordering::Relaxed) == 0
    }

    /// Has a group written; returns its number if it is durable already. Nothing else waits for this thread while there are no
    /// other members.
    fn persist(&mut self, group: PersistGroup) -> Option<u64> {
        if self.node.is_alone() && self.writer.is_idle() {
            let number = group.number;
            return self.writer.write_here(group).then_some(number);
        }
        self.writer.queue(WalJob::Group(group));
        None
    }

    fn reads_are_local(&self) -> bool {
        let too_early = is_planted(PlantedFault::ReadsLocalBeforeReplay) && self.node.is_alone()
            || is_planted(PlantedFault::ReadsLocalWithLearner) && self.node.is_sole_voter();
        self.node.reads_are_local() || too_early && self.node.is_ready_leader()
    }

    fn publish_status(&mut self) {
        let status = RaftStatus {
            leader: self.node.leader(),
            term: self.node.term(),
            is_leader: self.node.is_leader(),
            reads_are_local: self.reads_are_local(),
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

/// What one turn took from the inbox.
#[derive(Default)]
struct Turn {
    proposals: Vec<Proposal>,
    stop: bool,
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
