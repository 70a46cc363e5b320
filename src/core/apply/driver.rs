use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::applier::{AppliedRequest, Applier, Batch, LeaseFact};
use super::outcome::ApplyError;
use super::pending_requests::SharedPendingRequests;
use super::prepared_snapshots::PreparedSnapshots;
use crate::core::alarm::AlarmStore;
use crate::core::auth::{AuthFact, AuthState};
use crate::core::cluster::ClusterStore;
use crate::core::mvcc::{Compaction, CompactionHash, OperationCounts, Progress, RevisionEvents};
use crate::core::raft::{Committed, MembersDecision, PlantedFault, is_planted};
use crate::types::{LogIndex, LogPosition, Revision};

/// Entries applied before their outcomes are published; bounds what one answer waits for.
pub(super) const BATCH_MAX: usize = 512;

/// Receives what apply has done, for each batch in the order of these methods. All return at once.
pub trait ApplyObserver {
    /// A request of the log was applied, and is published with the rest of its batch; `took` is the time since the one
    /// before.
    fn applied_request(&mut self, applied: &AppliedRequest, took: Duration);
    /// What the batch did in the store.
    fn operations(&mut self, counts: &OperationCounts);
    /// Events, in revision order; readers can see their revisions already.
    fn events(&mut self, events: Vec<RevisionEvents>);
    /// Leases granted and revoked.
    fn leases(&mut self, facts: &[LeaseFact]);
    /// Which membership changes take effect, in log order.
    fn members_decided(&mut self, decisions: Vec<MembersDecision>);
    /// Alarms or members changed.
    fn records(&mut self, cluster: &ClusterStore, alarms: &AlarmStore);
    /// Users, roles or the auth flag changed, or a user logged in.
    fn auth(&mut self, _state: &Arc<AuthState>, _facts: Vec<AuthFact>) {}
    /// A snapshot is about to replace the state that readers see: its users and roles hold from now on.
    fn installing(&mut self, _applier: &Applier) {}
    /// A snapshot replaced the state, and readers can see it: whatever was derived from the old one is out of date.
    fn installed(&mut self, applier: &Applier);
    /// Everything up to here is published.
    fn applied(&mut self, index: LogIndex);
    /// A write was applied although it exceeds the quota.
    fn over_quota(&mut self);
    /// A slice of a compaction held entries up for so long.
    fn compaction_slice(&mut self, took: Duration);
    /// A compaction is finished: how many records it removed, and how long that took in all.
    fn compacted(&mut self, records: usize, took: Duration);
    /// The state can no longer be trusted; nothing is applied after this call.
    fn failed(&mut self, reason: String);
}

/// Progress of apply. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ApplyHandle {
    applied: watch::Receiver<LogIndex>,
    compaction: watch::Receiver<Revision>,
}

impl ApplyHandle {
    /// Up to where the state is published.
    pub fn applied(&self) -> LogIndex {
        *self.applied.borrow()
    }

    /// Changes of [`applied`](Self::applied).
    pub fn progress(&self) -> watch::Receiver<LogIndex> {
        self.applied.clone()
    }

    /// Up to where physical compaction is finished.
    pub fn compaction(&self) -> watch::Receiver<Revision> {
        self.compaction.clone()
    }
}

/// Publishes progress to those who wait. Made before the driver, since the server has to know the handle first.
pub struct ApplyProgress {
    applied: watch::Sender<LogIndex>,
    compaction: watch::Sender<Revision>,
    pending: Arc<SharedPendingRequests>,
}

impl ApplyProgress {
    /// For a state that is published up to `applied` already, with no waiting requests but those in
    /// `pending`.
    pub fn new(pending: Arc<SharedPendingRequests>, applied: LogIndex) -> (Self, ApplyHandle) {
        let (applied, applied_seen) = watch::channel(applied);
        let (compaction, compaction_seen) = watch::channel(Revision(0));
        (Self { applied, compaction, pending }, ApplyHandle { applied: applied_seen, compaction: compaction_seen })
    }
}

/// What the apply thread does, without its queue and its clock.
///
/// Invariants: a batch is published, then passed to the observer, then answered, so that a client that is told of a write can
/// read it. After a
/// snapshot nothing of the old state goes on, its compactions neither. What waits for the disk or reads all rows is handed
/// out.
pub struct ApplyDriver<O> {
    applier: Applier,
    observer: O,
    progress: ApplyProgress,
    prepared_snapshots: Arc<PreparedSnapshots>,
    /// The one whose rows are being removed, and the newest that waits for its end.
    compactions: VecDeque<Compaction>,
    /// When the first slice of the oldest compaction was due.
    compacting_since: Option<Instant>,
}

impl<O: ApplyObserver> ApplyDriver<O> {
    /// Takes over a state, with the compaction that an earlier process did not finish.
    pub fn new(
        mut applier: Applier,
        observer: O,
        progress: ApplyProgress,
        prepared_snapshots: Arc<PreparedSnapshots>,
    ) -> Self {
        let compactions = applier.store().take_unfinished_compaction().into_iter().collect();
        Self { applier, observer, progress, prepared_snapshots, compactions, compacting_since: None }
    }

