use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::HeaderMap;
use tonic::Status;

use super::upstream::Upstream;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest};

/// Asks whether these credentials may watch a range, with a watch that lives only for the answer: a member checks
/// the permission when it is created, at no cost that grows with the range. Gives the reason of a refusal.
///
/// # Errors
/// When no member answered.
pub(super) async fn may_watch(
    upstream: Arc<dyn Upstream>,
    metadata: HeaderMap,
    key: Bytes,
    range_end: Bytes,
) -> Result<Option<String>, Status> {
    let mut stream = upstream.open_watch(metadata).await?;
    let create = WatchCreateRequest { key, range_end, ..Default::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    stream.requests.send(request).await.map_err(|_| Status::unavailable("the watch stream is closed"))?;
    match stream.answers.next().await {
        Some(answer) => {
            let answer = answer?;
            Ok(answer.canceled.then_some(answer.cancel_reason))
        }
        None => Err(Status::unavailable("the member ended the watch stream")),
    }
}
