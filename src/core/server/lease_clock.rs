use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::core::apply::LeaseFact;
use crate::core::lease::{DueCheckpoint, Lease, LeaseStore, Lessor, RenewError, Renewed};
use crate::pb::etcdserverpb::{LeaseCheckpoint, LeaseCheckpointRequest};
use crate::types::{LeaseId, Term};

/// Leases recorded by one log entry, and per look.
pub(super) const CHECKPOINTS_MAX: usize = 1000;
/// Leases as the services see them: what apply knows, and the leader's deadlines.
///
/// Time enters here and nowhere deeper, from the monotonic clock.
///
/// Three rules keep a lease from ending early, whoever leads:
/// 1. Deadlines begin once everything that earlier leaders committed is applied. What they revoked is gone by then.
/// 2. What a leader decides by its deadlines (revocations, checkpoints) enters the log in its own term or never, so
///    it cannot meet a renewal that a later leader has confirmed.
/// 3. A renewal counts only if the leadership was confirmed after the request came in. A later leader begins its
///    deadlines after that, with the time that the log says: all of it, since a checkpoint is cleared in the log
///    before the renewal is answered.
pub struct LeaseClock {
    /// What exists, with attached keys. Changed by apply only.
    pub store: Arc<RwLock<LeaseStore>>,
    deadlines: Mutex<Deadlines>,
    now: Now,
    /// Counts revocations, for those who wait for one.
    revoked: watch::Sender<u64>,
    /// The term whose leader this member is, once its deadlines have begun.
    leading: watch::Sender<Option<Term>>,
}

/// Time since any fixed moment; never decreases.
pub type Now = Box<dyn Fn() -> Duration + Send + Sync>;

struct Deadlines {
    lessor: Lessor,
    /// As in [`LeaseClock::leading`]; changed together with the lessor.
    term: Option<Term>,
}

impl LeaseClock {
    /// Starts the clock over leases that exist already; deadlines begin with [`promote`](Self::promote).
    pub fn new(store: Arc<RwLock<LeaseStore>>, lessor: Lessor) -> Self {
        let started = Instant::now();
        Self::with_time(store, lessor, Box::new(move || started.elapsed()))
    }

    /// Like [`new`](Self::new), with another clock than the process's monotonic one.
    pub fn with_time(store: Arc<RwLock<LeaseStore>>, lessor: Lessor, now: Now) -> Self {
        Self {
            store,
            deadlines: Mutex::new(Deadlines { lessor, term: None }),
            now,
            revoked: watch::channel(0).0,
            leading: watch::channel(None).0,
        }
    }

    fn now(&self) -> Duration {
        (self.now)()
    }

    /// This member leads in `term`: every lease gets the time the log says, plus `extend` for the time without a
    /// leader.
    pub fn promote(&self, term: Term, extend: Duration) {
        let mut deadlines = self.deadlines.lock();
        deadlines.lessor.promote(self.now(), extend);
        deadlines.term = Some(term);
        drop(deadlines);
        self.leading.send_replace(Some(term));
    }

    /// This member leads no more.
    pub fn demote(&self) {
        let mut deadlines = self.deadlines.lock();
        deadlines.lessor.demote();
        deadlines.term = None;
        drop(deadlines);
        self.leading.send_replace(None);
    }

    /// The term this member leads in and keeps deadlines for.
    pub fn leading(&self) -> watch::Receiver<Option<Term>> {
        self.leading.subscribe()
    }

    /// The state was replaced as a whole: begins anew with the leases it holds. This member does not lead.
    pub fn replace(&self, leases: Vec<Lease>) {
        let mut deadlines = self.deadlines.lock();
        *deadlines = Deadlines { lessor: Lessor::new(deadlines.lessor.config(), leases), term: None };
        drop(deadlines);
        self.leading.send_replace(None);
        self.revoked.send_modify(|count| *count += 1);
    }

