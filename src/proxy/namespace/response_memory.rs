//! Bounds the memory of the answers that are rewritten. Their keys change their length, and gRPC sends the length of a
//! message before it: an answer has to be complete before its first byte can be sent.

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
use crate::pb::frame::Prefix;
use crate::proxy::limits::{Limit, Limits};

/// Answers up to this length reserve no memory and are never refused.
const SHORT_BYTES_MAX: u64 = 64 * 1024;
/// An answer is held twice: as received, and as rewritten.
const COPIES: u64 = 2;
/// Unit of the bound; a number of bytes does not fit a semaphore.
const UNIT_BYTES: u64 = 1024;
/// How long an answer waits for memory; flow control stops the member meanwhile.
const RESERVATION_WAIT: Duration = Duration::from_secs(5);
/// Part of the memory that the answers of one of several tenants may hold, so that none can keep the others waiting by reading
/// nothing.
const SHARE: u32 = 4;

/// Memory for long answers of all clients of the proxy. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ResponseMemory {
    units: Arc<Semaphore>,
    units_max: u32,
}

/// The memory of one answer, that of its tenant and that of all, released with the last clone.
type Reservation = Arc<(Option<OwnedSemaphorePermit>, OwnedSemaphorePermit)>;
type Reserving = Pin<Box<dyn Future<Output = Option<Reservation>> + Send>>;

impl ResponseMemory {
    /// At most this many bytes.
    pub fn new(bytes: u64) -> Self {
        let units_max = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        Self { units: Arc::new(Semaphore::new(units_max as usize)), units_max }
    }

    /// What a message takes; all of the memory, if it is larger.
    fn units_of(&self, message_bytes: u64) -> u32 {
        let units = message_bytes.saturating_mul(COPIES).div_ceil(UNIT_BYTES);
        u32::try_from(units).unwrap_or(u32::MAX).min(self.units_max)
    }

    fn share_max(&self) -> u32 {
        (self.units_max / SHARE).max(1)
    }

    /// The refusal of a message that does not fit into its tenant's share: how long it is held is up to a client of that tenant.
    fn refuse_beyond_share(&self, message_bytes: u64, limits: &Limits) -> Option<Status> {
        let share_max = self.share_max();
        limits.answer_memory(share_max as usize)?;
        let bytes_max = u64::from(share_max) * UNIT_BYTES / COPIES;
        (self.units_of(message_bytes) > share_max).then(|| {
            Status::resource_exhausted(format!(
                "an answer of {message_bytes} bytes is longer than the {bytes_max} that the answers of one tenant may have; \
                 RangeStream has no such limit"
            ))
        })
    }

    /// Reserves memory for a message, none when it takes too long. One larger than all of it waits until it is alone, and one that is
    /// larger than its tenant's share, as the proxy itself reads, until it is alone of that tenant.
    fn reserve(&self, message_bytes: u64, limits: &Limits) -> Reserving {
        let (units, share_max) = (self.units_of(message_bytes), self.share_max());
        let (share, all) = (limits.answer_memory(share_max as usize).cloned(), self.units.clone());
        let reserving = async move {
            let share = match share {
                Some(share) => Some(share.acquire_many_owned(units.min(share_max)).await.ok()?),
                None => None,
            };
            Some(Arc::new((share, all.acquire_many_owned(units).await.ok()?)))
        };
        Box::pin(async move { tokio::time::timeout(RESERVATION_WAIT, reserving).await.ok()? })
    }
}

/// A channel whose requests take their turn, and whose long answers wait for memory before they are read.
#[derive(Clone, Debug)]
pub(super) struct BoundedChannel {
    channel: Channel,
    memory: ResponseMemory,
    limits: Arc<Limits>,
    of_any_length: bool,
}

impl BoundedChannel {
    pub(super) fn new(channel: Channel, memory: ResponseMemory, limits: Arc<Limits>) -> Self {
        Self { channel, memory, limits, of_any_length: false }
    }

    /// Takes answers that are longer than those of the tenant's clients may be.
    pub(super) fn of_any_length(self) -> Self {
        Self { of_any_length: true, ..self }
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
            path if !path.starts_with("/etcdserverpb.KV/") => None,
            // One short message after the other.
            "/etcdserverpb.KV/RangeStream" => None,
            "/etcdserverpb.KV/Range" => Some(Status::resource_exhausted(ApiError::TooManyRequests.text())),
            // It is done by now: an error that says nothing about that.
            _ => Some(ApiError::Timeout.into()),
        };
        let Self { mut channel, memory, limits, of_any_length } = self.clone();
        Box::pin(async move {
            let turn = match limits.turn().await {
                Ok(turn) => turn,
                Err(status) => return Ok(status.into_http()),
            };
            let mut response = channel.call(request).await?;
            // The member has done its work when it begins to answer.
            drop(turn);
            if let Some(refusal) = refusal {
                let reserved = Reserved::default();
                response.extensions_mut().insert(reserved.clone());
                let state = State::Head(BytesMut::new());
                response = response
                    .map(|body| Body::new(Incoming { body, memory, limits, of_any_length, reserved, refusal, state }));
            }
            Ok(response)
        })
    }
}

