//! What can be asked of a node.

use raft::{ProgressState, StateRole};

use super::super::log::conf_state_from_raft;
use super::super::peer::{PeerProgress, RaftDetails, Replication};
use super::RaftNode;
use crate::types::{LogIndex, MemberId, Term};

impl RaftNode {
    /// The part of the log that is in memory.
    #[cfg(test)]
    pub(in super::super) fn log_tail(&self) -> &super::LogTail {
        self.raw.store()
    }

    /// Which member this is.
    pub fn member(&self) -> MemberId {
        self.member
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
    /// only what it has applied, and no other member acknowledges anything.
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

    /// The progress of every member; empty unless this member leads.
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
                active: progress.recent_active || *id == self.member.0,
            })
            .collect();
        all.sort_unstable_by_key(|progress| progress.member);
        all
    }

    /// What is of no use to the program itself.
    pub fn details(&self) -> RaftDetails {
        let raft = &self.raw.raft;
        let led = raft.prs().iter().filter(|_| self.is_leader());
        let mut replication: Vec<_> = led
            .map(|(id, progress)| Replication {
                member: MemberId(*id),
                matched: LogIndex(progress.matched),
                next: LogIndex(progress.next_idx),
                state: match progress.state {
                    ProgressState::Probe => "StateProbe",
                    ProgressState::Replicate => "StateReplicate",
                    ProgressState::Snapshot => "StateSnapshot",
                },
            })
            .collect();
        replication.sort_unstable_by_key(|of| of.member);
        let vote = Some(raft.vote).filter(|vote| *vote != 0).map(MemberId);
        RaftDetails { vote, transferee: raft.lead_transferee.map(MemberId), replication }
    }
}
