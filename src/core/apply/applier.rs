use std::sync::Arc;

use parking_lot::RwLock;

use super::cost::exceeds;
use super::operation::{Applied, CompactionInForce, GrantedLease, Login, Operation};
use super::outcome::{ApplyError, Outcome};
use super::permission::check_operation;
use crate::core::alarm::AlarmStore;
use crate::core::auth::{AuthError, AuthFact, AuthStore, Identity};
use crate::core::backend::{Backend, Change, ChangeSet, LogPosition, Prepared, Table};
use crate::core::cluster::{ClusterRows, ClusterStore, MembersAction};
use crate::core::lease::{Lease, LeaseError, LeaseStore};
use crate::core::mvcc::{
    Compaction, LeaseMove, LeaseView, MvccError, OperationCounts, Progress, RevisionEvents, Store, Written,
};
use crate::core::raft::{ChangeKind, Committed, CommittedKind, MembersDecision, ProposedChange};
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, LeaseCheckpointRequest, LeaseGrantRequest,
    LeaseRevokeRequest, RequestHeader,
};
use crate::types::{LeaseId, LogIndex, MemberId, Revision};

/// What apply decides by, the same on every member.
#[derive(Clone, Debug)]
pub struct ApplierConfig {
    /// Bytes the state may take; negative for no limit.
    pub quota_bytes: i64,
}

/// What happened to a lease, for those who keep its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseFact {
    /// It exists now.
    Granted(Lease),
    /// It is gone.
    Revoked(LeaseId),
    /// What the next leader goes by was noted; 0 for the whole time.
    Checkpointed {
        /// The lease.
        lease: LeaseId,
        /// Seconds left.
        remaining_ttl: i64,
    },
}

/// What a batch of entries brought about; the task around the applier passes it on after publishing.
#[derive(Default)]
pub struct Batch {
    /// Outcomes by request id, for whoever waits on this member.
    pub outcomes: Vec<(u64, Outcome)>,
    /// Events in revision order.
    pub events: Vec<RevisionEvents>,
    /// Leases granted, revoked and checkpointed, in order.
    pub lease_facts: Vec<LeaseFact>,
    /// Compactions that took effect; their removals go on in the background.
    pub compactions: Vec<Compaction>,
    /// Alarms or members changed.
    pub records_changed: bool,
    /// Users, roles or the auth flag changed.
    pub auth_changed: bool,
    /// What that, and logins, mean for tokens.
    pub auth_facts: Vec<AuthFact>,
    /// Which membership changes take effect; consensus follows.
    pub decisions: Vec<MembersDecision>,
    /// A write took effect that the quota had no room for.
    pub over_quota: bool,
    /// What was done in the store, for metrics.
    pub operations: OperationCounts,
}

/// A request that was applied, for metrics and logs.
#[derive(Clone, Debug, PartialEq)]
pub struct AppliedRequest {
    /// Its id.
    pub id: u64,
    /// What it asked for.
    pub operation: Operation,
    /// Whether it took effect, or was too late as compactions often are.
    pub success: bool,
}

/// The writable side of all state rooms.
pub struct Applier {
    store: Store,
    leases: Arc<RwLock<LeaseStore>>,
    cluster: ClusterStore,
    alarms: AlarmStore,
    auth: AuthStore,
    backend: Backend,
    config: ApplierConfig,
    /// The last entry applied.
    position: LogPosition,
}

impl LeaseView for RwLock<LeaseStore> {
    fn exists(&self, id: LeaseId) -> bool {
        self.read().exists(id)
    }
}

impl Applier {
    /// Takes over recovered state.
    pub fn new(
        store: Store,
        leases: Arc<RwLock<LeaseStore>>,
        cluster: ClusterStore,
        alarms: AlarmStore,
        auth: AuthStore,
        backend: Backend,
        config: ApplierConfig,
    ) -> Self {
        let position = backend.durable();
        Self { store, leases, cluster, alarms, auth, backend, config, position }
    }

    /// The store, for publishing and for slices of a compaction.
    pub fn store(&mut self) -> &mut Store {
        &mut self.store
    }

    /// Members and cluster version.
    pub fn cluster(&self) -> &ClusterStore {
        &self.cluster
    }

    /// Raised alarms.
    pub fn alarms(&self) -> &AlarmStore {
        &self.alarms
    }

    /// Users and roles.
    pub fn auth(&self) -> &AuthStore {
        &self.auth
    }

    /// What exists, with attached keys.
    pub fn leases(&self) -> Vec<Lease> {
        self.leases.read().all()
    }

