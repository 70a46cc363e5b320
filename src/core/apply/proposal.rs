use std::time::Duration;

use super::outcome::Outcome;
use super::pending_requests::ProposalOutcome;
use crate::types::Term;

/// Pause before a request that went nowhere is proposed again in the same term; another leader ends it.
pub const PROPOSE_PAUSE: Duration = Duration::from_millis(50);

/// What is to be waited for, or done, next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposalStep {
    /// Wait until a leader is known, then [`ProposalDriver::leader_known`].
    AwaitLeader,
    /// Register the request and hand it to consensus, both for this term. What comes of it goes to
    /// [`ProposalDriver::outcome`].
    Propose(Term),
    /// Wait for a term later than this one, [`PROPOSE_PAUSE`] at most, then [`ProposalDriver::pause_over`].
    Pause(Term),
}

/// How a request ended.
#[derive(Debug)]
pub enum ProposalEnd {
    /// It was applied here.
    Applied(Outcome),
    /// No leader was known in time: it was not executed and never will be.
    NoLeader,
    /// It was lost with a leader and there was no time left: it was not executed and never will be.
    LeaderChanged,
    /// It may have been executed, or may still be.
    Unknown,
}

/// One request on its way into the log, without clock and channel: when it is proposed, and what its outcome means.
///
/// Invariant: it is proposed again only once it is known to be in no log and never to get into one. So it is executed
/// once at most, see [`PendingRequests`](super::PendingRequests). Requests wait here for a leader and not with consensus,
/// which could not tell whose client has given up: an election takes longer than many clients wait, and their writes would
/// be done after it.
#[derive(Debug)]
pub struct ProposalDriver {
    step: ProposalStep,
}

impl Default for ProposalDriver {
    fn default() -> Self {
        Self { step: ProposalStep::AwaitLeader }
    }
}

impl ProposalDriver {
    /// What comes next.
    pub fn step(&self) -> ProposalStep {
        self.step
    }

    /// The leader of this term, the present one, is known.
    pub fn leader_known(&mut self, term: Term) {
        if self.step == ProposalStep::AwaitLeader {
            self.step = ProposalStep::Propose(term);
        }
    }

    /// What became of the proposal. Nothing while the request goes on.
    pub fn outcome(&mut self, outcome: ProposalOutcome) -> Option<ProposalEnd> {
        match outcome {
            ProposalOutcome::Applied(outcome) => Some(ProposalEnd::Applied(outcome)),
            ProposalOutcome::Unknown => Some(ProposalEnd::Unknown),
            ProposalOutcome::Lost => {
                if let ProposalStep::Propose(term) = self.step {
                    self.step = ProposalStep::Pause(term);
                }
                None
            }
        }
    }

    /// The pause after a loss is over.
    pub fn pause_over(&mut self) {
        if let ProposalStep::Pause(_) = self.step {
            self.step = ProposalStep::AwaitLeader;
        }
    }

    /// No time is left.
    pub fn deadline(&self) -> ProposalEnd {
        match self.step {
            ProposalStep::AwaitLeader => ProposalEnd::NoLeader,
            ProposalStep::Propose(_) => ProposalEnd::Unknown,
            ProposalStep::Pause(_) => ProposalEnd::LeaderChanged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_that_is_in_no_log_is_proposed_again() {
        let mut proposal = ProposalDriver::default();
        assert!(matches!(proposal.deadline(), ProposalEnd::NoLeader));
        proposal.leader_known(Term(2));
        proposal.leader_known(Term(3));
        assert_eq!(proposal.step(), ProposalStep::Propose(Term(2)), "it is under way for one term");
        assert!(matches!(proposal.deadline(), ProposalEnd::Unknown));
        assert!(proposal.outcome(ProposalOutcome::Lost).is_none());
        assert_eq!(proposal.step(), ProposalStep::Pause(Term(2)));
        assert!(matches!(proposal.deadline(), ProposalEnd::LeaderChanged));
        proposal.leader_known(Term(3));
        assert_eq!(proposal.step(), ProposalStep::Pause(Term(2)));
        proposal.pause_over();
        proposal.leader_known(Term(3));
        assert_eq!(proposal.step(), ProposalStep::Propose(Term(3)));
        assert!(matches!(proposal.outcome(ProposalOutcome::Unknown), Some(ProposalEnd::Unknown)));
    }
}
