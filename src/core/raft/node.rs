use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{Config, RawNode, StateRole};

use super::log::{LogTail, conf_state_from_raft, from_raft, hard_state_from_raft};
use crate::core::wal::{HardState, WalEntry};
use crate::pb::walpb;
use crate::types::{LogIndex, MemberId, Term};

/// Why the consensus library refused to go on.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The library said so.
    #[error("raft")]
    Library(#[from] raft::Error),
    /// A committed membership change that nobody can read.
    #[error("membership change at index {0} is unreadable")]
    BadConfChange(LogIndex),
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
    /// Where the chance in election timeouts comes from: the same seed and calls give the same answers.
    pub seed: u64,
}

/// Bytes of one group of committed entries handed to apply at once.
const COMMITTED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of proposals that may be under way; above it proposals are refused.
const UNCOMMITTED_BYTES_MAX: u64 = 256 * 1024 * 1024;

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
    /// The membership changed.
    Members {
        /// Whose membership it is about.
        member: MemberId,
        /// That member as JSON, as it was proposed.
        context: Bytes,
        /// Voters and learners from here on.
        conf_state: walpb::ConfState,
    },
}

/// Entries and state to make durable together, in order of `number`.
#[derive(Clone, Debug)]
pub struct PersistGroup {
    /// Given back through [`RaftNode::persisted`].
    pub number: u64,
    /// New entries.
    pub entries: Vec<WalEntry>,
    /// New term, vote or commit index.
    pub hard_state: Option<HardState>,
}

/// What the shell must do now. Parts are independent of each other.
#[derive(Debug, Default)]
pub struct Step {
    /// To write and sync.
    pub persist: Option<PersistGroup>,
    /// To apply, in order.
    pub committed: Vec<Committed>,
    /// Read requests that are confirmed, with the index a reader must wait for.
    pub reads: Vec<(u64, LogIndex)>,
}

/// One member's raft state machine, free of threads, disk and clock.
///
/// Invariant: an entry comes out as committed only after the group that holds it was reported
/// [`persisted`](Self::persisted).
pub struct RaftNode {
    raw: RawNode<LogTail>,
    /// Number of the last group given out but not yet reported as persisted.
    persisting: Option<u64>,
    /// A hard state that needs no sync of its own; it travels with the next group.
    deferred: Option<HardState>,
    next_read: u64,
    patience: Patience,
}