    /// Puts a prepared state in the place of the present one, with its leases, users and members. Readers of the store see the
    /// old one until the caller publishes.
    ///
    /// # Errors
    /// The new state cannot be put in place or read; the member must stop.
    pub fn install(&mut self, prepared: Prepared) -> Result<(), ApplyError> {
        self.backend.install(prepared)?;
        let members = self.backend.rows(Table::Members)?;
        let removed = self.backend.rows(Table::MembersRemoved)?;
        let cluster = self.backend.rows(Table::Cluster)?;
        self.cluster = ClusterStore::open(ClusterRows { members: &members, removed: &removed, cluster: &cluster })?;
        self.alarms = AlarmStore::open(&self.backend.rows(Table::Alarm)?);
        self.auth = AuthStore::open(&self.backend)?;
        self.store.restore(self.backend.clone())?;
        let min_ttl = self.leases.read().min_ttl();
        let leases = open_leases(&self.backend, &self.store, min_ttl)?;
        *self.leases.write() = leases;
        self.position = self.backend.durable();
        Ok(())
    }

    /// Position of the last entry applied.
    pub fn position(&self) -> LogPosition {
        self.position
    }

    /// Removes the next part of what a compaction forgets; tells how far it got.
    pub fn compaction_slice(&mut self, compaction: &mut Compaction, records: usize) -> Progress {
        fail::fail_point!("compactAfterAcquiredBatchTxLock");
        let (progress, changes) = self.store.compaction_slice(compaction, records);
        if progress == Progress::Done {
            fail::fail_point!("compactBeforeSetFinishedCompact");
        }
        if !changes.is_empty() {
            self.backend.submit(ChangeSet { position: self.position, changes });
        }
        progress
    }

    /// Applies one entry; tells what it asked for, if it was a request.
    ///
    /// # Errors
    /// Only fatal ones: the state can no longer be trusted and the member must stop. Refusals are outcomes.
    pub fn apply(&mut self, entry: Committed, batch: &mut Batch) -> Result<Option<AppliedRequest>, ApplyError> {
        let position = entry.position();
        let mut applied = None;
        let mut changes = Vec::new();
        match entry.kind {
            CommittedKind::Empty => {}
            CommittedKind::Members(change) => {
                fail::fail_point!("beforeApplyOneConfChange");
                let outcome = self.change_members(&change, &mut changes);
                batch.decisions.push(MembersDecision { index: entry.index, accepted: outcome.is_ok() });
                batch.records_changed |= outcome.is_ok();
                batch.outcomes.push((change.request, outcome));
            }
            CommittedKind::Request(data) => match Operation::decode(data) {
                Ok((id, header, operation)) => {
                    let cost = operation.cost_bytes();
                    let roomy = cost == 0 || !exceeds(self.backend.size_bytes(), cost, self.config.quota_bytes);
                    let mut outcome = self
                        .admit(&operation, header.as_ref())
                        .and_then(|()| self.apply_operation(&operation, entry.index, &mut changes, batch));
                    if !roomy && outcome.is_ok() {
                        batch.over_quota = true;
                        outcome = Err(ApplyError::NoSpace);
                    }
                    if let Err(ApplyError::Mvcc(error)) = &outcome
                        && error.is_fatal()
                    {
                        return outcome.map(|_| None);
                    }
                    let success = matches!(outcome, Ok(_) | Err(ApplyError::Mvcc(MvccError::Compacted { .. })));
                    applied = Some(AppliedRequest { id, operation, success });
                    batch.outcomes.push((id, outcome));
                }
                // The log is checked before this: an unreadable request was proposed that way, and every member
                // passes over it alike.
                Err(error) => tracing::error!(index = %entry.index, %error, "request in the log is unreadable"),
            },
        }
        self.position = position;
        self.backend.submit(ChangeSet { position, changes });
        Ok(applied)
    }

    /// Decides on a membership change, and answers with the members there are then.
    fn change_members(&mut self, change: &ProposedChange, changes: &mut Vec<Change>) -> Outcome {
        let action = MembersAction::from(change.kind);
        let member = change.member;
        match self.cluster.decide(action, member, &change.context) {
            Ok(rows) => {
                tracing::info!(%member, ?action, "membership changed");
                changes.extend(rows);
                changes.push(self.cluster.conf_state_row());
                Ok(Applied::Members(self.cluster.members().cloned().collect()))
            }
            Err(error) => {
                tracing::warn!(%member, ?action, %error, "membership change refused");
                Err(error.into())
            }
        }
    }

    /// What is checked before an operation: alarms, then permissions.
    fn admit(&self, operation: &Operation, header: Option<&RequestHeader>) -> Result<(), ApplyError> {
        self.check_alarms(operation)?;
        let auth = self.auth.state();
        if !auth.is_enabled() {
            return Ok(());
        }
        let who = header.map_or_else(Identity::default, |header| Identity {
            user: header.username.as_str().into(),
            revision: header.auth_revision,
        });
        Ok(check_operation(auth, &who, &self.leases.read(), operation)?)
    }

