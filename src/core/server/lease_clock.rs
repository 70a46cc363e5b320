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
/// Keys after which a walk over those of all leases lets others in.
const KEYS_VISITED_AT_ONCE: usize = 4096;
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

    /// Shows the keys of all leases, in no order, until `visit` refuses one. Others change leases meanwhile: apply waits for the
    /// keys of a few leases, not for those of all.
    pub(super) fn visit_keys<E>(&self, mut visit: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let ids = self.store.read().with_keys();
        let mut at = 0;
        while at < ids.len() {
            let store = self.store.read();
            let mut visited = 0;
            while visited < KEYS_VISITED_AT_ONCE && at < ids.len() {
                store.keys(ids[at]).try_for_each(&mut visit)?;
                // One that is gone counts as well.
                visited += store.key_count(ids[at]).max(1);
                at += 1;
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::core::lease::LessorConfig;

    // Cause: for a user who may read nearly all keys, `LeaseLeases` held the leases until all were checked, and apply waited.
    #[test]
    fn a_walk_over_the_keys_of_all_leases_lets_others_in() {
        let mut leases = LeaseStore::new(1);
        for id in [1, 2] {
            leases.grant(LeaseId(id), 60).unwrap();
            for key in 0..KEYS_VISITED_AT_ONCE {
                leases.attach(format!("{id}/{key}").as_bytes(), LeaseId(id));
            }
        }
        let lessor = Lessor::new(LessorConfig::default(), leases.all());
        let clock = LeaseClock::new(Arc::new(RwLock::new(leases)), lessor);
        let (store, changed, mut visited) = (&clock.store, &AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            let walked: Result<(), ()> = clock.visit_keys(|_| {
                visited += 1;
                if visited == 1 {
                    scope.spawn(move || {
                        let _held = store.write();
                        changed.store(true, Ordering::Relaxed);
                    });
                    // Until it waits for this walk.
                    while store.try_read().is_some() {
                        std::thread::yield_now();
                    }
                }
                assert!(visited < 2 * KEYS_VISITED_AT_ONCE || changed.load(Ordering::Relaxed));
                Ok(())
            });
            assert_eq!(walked, Ok(()));
        });
        assert_eq!(visited, 2 * KEYS_VISITED_AT_ONCE);
    }
}
