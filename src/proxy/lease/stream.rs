use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body as HttpBody, Frame};
use tonic::body::Body;
use tonic::codec::{Codec, CompressionEncoding, Streaming};
use tonic::{Code, Status};

use super::broadcast::Subscription;
use super::broadcasts::KeepAliveBroadcasts;
use super::client_stream::Next;
use crate::client::framed;
use crate::pb::codec::LeanCodec;
use crate::pb::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, ResponseHeader};
use crate::proxy::Identity;
use crate::proxy::limits::MeteredRequest;
use crate::proxy::message_limits::ClientBody;

/// Requests of one client that wait for their answers; beyond, the client's next ones are not read.
const WAITING_MAX: usize = 1024;
const REQUEST_BYTES_MAX: usize = 64 * 1024;

type Check = Pin<Box<dyn Future<Output = (i64, Result<Owner, Status>)> + Send>>;

/// Decides which leases a client may keep alive.
pub(in crate::proxy) trait LeaseOwnership: Send + Sync {
    /// Whether the lease is known to be the client's.
    fn is_known(&self, id: i64) -> bool;
    /// Asks the cluster for the owner of the lease.
    fn check(&self, id: i64, metadata: HeaderMap) -> Pin<Box<dyn Future<Output = Result<Owner, Status>> + Send>>;
}

/// The owner of a lease.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::proxy) enum Owner {
    /// The client's.
    Tenant,
    /// Somebody else's, or nobody's: as far as this client can tell it does not exist. With the cluster's header.
    Other(ResponseHeader),
}

/// A client's subscription to the broadcast of its identity, and how its requests are compressed.
pub(in crate::proxy) struct Admission {
    subscription: Subscription,
    encoding: Option<CompressionEncoding>,
}

/// Admits a client; none when its requests are compressed in a way that the proxy does not read.
pub(in crate::proxy) fn admit(broadcasts: &KeepAliveBroadcasts, headers: &HeaderMap) -> Option<Admission> {
    let encoding = match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => None,
        Some(b"gzip") => Some(CompressionEncoding::Gzip),
        Some(_) => return None,
    };
    Some(Admission { subscription: broadcasts.join(Identity::of(headers)), encoding })
}

/// Serves one client's keep-alive stream.
pub(in crate::proxy) fn keep_alive(
    admission: Admission,
    ownership: Option<Arc<dyn LeaseOwnership>>,
    request: Request<MeteredRequest<ClientBody>>,
) -> Response<Body> {
    let Admission { subscription, encoding } = admission;
    let (parts, body) = request.into_parts();
    let decoder = LeanCodec::<LeaseKeepAliveResponse, LeaseKeepAliveRequest>::default().decoder();
    let requests = Streaming::new_request(decoder, body, encoding, Some(REQUEST_BYTES_MAX));
    let metadata = Identity::of(&parts.headers).metadata();
    let ownership = ownership.map(|ownership| OwnershipChecks { ownership, metadata, checks: FuturesUnordered::new() });
    let answers = Answers { requests: Some(requests), subscription, ownership, asked: Vec::new(), done: false };
    let mut response = Response::new(Body::new(answers));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The answer stream. Polling it reads the client's requests too, so a client's stream needs no task of its own, and
/// one that reads no answers is not read either.
struct Answers {
    /// None once the client has sent its last request.
    requests: Option<Streaming<LeaseKeepAliveRequest>>,
    subscription: Subscription,
    ownership: Option<OwnershipChecks>,
    /// Ids read in this poll; kept for its memory.
    asked: Vec<i64>,
    done: bool,
}

struct OwnershipChecks {
    ownership: Arc<dyn LeaseOwnership>,
    metadata: HeaderMap,
    checks: FuturesUnordered<Check>,
}

impl Answers {
    /// Takes in what the client sent and asks the broadcast for it.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        let mut room = WAITING_MAX.saturating_sub(self.subscription.client_stream().waiting());
        let mut read = 0;
        while let Some(requests) = self.requests.as_mut().filter(|_| read < room) {
            match requests.poll_next_unpin(cx) {
                Poll::Ready(Some(request)) => {
                    let id = request?.id;
                    read += 1;
                    self.subscription.client_stream().expect(id);
                    match &mut self.ownership {
                        Some(ownership) if !ownership.ownership.is_known(id) => ownership.start(id),
                        _ => self.asked.push(id),
                    }
                }
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => room = 0,
            }
        }
        if let Some(ownership) = &mut self.ownership {
            while let Poll::Ready(Some((id, owner))) = ownership.checks.poll_next_unpin(cx) {
                match owner? {
                    Owner::Tenant => self.asked.push(id),
                    Owner::Other(header) => {
                        let answer = LeaseKeepAliveResponse { header: Some(header), id, ttl: 0 };
                        self.subscription.client_stream().answer(id, &framed(&answer));
                    }
                }
            }
        }
        if !self.asked.is_empty() {
            self.subscription.ask(self.asked.drain(..));
        }
        Ok(())
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.done = true;
        self.requests = None;
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // A text that no header carries: the code goes alone.
            trailers.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
        }
        Frame::trailers(trailers)
    }
}

impl OwnershipChecks {
    fn start(&mut self, id: i64) {
        let check = self.ownership.check(id, self.metadata.clone());
        self.checks.push(Box::pin(async move { (id, check.await) }));
    }
}

impl HttpBody for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.done {
            return Poll::Ready(None);
        }
        if let Err(status) = this.read(cx) {
            return Poll::Ready(Some(Ok(this.end(&status))));
        }
        match this.subscription.client_stream().clone().next(cx) {
            Next::Answers(answers) => Poll::Ready(Some(Ok(Frame::data(answers)))),
            Next::End(status) => Poll::Ready(Some(Ok(this.end(&status)))),
            Next::Waiting(0) if this.requests.is_none() => Poll::Ready(Some(Ok(this.end(&Status::new(Code::Ok, ""))))),
            Next::Waiting(_) => Poll::Pending,
        }
    }
}
