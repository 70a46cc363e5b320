use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

use super::tenant_limits::Limits;

/// The body of a request whose bytes are counted.
pub(in crate::proxy) struct MeteredRequest<B> {
    body: B,
    limits: Option<Arc<Limits>>,
}

impl<B> MeteredRequest<B> {
    /// Counts for the tenant with these limits.
    pub(in crate::proxy) fn new(body: B, limits: &Arc<Limits>) -> Self {
        Self { body, limits: limits.counts_bytes().then(|| limits.clone()) }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for MeteredRequest<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        count(self.limits.as_deref(), &frame);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Counts the bytes of an answer. A stream waits while more have passed than may; the answer to one request is refused
/// before it is made, and passes whole after that.
pub(in crate::proxy) fn metered_answer(
    answer: Response<Body>,
    limits: &Arc<Limits>,
    is_stream: bool,
) -> Response<Body> {
    if !limits.counts_bytes() {
        return answer;
    }
    let limits = limits.clone();
    answer.map(|body| Body::new(MeteredAnswer { body, limits, is_stream, wait: None }))
}

struct MeteredAnswer {
    body: Body,
    limits: Arc<Limits>,
    is_stream: bool,
    wait: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for MeteredAnswer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        while this.is_stream {
            if let Some(wait) = &mut this.wait {
                std::task::ready!(wait.as_mut().poll(cx));
                this.wait = None;
            }
            match this.limits.stream_wait() {
                Poll::Pending => break,
                Poll::Ready(time) => this.wait = Some(Box::pin(sleep(time))),
            }
        }
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        count(Some(&this.limits), &frame);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn count<E>(limits: Option<&Limits>, frame: &Option<Result<Frame<Bytes>, E>>) {
    if let (Some(limits), Some(Ok(frame))) = (limits, frame)
        && let Some(data) = frame.data_ref()
    {
        limits.charge_bytes(data.len());
    }
}
