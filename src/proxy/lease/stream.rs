use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body as HttpBody, Frame};
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::codec::{Codec, CompressionEncoding, Streaming};
use tonic::{Code, Status};

use super::broadcast::Subscription;
use super::broadcasts::KeepAliveBroadcasts;
use super::client_stream::Next;
use crate::api_error::ApiError;
use crate::client::framed;
use crate::listener::{Arriving, ConnectionInfo};
use crate::pb::codec::LeanCodec;
use crate::pb::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, ResponseHeader};
use crate::proxy::Identity;
use crate::proxy::limits::MeteredRequest;
use crate::proxy::message_limits::ClientBody;
use crate::shutdown::Tasks;

/// Requests of one client that wait for their answers; beyond, the client's next ones are not read.
const WAITING_MAX: usize = 1024;
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Checks of one stream at once; the client's next requests are read when there are fewer.
const CHECKS_MAX: usize = 16;

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
    tasks: &Tasks,
) -> Response<Body> {
    let Admission { subscription, encoding } = admission;
    let (parts, body) = request.into_parts();
    let connection = parts.extensions.get::<Arc<ConnectionInfo>>().cloned();
    let body = Arriving::messages(body, connection, REQUEST_BYTES_MAX);
    let decoder = LeanCodec::<LeaseKeepAliveResponse, LeaseKeepAliveRequest>::default().decoder();
    let requests = Streaming::new_request(decoder, body, encoding, Some(REQUEST_BYTES_MAX));
    let metadata = Identity::of(&parts.headers).metadata();
    let ownership = ownership.map(|ownership| OwnershipChecks::new(ownership, metadata, tasks));
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

/// Checks in flight. Each runs in a task: nobody polls the stream of a client that takes no answers, and a check that is stopped halfway
/// holds what it took to be sent, as the login of its tenant.
struct OwnershipChecks {
    ownership: Arc<dyn LeaseOwnership>,
    metadata: HeaderMap,
    checks: FuturesUnordered<Check>,
    tasks: Tasks,
}

impl Answers {
    /// Takes in what the client sent and asks the broadcast for it.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        loop {
            self.take_checked(cx)?;
            // A check that was started wakes this stream only once it was polled.
            if !self.read_requests(cx)? {
                break;
            }
        }
        if !self.asked.is_empty() {
            self.subscription.ask(self.asked.drain(..));
        }
        Ok(())
    }

    /// Takes in what the client sent. Tells whether checks were started.
    fn read_requests(&mut self, cx: &mut Context<'_>) -> Result<bool, Status> {
        let mut room = WAITING_MAX.saturating_sub(self.subscription.client_stream().waiting());
        let (mut read, mut started) = (0, false);
        while let Some(requests) = self.requests.as_mut().filter(|_| read < room) {
            if self.ownership.as_ref().is_some_and(|ownership| ownership.checks.len() >= CHECKS_MAX) {
                break;
            }
            match requests.poll_next_unpin(cx) {
                Poll::Ready(Some(request)) => {
                    let id = request?.id;
                    read += 1;
                    self.subscription.client_stream().expect(id);
                    match &mut self.ownership {
                        Some(ownership) if !ownership.ownership.is_known(id) => {
                            ownership.start(id);
                            started = true;
                        }
                        _ => self.asked.push(id),
                    }
                }
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => room = 0,
            }
        }
        Ok(started)
    }

    /// Takes in whose the leases are that were asked about.
    fn take_checked(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        let Some(ownership) = &mut self.ownership else { return Ok(()) };
        while let Poll::Ready(Some((id, owner))) = ownership.checks.poll_next_unpin(cx) {
            match owner? {
                Owner::Tenant => self.asked.push(id),
                Owner::Other(header) => {
                    let answer = LeaseKeepAliveResponse { header: Some(header), id, ttl: 0 };
                    self.subscription.client_stream().answer(id, &framed(&answer));
                }
            }
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
    fn new(ownership: Arc<dyn LeaseOwnership>, metadata: HeaderMap, tasks: &Tasks) -> Self {
        Self { ownership, metadata, checks: FuturesUnordered::new(), tasks: tasks.clone() }
    }

    fn start(&mut self, id: i64) {
        let check = self.tasks.spawn(self.ownership.check(id, self.metadata.clone()));
        let check = AbortOnDropHandle::new(check);
        self.checks.push(Box::pin(async move { (id, check.await.unwrap_or_else(|_| Err(ApiError::Stopped.into()))) }));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;

    /// Answers when it is told to.
    #[derive(Clone)]
    struct GatedOwnership {
        open: watch::Sender<bool>,
        unanswered: watch::Sender<usize>,
    }

    struct Unanswered(watch::Sender<usize>);

    impl Drop for Unanswered {
        fn drop(&mut self) {
            self.0.send_modify(|unanswered| *unanswered -= 1);
        }
    }

    impl LeaseOwnership for GatedOwnership {
        fn is_known(&self, _: i64) -> bool {
            false
        }

        fn check(&self, _: i64, _: HeaderMap) -> Pin<Box<dyn Future<Output = Result<Owner, Status>> + Send>> {
            let this = self.clone();
            Box::pin(async move {
                this.unanswered.send_modify(|unanswered| *unanswered += 1);
                let _unanswered = Unanswered(this.unanswered.clone());
                let mut open = this.open.subscribe();
                open.wait_for(|open| *open).await.expect("the sender is held");
                Ok(Owner::Tenant)
            })
        }
    }

    /// Cause: a check was polled only with the stream, so that a client that took no answers held its tenant's login.
    #[tokio::test(start_paused = true)]
    async fn a_check_goes_on_while_the_client_takes_nothing_and_ends_with_its_stream() {
        let ownership = GatedOwnership { open: watch::Sender::new(false), unanswered: watch::Sender::new(0) };
        let mut unanswered = ownership.unanswered.subscribe();
        let mut checks = OwnershipChecks::new(Arc::new(ownership.clone()), HeaderMap::new(), &Tasks::new());
        let steps = async {
            checks.start(7);
            assert!(futures::poll!(checks.checks.next()).is_pending());
            unanswered.wait_for(|unanswered| *unanswered == 1).await.expect("the sender is held");
            ownership.open.send_replace(true);
            unanswered.wait_for(|unanswered| *unanswered == 0).await.expect("the sender is held");
            let (id, owner) = checks.checks.next().await.expect("a check");
            assert_eq!((id, owner.expect("no error")), (7, Owner::Tenant));
            ownership.open.send_replace(false);
            checks.start(8);
            unanswered.wait_for(|unanswered| *unanswered == 1).await.expect("the sender is held");
            drop(checks);
            unanswered.wait_for(|unanswered| *unanswered == 0).await.expect("the sender is held");
        };
        tokio::time::timeout(Duration::from_secs(1), steps).await.expect("no step waits for the client");
    }
}
