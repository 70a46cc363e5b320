//! Bounds the answers that are rewritten. Their keys change their length, and gRPC wants the length of a message in
//! front of it: an answer has to be here as a whole before its first byte can go out.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::api_error::ApiError;
use crate::client::Channel;

/// Answers up to this length need no room and are never refused.
const SHORT_BYTES_MAX: u64 = 64 * 1024;
/// An answer is here twice: as it came, and as it goes.
const COPIES: u64 = 2;
/// Unit of the bound; a number of bytes does not fit a semaphore.
const UNIT_BYTES: u64 = 1024;
/// How long an answer waits for room; the member's flow control holds it meanwhile.
const ROOM_WAIT: Duration = Duration::from_secs(5);
/// Compression flag and length in front of a gRPC message.
const MESSAGE_PREFIX_BYTES: usize = 5;

/// Room for long answers of all clients of the proxy. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AnswerRoom {
    units: Arc<Semaphore>,
    units_max: u32,
}

/// What one answer takes of it, given back with the last clone.
type Taken = Arc<OwnedSemaphorePermit>;
type Taking = Pin<Box<dyn Future<Output = Option<Taken>> + Send>>;

impl AnswerRoom {
    /// Room of this many bytes.
    pub fn new(bytes: u64) -> Self {
        let units_max = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        Self { units: Arc::new(Semaphore::new(units_max as usize)), units_max }
    }

    /// Takes room for a message. One that needs more than there is gets all of it: it is alone then.
    fn take(&self, message_bytes: u64) -> Taking {
        let units = message_bytes.saturating_mul(COPIES).div_ceil(UNIT_BYTES);
        let units = u32::try_from(units).unwrap_or(u32::MAX).min(self.units_max);
        let taking = tokio::time::timeout(ROOM_WAIT, self.units.clone().acquire_many_owned(units));
        Box::pin(async move { Some(Arc::new(taking.await.ok()?.ok()?)) })
    }
}

/// A channel whose long answers wait for room before they are read.
#[derive(Clone, Debug)]
pub(super) struct BoundedChannel {
    channel: Channel,
    room: AnswerRoom,
}

impl BoundedChannel {
    pub(super) fn new(channel: Channel, room: AnswerRoom) -> Self {
        Self { channel, room }
    }
}

impl Service<Request<Body>> for BoundedChannel {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let refusal = match request.uri().path() {
            // One short message after the other.
            "/etcdserverpb.KV/RangeStream" => None,
            "/etcdserverpb.KV/Range" => Some(Status::resource_exhausted(ApiError::TooManyRequests.text())),
            // It is done by now: an error that says nothing about that.
            _ => Some(ApiError::Timeout.into()),
        };
        let (answer, room) = (self.channel.call(request), self.room.clone());
        Box::pin(async move {
            let mut response = answer.await?;
            if let Some(refusal) = refusal {
                let slot = Slot::default();
                response.extensions_mut().insert(slot.clone());
                let state = State::Head(BytesMut::new());
                response = response.map(|body| Body::new(Incoming { body, room, slot, refusal, state }));
            }
            Ok(response)
        })
    }
}

/// Room of an answer on its way from the channel to the body that goes to the client.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Option<Taken>>>);

/// An answer of the member. What it announces is taken before it is read.
struct Incoming {
    body: Body,
    room: AnswerRoom,
    slot: Slot,
    refusal: Status,
    state: State,
}

enum State {
    /// The beginning, until it tells the length of the message.
    Head(BytesMut),
    Waiting(Taking, Bytes),
    Open,
    Refused,
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Open => return Pin::new(&mut this.body).poll_frame(cx),
                State::Refused => return Poll::Ready(None),
                State::Waiting(taking, begun) => {
                    let (taken, begun) = (ready!(taking.as_mut().poll(cx)), begun.clone());
                    let Some(taken) = taken else {
                        this.state = State::Refused;
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers(&this.refusal)))));
                    };
                    *this.slot.0.lock() = Some(taken);
                    this.state = State::Open;
                    return Poll::Ready(Some(Ok(Frame::data(begun))));
                }
                State::Head(begun) => {
                    let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                        Some(Ok(frame)) => frame,
                        end => {
                            this.state = State::Open;
                            return Poll::Ready(end);
                        }
                    };
                    let data = match frame.into_data() {
                        Ok(data) => data,
                        Err(trailers) => {
                            this.state = State::Open;
                            return Poll::Ready(Some(Ok(trailers)));
                        }
                    };
                    begun.extend_from_slice(&data);
                    let Some(prefix) = begun.first_chunk::<MESSAGE_PREFIX_BYTES>() else { continue };
                    let length = u64::from(u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]));
                    let begun = std::mem::take(begun).freeze();
                    if length <= SHORT_BYTES_MAX {
                        this.state = State::Open;
                        return Poll::Ready(Some(Ok(Frame::data(begun))));
                    }
                    this.state = State::Waiting(this.room.take(length), begun);
                }
            }
        }
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("8"));
    }
    trailers
}

/// Gives the room of an answer back when the last of its bytes was written to the client, or dropped.
pub(super) fn held_until_sent(mut response: Response<Body>) -> Response<Body> {
    let taken = response.extensions_mut().remove::<Slot>().and_then(|slot| slot.0.lock().take());
    match taken {
        Some(taken) => response.map(|body| Body::new(Outgoing { body, taken })),
        None => response,
    }
}

struct Outgoing {
    body: Body,
    taken: Taken,
}

struct InFlight {
    bytes: Bytes,
    _taken: Taken,
}

impl AsRef<[u8]> for InFlight {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let taken = self.taken.clone();
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let held = |bytes| Bytes::from_owner(InFlight { bytes, _taken: taken });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(held))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
