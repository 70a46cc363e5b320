use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost_reflect::MessageDescriptor;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::codegen::StdError;

use super::read::read;
use super::values::Values;
use crate::listener::HeldBytes;
use crate::pb::frame::{PREFIX_BYTES, Prefix};

/// The longest text of a message, in lengths of a message: base64 takes a third more, escapes and white space the rest.
const TEXT_RATIO: usize = 4;
/// Text that every message may have.
const TEXT_BYTES_MIN: usize = 64 * 1024;
/// Time without a byte after which an unfinished value is given up.
const STALL: Duration = Duration::from_secs(60);

/// The body of a call, whichever way it came.
#[derive(Debug)]
pub enum CallBody<B> {
    /// From gRPC, as it came.
    Grpc(B),
    /// One message that was JSON, then the end.
    Message(Option<Bytes>),
    /// Messages that are JSON when they come.
    Messages(Box<Messages<B>>),
}

impl<B> HttpBody for CallBody<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        match self.get_mut() {
            Self::Grpc(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Message(message) => Poll::Ready(message.take().map(|message| Ok(Frame::data(message)))),
            Self::Messages(messages) => messages.poll_message(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Grpc(body) => body.is_end_stream(),
            Self::Message(message) => message.is_none(),
            Self::Messages(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Grpc(body) => body.size_hint(),
            Self::Message(message) => SizeHint::with_exact(message.as_ref().map_or(0, Bytes::len) as u64),
            Self::Messages(_) => SizeHint::default(),
        }
    }
}

/// Reads the messages of a body of JSON.
#[derive(Debug)]
pub struct Messages<B> {
    body: B,
    /// Whether `body` has ended.
    ended: bool,
    values: Values,
    input: MessageDescriptor,
    message_bytes_max: usize,
    /// What `values` holds, on the account of the connection.
    held: HeldBytes,
    /// Whether nothing goes on before the end of the body: then it must keep coming. A stream may be silent between
    /// two messages.
    whole: bool,
    stall: Pin<Box<Sleep>>,
    /// Messages that were read.
    count: usize,
}

impl<B> Messages<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    pub(super) fn new(body: B, input: MessageDescriptor, message_bytes_max: usize, held: HeldBytes) -> Self {
        let stall = Box::pin(tokio::time::sleep(STALL));
        let values = Values::default();
        Self { body, ended: false, values, input, message_bytes_max, held, whole: false, stall, count: 0 }
    }

    /// The one message of a request that has one; an empty body is an empty message. What follows it is not looked at,
    /// but must come before the request is answered.
    ///
    /// # Errors
    /// When the body is not a message, is too long or does not come.
    pub(super) async fn only(mut self) -> Result<Bytes, Status> {
        self.whole = true;
        let message = std::future::poll_fn(|cx| self.poll_next(cx)).await?.unwrap_or_else(|| framed(&[]));
        // The message stays until the body has ended, and the client decides when that is.
        self.values = Values::default();
        self.held.set(message.len())?;
        std::future::poll_fn(|cx| self.poll_end(cx)).await?;
        Ok(message)
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        match ready!(self.poll_next(cx)) {
            Ok(message) => Poll::Ready(message.map(|message| Ok(Frame::data(message)))),
            // etcd takes it as the end of the request; the messages before it count.
            Err(_) if self.count > 0 => Poll::Ready(None),
            Err(status) => Poll::Ready(Some(Err(status.into()))),
        }
    }