    fn apply_operation(
        &mut self,
        operation: &Operation,
        index: LogIndex,
        changes: &mut Vec<Change>,
        batch: &mut Batch,
    ) -> Outcome {
        match operation {
            Operation::Put(put) => {
                let written = self.store.put(put, self.leases.as_ref())?;
                Ok(Applied::Put(self.written(written, changes, batch)))
            }
            Operation::DeleteRange(delete) => {
                let written = self.store.delete_range(delete)?;
                Ok(Applied::DeleteRange(self.written(written, changes, batch)))
            }
            Operation::Txn(txn) => {
                let written = self.store.txn(txn, self.leases.as_ref())?;
                Ok(Applied::Txn(self.written(written, changes, batch)))
            }
            Operation::Compaction(compaction) => self.compact(compaction, changes, batch),
            Operation::LeaseGrant(grant) => self.grant(grant, changes, batch),
            Operation::LeaseRevoke(revoke) => self.revoke(revoke, changes, batch),
            Operation::LeaseCheckpoint(checkpoint) => self.checkpoint(checkpoint, changes, batch),
            Operation::Alarm(alarm) => {
                batch.records_changed = true;
                Ok(Applied::Alarm(self.alarm(alarm, changes)))
            }
            Operation::ClusterMemberAttrSet(set) => {
                let attributes = set.member_attributes.clone().unwrap_or_default();
                changes.extend(self.cluster.set_attributes(MemberId(set.member_id), &attributes));
                batch.records_changed = true;
                Ok(Applied::ClusterMemberAttrSet(()))
            }
            Operation::ClusterVersionSet(version) => {
                changes.extend(self.cluster.set_version(&version.ver));
                batch.records_changed = true;
                Ok(Applied::ClusterVersionSet(()))
            }
            Operation::DowngradeInfoSet(set) => {
                changes.push(self.cluster.set_downgrade(Some(set.ver.as_str()).filter(|_| set.enabled)));
                batch.records_changed = true;
                Ok(Applied::DowngradeInfoSet(()))
            }
            Operation::Authenticate(request) => {
                let identity = self.auth.authenticate(request, index, &mut batch.auth_facts)?;
                Ok(Applied::Authenticate(Login { identity, index }))
            }
            Operation::Unknown => Err(ApplyError::Unknown),
            change => {
                let (rows, applied) = self.change_auth(change, &mut batch.auth_facts)?;
                batch.auth_changed |= !rows.is_empty();
                changes.extend(rows);
                Ok(applied)
            }
        }
    }

    /// Changes users, roles or the auth flag.
    fn change_auth(
        &mut self,
        operation: &Operation,
        facts: &mut Vec<AuthFact>,
    ) -> Result<(Vec<Change>, Applied), ApplyError> {
        let auth = &mut self.auth;
        macro_rules! changed {
            ($kind:ident, $rows:expr) => {{
                let rows: Result<Vec<Change>, AuthError> = $rows;
                Ok((rows?, Applied::$kind(())))
            }};
        }
        match operation {
            Operation::AuthEnable(_) => changed!(AuthEnable, auth.enable()),
            Operation::AuthDisable(_) => changed!(AuthDisable, Ok(auth.disable(facts))),
            Operation::AuthUserAdd(request) => changed!(AuthUserAdd, auth.user_add(request)),
            Operation::AuthUserDelete(request) => changed!(AuthUserDelete, auth.user_delete(request, facts)),
            Operation::AuthUserChangePassword(request) => {
                changed!(AuthUserChangePassword, auth.user_change_password(request, facts))
            }
            Operation::AuthUserGrantRole(request) => changed!(AuthUserGrantRole, auth.user_grant_role(request)),
            Operation::AuthUserRevokeRole(request) => changed!(AuthUserRevokeRole, auth.user_revoke_role(request)),
            Operation::AuthRoleAdd(request) => changed!(AuthRoleAdd, auth.role_add(request)),
            Operation::AuthRoleDelete(request) => changed!(AuthRoleDelete, auth.role_delete(request)),
            Operation::AuthRoleGrantPermission(request) => {
                changed!(AuthRoleGrantPermission, auth.role_grant_permission(request))
            }
            Operation::AuthRoleRevokePermission(request) => {
                changed!(AuthRoleRevokePermission, auth.role_revoke_permission(request))
            }
            _ => Err(ApplyError::Unknown),
        }
    }

