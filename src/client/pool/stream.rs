use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use super::body::UpstreamBody;
use crate::shutdown::Tasks;

/// A stream in both directions. Dropping it cancels it upstream.
#[derive(Debug)]
pub struct UpstreamStream {
    pub(super) send: SendStream<Bytes>,
    /// What the member sends; its head and an early error come through here too.
    pub body: UpstreamBody,
}

impl UpstreamStream {
    pub(super) fn new(send: SendStream<Bytes>, body: UpstreamBody) -> Self {
        Self { send, body }
    }

    /// Sends framed messages. They wait in memory for the member's window, so the caller bounds what is unanswered.
    ///
    /// # Errors
    /// When the stream is over.
    pub fn send(&mut self, messages: Bytes) -> Result<(), Status> {
        self.send.send_data(messages, false).map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Feeds the stream from a body, in a task of its own, and leaves the answers.
    pub fn feed<B>(self, body: B, tasks: &Tasks) -> UpstreamBody
    where
        B: HttpBody<Data = Bytes, Error: Send> + Send + Unpin + 'static,
    {
        let Self { send, body: mut answer } = self;
        answer.stop_with(pump(body, send, tasks));
        answer
    }
}

/// Copies a request body upstream at the pace of the member. Ends with the guard.
pub(super) fn pump<B>(body: B, send: SendStream<Bytes>, tasks: &Tasks) -> DropGuard
where
    B: HttpBody<Data = Bytes, Error: Send> + Send + Unpin + 'static,
{
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    tasks.spawn(async move {
        let mut send = send;
        let copied = tokio::select! {
            copied = copy(body, &mut send) => copied,
            () = stop.cancelled() => None,
        };
        if copied.is_none() {
            send.send_reset(Reason::CANCEL);
        }
    });
    guard
}

/// None when the body broke or the member takes no more of it.
async fn copy<B>(mut body: B, send: &mut SendStream<Bytes>) -> Option<()>
where
    B: HttpBody<Data = Bytes, Error: Send> + Send + Unpin,
{
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = poll_fn(|cx| send.poll_reset(cx)) => return None,
        };
        match frame {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    send_paced(data, send).await?;
                }
            }
            Some(Err(_)) => return None,
            None => return send.send_data(Bytes::new(), true).ok(),
        }
    }
}

async fn send_paced(mut data: Bytes, send: &mut SendStream<Bytes>) -> Option<()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let capacity = match send.capacity() {
            0 => poll_fn(|cx| send.poll_capacity(cx)).await?.ok()?,
            capacity => capacity,
        };
        send.send_data(data.split_to(capacity.min(data.len())), false).ok()?;
    }
    Some(())
}

/// A body whose beginning was read already.
#[derive(Debug)]
pub(super) struct Resumed<B> {
    head: Bytes,
    rest: B,
}

impl<B> Resumed<B> {
    pub(super) fn new(head: Bytes, rest: B) -> Self {
        Self { head, rest }
    }
}

impl<B> HttpBody for Resumed<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if !self.head.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.head)))));
        }
        Poll::Ready(ready!(Pin::new(&mut self.rest).poll_frame(cx)))
    }
}
