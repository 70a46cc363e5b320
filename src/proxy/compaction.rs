use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::tenants::Tenants;
use super::watch::WatchHub;
use crate::types::Revision;

/// Has all upstream watches renew their positions: a compaction concerns every tenant.
pub(super) async fn before_compaction(tenants: Tenants) {
    let tenants = tenants.current();
    let hubs = tenants.tenants().iter().filter_map(|tenant| tenant.watch_hub());
    join_all(hubs.map(WatchHub::before_compaction)).await;
}

/// Tells all hubs that the cluster has acknowledged a compaction.
pub(super) fn after_compaction(tenants: &Tenants, revision: Revision) {
    let tenants = tenants.current();
    let hubs = tenants.tenants().iter().filter_map(|tenant| tenant.watch_hub());
    hubs.for_each(|hub| hub.note_compaction(revision));
}

/// Calls `act` once the status of the answer is OK, before the client is told so.
pub(super) fn when_successful(answer: Response<Body>, act: impl FnOnce() + Send + 'static) -> Response<Body> {
    answer.map(|body| Body::new(Watched { body, act: Some(Box::new(act)) }))
}

struct Watched {
    body: Body,
    act: Option<Box<dyn FnOnce() + Send>>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
            && let Some(act) = self.act.take_if(|_| is_ok(trailers))
        {
            act();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn is_ok(trailers: &HeaderMap) -> bool {
    trailers.get(Status::GRPC_STATUS).map(HeaderValue::as_bytes) == Some(b"0")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use http_body_util::BodyExt;

    use super::*;
    use crate::api_error::ApiError;
    use crate::pb::etcdserverpb::CompactionResponse;
    use crate::proxy::answer::unary;

    #[tokio::test]
    async fn only_success_is_acted_on() {
        let refused = Status::from(ApiError::Compacted).into_http();
        for (answer, expected) in [(unary(&CompactionResponse::default()), true), (refused, false)] {
            let acted = Arc::new(AtomicBool::new(false));
            let act = acted.clone();
            let answer = when_successful(answer, move || act.store(true, Ordering::Relaxed));
            assert!(!acted.load(Ordering::Relaxed), "the status is not there yet");
            answer.into_body().collect().await.expect("an answer");
            assert_eq!(acted.load(Ordering::Relaxed), expected);
        }
    }
}