    /// The state.
    pub fn applier(&self) -> &Applier {
        &self.applier
    }

    /// The state can no longer be trusted.
    pub fn fail(&mut self, reason: String) {
        self.observer.failed(reason);
    }

    /// Applies the first of these entries as one batch, as many as one may hold, and leaves the others. A change of users,
    /// roles or the auth flag ends a batch: the store is published before them, and nobody may read by the old ones what was
    /// written behind the change.
    ///
    /// # Errors
    /// Only fatal ones: the member must stop.
    pub fn apply(&mut self, waiting: &mut VecDeque<Committed>) -> Result<(), ApplyError> {
        let mut batch = Batch::default();
        let mut began = Instant::now();
        for _ in 0..BATCH_MAX {
            let Some(entry) = waiting.pop_front() else { break };
            let applied = self.applier.apply(entry, &mut batch)?;
            let now = Instant::now();
            if let Some(applied) = applied {
                self.observer.applied_request(&applied, now - began);
            }
            began = now;
            if batch.auth_changed {
                break;
            }
        }
        self.release(batch);
        Ok(())
    }

    /// Publishes, then calls the observer, then answers.
    fn release(&mut self, batch: Batch) {
        let reached = self.applier.position();
        self.applier.store().publish();
        self.observer.operations(&batch.operations);
        if !batch.events.is_empty() {
            self.observer.events(batch.events);
        }
        self.observer.leases(&batch.lease_facts);
        if !batch.decisions.is_empty() {
            self.observer.members_decided(batch.decisions);
        }
        if batch.records_changed {
            self.observer.records(self.applier.cluster(), self.applier.alarms());
        }
        if batch.auth_changed || !batch.auth_facts.is_empty() {
            self.observer.auth(self.applier.auth().state(), batch.auth_facts);
        }
        self.observer.applied(reached.index);
        self.progress.applied.send_replace(reached.index);
        self.progress.pending.resolve(batch.outcomes, reached.term);
        if batch.over_quota {
            self.observer.over_quota();
        }
        for compaction in batch.compactions {
            // One that waits behind the first is part of every later one, and keeps the state before it in memory.
            self.compactions.truncate(1);
            self.compactions.push_back(compaction);
        }
    }

    /// Replaces the state by a prepared snapshot.
    ///
    /// # Errors
    /// It is not there, or not usable: the member must stop.
    pub fn install(&mut self, position: LogPosition) -> Result<(), ApplyError> {
        let prepared = self.prepared_snapshots.take(position).ok_or(ApplyError::NoDbSnapshot(position.index))?;
        self.applier.install(prepared)?;
        // In this order: nobody may read by the old users and roles what was written behind a change of them.
        self.observer.installing(&self.applier);
        self.applier.store().publish();
        if !is_planted(PlantedFault::CompactionOverSnapshot) {
            // What the old state was about to remove is gone with it.
            self.compacting_since = None;
            self.compactions = self.applier.store().take_unfinished_compaction().into_iter().collect();
            if self.compactions.is_empty() {
                // The new state is through with its compactions; somebody may wait for one of the old state.
                self.progress.compaction.send_replace(self.applier.store().compacted());
            }
        }
        self.observer.installed(&self.applier);
        self.observer.applied(position.index);
        self.progress.applied.send_replace(position.index);
        self.progress.pending.installed(position.term);
        Ok(())
    }

    /// Whether slices of a compaction are left.
    pub fn is_compacting(&self) -> bool {
        !self.compactions.is_empty()
    }