    /// Raised alarms refuse writes here, in log order, so that members cannot disagree.
    fn check_alarms(&self, operation: &Operation) -> Result<(), ApplyError> {
        if operation.is_write() && self.alarms.is_raised(AlarmType::Corrupt) {
            return Err(ApplyError::Corrupt);
        }
        if operation.cost_bytes() > 0 && self.alarms.is_raised(AlarmType::Nospace) {
            return Err(ApplyError::NoSpace);
        }
        Ok(())
    }

    /// Passes on what the store wrote; returns its answer.
    fn written<R>(&mut self, written: Written<R>, changes: &mut Vec<Change>, batch: &mut Batch) -> R {
        changes.extend(written.changes);
        batch.events.extend(written.events);
        batch.operations.add(&written.operations);
        self.move_keys(&written.lease_moves);
        written.response
    }

    fn move_keys(&mut self, moves: &[LeaseMove]) {
        if moves.is_empty() {
            return;
        }
        let mut leases = self.leases.write();
        for moved in moves {
            leases.move_key(&moved.key, moved.from, moved.to);
        }
    }

    fn compact(&mut self, request: &CompactionRequest, changes: &mut Vec<Change>, batch: &mut Batch) -> Outcome {
        let at = Revision(request.revision);
        let written = self.store.compact(at)?;
        changes.extend(written.changes);
        batch.compactions.push(written.response);
        Ok(Applied::Compaction(CompactionInForce { revision: self.store.revision(), at }))
    }

    fn grant(&mut self, request: &LeaseGrantRequest, changes: &mut Vec<Change>, batch: &mut Batch) -> Outcome {
        let id = LeaseId(request.id);
        let granted = self.leases.write().grant(id, request.ttl)?;
        changes.push(granted.change);
        batch.lease_facts.push(LeaseFact::Granted(granted.lease));
        let (ttl, revision) = (granted.lease.granted_ttl, self.store.revision());
        Ok(Applied::LeaseGrant(GrantedLease { id, ttl, revision }))
    }

    fn revoke(&mut self, request: &LeaseRevokeRequest, changes: &mut Vec<Change>, batch: &mut Batch) -> Outcome {
        let id = LeaseId(request.id);
        let revoked = self.leases.write().revoke(id)?;
        changes.push(revoked.change);
        let written = self.store.delete_keys(&revoked.keys);
        self.written(written, changes, batch);
        batch.lease_facts.push(LeaseFact::Revoked(id));
        Ok(Applied::LeaseRevoke(self.store.revision()))
    }

    fn checkpoint(
        &mut self,
        request: &LeaseCheckpointRequest,
        changes: &mut Vec<Change>,
        batch: &mut Batch,
    ) -> Outcome {
        let mut leases = self.leases.write();
        for noted in &request.checkpoints {
            let (lease, remaining_ttl) = (LeaseId(noted.id), noted.remaining_ttl.max(0));
            if let Some(change) = leases.checkpoint(lease, remaining_ttl) {
                changes.push(change);
                batch.lease_facts.push(LeaseFact::Checkpointed { lease, remaining_ttl });
            }
        }
        Ok(Applied::LeaseCheckpoint(()))
    }

    fn alarm(&mut self, request: &AlarmRequest, changes: &mut Vec<Change>) -> Vec<AlarmMember> {
        let member = MemberId(request.member_id);
        let Ok(kind) = AlarmType::try_from(request.alarm) else { return Vec::new() };
        let affected = vec![AlarmMember { member_id: member.0, alarm: kind as i32 }];
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => self.alarms.list(kind),
            Ok(AlarmAction::Activate) if kind == AlarmType::None => Vec::new(),
            Ok(AlarmAction::Activate) => {
                changes.extend(self.alarms.activate(kind, member));
                affected
            }
            Ok(AlarmAction::Deactivate) => match self.alarms.deactivate(kind, member) {
                Some(row) => {
                    changes.push(row);
                    affected
                }
                None => Vec::new(),
            },
            Err(_) => Vec::new(),
        }
    }
}

/// Consensus and the members each have their own word for it, and neither room names the other.
impl From<ChangeKind> for MembersAction {
    fn from(kind: ChangeKind) -> Self {
        match kind {
            ChangeKind::AddVoter => Self::AddVoter,
            ChangeKind::AddLearner => Self::AddLearner,
            ChangeKind::Remove => Self::Remove,
            ChangeKind::Update => Self::Update,
        }
    }
}

/// The leases in a backend's rows, with the keys of the store that hang on them.
///
/// # Errors
/// Rows that cannot be read.
pub fn open_leases(backend: &Backend, store: &Store, min_ttl_seconds: i64) -> Result<LeaseStore, LeaseError> {
    let mut leases = LeaseStore::open(backend, min_ttl_seconds)?;
    for (key, lease) in store.leased_keys() {
        leases.attach(key, lease);
    }
    Ok(leases)
}
