use std::sync::Arc;

use bytes::Bytes;
use tonic::Status;

use super::cluster::{PROMOTE_CALL, promote_here};
use super::corruption_check::{self, CorruptionCheck};
use super::error::Failure;
use super::lease_leader::{self, MemberLeases};
use super::metrics::CoreMetrics;
use super::published::Published;
use super::reconfigure::MembershipChanges;
use super::version::{VERSION_CALL, versions};
use crate::core::peer::CallFailure;

/// Answers the calls of other members.
pub(super) struct PeerRpc {
    pub(super) leases: Arc<MemberLeases>,
    pub(super) changes: Arc<MembershipChanges>,
    pub(super) published: Arc<Published>,
    pub(super) corruption: Arc<CorruptionCheck>,
    pub(super) metrics: Arc<CoreMetrics>,
}

impl PeerRpc {
    /// Answers a call. Errors keep code and text on their way to the client of the other member.
    ///
    /// Dropping the future is safe: what a call has proposed by then may still commit.
    pub(super) async fn answer(self: Arc<Self>, method: String, body: Bytes) -> Result<Bytes, CallFailure> {
        let outcome = match method.as_str() {
            lease_leader::RENEW | lease_leader::TIME_TO_LIVE => {
                lease_leader::answer(self.leases.as_ref(), &method, body).await
            }
            PROMOTE_CALL => promote_here(&self.changes, &self.metrics, &body).await,
            VERSION_CALL => Ok(Bytes::from(versions(&self.published))),
            corruption_check::STATE_HASH | corruption_check::COMPACTION_HASH => {
                corruption_check::answer(self.corruption.as_ref(), &method, body).await
            }
            _ => Err(Failure::Other(format!("unknown call {method}"))),
        };
        outcome.map_err(|failure| {
            let status = Status::from(failure);
            CallFailure { code: status.code(), text: status.message().to_owned() }
        })
    }
}
