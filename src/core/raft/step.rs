//! What goes into [`RaftNode`](super::RaftNode) and what comes out of it.

use bytes::Bytes;

use super::members::ProposedChange;
use super::peer::Outbound;
use crate::core::wal::{HardState, WalEntry, WalSnapshot};
use crate::types::{LogIndex, LogPosition, MemberId, Term};

/// Why consensus cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The library's error.
    #[error("raft")]
    Library(#[from] raft::Error),
    /// A committed membership change that cannot be decoded.
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

impl Committed {
    /// Where it is in the log.
    pub fn position(&self) -> LogPosition {
        LogPosition { index: self.index, term: self.term }
    }
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
    /// Given back through [`RaftNode::persisted`](super::RaftNode::persisted).
    pub number: u64,
    /// A snapshot from the leader that replaces everything before the entries; its db snapshot is on disk already.
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
    /// The state to install, before anything that is committed later.
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
