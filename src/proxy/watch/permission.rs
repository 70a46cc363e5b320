use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use super::upstream::Upstream;
use crate::client::Turns;
use crate::pb::etcdserverpb::WatchCreateRequest;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::proxy::Identity;

/// When the cluster last permitted a group to read a range.
#[derive(Default)]
pub(super) struct PermissionCheck {
    permitted: Mutex<Option<Instant>>,
    /// The cluster is asked once at a time: one question answers all who wait.
    pub turns: Arc<Turns>,
}

impl PermissionCheck {
    /// The cluster has just permitted it.
    pub fn permit(&self) {
        *self.permitted.lock() = Some(Instant::now());
    }

    /// Whether the cluster permitted it less than `max` ago.
    pub fn is_fresh(&self, max: Duration) -> bool {
        self.permitted.lock().is_some_and(|at| at.elapsed() < max)
    }
}

/// Asks whether these credentials may watch a range, with a watch that lives only for the answer: a member checks
/// the permission when it is created, at no cost that grows with the range. Gives the reason of a refusal.
///
/// # Errors
/// When no member answered.
pub(super) async fn may_watch(
    upstream: &dyn Upstream,
    identity: &Identity,
    (key, range_end): (Bytes, Bytes),
) -> Result<Option<String>, Status> {
    let mut stream = upstream.open_watch(identity).await?;
    let create = WatchCreateRequest { key, range_end, ..Default::default() };
    stream.send(RequestUnion::CreateRequest(create)).await?;
    let answer = stream.next().await?;
    Ok(answer.canceled.then_some(answer.cancel_reason))
}
