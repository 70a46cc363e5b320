//! Construction and what comes in: ticks, proposals, messages, apply's word. `read.rs` holds linearizable reads,
//! `output.rs` what is to be done and in which order, `window.rs` how much is on its way to a member, `view.rs` what can
//! be asked.

mod output;
mod read;
mod view;
mod window;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{Config, ProgressState, RawNode, SnapshotStatus, StateRole};

#[cfg(test)]
pub(super) use self::window::IN_FLIGHT_BYTES_MAX;
pub(super) use self::window::MESSAGE_BYTES_MAX;
use self::window::{IN_FLIGHT_MESSAGES_MAX, Window};
use super::check::PeerMessage;
use super::log::LogTail;
use super::members::{MembersDecision, ProposedChange};
use super::peer::Outbound;
use super::step::{Committed, NodeConfig, RaftError, Stepped};
use crate::core::wal::{HardState, WalSnapshot};
use crate::types::{LogIndex, LogPosition, MemberId, Term};

/// Bytes of one group of committed entries handed to apply at once.
const COMMITTED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Messages with proposals of other members that are kept while the lead is handed over.
const IN_TRANSFER_MAX: usize = 1024;
/// Election timeouts (30 s with the default one) in which the log behind a state is kept for a member that installs it.
const INSTALL_TIMEOUTS: usize = 30;
/// Bytes of proposals that may be under way; above it proposals are refused.
const UNCOMMITTED_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// One member's raft state machine, free of threads, disk and clock.
///
/// Invariants: an entry comes out as committed only after the group that holds it was reported
/// [`persisted`](Self::persisted); so does a promise (a vote, a confirmed entry) as a message. Every read request has
/// a context never used before. That a membership change is committed is on disk before anybody hears of it, apply
/// included; and a member acts on its own removal only when others know of it.
pub struct RaftNode {
    raw: RawNode<LogTail>,
    member: MemberId,
    /// Groups given out and not yet reported as persisted.
    persisting: VecDeque<u64>,
    /// The last number given out for anything.
    newest: u64,
    /// A hard state that needs no sync of its own; it travels with the next group.
    deferred: Option<HardState>,
    /// Messages that wait for a group.
    held: VecDeque<(u64, Vec<Outbound>)>,
    released: Vec<Outbound>,
    /// States to install once their group is durable.
    prepared_snapshots: VecDeque<(u64, LogPosition)>,
    /// Membership changes that apply has not decided on.
    undecided: VecDeque<(LogIndex, ProposedChange)>,
    /// The group that puts on disk that a membership change is committed; nothing else happens before it is there.
    noting_change: Option<u64>,
    /// Committed entries that apply may not have yet.
    withheld: VecDeque<Committed>,
    /// A leader has told that everything up to here is committed.
    told_committed: u64,
    /// Who sent a heartbeat that counts on more than the log has, in which term, while no leader was known.
    counted_on: Option<(u64, u64)>,
    /// Members that say this one was removed.
    told_removed: BTreeSet<MemberId>,
    /// Members that have got a state of this leader, where it ends, and the ticks for which the log behind it is still kept for them.
    installing: BTreeMap<MemberId, (LogIndex, usize)>,
    /// Members that answered this leader in the last election timeout. The library forgets them at its end.
    answered: BTreeSet<u64>,
    /// Up to where the log can be forgotten but for members that lag, and up to where the state on disk and apply have it.
    forgettable: (LogIndex, LogIndex),
    run: u64,
    next_read: u64,
    /// Read requests that came before this leader committed in its term.
    postponed: Vec<Message>,
    /// Proposals of other members that came while the lead was on its way to one of them.
    in_transfer: Vec<Message>,
    /// The highest read request seen, by member and run.
    reads_seen: BTreeMap<MemberId, VecDeque<(u64, u64)>>,
    random: fastrand::Rng,
    /// Scratch space of `window.rs`, empty between calls.
    windows: Vec<(u64, Window)>,
    unsent: Vec<u64>,
}

impl std::fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNode").field("term", &self.term()).field("leader", &self.leader()).finish_non_exhaustive()
    }
}