    /// The next message in its frame; none at the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        loop {
            let value = match self.values.next().map_err(Status::invalid_argument)? {
                None if self.ended => self.values.end().map_err(Status::invalid_argument)?,
                next => next,
            };
            if let Some(value) = value {
                let wire = read(&value, &self.input).map_err(Status::invalid_argument)?;
                self.hold()?;
                self.count += 1;
                return Poll::Ready(Ok(Some(framed(&wire))));
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            if let Some(chunk) = ready!(self.poll_chunk(cx))? {
                self.values.push(&chunk);
                self.hold()?;
            }
        }
    }

    /// Waits for the end of the body, and looks at nothing of it.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        while !self.ended {
            ready!(self.poll_chunk(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// More of the body; none when it has ended, or had something else than data.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(Ok(None))
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.stall.as_mut().reset(Instant::now() + STALL);
                Poll::Ready(Ok(frame.into_data().ok()))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(Status::cancelled(error.into().to_string()))),
            Poll::Pending if self.must_come() && self.stall.as_mut().poll(cx).is_ready() => {
                Poll::Ready(Err(Status::deadline_exceeded("the request body does not come")))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn must_come(&self) -> bool {
        self.whole || self.values.held_bytes() > 0
    }

    /// Counts what is held.
    fn hold(&mut self) -> Result<(), Status> {
        let (bytes, most) = (self.values.held_bytes(), self.message_bytes_max);
        if bytes > most.saturating_mul(TEXT_RATIO).saturating_add(TEXT_BYTES_MIN) {
            return Err(Status::resource_exhausted(format!(
                "grpc: received message larger than max ({bytes} vs. {most})"
            )));
        }
        self.held.set(bytes)
    }
}

/// A message in its frame.
fn framed(wire: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + wire.len());
    out.put_slice(&Prefix::plain(wire.len()));
    out.put_slice(wire);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use futures::StreamExt;
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;
    use crate::pb::descriptors;
    use crate::pb::etcdserverpb::{PutRequest, WatchRequest};
    use crate::pb::frame::framed as encoded;

    fn input(name: &str) -> MessageDescriptor {
        descriptors().get_message_by_name(name).expect("a message")
    }

    async fn put(json: &str) -> Result<Bytes, String> {
        let body = Full::new(Bytes::copy_from_slice(json.as_bytes()));
        let messages = Messages::new(body, input("etcdserverpb.PutRequest"), 1000, HeldBytes::default());
        messages.only().await.map_err(|status| status.message().to_owned())
    }

    #[tokio::test]
    async fn a_request_has_one_message() {
        let expected = encoded(&PutRequest { key: "k".into(), ..Default::default() });
        assert_eq!(put(r#"{"key":"aw=="}"#).await, Ok(expected.clone()));
        assert_eq!(put(r#"{"key":"aw=="} and anything"#).await, Ok(expected));
        assert_eq!(put(" ").await, Ok(encoded(&PutRequest::default())));
        assert_eq!(put("{").await, Err("unexpected EOF".into()));
        let long = format!("[\"{}\"]", "x".repeat(1000 * TEXT_RATIO + TEXT_BYTES_MIN));
        assert!(put(&long).await.is_err_and(|error| error.contains("larger than max")));
    }

    // Cause: a message that was complete counted for nothing while its body stayed open: a client could have any number held.
    #[tokio::test]
    async fn a_message_counts_until_its_body_has_ended() {
        let (held, counted) = HeldBytes::of_test_connection();
        let json = format!("{{\"key\":\"{}\"}}", "a".repeat(400));
        let chunk = futures::stream::iter([Ok::<_, StdError>(Frame::data(Bytes::from(json)))]);
        let open = StreamBody::new(chunk.chain(futures::stream::pending()));
        let mut message = Box::pin(Messages::new(open, input("etcdserverpb.PutRequest"), 1000, held).only());
        assert!(futures::poll!(&mut message).is_pending(), "the body has not ended");
        assert!(counted.load(Ordering::Relaxed) >= 300, "the length of the key");
        drop(message);
        assert_eq!(counted.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unfinished_request_is_given_up() {
        let never = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, StdError>>());
        let messages = Messages::new(never, input("etcdserverpb.PutRequest"), 1000, HeldBytes::default());
        let status = messages.only().await.expect_err("nothing came");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_stream_ends_at_what_is_no_message() {
        let watch = |text: &str| {
            let body = Full::new(Bytes::copy_from_slice(text.as_bytes()));
            let messages = Messages::new(body, input("etcdserverpb.WatchRequest"), 1000, HeldBytes::default());
            CallBody::Messages(Box::new(messages))
        };
        let two = watch("{} {} nonsense").collect().await.expect("two messages").to_bytes();
        let empty = encoded(&WatchRequest::default());
        assert_eq!(two, [&empty[..], &empty].concat());
        let error = watch("nonsense").collect().await.expect_err("no message");
        let status = error.downcast::<Status>().expect("a status");
        assert_eq!(status.message(), "invalid character 'o' in literal null (expecting 'u')");
    }
}
