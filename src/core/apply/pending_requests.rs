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

    /// Takes a request out: it was applied, or is waited for no more.
    pub fn take(&mut self, id: u64) -> Option<W> {
        self.waiting.remove(&id).map(|(_, waiter)| waiter)
    }

    /// Takes a request out whose proposal for `term` was dropped; nothing if it was proposed for another term since.
    pub fn take_dropped(&mut self, id: u64, term: Term) -> Option<W> {
        self.waiting.get(&id).is_some_and(|(proposed, _)| *proposed == term).then(|| self.take(id)).flatten()
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
    /// Registers a request and proposes it for `term` with `propose`. With that term over it is lost, and not proposed:
    /// a copy that nobody waits for would stay in the inbox of consensus beside the next one.
    ///
    /// # Errors
    /// Those of `propose`; nobody waits for the request then.
    pub fn propose<E>(
        &self,
        id: u64,
        term: Term,
        propose: impl FnOnce() -> Result<(), E>,
    ) -> Result<oneshot::Receiver<ProposalOutcome>, E> {
        let (reply, outcome) = reply::channel();
        let entered = self.pending_requests.lock().enter(id, term, reply);
        match entered {
            Ok(()) => propose().inspect_err(|_| self.forget(id))?,
            Err(reply) => reply.send(ProposalOutcome::Lost),
        }
        Ok(outcome)
    }

    /// Takes back a request that nobody waits for any more.
    pub fn forget(&self, id: u64) {
        self.pending_requests.lock().take(id);
    }

    /// Tells that the proposal of a request for `term` went nowhere. The request may have been proposed for a later term
    /// meanwhile, and that proposal goes on.
    pub fn dropped(&self, id: u64, term: Term) {
        let waiter = self.pending_requests.lock().take_dropped(id, term);
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
        let register = |id, term| pending.propose(id, Term(term), || Ok::<_, ()>(())).expect("proposed");
        let heard = |mut outcome: oneshot::Receiver<ProposalOutcome>| outcome.try_recv().ok();
        let mut waiting = register(1, 2);
        assert!(waiting.try_recv().is_err(), "nothing is known yet");
        pending.resolve(vec![(1, Ok(super::super::Applied::LeaseCheckpoint(())))], Term(3));
        assert!(matches!(heard(waiting), Some(ProposalOutcome::Applied(_))), "applied, although the term is over now");
        assert!(matches!(heard(register(2, 2)), Some(ProposalOutcome::Lost)), "too late");
        let (dropped, unknown, given_up) = (register(3, 3), register(4, 3), register(5, 3));
        pending.dropped(3, Term(3));
        pending.forget(5);
        pending.installed(Term(4));
        assert!(matches!(heard(dropped), Some(ProposalOutcome::Lost)));
        assert!(matches!(heard(unknown), Some(ProposalOutcome::Unknown)));
        assert!(heard(given_up).is_none());
        assert_eq!(pending.propose(6, Term(4), || Err("full")).expect_err("refused"), "full");
        assert!(pending.pending_requests.lock().waiting.is_empty(), "nobody waits for what was not proposed");
    }

    // A thread that had read term 2 was held up until an entry of term 3 was applied. It sent its proposal although the
    // request was known to be lost, then the one for term 3; consensus dropped the first, which was taken for the second,
    // and the request was proposed a third time: twice in the log.
    #[test]
    fn a_request_whose_term_is_over_is_not_proposed() {
        let pending = SharedPendingRequests::default();
        pending.resolve(Vec::new(), Term(3));
        let mut sent = Vec::new();
        let mut propose = |term| {
            pending.propose(1, Term(term), || {
                sent.push(term);
                Ok::<_, ()>(())
            })
        };
        assert!(matches!(propose(2).expect("no error").try_recv(), Ok(ProposalOutcome::Lost)));
        assert!(propose(3).expect("no error").try_recv().is_err(), "it goes on");
        assert_eq!(sent, [3]);
    }

    // The same with a thread that was held up between registering and sending.
    #[test]
    fn a_drop_of_a_proposal_for_an_earlier_term_is_not_one_of_the_later() {
        let pending = SharedPendingRequests::default();
        let propose = |term| pending.propose(1, Term(term), || Ok::<_, ()>(())).expect("proposed");
        let mut first = propose(2);
        pending.resolve(Vec::new(), Term(3));
        assert!(matches!(first.try_recv(), Ok(ProposalOutcome::Lost)));
        let mut second = propose(3);
        pending.dropped(1, Term(2));
        assert_eq!(second.try_recv().expect_err("goes on"), oneshot::error::TryRecvError::Empty);
        pending.dropped(1, Term(3));
        assert!(matches!(second.try_recv(), Ok(ProposalOutcome::Lost)));
    }
}
