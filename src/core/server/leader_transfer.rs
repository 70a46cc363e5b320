use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::core::Core;
use crate::core::raft::PeerProgress;
use crate::types::MemberId;

/// Longest time for all attempts.
const TRANSFER_MAX: Duration = Duration::from_millis(500);
/// Voters tried at most; each gets an equal part of the time.
const ATTEMPTS_MAX: usize = 2;

/// Before a leader stops: makes another voter the leader, so that nobody waits for an election timeout. Ends after a
/// bounded time either way.
pub(super) async fn transfer_leadership(core: &Core) {
    let mut status = core.raft.status();
    if !status.borrow().is_leader {
        return;
    }
    let cluster = core.published.cluster.load_full();
    let voters = cluster.members().filter(|member| !member.is_learner).map(|member| member.member_id());
    let others: Vec<_> = voters.filter(|member| *member != core.member).collect();
    let in_touch = |member| core.peers.active_since(member).is_some();
    let successors = successors(&others, in_touch, &core.raft.progress());
    if successors.is_empty() {
        info!("leadership is not handed over: no other voter is in touch");
        return;
    }
    // What is proposed from here on waits for the new leader; consensus would drop it.
    let _held = core.hold_proposals();
    let share = TRANSFER_MAX / successors.len() as u32;
    for successor in successors {
        info!(member = %successor, "handing leadership over");
        core.raft.transfer_leader(successor);
        let taken = status.wait_for(|status| status.leader.is_some_and(|leader| leader != core.member));
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

/// The voters most likely to take over at once: those in touch, the one with the most of the log first.
///
/// Who is in touch the connections tell. The leader's own look at it is a tick old, empty right after an election, and
/// begins anew with each check of the quorum; it only gives the order.
fn successors(others: &[MemberId], in_touch: impl Fn(MemberId) -> bool, progress: &[PeerProgress]) -> Vec<MemberId> {
    let matched = |member| progress.iter().find(|peer| peer.member == member).map(|peer| peer.matched);
    let mut voters: Vec<_> = others.iter().copied().filter(|&member| in_touch(member)).collect();
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
    fn the_most_advanced_voter_in_touch_comes_first() {
        check(&[(1, 90), (2, 70), (3, 71), (4, 90), (5, 70)], 4, &[3, 2]);
        check(&[(1, 90), (5, 1)], 0, &[5, 2]);
        check(&[], 2, &[3, 4]);
    }
}
