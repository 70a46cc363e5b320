use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::core::Core;
use crate::core::raft::PeerProgress;
use crate::types::MemberId;

/// Longest time for all attempts.
const HAND_OVER_MAX: Duration = Duration::from_millis(500);
/// Voters tried at most; each gets an equal part of the time.
const ATTEMPTS_MAX: usize = 2;

/// Before a leader stops: makes another voter the leader, so that nobody waits for an election timeout. Ends after a
/// bounded time either way.
pub(super) async fn hand_over(core: &Core) {
    let mut status = core.raft.status();
    if !status.borrow().is_leader {
        return;
    }
    let successors = successors(&core.raft.progress(), core.member);
    if successors.is_empty() {
        info!("leadership is not handed over: no other voter is in touch");
        return;
    }
    // What is proposed from here on waits for the new leader; consensus would drop it.
    let _held = core.hold_proposals();
    let share = HAND_OVER_MAX / successors.len() as u32;
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
fn successors(progress: &[PeerProgress], leader: MemberId) -> Vec<MemberId> {
    let mut voters: Vec<_> =
        progress.iter().filter(|peer| peer.active && !peer.is_learner && peer.member != leader).collect();
    voters.sort_by_key(|peer| (std::cmp::Reverse(peer.matched), peer.member));
    voters.into_iter().map(|peer| peer.member).take(ATTEMPTS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LogIndex;

    fn peer(member: u64, matched: u64) -> PeerProgress {
        PeerProgress { member: MemberId(member), matched: LogIndex(matched), is_learner: false, active: true }
    }

    #[test]
    fn the_most_advanced_voter_in_touch_comes_first() {
        let learner = PeerProgress { is_learner: true, ..peer(2, 90) };
        let silent = PeerProgress { active: false, ..peer(3, 80) };
        let all = [peer(1, 90), learner, silent, peer(4, 70), peer(5, 71), peer(6, 70)];
        assert_eq!(successors(&all, MemberId(1)), [5, 4].map(MemberId));
        assert_eq!(successors(&all[..3], MemberId(1)), []);
    }
}
