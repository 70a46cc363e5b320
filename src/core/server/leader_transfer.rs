use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::caller::Caller;
use super::error::Failure;
use super::proposer::Proposer;
use super::published::Published;
use crate::api_error::ApiError;
use crate::core::peer::PeerTransport;
use crate::core::raft::{PeerProgress, RaftHandle};
use crate::types::MemberId;

/// Longest time for all attempts.
const TRANSFER_MAX: Duration = Duration::from_millis(500);
/// Voters tried at most; each gets an equal part of the time.
const ATTEMPTS_MAX: usize = 2;

/// Moves leadership to another voter. Proposals wait meanwhile, since raft drops them during a transfer.
pub(super) struct LeaderTransfer {
    pub(super) member: MemberId,
    pub(super) raft: RaftHandle,
    pub(super) published: Arc<Published>,
    pub(super) peers: PeerTransport,
    pub(super) proposer: Arc<Proposer>,
    pub(super) election_timeout: Duration,
}

impl LeaderTransfer {
    /// Transfers leadership to a voter and waits until it leads.
    ///
    /// Raft gives up by itself when the target does not take over within an election timeout, and this member goes on
    /// leading; asking again would only keep writes waiting.
    ///
    /// # Errors
    /// This member does not lead, the target has no vote, or it does not take over in time.
    pub(super) async fn to(&self, caller: &Caller, target: MemberId) -> Result<(), Failure> {
        let mut status = self.raft.status();
        if !status.borrow().is_leader {
            return Err(ApiError::NotLeader.into());
        }
        if self.published.cluster().member(target).is_none_or(|member| member.is_learner) {
            return Err(ApiError::BadLeaderTransferee.into());
        }
        if target == self.member {
            return Ok(());
        }
        let started = Instant::now();
        info!(remote = %caller, from = %self.member, to = %target, "leadership transfer starting");
        let held = self.proposer.hold();
        self.raft.transfer_leader(target);
        let other = status.wait_for(|status| status.leader.is_some_and(|leader| leader != self.member));
        let other = timeout(self.election_timeout, other).await.is_ok();
        drop(held);
        // A target that has begun an election may still win it, or another member may, before the target does.
        let leads = status.wait_for(|status| status.leader == Some(target));
        match timeout(self.election_timeout * if other { 2 } else { 1 }, leads).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(ApiError::Stopped.into()),
            Err(_) => return Err(ApiError::TimeoutLeaderTransfer.into()),
        }
        info!(from = %self.member, to = %target, took = ?started.elapsed(), "leadership transfer finished");
        Ok(())
    }

    /// Transfers leadership to any other voter before this member stops, so that clients do not wait for an election
    /// timeout. Takes [`TRANSFER_MAX`] at most, successful or not.
    pub(super) async fn away(&self) {
        let mut status = self.raft.status();
        if !status.borrow().is_leader {
            return;
        }
        let cluster = Arc::clone(&self.published.cluster());
        let voters = cluster.members().filter(|member| !member.is_learner).map(|member| member.member_id());
        let others: Vec<_> = voters.filter(|member| *member != self.member).collect();
        let connected = |member| self.peers.active_since(member).is_some();
        let successors = successors(&others, connected, &self.raft.progress());
        if successors.is_empty() {
            info!("leadership is not handed over: no other voter is in touch");
            return;
        }
        // What is proposed from here on waits for the new leader; raft would drop it.
        let _held = self.proposer.hold();
        let share = TRANSFER_MAX / successors.len() as u32;
        for successor in successors {
            info!(member = %successor, "handing leadership over");
            self.raft.transfer_leader(successor);
            let taken = status.wait_for(|status| status.leader.is_some_and(|leader| leader != self.member));
            match timeout_at(Instant::now() + share, taken).await {
                Ok(Ok(status)) => {
                    info!(leader = ?status.leader, "leadership is handed over");
                    return;
                }
                Ok(Err(_)) => return,
                Err(_) => warn!(member = %successor, "leadership was not taken over in time"),
            }
        }
    }
}

/// The voters most likely to take over at once: those connected, the one with the most of the log first.
///
/// The leader's own record of the progress is a tick old, empty right after an election, and begins anew with each check
/// of the quorum, so it gives the order only.
fn successors(others: &[MemberId], connected: impl Fn(MemberId) -> bool, progress: &[PeerProgress]) -> Vec<MemberId> {
    let matched = |member| progress.iter().find(|peer| peer.member == member).map(|peer| peer.matched);
    let mut voters: Vec<_> = others.iter().copied().filter(|&member| connected(member)).collect();
    voters.sort_by_key(|&member| (std::cmp::Reverse(matched(member)), member));
    voters.truncate(ATTEMPTS_MAX);
    voters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LogIndex;

    fn check(progress: &[(u64, u64)], silent: u64, expected: &[u64]) {
        let peer = |&(member, matched): &(u64, u64)| PeerProgress {
            member: MemberId(member),
            matched: LogIndex(matched),
            active: false,
        };
        let progress: Vec<_> = progress.iter().map(peer).collect();
        let found = successors(&[2, 3, 4, 5].map(MemberId), |member| member.0 != silent, &progress);
        assert_eq!(found.iter().map(|member| member.0).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_most_advanced_voter_connected_comes_first() {
        check(&[(1, 90), (2, 70), (3, 71), (4, 90), (5, 70)], 4, &[3, 2]);
        check(&[(1, 90), (5, 1)], 0, &[5, 2]);
        check(&[], 2, &[3, 4]);
    }
}
