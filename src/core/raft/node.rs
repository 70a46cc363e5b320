use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{Config, ProgressState, RawNode, SnapshotStatus, StateRole};

use super::check::{CONTEXT_BYTES, PeerMessage};
use super::log::{LogTail, conf_state_from_raft, from_raft, hard_state_from_raft};
use super::members::{ChangeKind, MembersDecision, ProposedChange};
use super::peer::{Lane, Outbound, PeerProgress};
use crate::core::wal::{HardState, WalEntry, WalSnapshot};
use crate::types::{LogIndex, LogPosition, MemberId, Term};

/// Why consensus cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The library said so.
    #[error("raft")]
    Library(#[from] raft::Error),
    /// A committed membership change that nobody can read.
    #[error("membership change at index {0} is unreadable")]
    BadConfChange(LogIndex),
    /// The leader counts on entries that this member confirmed and no longer has: its disk lost what was synced.
    #[error(
        "the log ends at {last}, but the leader counts on this member up to {counted}: synced entries were lost; remove \
         this member from the cluster, empty its data directory and add it again"
    )]
    LostLog {
        /// Where the log ends.
        last: LogIndex,
        /// What this member confirmed.
        counted: LogIndex,
    },
    /// Apply spoke about a membership change that is not waiting.
    #[error("decision on a membership change at index {0}, which was not handed out")]
    StrayDecision(LogIndex),
}

/// How a member takes part.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This member.
    pub member: MemberId,
    /// Ticks without a leader before a follower campaigns.
    pub election_ticks: usize,
    /// Ticks between the heartbeats of a leader.
    pub heartbeat_ticks: usize,
    /// Ask before campaigning, so that a returning member does not disturb.
    pub pre_vote: bool,
    /// Everything up to here is in the state already.
    pub applied: LogIndex,
    /// Differs between members and between runs of one member: read requests carry it, and election timeouts are
    /// drawn from it.
    pub seed: u64,
}

/// Bytes of one group of committed entries handed to apply at once.
const COMMITTED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of proposals that may be under way; above it proposals are refused.
const UNCOMMITTED_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Groups given to the disk at once. A member whose disk hangs stops taking part after so many, and another leads.
const GROUPS_MAX: usize = 4;
/// Read requests kept until this leader may answer them.
const POSTPONED_MAX: usize = 4096;
/// Runs of one member whose read requests are told apart.
const RUNS_MAX: usize = 16;

/// An entry the cluster agreed on.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// Its position.
    pub index: LogIndex,
    /// The term it was proposed in.
    pub term: Term,
    /// What it says.
    pub kind: CommittedKind,
}

/// What a committed entry says.
#[derive(Clone, Debug, PartialEq)]
pub enum CommittedKind {
    /// Nothing: a new leader's first entry.
    Empty,
    /// An encoded `InternalRaftRequest`.
    Request(Bytes),
    /// A membership change, in force once apply has decided on it.
    Members(ProposedChange),
}

/// Entries and state to make durable together, in order of `number`.
#[derive(Clone, Debug)]
pub struct PersistGroup {
    /// Given back through [`RaftNode::persisted`].
    pub number: u64,
    /// A state from elsewhere that takes the place of everything before the entries; its image is on disk already.
    pub snapshot: Option<WalSnapshot>,
    /// New entries.
    pub entries: Vec<WalEntry>,
    /// New term, vote or commit index.
    pub hard_state: Option<HardState>,
}

/// What the shell must do now, in the order of the fields.
#[derive(Debug, Default)]
pub struct Step {
    /// To send. Whatever had to be durable before is.
    pub send: Vec<Outbound>,
    /// To write and sync.
    pub persist: Option<PersistGroup>,
    /// The state to put in place of the present one, before anything that is committed later.
    pub install: Option<LogPosition>,
    /// To apply, in order.
    pub committed: Vec<Committed>,
    /// Read requests that are confirmed, with the index a reader must wait for.
    pub reads: Vec<(u64, LogIndex)>,
}

