use std::sync::Arc;

use tracing::warn;

use super::caller::Caller;
use super::error::Failure;
use super::proposer::Proposer;
use super::published::Published;
use crate::api_error::ApiError;
use crate::core::apply::exceeds;
use crate::core::backend::Backend;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{AlarmRequest, AlarmType};
use crate::types::MemberId;

/// The space quota of this member, and the NOSPACE alarm for a write that it has no room for.
pub(super) struct SpaceQuota {
    pub(super) member: MemberId,
    pub(super) backend: Backend,
    /// Bytes the state may take; negative for no limit.
    pub(super) quota_bytes: i64,
    pub(super) published: Arc<Published>,
    pub(super) proposer: Arc<Proposer>,
}

impl SpaceQuota {
    /// Refuses a write that the quota has no room for, and raises the alarm.
    ///
    /// # Errors
    /// `NoSpace` when there is no room.
    pub(super) async fn check(&self, cost: u64) -> Result<(), Failure> {
        if cost == 0 || !exceeds(self.backend.size_bytes(), cost, self.quota_bytes) {
            return Ok(());
        }
        if let Err(error) = self.raise_alarm().await {
            // The write was not passed on, whatever became of the alarm: its caller must not take it for one of unknown outcome.
            warn!(%error, "NOSPACE alarm not raised");
        }
        Err(ApiError::NoSpace.into())
    }

    /// Raises NOSPACE for this member, unless it is raised already.
    ///
    /// # Errors
    /// When the alarm could not be replicated.
    pub(super) async fn raise_alarm(&self) -> Result<(), Failure> {
        let raised = self.published.alarms().list(AlarmType::Nospace);
        if raised.iter().any(|alarm| alarm.member_id == self.member.0) {
            return Ok(());
        }
        let alarm = AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id: self.member.0,
            alarm: AlarmType::Nospace as i32,
        };
        self.proposer.propose(&Caller::Member, alarm).await?;
        Ok(())
    }
}
