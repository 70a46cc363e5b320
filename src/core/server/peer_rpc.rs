use std::sync::Arc;

use bytes::Bytes;
use tonic::Status;

use super::cluster::{PROMOTE_CALL, promote_here};
use super::core::Core;
use super::error::Failure;
use super::version::{VERSION_CALL, versions};
use super::{corruption_check, lease_leader};
use crate::core::peer::CallFailure;

/// Answers a call of another member. Errors keep code and text on their way to its client.
///
/// Dropping the future is safe: what a call has proposed by then may still commit.
pub async fn answer_peer(core: Arc<Core>, method: String, body: Bytes) -> Result<Bytes, CallFailure> {
    let outcome = match method.as_str() {
        lease_leader::RENEW | lease_leader::TIME_TO_LIVE => lease_leader::answer(core.as_ref(), &method, body).await,
        PROMOTE_CALL => promote_here(&core, &body).await,
        VERSION_CALL => Ok(Bytes::from(versions(&core))),
        corruption_check::STATE_HASH | corruption_check::COMPACTION_HASH => {
            corruption_check::answer(core.as_ref(), &method, body).await
        }
        _ => Err(Failure::Other(format!("unknown call {method}"))),
    };
    outcome.map_err(|failure| {
        let status = Status::from(failure);
        CallFailure { code: status.code(), text: status.message().to_owned() }
    })
}