impl RaftNode {
    /// Starts from the recovered log.
    ///
    /// # Errors
    /// When the library finds configuration or log inconsistent.
    pub fn new(config: &NodeConfig, mut log: LogTail) -> Result<Self, RaftError> {
        let library = Config {
            id: config.member.0,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied: config.applied.0,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: IN_FLIGHT_MESSAGES_MAX,
            check_quorum: true,
            pre_vote: config.pre_vote,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..Config::default()
        };
        log.saved_at(config.applied);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&library, log, &logger)?;
        let mut node = Self {
            raw,
            member: config.member,
            persisting: VecDeque::new(),
            newest: 0,
            deferred: None,
            held: VecDeque::new(),
            released: Vec::new(),
            prepared_snapshots: VecDeque::new(),
            undecided: VecDeque::new(),
            noting_change: None,
            withheld: VecDeque::new(),
            told_committed: 0,
            counted_on: None,
            told_removed: BTreeSet::new(),
            installing: BTreeMap::new(),
            answered: BTreeSet::new(),
            forgettable: (LogIndex(0), LogIndex(0)),
            run: config.seed,
            next_read: 1,
            postponed: Vec::new(),
            in_transfer: Vec::new(),
            reads_seen: BTreeMap::new(),
            random: fastrand::Rng::with_seed(config.seed),
            windows: Vec::new(),
            unsent: Vec::new(),
        };
        node.draw_timeout();
        Ok(node)
    }

    /// Lets logical time pass.
    pub fn tick(&mut self) {
        // The only voter wins as soon as it campaigns, and the library wants its log on disk by then.
        if self.is_sole_voter() && !self.is_leader() && !self.persisting.is_empty() {
            return;
        }
        if self.awaits_state() {
            return;
        }
        let raft = &self.raw.raft;
        if raft.election_elapsed + 1 >= raft.election_timeout() {
            let answered = raft.prs().iter().filter(|(_, progress)| progress.recent_active);
            self.answered = answered.map(|(member, _)| *member).collect();
        }
        self.raw.tick();
        self.draw_timeout();
        let leads = self.is_leader();
        self.installing.retain(|_, (_, ticks)| {
            *ticks -= 1;
            leads && *ticks > 0
        });
        // What was kept for a member that has it now, or is away: the next state on disk may be long in coming.
        if self.forgettable.0 > self.raw.store().base() {
            self.forget();
        }
    }

    /// Shortens the time to the next election: a new cluster has no leader to wait for.
    pub fn hasten_election(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Follower && raft.leader_id == 0 {
            raft.election_elapsed = raft.election_elapsed.max(raft.election_timeout() - 1);
        }
    }

    /// Whether a snapshot from the leader replaced the log, and apply has not installed it yet. The library
    /// panics at a campaign then: it looks for membership changes among entries that are gone.
    fn awaits_state(&self) -> bool {
        self.raw.raft.raft_log.applied < self.raw.store().base().0
    }

    /// Asks for votes now; the only voter wins at once. Does nothing while the log is being written, or a state is put
    /// in place.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn campaign(&mut self) -> Result<(), RaftError> {
        if self.persisting.is_empty() && !self.awaits_state() {
            self.raw.campaign()?;
            self.draw_timeout();
        }
        Ok(())
    }

    /// Appends requests to the log as one batch, or sends them to the leader, in messages of bounded size. They enter the
    /// log in `term`, or never: once an entry of a later term is applied, their outcome is known.
    ///
    /// # Errors
    /// When no leader of that term is known, or too much is under way; they went nowhere then.
    pub fn propose(&mut self, requests: Vec<Bytes>, term: Term) -> Result<(), RaftError> {
        let entries = requests.into_iter().map(|data| Entry { data, ..Entry::default() }).collect();
        self.propose_entries(entries, term)
    }

    /// Like [`propose`](Self::propose), but never sends them to another leader.
    ///
    /// # Errors
    /// As `propose`, and when this member does not lead.
    pub fn propose_as_leader(&mut self, requests: Vec<Bytes>, term: Term) -> Result<(), RaftError> {
        if !self.is_leader() {
            return Err(raft::Error::ProposalDropped.into());
        }
        self.propose(requests, term)
    }

    /// Proposes a membership change; the next one is taken once this one is applied.
    ///
    /// # Errors
    /// As [`propose`](Self::propose).
    pub fn propose_members(&mut self, change: &ProposedChange, term: Term) -> Result<(), RaftError> {
        self.propose_entries(vec![change.to_entry()], term)
    }

    fn propose_entries(&mut self, mut entries: Vec<Entry>, term: Term) -> Result<(), RaftError> {
        if entries.is_empty() {
            return Ok(());
        }
        let leader = self.leader().filter(|_| term == self.term()).ok_or(raft::Error::ProposalDropped)?;
        if leader == self.member {
            return Ok(self.step_proposal(self.proposal(entries))?);
        }
        // Not through the library, whose proposals have no term. Not in one message either: what clients propose at once can
        // be more than a frame holds.
        while !entries.is_empty() {
            let part = entries.drain(..window::message_entries(&entries)).collect();
            let mut message = self.proposal(part);
            message.to = leader.0;
            message.term = term.0;
            self.send(&message);
        }
        Ok(())
    }

    fn proposal(&self, entries: Vec<Entry>) -> Message {
        let mut message = Message { from: self.member.0, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(entries.into());
        message
    }

    /// The leader appends membership changes by itself: the library numbers their kinds in another way than the log
    /// does, and would not read them. Anything else is left to it.
    fn step_proposal(&mut self, mut message: Message) -> raft::Result<()> {
        self.bound_sending();
        let changes_members = |entry: &Entry| entry.get_entry_type() == EntryType::EntryConfChange;
        if !self.is_leader() || !message.get_entries().iter().any(changes_members) {
            return self.raw.raft.step(message);
        }
        let raft = &mut self.raw.raft;
        let is_member = raft.prs().get(self.member.0).is_some();
        if !is_member || raft.lead_transferee.is_some() || raft.has_pending_conf() {
            return Err(raft::Error::ProposalDropped);
        }
        // A second change in the same message would be pending behind the first.
        let [change] = message.mut_entries().as_mut() else { return Err(raft::Error::ProposalDropped) };
        raft.pending_conf_index = raft.raft_log.last_index() + 1;
        if !raft.append_entry(std::slice::from_mut(change)) {
            return Err(raft::Error::ProposalDropped);
        }
        raft.bcast_append();
        Ok(())
    }

    /// Takes another member's proposal if this one leads in its term; if not, its sender may count it as lost by now, and
    /// propose it again. The library drops proposals while the lead is being handed over: those are kept.
    fn take_proposal(&mut self, mut message: Message) {
        if !self.is_leader() || Term(message.term) != self.term() {
            return;
        }
        if self.raw.raft.lead_transferee.is_none() {
            message.term = 0;
            // Dropped with too much under way: its sender runs into its timeout.
            let _ = self.step_proposal(message);
        } else if self.in_transfer.len() < IN_TRANSFER_MAX {
            self.in_transfer.push(message);
        }
    }

    /// What came during a transfer that failed enters the log after it. One that succeeded ends the term.
    fn take_proposals_after_transfer(&mut self) {
        if self.raw.raft.lead_transferee.is_none() {
            for message in std::mem::take(&mut self.in_transfer) {
                self.take_proposal(message);
            }
        }
    }

    /// Takes a peer's message.
    ///
    /// # Errors
    /// Only fatal ones: the member must stop.
    pub fn step(&mut self, message: PeerMessage) -> Result<Stepped, RaftError> {
        let message = message.0;
        if let Some(reason) = self.impossible(&message)? {
            return Ok(Stepped::Refused(reason));
        }
        if message.get_msg_type() == MessageType::MsgReadIndex {
            // The library would pass it on in the name of its sender, who asks again as soon as the leader changes.
            if !self.is_leader() {
                return Ok(Stepped::Taken);
            }
            if !self.is_new_read(&message) {
                return Ok(Stepped::Refused("a read request seen before"));
            }
            if !self.is_ready_leader() {
                self.postpone(message);
                return Ok(Stepped::Taken);
            }
        }
        if message.get_msg_type() == MessageType::MsgPropose {
            self.take_proposal(message);
            return Ok(Stepped::Taken);
        }
        if matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgHeartbeat) {
            self.told_committed = self.told_committed.max(message.commit);
        }
        if message.get_msg_type() == MessageType::MsgTimeoutNow && self.awaits_state() {
            return Ok(Stepped::Taken);
        }
        let beat = (message.get_msg_type() == MessageType::MsgHeartbeatResponse).then_some(message.from);
        self.bound_sending();
        // What the library drops (no leader, unknown sender, overload) the sender repeats.
        let _ = self.raw.step(message);
        if let Some(peer) = beat {
            self.ask_about_sent(peer);
        }
        self.draw_timeout();
        Ok(Stepped::Taken)
    }

    /// What the library would panic at, judged by this member's log and role.
    fn impossible(&mut self, message: &Message) -> Result<Option<&'static str>, RaftError> {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        let refused = match message.get_msg_type() {
            MessageType::MsgHeartbeat if message.term >= raft.term && message.commit > last => {
                // The leader has it from this member's own confirmations. A member that has just started knows no leader
                // yet, and receives nothing else before it answers: it accepts the second such heartbeat.
                let leads = message.term == raft.term && message.from == raft.leader_id;
                if leads || self.counted_on == Some((message.term, message.from)) {
                    return Err(RaftError::LostLog { last: LogIndex(last), counted: LogIndex(message.commit) });
                }
                if raft.leader_id == 0 {
                    self.counted_on = Some((message.term, message.from));
                }
                Some("a heartbeat beyond the end of the log")
            }
            MessageType::MsgAppendResponse if !message.reject && message.index > last => {
                Some("a confirmation beyond the end of the log")
            }
            MessageType::MsgPropose | MessageType::MsgReadIndex if raft.prs().get(message.from).is_none() => {
                Some("a request of no member")
            }
            // The only voter must not campaign while its log is being written.
            MessageType::MsgTimeoutNow if self.is_sole_voter() => Some("a leader to transfer from, but only one voter"),
            _ => None,
        };
        Ok(refused)
    }

    /// An append to `peer` did not get through.
    pub fn unreachable(&mut self, peer: MemberId) {
        self.raw.report_unreachable(peer.0);
    }

    /// The transfer of a state to `peer` ended.
    pub fn snapshot_sent(&mut self, peer: MemberId, delivered: bool) {
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        let raft = &self.raw.raft;
        if let Some(progress) = raft.prs().get(peer.0).filter(|progress| progress.state == ProgressState::Snapshot)
            && delivered
        {
            let ticks = INSTALL_TIMEOUTS * raft.election_timeout();
            self.installing.insert(peer, (LogIndex(progress.pending_snapshot), ticks));
        }
        self.raw.report_snapshot(peer.0, status);
    }

    /// Hands leadership to `to`, a voter that has or will soon have the whole log. Given up after an election timeout.
    pub fn transfer_leader(&mut self, to: MemberId) {
        if self.is_leader() {
            self.raw.transfer_leader(to.0);
        }
    }

    /// Takes note of how far apply has come.
    pub fn applied(&mut self, index: LogIndex) {
        // An installed state is counted by apply before the library hears that it is durable.
        let log = &self.raw.raft.raft_log;
        let index = index.0.min(log.committed).min(log.persisted);
        if index > log.applied {
            self.raw.advance_apply_to(index);
        }
    }

    /// Follows apply's decisions on membership changes, in log order.
    ///
    /// # Errors
    /// When the library cannot, or a decision is about nothing that waits.
    pub fn members_decided(&mut self, decision: MembersDecision) -> Result<(), RaftError> {
        if decision.index <= self.raw.store().base() {
            // A snapshot from the leader came in between, and its members count.
            return Ok(());
        }
        let Some((index, change)) = self.undecided.pop_front() else {
            return Err(RaftError::StrayDecision(decision.index));
        };
        if index != decision.index {
            return Err(RaftError::StrayDecision(decision.index));
        }
        if decision.accepted
            && let Some(change) = change.to_library()
        {
            let state = self.raw.apply_conf_change(&change)?;
            self.raw.mut_store().set_conf_state(state);
            if self.is_leader() && !self.is_voter() {
                // The library would go on, and panics at the next entry that is on disk.
                let raft = &mut self.raw.raft;
                // Whoever is left must hear that the removal is committed: two may have been needed, and one is left.
                raft.bcast_append();
                raft.become_follower(raft.term, 0);
            }
            self.draw_timeout();
        }
        Ok(())
    }

    /// State up to here is on disk: it can be sent to members, and log entries up to `compact` can be forgotten, more
    /// of them if they take too much memory.
    pub fn state_saved(&mut self, snapshot: &WalSnapshot, compact: LogIndex) {
        let position = LogPosition { index: snapshot.index, term: snapshot.term };
        let applied = LogIndex(self.raw.raft.raft_log.applied);
        let store = self.raw.mut_store();
        if position.index > store.base() {
            store.set_saved(position, &snapshot.conf_state);
        }
        self.forgettable = (compact.max(self.forgettable.0), snapshot.index.min(applied));
        self.forget();
    }

    fn forget(&mut self) {
        let (compact, covered) = self.forgettable;
        // Whoever is being sent a state needs what follows it, or the next state at once, and so on under load; so does who installs it,
        // as long as the log is not too large.
        let tracker = self.raw.raft.prs();
        let installs = |(member, (end, _)): (&MemberId, &(LogIndex, usize))| {
            let confirmed = tracker.get(member.0).is_none_or(|progress| progress.matched >= end.0);
            (!confirmed).then_some(*end)
        };
        let installing = self.installing.iter().filter_map(installs).min();
        // A member that answers, and has a part of the log, is still sent the rest: it lags, as behind a slow disk. It may lag for ever.
        let store = self.raw.store();
        let following = tracker.iter().filter(|(member, progress)| {
            let answers = progress.recent_active || self.answered.contains(*member);
            answers && progress.state == ProgressState::Replicate && progress.matched >= store.base().0
        });
        let confirmed = following.map(|(_, progress)| LogIndex(progress.matched)).min().filter(|_| self.is_leader());
        let confirmed = confirmed.map(|index| index.max(store.over_kept_bytes()));
        let needed = [installing, confirmed].into_iter().flatten().min();
        let compact = needed.map_or(compact, |index| compact.min(index)).max(self.over_bytes());
        let sending = tracker.iter().filter(|(_, progress)| progress.state == ProgressState::Snapshot);
        let sent = sending.map(|(_, progress)| LogIndex(progress.pending_snapshot)).min();
        let compact = sent.map_or(compact, |sent| compact.min(sent));
        self.raw.mut_store().compact(compact.min(covered));
    }

    /// State up to here is on disk: like [`state_saved`](Self::state_saved) if the log takes too much memory; nothing
    /// otherwise.
    pub fn bound_log(&mut self, snapshot: &WalSnapshot) {
        if self.over_bytes() > self.raw.store().base() {
            self.state_saved(snapshot, LogIndex(0));
        }
    }

    /// Up to where the log takes too much memory. Only the leader sends entries, and knows who has which.
    fn over_bytes(&self) -> LogIndex {
        let members = self.raw.raft.prs().iter().filter(|_| self.is_leader());
        let confirmed = members.map(|(_, progress)| progress.matched).min().unwrap_or(u64::MAX);
        self.raw.store().over_bytes(LogIndex(confirmed))
    }

    /// Replaces the election timeout that the library drew whenever it starts to count anew: with its own source of
    /// chance a run could not be repeated.
    fn draw_timeout(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.election_elapsed == 0 {
            let shortest = raft.election_timeout();
            let timeout = shortest + self.random.usize(0..shortest);
            raft.set_randomized_election_timeout(timeout);
        }
    }
}
