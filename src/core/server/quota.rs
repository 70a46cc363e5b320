use super::core::Core;
use super::error::Failure;
use crate::api_error::ApiError;
use crate::core::apply::exceeds;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{AlarmRequest, AlarmType};

/// Refuses a write that the quota has no room for, and raises the alarm.
///
/// # Errors
/// `NoSpace` when there is no room.
pub async fn check(core: &Core, cost: u64) -> Result<(), Failure> {
    if cost == 0 || !exceeds(core.backend.size_bytes(), cost, core.limits.quota_bytes) {
        return Ok(());
    }
    raise_alarm(core).await?;
    Err(ApiError::NoSpace.into())
}

/// Raises NOSPACE for this member, unless it is raised already.
///
/// # Errors
/// When the alarm could not be replicated.
pub async fn raise_alarm(core: &Core) -> Result<(), Failure> {
    let raised = core.published.alarms.load().list(AlarmType::Nospace);
    if raised.iter().any(|alarm| alarm.member_id == core.member.0) {
        return Ok(());
    }
    let alarm = AlarmRequest {
        action: AlarmAction::Activate as i32,
        member_id: core.member.0,
        alarm: AlarmType::Nospace as i32,
    };
    core.propose(alarm).await?;
    Ok(())
}
