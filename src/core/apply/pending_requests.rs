use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::outcome::Outcome;
use crate::core::reply::{self, Reply};
use crate::types::Term;

/// Requests of this member on their way through the log, by id, each with whoever waits for it.
///
/// Invariant: a request is proposed for one term, and enters the log in that term or never. Terms only grow along the
/// log. So once an entry of a later term is applied here, a request that was not applied before never will be: it is
/// lost, and can be proposed again without being done twice.
#[derive(Debug)]
pub struct PendingRequests<W> {
    /// The term of the last entry applied.
    term: Term,
    waiting: HashMap<u64, (Term, W)>,
}

impl<W> Default for PendingRequests<W> {
    fn default() -> Self {
        Self { term: Term(0), waiting: HashMap::new() }
    }
}

impl<W> PendingRequests<W> {
    /// Announces a request that is about to be proposed for `term`.
    ///
    /// # Errors
    /// Gives the waiter back when that term is over.
    pub fn enter(&mut self, id: u64, term: Term, waiter: W) -> Result<(), W> {
        if term < self.term {
            return Err(waiter);
        }
        self.waiting.insert(id, (term, waiter));
        Ok(())
    }

    /// Takes a request out: it was applied, went nowhere, or is waited for no more.
    pub fn take(&mut self, id: u64) -> Option<W> {
        self.waiting.remove(&id).map(|(_, waiter)| waiter)
    }

    /// Takes out what is lost now that everything up to an entry of `term` is applied and its requests are
    /// [taken](Self::take); in the order of the ids.
    pub fn passed(&mut self, term: Term) -> Vec<(u64, W)> {
        if term <= self.term {
            return Vec::new();
        }
        self.term = term;
        let lost = self.waiting.extract_if(|_, (proposed, _)| *proposed < term);
        in_order(lost.map(|(id, (_, waiter))| (id, waiter)))
    }

    /// Takes out everything: a snapshot from the leader, whose last entry is of `term`, took the place of the log, and
    /// nobody here saw which requests are in it.
    pub fn installed(&mut self, term: Term) -> Vec<(u64, W)> {
        self.term = self.term.max(term);
        in_order(self.waiting.drain().map(|(id, (_, waiter))| (id, waiter)))
    }
}

fn in_order<W>(taken: impl Iterator<Item = (u64, W)>) -> Vec<(u64, W)> {
    let mut taken: Vec<_> = taken.collect();
    taken.sort_unstable_by_key(|(id, _)| *id);
    taken
}

/// What became of a request that was proposed.
#[derive(Debug)]
pub enum ProposalOutcome {
    /// It was applied.
    Applied(Outcome),
    /// It is not in the log and never will be.
    Lost,
    /// It may be in a snapshot received from the leader.
    Unknown,
}

/// Everybody who waits for the outcome of a request.
///
/// Bounded by what the raft inbox and the apply distance admit: a request enters right before it is proposed.
#[derive(Debug, Default)]
pub struct SharedPendingRequests {
    pending_requests: Mutex<PendingRequests<Reply<ProposalOutcome>>>,
}

impl SharedPendingRequests {
    /// Announces a request that is about to be proposed for `term`.
    pub fn register(&self, id: u64, term: Term) -> oneshot::Receiver<ProposalOutcome> {
        let (reply, outcome) = reply::channel();
        if let Err(reply) = self.pending_requests.lock().enter(id, term, reply) {
            reply.send(ProposalOutcome::Lost);
        }
        outcome
    }

    /// Takes back a request that nobody waits for any more.
    pub fn forget(&self, id: u64) {
        self.pending_requests.lock().take(id);
    }

    /// Tells that a request went nowhere.
    pub fn dropped(&self, id: u64) {
        let waiter = self.pending_requests.lock().take(id);
        if let Some(reply) = waiter {
            reply.send(ProposalOutcome::Lost);
        }
    }

    /// Hands out the outcomes of everything up to an entry of `term`; those of other members' requests find nobody.
    pub fn resolve(&self, outcomes: Vec<(u64, Outcome)>, term: Term) {
        // Woken outside the lock: a waiter may come back to it at once.
        let mut ready = Vec::with_capacity(outcomes.len());
        let lost = {
            let mut pending_requests = self.pending_requests.lock();
            for (id, outcome) in outcomes {
                if let Some(reply) = pending_requests.take(id) {
                    ready.push((reply, ProposalOutcome::Applied(outcome)));
                }
            }
            pending_requests.passed(term)
        };
        let lost = lost.into_iter().map(|(_, reply)| (reply, ProposalOutcome::Lost));
        reply::send_all(ready.into_iter().chain(lost));
    }

    /// Tells that a state whose last entry is of `term` took the place of the log.
    pub fn installed(&self, term: Term) {
        let waiting = self.pending_requests.lock().installed(term);
        reply::send_all(waiting.into_iter().map(|(_, reply)| (reply, ProposalOutcome::Unknown)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_term_tells_that_a_request_is_lost() {
        let mut pending_requests = PendingRequests::default();
        for (id, term) in [(1, 3), (2, 3), (3, 4), (4, 3)] {
            pending_requests.enter(id, Term(term), id).expect("no term is over");
        }
        assert_eq!(pending_requests.take(2), Some(2), "applied");
        assert_eq!(pending_requests.passed(Term(3)), [], "its term goes on");
        assert_eq!(pending_requests.passed(Term(4)), [(1, 1), (4, 4)]);
        assert_eq!(pending_requests.passed(Term(4)), [], "told once");
        assert_eq!(pending_requests.enter(1, Term(3), 1), Err(1), "it could not enter the log any more");
        pending_requests.enter(1, Term(4), 1).expect("this term goes on");
        assert_eq!(pending_requests.passed(Term(3)), [], "terms do not go back");
        assert_eq!(pending_requests.passed(Term(9)), [(1, 1), (3, 3)]);
    }

    #[test]
    fn nobody_knows_what_a_snapshot_from_the_leader_holds() {
        let mut pending_requests = PendingRequests::default();
        for (id, term) in [(1, 3), (2, 5)] {
            pending_requests.enter(id, Term(term), id).expect("no term is over");
        }
        assert_eq!(
            pending_requests.installed(Term(4)),
            [(1, 1), (2, 2)],
            "the leader of a later term may have sent an older state"
        );
        assert_eq!(pending_requests.enter(1, Term(3), 1), Err(1));
        pending_requests.enter(1, Term(4), 1).expect("what is proposed from now on is behind the state");
    }

    #[test]
    fn whoever_waits_is_told_one_outcome() {
        let pending = SharedPendingRequests::default();
        let heard = |mut outcome: oneshot::Receiver<ProposalOutcome>| outcome.try_recv().ok();
        let mut waiting = pending.register(1, Term(2));
        assert!(waiting.try_recv().is_err(), "nothing is known yet");
        pending.resolve(vec![(1, Ok(super::super::Applied::LeaseCheckpoint(())))], Term(3));
        assert!(matches!(heard(waiting), Some(ProposalOutcome::Applied(_))), "applied, although the term is over now");
        assert!(matches!(heard(pending.register(2, Term(2))), Some(ProposalOutcome::Lost)), "too late");
        let (dropped, unknown, given_up) =
            (pending.register(3, Term(3)), pending.register(4, Term(3)), pending.register(5, Term(3)));
        pending.dropped(3);
        pending.forget(5);
        pending.installed(Term(4));
        assert!(matches!(heard(dropped), Some(ProposalOutcome::Lost)));
        assert!(matches!(heard(unknown), Some(ProposalOutcome::Unknown)));
        assert!(heard(given_up).is_none());
    }
}