/// The election timeout, chosen anew whenever term or role change. The library chooses then as well, but its chance
/// cannot be seeded.
struct Patience {
    random: fastrand::Rng,
    chosen_for: (u64, StateRole),
    ticks: usize,
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
    pub fn new(config: &NodeConfig, log: LogTail) -> Result<Self, RaftError> {
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
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&library, log, &logger)?;
        let random = fastrand::Rng::with_seed(config.seed);
        let patience = Patience { random, chosen_for: (u64::MAX, StateRole::Leader), ticks: 0 };
        Ok(Self { raw, persisting: None, deferred: None, next_read: 1, patience })
    }

    /// Lets logical time pass.
    pub fn tick(&mut self) {
        let (raft, patience) = (&mut self.raw.raft, &mut self.patience);
        if patience.chosen_for != (raft.term, raft.state) {
            patience.chosen_for = (raft.term, raft.state);
            let least = raft.election_timeout();
            patience.ticks = patience.random.usize(least..2 * least);
        }
        raft.set_randomized_election_timeout(patience.ticks);
        self.raw.tick();
    }

    /// Asks for votes now; the only voter wins at once.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn campaign(&mut self) -> Result<(), RaftError> {
        Ok(self.raw.campaign()?)
    }

    /// Appends requests to the log, as one batch.
    ///
    /// # Errors
    /// Without a leader, or with too much under way; nothing was appended then.
    pub fn propose(&mut self, requests: Vec<Bytes>) -> Result<(), RaftError> {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raw.raft.id;
        let entries = requests.into_iter().map(|data| Entry { data, ..Entry::default() }).collect::<Vec<_>>();
        message.set_entries(entries.into());
        Ok(self.raw.raft.step(message)?)
    }

    /// Asks for the index a linearizable read must wait for; it comes back in [`Step::reads`] under the number
    /// returned here.
    ///
    /// Every call takes a number never used before: the library can confirm a stale read for a re-used one.
    pub fn read_index(&mut self) -> u64 {
        let number = self.next_read;
        self.next_read += 1;
        self.raw.read_index(number.to_be_bytes().to_vec());
        number
    }

    /// Takes note that a group, and all before it, are durable.
    pub fn persisted(&mut self, number: u64) {
        if self.persisting.is_some_and(|last| last <= number) {
            self.persisting = None;
        }
        self.raw.on_persist_ready(number);
    }

    /// Takes note of how far apply has come.
    pub fn applied(&mut self, index: LogIndex) {
        if index.0 > self.raw.raft.raft_log.applied {
            self.raw.advance_apply_to(index.0);
        }
    }

    /// Forgets log entries that state on disk covers.
    pub fn compact(&mut self, index: LogIndex) {
        self.raw.mut_store().compact(index);
    }

    /// What to do next; none when there is nothing, or when the only voter waits for its disk: the next group
    /// fills meanwhile.
    ///
    /// # Errors
    /// When a committed membership change cannot be read or applied.
    pub fn poll(&mut self) -> Result<Option<Step>, RaftError> {
        if !self.raw.has_ready() || (self.persisting.is_some() && self.is_sole_voter()) {
            return Ok(None);
        }
        let mut ready = self.raw.ready();
        let mut step = Step::default();
        for state in ready.take_read_states() {
            if let Ok(number) = state.request_ctx.as_slice().try_into() {
                step.reads.push((u64::from_be_bytes(number), LogIndex(state.index)));
            }
        }
        let store = self.raw.mut_store();
        store.append(ready.entries());
        if let Some(state) = ready.hs() {
            store.set_hard_state(state);
            self.deferred = Some(hard_state_from_raft(state));
        }
        let number = ready.number();
        let entries: Vec<WalEntry> = ready.entries().iter().map(from_raft).collect();
        let must_sync = ready.must_sync();
        let committed = ready.take_committed_entries();
        self.raw.advance_append_async(ready);
        if must_sync {
            self.persisting = Some(number);
            step.persist = Some(PersistGroup { number, entries, hard_state: self.deferred.take() });
        } else if self.persisting.is_none() {
            self.raw.on_persist_ready(number);
        }
        for entry in committed {
            step.committed.push(self.convert(entry)?);
        }
        Ok(Some(step))
    }

    /// A commit index that was never worth a sync of its own; to be written at a clean stop.
    pub fn take_deferred(&mut self) -> Option<HardState> {
        self.deferred.take()
    }

    /// Whether this member leads and has confirmed it by committing in its own term.
    pub fn is_ready_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader && self.raw.raft.commit_to_current_term()
    }

    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether no other member has a vote.
    pub fn is_sole_voter(&self) -> bool {
        let voters = self.raw.raft.prs().conf().voters();
        voters.ids().len() == 1 && voters.contains(self.raw.raft.id)
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

    fn convert(&mut self, entry: Entry) -> Result<Committed, RaftError> {
        let index = LogIndex(entry.index);
        let kind = match entry.get_entry_type() {
            EntryType::EntryNormal if entry.data.is_empty() => CommittedKind::Empty,
            EntryType::EntryNormal => CommittedKind::Request(entry.data),
            EntryType::EntryConfChange => {
                let mut change = ConfChange::default();
                change.merge_from_bytes(&entry.data).map_err(|_| RaftError::BadConfChange(index))?;
                let state = self.raw.apply_conf_change(&change)?;
                self.raw.mut_store().set_conf_state(state.clone());
                CommittedKind::Members {
                    member: MemberId(change.node_id),
                    conf_state: conf_state_from_raft(&state),
                    context: change.context,
                }
            }
            EntryType::EntryConfChangeV2 => {
                let mut change = ConfChangeV2::default();
                change.merge_from_bytes(&entry.data).map_err(|_| RaftError::BadConfChange(index))?;
                let state = self.raw.apply_conf_change(&change)?;
                self.raw.mut_store().set_conf_state(state.clone());
                CommittedKind::Members {
                    member: MemberId(change.changes.first().map_or(0, |single| single.node_id)),
                    conf_state: conf_state_from_raft(&state),
                    context: change.context,
                }
            }
        };
        Ok(Committed { index, term: Term(entry.term), kind })
    }
}

/// The entry every cluster's log begins with for each first member: "add this voter".
pub fn bootstrap_entry(member: MemberId, context: Vec<u8>) -> WalEntry {
    let mut change = ConfChange::default();
    change.set_change_type(raft::eraftpb::ConfChangeType::AddNode);
    change.node_id = member.0;
    change.context = context.into();
    WalEntry {
        kind: crate::core::wal::WalEntryKind::ConfChange,
        term: Term(1),
        index: LogIndex(1),
        data: change.write_to_bytes().map(Bytes::from).expect("a change in memory can be written"),
    }
}