/// What became of a peer's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// It was looked at.
    Taken,
    /// No honest member sends this to a member in this state; nothing changed.
    Refused(&'static str),
}

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
    installs: VecDeque<(u64, LogPosition)>,
    /// Membership changes that apply has not decided on.
    undecided: VecDeque<(LogIndex, ProposedChange)>,
    /// The group that puts on disk that a membership change is committed; nothing else happens before it is there.
    noting_change: Option<u64>,
    /// Committed entries that apply may not have yet.
    withheld: VecDeque<Committed>,
    /// A leader has told that everything up to here is committed.
    told_committed: u64,
    /// Members that say this one was removed.
    told_removed: BTreeSet<MemberId>,
    run: u64,
    next_read: u64,
    /// Read requests that came before this leader committed in its term.
    postponed: Vec<Message>,
    /// The highest read request seen, by member and run.
    reads_seen: BTreeMap<MemberId, VecDeque<(u64, u64)>>,
    random: fastrand::Rng,
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
            max_size_per_msg: 512 * 1024,
            max_inflight_msgs: 512,
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
            installs: VecDeque::new(),
            undecided: VecDeque::new(),
            noting_change: None,
            withheld: VecDeque::new(),
            told_committed: 0,
            told_removed: BTreeSet::new(),
            run: config.seed,
            next_read: 1,
            postponed: Vec::new(),
            reads_seen: BTreeMap::new(),
            random: fastrand::Rng::with_seed(config.seed),
        };
        node.draw_timeout();
        Ok(node)
    }

    /// Which member this is.
    pub fn member(&self) -> MemberId {
        self.member
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
        self.raw.tick();
        self.draw_timeout();
    }

    /// Brings the next election nearer: a member of a new cluster has nobody to wait for.
    pub fn hasten_election(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Follower && raft.leader_id == 0 {
            raft.election_elapsed = raft.election_elapsed.max(raft.election_timeout() - 1);
        }
    }

    /// Whether a state from elsewhere took the place of the log, and apply has not put it in place yet. The library
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

    /// Appends requests to the log as one batch, or sends them to the leader.
    ///
    /// # Errors
    /// Without a leader, or with too much under way; nothing was appended then.
    pub fn propose(&mut self, requests: Vec<Bytes>) -> Result<(), RaftError> {
        let entries = requests.into_iter().map(|data| Entry { data, ..Entry::default() }).collect();
        self.propose_entries(entries)
    }

    /// Appends requests only while this member leads in `term`; they are never sent to another leader.
    ///
    /// # Errors
    /// As [`propose`](Self::propose), and when this member does not lead in that term.
    pub fn propose_in_term(&mut self, requests: Vec<Bytes>, term: Term) -> Result<(), RaftError> {
        if !self.is_leader() || self.term() != term {
            return Err(raft::Error::ProposalDropped.into());
        }
        self.propose(requests)
    }

    /// Proposes a membership change; the next one is taken once this one is applied.
    ///
    /// # Errors
    /// As [`propose`](Self::propose).
    pub fn propose_members(&mut self, change: &ProposedChange) -> Result<(), RaftError> {
        self.propose_entries(vec![change.to_entry()])
    }

    fn propose_entries(&mut self, entries: Vec<Entry>) -> Result<(), RaftError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.member.0;
        message.set_entries(entries.into());
        Ok(self.step_proposal(message)?)
    }

    /// The leader appends membership changes by itself: the library numbers their kinds in another way than the log
    /// does, and would not read them. Anything else is left to it.
    fn step_proposal(&mut self, mut message: Message) -> raft::Result<()> {
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

    /// Asks for the index a linearizable read must wait for; it comes back in [`Step::reads`] under the number
    /// returned here, or never: then ask again.
    ///
    /// Every call takes a number never used before: the library can confirm a stale read for a re-used one.
    pub fn read_index(&mut self) -> u64 {
        let number = self.next_read;
        self.next_read += 1;
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgReadIndex);
        message.from = self.member.0;
        message.set_entries(vec![Entry { data: self.context(number), ..Entry::default() }].into());
        if self.is_leader() && !self.is_ready_leader() {
            self.postpone(message);
        } else {
            // Without a leader the request is dropped, and asked again later.
            let _ = self.raw.raft.step(message);
        }
        number
    }

    fn context(&self, number: u64) -> Bytes {
        let mut context = Vec::with_capacity(CONTEXT_BYTES);
        for part in [self.member.0, self.run, number] {
            context.extend_from_slice(&part.to_be_bytes());
        }
        context.into()
    }

    fn postpone(&mut self, message: Message) {
        if self.postponed.len() < POSTPONED_MAX {
            self.postponed.push(message);
        }
    }

    /// Takes a peer's message.
    ///
    /// # Errors
    /// Only fatal ones: the member must stop.
    pub fn step(&mut self, message: PeerMessage) -> Result<Stepped, RaftError> {
        let mut message = message.0;
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
            if self.is_leader() && !self.is_ready_leader() {
                self.postpone(message);
                return Ok(Stepped::Taken);
            }
        }
        if message.get_msg_type() == MessageType::MsgPropose {
            // A member that leads no more passes it on: in its own name, which is what the next one checks.
            message.from = self.member.0;
        }
        if matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgHeartbeat) {
            self.told_committed = self.told_committed.max(message.commit);
        }
        if message.get_msg_type() == MessageType::MsgTimeoutNow && self.awaits_state() {
            return Ok(Stepped::Taken);
        }
        // What the library drops (no leader, unknown sender, overload) the sender repeats.
        let _ = match message.get_msg_type() {
            MessageType::MsgPropose => self.step_proposal(message),
            _ => self.raw.step(message),
        };
        self.draw_timeout();
        Ok(Stepped::Taken)
    }

    /// Whether the state at `position` is about to be installed.
    pub fn is_installing(&self, position: LogPosition) -> bool {
        let announced = self.raw.raft.raft_log.unstable_snapshot().as_ref().map(|snapshot| {
            let metadata = snapshot.get_metadata();
            LogPosition { index: LogIndex(metadata.index), term: Term(metadata.term) }
        });
        announced == Some(position) || self.installs.iter().any(|(_, queued)| *queued == position)
    }

    /// What the library would panic at, judged by this member's log and role.
    fn impossible(&self, message: &Message) -> Result<Option<&'static str>, RaftError> {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        let refused = match message.get_msg_type() {
            MessageType::MsgHeartbeat if message.term >= raft.term && message.commit > last => {
                // The leader has it from this member's own confirmations.
                if message.term == raft.term && message.from == raft.leader_id {
                    return Err(RaftError::LostLog { last: LogIndex(last), counted: LogIndex(message.commit) });
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

    /// Whether a read request is later than all seen of its sender's run. A request that comes twice could be
    /// confirmed by answers to its first coming, and take later requests along.
    fn is_new_read(&mut self, message: &Message) -> bool {
        let Some((member, run, number)) = message.entries.first().and_then(|entry| read_context(&entry.data)) else {
            return false;
        };
        if member.0 != message.from {
            return false;
        }
        let runs = self.reads_seen.entry(member).or_default();
        if let Some((_, last)) = runs.iter_mut().find(|(seen, _)| *seen == run) {
            return std::mem::replace(last, number.max(*last)) < number;
        }
        if runs.len() == RUNS_MAX {
            runs.pop_front();
        }
        runs.push_back((run, number));
        true
    }

    /// An append to `peer` did not get through.
    pub fn unreachable(&mut self, peer: MemberId) {
        self.raw.report_unreachable(peer.0);
    }

    /// The transfer of a state to `peer` ended.
    pub fn snapshot_sent(&mut self, peer: MemberId, delivered: bool) {
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(peer.0, status);
    }

    /// Hands leadership to `to`, a voter that has or will soon have the whole log. Given up after an election timeout.
    pub fn transfer_leader(&mut self, to: MemberId) {
        if self.is_leader() {
            self.raw.transfer_leader(to.0);
        }
    }

    /// Takes note that a group, and all before it, are durable.
    pub fn persisted(&mut self, number: u64) {
        while self.persisting.front().is_some_and(|first| *first <= number) {
            self.persisting.pop_front();
        }
        self.noting_change = self.noting_change.filter(|noting| *noting > number);
        let upto = if self.persisting.is_empty() { self.newest } else { number };
        self.raw.on_persist_ready(upto);
        while let Some((_, messages)) = self.held.pop_front_if(|(wait, _)| *wait <= number) {
            self.released.extend(messages);
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
            // A state from elsewhere came in between, and its members count.
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

    /// State up to here is on disk: it can be sent to members, and log entries up to `compact` can be forgotten.
    pub fn state_saved(&mut self, snapshot: &WalSnapshot, compact: LogIndex) {
        let position = LogPosition { index: snapshot.index, term: snapshot.term };
        let applied = LogIndex(self.raw.raft.raft_log.applied);
        // Whoever is being sent a state needs what follows it, or the next state at once, and so on under load.
        let tracker = self.raw.raft.prs();
        let sending = tracker.iter().filter(|(_, progress)| progress.state == ProgressState::Snapshot);
        let sent = sending.map(|(_, progress)| LogIndex(progress.pending_snapshot)).min();
        let compact = sent.map_or(compact, |sent| compact.min(sent));
        let store = self.raw.mut_store();
        if position.index > store.base() {
            store.set_saved(position, &snapshot.conf_state);
        }
        store.compact(compact.min(snapshot.index).min(applied));
    }

    /// What to do next; none when there is nothing, or when enough waits for the disk: the next group fills
    /// meanwhile.
    ///
    /// # Errors
    /// When a committed membership change cannot be read.
    pub fn poll(&mut self) -> Result<Option<Step>, RaftError> {
        let mut step = Step { send: std::mem::take(&mut self.released), ..Step::default() };
        if let Some((number, position)) = self.installs.front()
            && self.persisting.front().is_none_or(|first| first > number)
        {
            step.install = Some(*position);
            self.installs.pop_front();
            return Ok(Some(step));
        }
        self.step_postponed();
        let groups_max = if self.is_sole_voter() { 1 } else { GROUPS_MAX };
        let ready = self.noting_change.is_none() && self.persisting.len() < groups_max && self.raw.has_ready();
        if ready {
            self.take_ready(&mut step)?;
        }
        self.hand_out(&mut step);
        Ok((ready || !step.send.is_empty() || !step.committed.is_empty()).then_some(step))
    }

    /// Gives apply what is committed, up to what it may not have yet.
    fn hand_out(&mut self, step: &mut Step) {
        while let Some(entry) = self.withheld.front() {
            if self.noting_change.is_some() || (self.removes_this(entry) && !self.may_leave(entry.index)) {
                return;
            }
            step.committed.extend(self.withheld.pop_front());
        }
    }

    fn removes_this(&self, entry: &Committed) -> bool {
        matches!(&entry.kind, CommittedKind::Members(change)
            if change.kind == ChangeKind::Remove && change.member == self.member)
    }

    /// Takes note that the member `by` has applied the removal of this one. Tells whether this one may end at once: it
    /// may not while it knows itself that the removal is committed, and the voters that are left perhaps do not.
    pub fn told_removed(&mut self, by: MemberId) -> bool {
        self.told_removed.insert(by);
        let removal = self.withheld.iter().find(|entry| self.removes_this(entry));
        removal.is_none_or(|entry| self.may_leave(entry.index))
    }

    /// Whether the others can do without this member, whose removal is committed at `index`.
    ///
    /// They count it as a voter until they know that its removal is committed. If it alone knows and goes, one that is
    /// left of two waits for ever. So it stays until as many other voters have said that they know as had to confirm the
    /// entry, or a leader has told it. Everybody has on disk what he says about this.
    fn may_leave(&self, index: LogIndex) -> bool {
        let tracker = self.raw.raft.prs();
        let voters = tracker.conf().voters();
        if self.told_committed >= index.0 || !voters.contains(self.member.0) {
            return true;
        }
        let others = tracker.iter().filter(|(id, _)| **id != self.member.0 && voters.contains(**id));
        let confirmed = |committed| self.is_leader() && committed >= index.0;
        let know = others.filter(|(id, progress)| {
            confirmed(progress.committed_index) || self.told_removed.contains(&MemberId(**id))
        });
        know.count() >= voters.ids().len() / 2
    }

    fn take_ready(&mut self, step: &mut Step) -> Result<(), RaftError> {
        let mut ready = self.raw.ready();
        for state in ready.take_read_states() {
            if let Some((member, run, number)) = read_context(&state.request_ctx)
                && (member, run) == (self.member, self.run)
            {
                step.reads.push((number, LogIndex(state.index)));
            }
        }
        let number = ready.number();
        self.newest = number;
        let snapshot = Some(ready.snapshot().get_metadata()).filter(|metadata| metadata.index != 0).cloned();
        let store = self.raw.mut_store();
        if let Some(metadata) = &snapshot {
            store.install(metadata);
            self.undecided.clear();
            self.withheld.clear();
        }
        store.append(ready.entries());
        let mut commits_change = false;
        if let Some(state) = ready.hs() {
            commits_change = store.changes_members(store.commit(), LogIndex(state.commit));
            store.set_hard_state(state);
            self.deferred = Some(hard_state_from_raft(state));
        }
        let entries: Vec<WalEntry> = ready.entries().iter().map(from_raft).collect();
        let ready_syncs = ready.must_sync();
        let committed = ready.take_committed_entries();
        // What a leader says about a change is as good as a promise: see `may_leave`.
        let mut promises = Vec::new();
        outbound(&ready.take_messages(), if commits_change { &mut promises } else { &mut step.send });
        outbound(&ready.take_persisted_messages(), &mut promises);
        self.raw.advance_append_async(ready);
        // A start counts votes by the changes it knows to be committed: whoever was removed may be gone by then, and his
        // vote would be missing for ever.
        if commits_change {
            self.noting_change = Some(number);
        }
        if ready_syncs || commits_change {
            self.persisting.push_back(number);
            let snapshot = snapshot.map(|metadata| {
                let position = LogPosition { index: LogIndex(metadata.index), term: Term(metadata.term) };
                self.installs.push_back((number, position));
                let conf_state = conf_state_from_raft(metadata.get_conf_state());
                WalSnapshot { index: position.index, term: position.term, conf_state }
            });
            step.persist = Some(PersistGroup { number, snapshot, entries, hard_state: self.deferred.take() });
        } else if self.persisting.is_empty() {
            self.raw.on_persist_ready(number);
        }
        match self.persisting.back() {
            Some(&wait) if !promises.is_empty() => self.held.push_back((wait, promises)),
            _ => step.send.extend(promises),
        }
        for entry in committed {
            let entry = self.convert(entry)?;
            self.withheld.push_back(entry);
        }
        Ok(())
    }

    /// Reads that came before this leader's first commit are answered after it.
    fn step_postponed(&mut self) {
        if self.postponed.is_empty() {
            return;
        }
        if !self.is_leader() {
            // Their senders ask again.
            self.postponed.clear();
        } else if self.is_ready_leader() {
            for message in std::mem::take(&mut self.postponed) {
                let _ = self.raw.raft.step(message);
            }
        }
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

    /// A commit index that was never worth a sync of its own; to be written at a clean stop.
    pub fn take_deferred(&mut self) -> Option<HardState> {
        self.deferred.take()
    }

    /// Whether this member leads and has confirmed it by committing in its own term.
    pub fn is_ready_leader(&self) -> bool {
        self.is_leader() && self.raw.raft.commit_to_current_term()
    }

    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether no other member has a vote.
    pub fn is_sole_voter(&self) -> bool {
        let voters = self.raw.raft.prs().conf().voters();
        voters.ids().len() == 1 && voters.contains(self.member.0)
    }

    /// Whether there is no other member at all. A learner can hear of a commit, and tell its client, before the only
    /// voter has applied it.
    pub fn is_alone(&self) -> bool {
        self.is_sole_voter() && self.raw.raft.prs().conf().learners().is_empty()
    }

    /// Whether nothing can have been acknowledged that this member has not applied: it leads, there is no other member,
    /// and an entry of its own term is applied, with it all that the log held before. From then on it acknowledges
    /// what it has applied, and nobody else does.
    pub fn reads_are_local(&self) -> bool {
        self.is_alone() && self.is_leader() && self.raw.raft.apply_to_current_term()
    }

    /// Whether this member has a vote.
    pub fn is_voter(&self) -> bool {
        self.raw.raft.prs().conf().voters().contains(self.member.0)
    }

    /// The leader, as far as this member knows.
    pub fn leader(&self) -> Option<MemberId> {
        let id = self.raw.raft.leader_id;
        (id != 0).then_some(MemberId(id))
    }

    /// The current term.
    pub fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    /// How far the cluster agreed.
    pub fn committed(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.committed)
    }

    /// Where this member's log ends.
    pub fn last_index(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.last_index())
    }

    /// Voters and learners in force.
    pub fn conf_state(&self) -> crate::pb::walpb::ConfState {
        conf_state_from_raft(&self.raw.raft.prs().conf().to_conf_state())
    }

    /// How far everybody is; empty unless this member leads.
    pub fn progress(&self) -> Vec<PeerProgress> {
        if !self.is_leader() {
            return Vec::new();
        }
        let tracker = self.raw.raft.prs();
        let mut all: Vec<_> = tracker
            .iter()
            .map(|(id, progress)| PeerProgress {
                member: MemberId(*id),
                matched: LogIndex(progress.matched),
                is_learner: tracker.conf().learners().contains(id),
                active: progress.recent_active || *id == self.member.0,
            })
            .collect();
        all.sort_unstable_by_key(|progress| progress.member);
        all
    }

    fn convert(&mut self, entry: Entry) -> Result<Committed, RaftError> {
        let index = LogIndex(entry.index);
        let kind = match entry.get_entry_type() {
            EntryType::EntryNormal if entry.data.is_empty() => CommittedKind::Empty,
            EntryType::EntryNormal => CommittedKind::Request(entry.data),
            EntryType::EntryConfChange => {
                let change = ProposedChange::from_entry(&entry.data).ok_or(RaftError::BadConfChange(index))?;
                self.undecided.push_back((index, change.clone()));
                CommittedKind::Members(change)
            }
            EntryType::EntryConfChangeV2 => return Err(RaftError::BadConfChange(index)),
        };
        Ok(Committed { index, term: Term(entry.term), kind })
    }
}

/// Member, run and number of a read request.
fn read_context(context: &[u8]) -> Option<(MemberId, u64, u64)> {
    let context: &[u8; CONTEXT_BYTES] = context.try_into().ok()?;
    let (parts, _) = context.as_chunks::<8>();
    Some((MemberId(u64::from_be_bytes(parts[0])), u64::from_be_bytes(parts[1]), u64::from_be_bytes(parts[2])))
}

fn outbound(messages: &[Message], into: &mut Vec<Outbound>) {
    for message in messages {
        let lane = match message.get_msg_type() {
            MessageType::MsgSnapshot => Lane::Snapshot,
            MessageType::MsgAppend | MessageType::MsgAppendResponse | MessageType::MsgPropose => Lane::Append,
            _ => Lane::Control,
        };
        match message.write_to_bytes() {
            Ok(bytes) => into.push(Outbound { to: MemberId(message.to), lane, bytes: bytes.into() }),
            Err(error) => tracing::error!(%error, "message to a peer cannot be encoded"),
        }
    }
}