/// Hands the reservation of an answer from the body that the channel reads to the body that is sent to the client.
#[derive(Clone, Default)]
struct Reserved(Arc<Mutex<Option<Reservation>>>);

/// An answer of the member. The length it announces is reserved before it is read.
struct Incoming {
    body: Body,
    memory: ResponseMemory,
    limits: Arc<Limits>,
    of_any_length: bool,
    reserved: Reserved,
    refusal: Status,
    state: State,
}

enum State {
    /// The beginning, until it holds the length of the message.
    Head(BytesMut),
    Waiting(Reserving, Bytes),
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
                State::Waiting(reserving, begun) => {
                    let (reservation, begun) = (ready!(reserving.as_mut().poll(cx)), begun.clone());
                    let Some(reservation) = reservation else {
                        this.state = State::Refused;
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers(&this.refusal)))));
                    };
                    *this.reserved.0.lock() = Some(reservation);
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
                    let Some((prefix, _)) = Prefix::split(begun) else { continue };
                    let length = prefix.length as u64;
                    let begun = std::mem::take(begun).freeze();
                    if let Some(max) = this.limits.answer_bytes_max().filter(|max| length > *max && !this.of_any_length)
                    {
                        this.state = State::Refused;
                        let status = this.limits.refuse(Limit::AnswerBytes, max, None);
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))));
                    }
                    if length <= SHORT_BYTES_MAX {
                        this.state = State::Open;
                        return Poll::Ready(Some(Ok(Frame::data(begun))));
                    }
                    if !this.of_any_length
                        && let Some(status) = this.memory.refuse_beyond_share(length, &this.limits)
                    {
                        this.state = State::Refused;
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))));
                    }
                    this.state = State::Waiting(this.memory.reserve(length, &this.limits), begun);
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

/// Releases the memory of an answer when the last of its bytes was written to the client, or dropped.
pub(super) fn held_until_sent(mut response: Response<Body>) -> Response<Body> {
    let reservation = response.extensions_mut().remove::<Reserved>().and_then(|reserved| reserved.0.lock().take());
    match reservation {
        Some(reservation) => response.map(|body| Body::new(Outgoing { body, reservation })),
        None => response,
    }
}

struct Outgoing {
    body: Body,
    reservation: Reservation,
}

struct InFlight {
    bytes: Bytes,
    _reservation: Reservation,
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
        let reservation = self.reservation.clone();
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let held = |bytes| Bytes::from_owner(InFlight { bytes, _reservation: reservation });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(held))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TenantLimits;
    use crate::proxy::limits::{TenantMetrics, Turns};
    use crate::telemetry::Metrics;

    const MIB: u64 = 1024 * 1024;

    /// Of two tenants.
    fn limits() -> [Limits; 2] {
        let metrics = TenantMetrics::register(&Metrics::new(), Turns::new(128));
        ["a", "b"].map(|name| metrics.limits(name, TenantLimits::default()))
    }

    /// Cause: an answer that was longer than its tenant's share took its whole length of the memory of all: one tenant that read nothing
    /// kept the others waiting.
    #[tokio::test(start_paused = true)]
    async fn one_tenant_holds_no_more_than_its_share() {
        let (memory, [a, b]) = (ResponseMemory::new(MIB), limits());
        // Twice its length is a quarter of it.
        let longest = MIB / 8;
        assert!(memory.refuse_beyond_share(longest, &a).is_none());
        let refusal = memory.refuse_beyond_share(longest + 1, &a).expect("refused");
        assert_eq!(refusal.code(), tonic::Code::ResourceExhausted);
        assert!(refusal.message().contains("RangeStream"), "{refusal}");
        let held = memory.reserve(longest, &a).await.expect("room");
        assert!(memory.reserve(longest, &a).await.is_none(), "its share is taken");
        assert!(memory.reserve(longest, &b).await.is_some(), "the other one's is not");
        assert_eq!(memory.units.available_permits() as u64 * UNIT_BYTES, MIB - MIB / 4);
        drop(held);
        assert!(memory.reserve(longest, &a).await.is_some());
        assert!(memory.refuse_beyond_share(u64::MAX, &Limits::default()).is_none(), "there is one tenant");
    }
}
