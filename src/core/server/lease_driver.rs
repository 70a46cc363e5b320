use std::sync::Arc;
use std::time::Duration;

use super::lease_clock::LeaseClock;
use crate::core::lease::DueCheckpoint;
use crate::core::raft::RaftStatus;
use crate::types::{LeaseId, Term};

/// Leases revoked per look, so that a hundred thousand at once leave room for heartbeats and writes.
const EXPIRED_MAX: usize = 1000;
/// Revocations in flight at once.
const REVOKES_IN_FLIGHT: usize = 64;

/// What the leader does about leases, without a clock and without waiting: when deadlines begin and end, which leases are
/// to be revoked, and what is to be recorded. See [`LeaseClock`] for the rules.
pub struct LeaseDriver {
    clock: Arc<LeaseClock>,
    /// Time that every lease gets for the time without a leader.
    extend: Duration,
    phase: Phase,
}

enum Phase {
    Following,
    /// Leads, and does not know yet whether all that earlier leaders committed is applied.
    Confirming(Term),
    Leading {
        term: Term,
        /// Revocations handed out and not ended.
        revoking: usize,
        /// Leases that may still be revoked before the next look.
        budget: usize,
    },
}

impl LeaseDriver {
    /// For a member that does not lead.
    pub fn new(clock: Arc<LeaseClock>, extend: Duration) -> Self {
        Self { clock, extend, phase: Phase::Following }
    }

    /// The term this member leads in.
    pub fn term(&self) -> Option<Term> {
        match self.phase {
            Phase::Following => None,
            Phase::Confirming(term) | Phase::Leading { term, .. } => Some(term),
        }
    }

    /// Follows leadership. Tells whether it changed: what is in flight for the earlier leadership is to be given up.
    pub fn follow(&mut self, status: &RaftStatus) -> bool {
        let leads = status.is_leader.then_some(status.term);
        if leads == self.term() {
            return false;
        }
        if self.term().is_some() {
            self.clock.demote();
        }
        self.phase = leads.map_or(Phase::Following, Phase::Confirming);
        true
    }

    /// Whether a linearizable read is to be made, and [`confirmed`](Self::confirmed) to be called after it.
    pub fn wants_confirmation(&self) -> bool {
        matches!(self.phase, Phase::Confirming(_))
    }

    /// A linearizable read that began in this leadership is through: an index confirmed in a term is behind everything that
    /// earlier terms committed. Tells whether deadlines begin; the read may have been confirmed by another leader.
    pub fn confirmed(&mut self, status: &RaftStatus) -> bool {
        let Phase::Confirming(term) = self.phase else { return false };
        let begins = status.is_leader && status.term == term;
        if begins {
            self.clock.promote(term, self.extend);
            self.phase = Phase::Leading { term, revoking: 0, budget: 0 };
        }
        begins
    }

    /// Whether deadlines count.
    pub fn is_leading(&self) -> bool {
        matches!(self.phase, Phase::Leading { .. })
    }

    /// It is time to look for leases that have run out.
    pub fn look(&mut self) {
        if let Phase::Leading { budget, .. } = &mut self.phase {
            *budget = EXPIRED_MAX;
        }
    }

    /// Leases to revoke now, as the leader of [`term`](Self::term). The end of each is told to
    /// [`revoked`](Self::revoked); one that failed comes up again later.
    pub fn expired(&mut self) -> Vec<LeaseId> {
        let Phase::Leading { term, revoking, budget } = &mut self.phase else { return Vec::new() };
        let room = (REVOKES_IN_FLIGHT - *revoking).min(*budget);
        if room == 0 {
            return Vec::new();
        }
        let expired = self.clock.expired(*term, room);
        *budget = if expired.len() < room { 0 } else { *budget - room };
        *revoking += expired.len();
        expired
    }

    /// A revocation has ended, done or not.
    pub fn revoked(&mut self) {
        if let Phase::Leading { revoking, .. } = &mut self.phase {
            *revoking -= 1;
        }
    }

    /// It is time to record what is left of long leases; see `LeaseClock::checkpoint`.
    pub fn checkpoint(&self, propose: impl FnOnce(Term, Vec<DueCheckpoint>)) {
        if let Phase::Leading { term, .. } = self.phase {
            self.clock.checkpoint(term, |due| propose(term, due));
        }
    }
}