    /// Takes over what apply did to leases.
    pub fn apply_facts(&self, facts: &[LeaseFact]) {
        if facts.is_empty() {
            return;
        }
        let now = self.now();
        let mut revoked = false;
        let mut deadlines = self.deadlines.lock();
        for fact in facts {
            match *fact {
                LeaseFact::Granted(lease) => deadlines.lessor.granted(lease, now),
                LeaseFact::Revoked(id) => {
                    deadlines.lessor.revoked(id);
                    revoked = true;
                }
                LeaseFact::Checkpointed { lease, remaining_ttl } => {
                    deadlines.lessor.checkpointed(lease, remaining_ttl);
                }
            }
        }
        drop(deadlines);
        if revoked {
            self.revoked.send_modify(|count| *count += 1);
        }
    }

    /// Gives leases their full time again, as the leader of `term`. The caller has confirmed that leadership since
    /// the requests came in, and clears the checkpoints it is told of before it answers.
    ///
    /// # Errors
    /// For all of them: this member does not keep deadlines for `term`. For one: see [`RenewError`].
    pub fn renew(&self, ids: &[LeaseId], term: Term) -> Result<Vec<Result<Renewed, RenewError>>, RenewError> {
        let mut deadlines = self.deadlines.lock();
        if deadlines.term != Some(term) {
            return Err(RenewError::NotPrimary);
        }
        let now = self.now();
        Ok(ids.iter().map(|&id| deadlines.lessor.renew(id, now)).collect())
    }

    /// Time left under the leader of `term`; none for an unknown lease.
    ///
    /// # Errors
    /// This member does not keep deadlines for `term`.
    pub fn remaining(&self, id: LeaseId, term: Term) -> Result<Option<Duration>, RenewError> {
        let deadlines = self.deadlines.lock();
        if deadlines.term != Some(term) {
            return Err(RenewError::NotPrimary);
        }
        Ok(deadlines.lessor.remaining(id, self.now()))
    }

    /// How many leases there are.
    pub fn count(&self) -> usize {
        self.store.read().len()
    }

    /// All leases, the next to expire first.
    pub fn by_remaining_time(&self) -> Vec<LeaseId> {
        // Sorted without the lock: renewals wait for it.
        let leases = self.deadlines.lock().lessor.leases();
        leases.by_remaining()
    }

    /// Changes whenever a lease is revoked.
    pub fn revocations(&self) -> watch::Receiver<u64> {
        self.revoked.subscribe()
    }

    /// Completes when a lease is no longer in the store: the revocation of one that has run out is applied.
    pub async fn gone(&self, id: LeaseId) {
        let mut revocations = self.revocations();
        while self.store.read().exists(id) {
            if revocations.changed().await.is_err() {
                return;
            }
        }
    }

    pub(super) fn expired(&self, term: Term, max: usize) -> Vec<LeaseId> {
        let mut deadlines = self.deadlines.lock();
        if deadlines.term == Some(term) { deadlines.lessor.expired(self.now(), max) } else { Vec::new() }
    }

    /// Hands what is left of long leases to `propose`, which must not wait: no renewal comes between the look and the
    /// proposal, so that clearing a checkpoint is always proposed after the checkpoint.
    pub(super) fn checkpoint(&self, term: Term, propose: impl FnOnce(Vec<DueCheckpoint>)) {
        let mut deadlines = self.deadlines.lock();
        if deadlines.term != Some(term) {
            return;
        }
        let due = deadlines.lessor.due_checkpoints(self.now(), CHECKPOINTS_MAX);
        if !due.is_empty() {
            propose(due);
        }
    }
}

/// A proposal that records what is left of leases.
pub fn checkpoint_request(noted: impl IntoIterator<Item = (LeaseId, i64)>) -> LeaseCheckpointRequest {
    let checkpoints =
        noted.into_iter().map(|(lease, remaining_ttl)| LeaseCheckpoint { id: lease.0, remaining_ttl }).collect();
    LeaseCheckpointRequest { checkpoints }
}
