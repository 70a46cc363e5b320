use std::time::Instant;

use tracing::info;

use super::core::Core;
use super::error::Failure;
use crate::api_error::ApiError;
use crate::types::MemberId;

/// Hands leadership to a voter and waits until it leads.
///
/// Consensus gives up by itself when the target does not take over within an election timeout, and this member goes on
/// leading; asking again would only keep writes waiting. They wait meanwhile, since consensus would drop them.
///
/// # Errors
/// This member does not lead, the target has no vote, or it does not take over in time.
pub(super) async fn move_leader(core: &Core, target: MemberId) -> Result<(), Failure> {
    let mut status = core.raft.status();
    if !status.borrow().is_leader {
        return Err(ApiError::NotLeader.into());
    }
    if core.published.cluster.load().member(target).is_none_or(|member| member.is_learner) {
        return Err(ApiError::BadLeaderTransferee.into());
    }
    if target == core.member {
        return Ok(());
    }
    let started = Instant::now();
    info!(from = %core.member, to = %target, "leadership transfer starting");
    let held = core.hold_proposals();
    core.raft.transfer_leader(target);
    let timeout = core.limits.election_timeout;
    let other = status.wait_for(|status| status.leader.is_some_and(|leader| leader != core.member));
    let other = tokio::time::timeout(timeout, other).await.is_ok();
    drop(held);
    // A target that has begun an election may still win it, or another member may, before the target does.
    let leads = status.wait_for(|status| status.leader == Some(target));
    match tokio::time::timeout(if other { 2 * timeout } else { timeout }, leads).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) => return Err(ApiError::Stopped.into()),
        Err(_) => return Err(ApiError::TimeoutLeaderTransfer.into()),
    }
    info!(from = %core.member, to = %target, took = ?started.elapsed(), "leadership transfer finished");
    Ok(())
}
