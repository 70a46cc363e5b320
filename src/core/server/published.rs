use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api_error::ApiError;
use crate::core::alarm::AlarmStore;
use crate::core::auth::AuthState;
use crate::core::cluster::ClusterStore;
use crate::pb::etcdserverpb::AlarmType;
use crate::types::MemberId;

/// Alarms, members, users and roles as of the last entry applied. Apply replaces them, all other threads read.
pub struct Published {
    member: MemberId,
    alarms: ArcSwap<AlarmStore>,
    cluster: ArcSwap<ClusterStore>,
    auth: ArcSwap<AuthState>,
    /// A copy, for the look that every request takes.
    auth_enabled: AtomicBool,
    /// Whether a CORRUPT alarm names this member: it serves no clients then.
    corrupt: watch::Sender<bool>,
    /// Cancelled once this member is removed from the cluster.
    removed: CancellationToken,
}

impl Published {
    /// Starts with recovered state.
    pub(super) fn new(member: MemberId, cluster: &ClusterStore, alarms: &AlarmStore) -> Self {
        let published = Self {
            member,
            alarms: ArcSwap::default(),
            cluster: ArcSwap::default(),
            auth: ArcSwap::default(),
            auth_enabled: AtomicBool::new(false),
            corrupt: watch::Sender::new(false),
            removed: CancellationToken::new(),
        };
        published.update(cluster, alarms);
        published
    }

    /// Replaces members and alarms.
    pub(super) fn update(&self, cluster: &ClusterStore, alarms: &AlarmStore) {
        self.cluster.store(Arc::new(cluster.clone()));
        self.alarms.store(Arc::new(alarms.clone()));
        let corrupt = alarms.names(AlarmType::Corrupt, self.member);
        self.corrupt.send_if_modified(|known| std::mem::replace(known, corrupt) != corrupt);
    }

    /// Replaces users and roles.
    pub(super) fn set_auth(&self, auth: Arc<AuthState>) {
        let enabled = auth.is_enabled();
        self.auth.store(auth);
        self.auth_enabled.store(enabled, Ordering::Release);
    }

    /// Whether permissions are checked.
    pub(super) fn auth_is_enabled(&self) -> bool {
        self.auth_enabled.load(Ordering::Acquire)
    }

    /// Users and roles. For a short look: use [`Arc::clone`] on it to keep it across an `.await`.
    pub(super) fn auth(&self) -> Guard<Arc<AuthState>> {
        self.auth.load()
    }

    /// Raised alarms. For a short look: use [`Arc::clone`] on it to keep it across an `.await`.
    pub(super) fn alarms(&self) -> Guard<Arc<AlarmStore>> {
        self.alarms.load()
    }

    /// Members and cluster version. For a short look: use [`Arc::clone`] on it to keep it across an `.await`.
    pub(super) fn cluster(&self) -> Guard<Arc<ClusterStore>> {
        self.cluster.load()
    }

    /// Whether this member is a learner.
    pub(super) fn is_learner(&self) -> bool {
        self.cluster.load().member(self.member).is_some_and(|member| member.is_learner)
    }

    /// Whether a CORRUPT alarm names this member.
    pub(super) fn corrupt(&self) -> watch::Receiver<bool> {
        self.corrupt.subscribe()
    }

    /// Whether clients may have data of this member.
    ///
    /// # Errors
    /// "Corrupt cluster" while a CORRUPT alarm names it.
    pub(super) fn may_serve(&self) -> Result<(), ApiError> {
        if self.alarms.load().names(AlarmType::Corrupt, self.member) { Err(ApiError::Corrupt) } else { Ok(()) }
    }

    /// Cancelled once this member is removed from the cluster.
    pub(super) fn removed(&self) -> &CancellationToken {
        &self.removed
    }
}
