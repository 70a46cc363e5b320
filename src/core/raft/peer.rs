use bytes::Bytes;

use crate::types::{LogIndex, MemberId};

/// Which connection a message travels on, so that a large one never delays a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Heartbeats, votes and read requests: small, and worthless when late.
    Control,
    /// Log entries, their confirmations and forwarded proposals.
    Append,
    /// "Here is a state": goes with a db snapshot of it.
    Snapshot,
}

/// An encoded message for another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// To whom.
    pub to: MemberId,
    /// On which connection.
    pub lane: Lane,
    /// What to hand to that member's [`RaftHandle::receive`](super::RaftHandle::receive).
    pub bytes: Bytes,
}

/// Where messages to other members go.
pub trait PeerSink {
    /// Takes messages; never waits. What does not fit is dropped: consensus repeats what matters.
    fn send(&mut self, messages: Vec<Outbound>);

    /// Bytes that the append lane to this member takes now. Asked before proposals are forwarded, which nobody repeats.
    fn append_room(&self, _to: MemberId) -> usize {
        usize::MAX
    }
}

/// Why a message of a peer was not let in. Its connection is not to be trusted any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message of a peer refused: {0}")]
pub struct RefusedMessage(pub(super) String);

/// What a node holds beside its status, for who examines it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftDetails {
    /// For whom it voted in this term.
    pub vote: Option<MemberId>,
    /// Who is to lead next, while the leader waits for that.
    pub transferee: Option<MemberId>,
    /// What the leader does with each member, in the order of their ids; empty unless this member leads.
    pub replication: Vec<Replication>,
}

/// What a leader does with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replication {
    /// Which member.
    pub member: MemberId,
    /// Its log agrees with the leader's up to here.
    pub matched: LogIndex,
    /// What it is sent next.
    pub next: LogIndex,
    /// etcd's name for how it is sent entries.
    pub state: &'static str,
}

/// How far a member has come, as its leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// Which member.
    pub member: MemberId,
    /// Its log agrees with the leader's up to here.
    pub matched: LogIndex,
    /// Whether it was heard of since the last look for a quorum.
    pub active: bool,
}