    /// One slice of the oldest compaction that is not finished: so many records. `run` is given what reads all rows for the
    /// hash, once for each compaction; until that is done the store holds the rows back.
    pub fn compact_slice(&mut self, records: usize, run: impl FnOnce(CompactionHash)) {
        let Some(compaction) = self.compactions.front_mut() else { return };
        if let Some(hash) = compaction.take_hash(self.applier.store()) {
            run(hash);
        }
        let at = compaction.revision();
        let began = Instant::now();
        let compacting_since = *self.compacting_since.get_or_insert(began);
        let progress = self.applier.compaction_slice(compaction, records);
        self.observer.compaction_slice(began.elapsed());
        if progress == Progress::Done {
            let removed = compaction.removed();
            tracing::info!(revision = %at, removed, "finished scheduled compaction");
            self.observer.compacted(removed, compacting_since.elapsed());
            self.compacting_since = None;
            self.compactions.pop_front();
            self.progress.compaction.send_replace(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TestObserver, applier, compaction, entries, put};
    use super::*;
    use crate::core::backend::Backend;
    use crate::pb::authpb::UserAddOptions;
    use crate::pb::etcdserverpb::{AuthUserAddRequest, InternalRaftRequest, LeaseGrantRequest};
    use crate::types::Term;

    /// A member that has applied nothing.
    fn member(prepared: &Arc<PreparedSnapshots>) -> (Backend, ApplyDriver<TestObserver>, ApplyHandle) {
        let (backend, applier) = applier();
        let (progress, handle) = ApplyProgress::new(Arc::default(), LogIndex(0));
        (backend, ApplyDriver::new(applier, TestObserver::default(), progress, prepared.clone()), handle)
    }

    /// A member that has applied two puts of one key and a compaction, which has not removed anything yet.
    fn compacting(prepared: &Arc<PreparedSnapshots>) -> (Backend, ApplyDriver<TestObserver>, ApplyHandle) {
        let (backend, mut driver, handle) = member(prepared);
        driver.apply(&mut entries(&[put(), put(), compaction(3)]).into()).unwrap();
        assert!(driver.is_compacting());
        (backend, driver, handle)
    }

    // The store of a whole batch was published before its users and roles: whoever had lost a permission read what was
    // written after that, in the time between the two.
    #[test]
    fn nothing_behind_a_change_of_users_is_published_before_it() {
        let (_backend, mut driver, _handle) = member(&Arc::default());
        let options = Some(UserAddOptions { no_password: true });
        let user = AuthUserAddRequest { name: "alice".to_owned(), options, ..Default::default() };
        let add = InternalRaftRequest { auth_user_add: Some(user), ..Default::default() };
        let reader = driver.applier.store().reader();
        let mut waiting = entries(&[put(), add, put()]).into();
        driver.apply(&mut waiting).unwrap();
        assert_eq!((reader.revision(), waiting.len()), (Revision(2), 1));
        driver.apply(&mut waiting).unwrap();
        assert_eq!((reader.revision(), waiting.len()), (Revision(3), 0));
    }

    // The keys of a snapshot were published before its leases were read, and its users and roles after those: for that time
    // they were read by the permissions of the old state.
    #[test]
    fn a_snapshot_is_published_behind_its_leases_and_users() {
        let prepared = Arc::new(PreparedSnapshots::default());
        let (leaders, mut leader, _at_leader) = member(&Arc::default());
        let (own, mut follower, _at_follower) = member(&prepared);
        let grant = LeaseGrantRequest { id: 7, ttl: 60 };
        let grant = InternalRaftRequest { lease_grant: Some(grant), ..Default::default() };
        leader.apply(&mut entries(&[grant, put()]).into()).unwrap();
        let position = LogPosition { index: LogIndex(9), term: Term(1) };
        prepared.put(own.prepare_copy(&leaders, position));
        let reader = follower.applier.store().reader();
        follower.observer.reader = Some(reader.clone());
        follower.install(position).unwrap();
        assert_eq!(follower.observer.before_snapshot, Some((Revision(1), 1)));
        assert_eq!(reader.revision(), Revision(2));
    }

    // All that waited were kept, each with the state before it, and each walked over all past versions: compactions that came
    // faster than rows are removed took memory without a bound.
    #[test]
    fn of_the_compactions_that_wait_the_newest_is_kept() {
        let (_backend, mut driver, handle) = member(&Arc::default());
        let requests = [put(), put(), put(), put(), compaction(2), compaction(3), compaction(4)];
        driver.apply(&mut entries(&requests).into()).unwrap();
        let mut finished = Vec::new();
        while driver.is_compacting() {
            driver.compact_slice(100, |hash| drop(hash.run()));
            finished.push(*handle.compaction().borrow());
        }
        assert_eq!(finished, [Revision(2), Revision(4)]);
    }

    // `Compact` with `physical` waits for the end of its compaction, which nobody reported once the state that it was about
    // to remove rows from was gone: the call had no end.
    #[test]
    fn a_snapshot_that_is_compacted_ends_the_wait_for_the_compaction() {
        let prepared = Arc::new(PreparedSnapshots::default());
        let (leaders, mut leader, at_leader) = compacting(&Arc::default());
        let (own, mut member, handle) = compacting(&prepared);
        while leader.is_compacting() {
            leader.compact_slice(100, |hash| drop(hash.run()));
        }
        assert_eq!(*at_leader.compaction().borrow(), Revision(3));
        let position = LogPosition { index: LogIndex(9), term: Term(1) };
        prepared.put(own.prepare_copy(&leaders, position));
        assert_eq!(*handle.compaction().borrow(), Revision(0));
        member.install(position).unwrap();
        assert!(!member.is_compacting());
        assert_eq!(*handle.compaction().borrow(), Revision(3));
    }

    #[test]
    fn a_snapshot_that_is_not_compacted_yet_goes_on_with_it() {
        let prepared = Arc::new(PreparedSnapshots::default());
        let (leaders, ..) = compacting(&Arc::default());
        let (own, mut member, handle) = compacting(&prepared);
        let position = LogPosition { index: LogIndex(9), term: Term(1) };
        prepared.put(own.prepare_copy(&leaders, position));
        member.install(position).unwrap();
        assert_eq!(*handle.compaction().borrow(), Revision(0));
        while member.is_compacting() {
            member.compact_slice(100, |hash| drop(hash.run()));
        }
        assert_eq!(*handle.compaction().borrow(), Revision(3));
    }
}
