use std::borrow::Cow;
use std::pin::pin;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::debug;

use super::body::UpstreamBody;
use super::config::PoolConfig;
use super::connection::Connection;
use super::deadline::{Deadline, time_is_up};
use super::fault::Fault;
use super::head::Head;
use super::header::PeekedHeader;
use super::seen::{Reads, Seen};
use super::select::{Pick, Turn, UpstreamEndpoints, Wanted};
use super::stream::{Resumed, UpstreamStream, pump};
use super::upstream_endpoint::{Keeping, UpstreamEndpoint};
use crate::api_error::ApiError;
use crate::client::{Endpoint, Lane, Method};
use crate::net::ClientTls;
use crate::shutdown::Tasks;

/// A request up to this size is kept until it is answered, so that it can be sent to another member; a larger one
/// streams through.
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Endpoints one request may visit.
const ATTEMPTS_MAX: usize = 6;

/// Connections to a cluster. Cheap to clone; connects when it is first used, on the runtime that uses it.
#[derive(Clone, Debug)]
pub struct Pool {
    pub(super) inner: Arc<Inner>,
}

/// A pool as long as somebody else uses it.
#[derive(Clone, Debug)]
pub struct WeakPool(Weak<Inner>);

impl WeakPool {
    /// The pool; none when nobody uses it any more.
    pub fn upgrade(&self) -> Option<Pool> {
        self.0.upgrade().map(|inner| Pool { inner })
    }
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) members: UpstreamEndpoints,
    pub(super) keeping: Arc<Keeping>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for member in self.members.list().iter() {
            member.retire();
        }
    }
}

impl Pool {
    /// The pool, without keeping its connections open.
    pub fn downgrade(&self) -> WeakPool {
        WeakPool(Arc::downgrade(&self.inner))
    }

    /// A pool whose background work ends with `tasks`.
    pub fn new(config: PoolConfig, tasks: &Tasks) -> Self {
        let members = UpstreamEndpoints::new(&config.endpoints, &config);
        let keeping = Arc::new(Keeping { config, tasks: tasks.clone(), changed: Notify::new() });
        Self { inner: Arc::new(Inner { members, keeping }) }
    }

    /// UpstreamEndpoints in use, in random order; those with a ready connection come first.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let mut members: Vec<_> = self.inner.members.list().iter().cloned().collect();
        fastrand::shuffle(&mut members);
        members.sort_by_key(|member| !member.is_ready());
        members.iter().map(|member| member.endpoint().clone()).collect()
    }

    /// How TLS is spoken to the endpoints.
    pub fn tls(&self) -> Option<&ClientTls> {
        self.inner.keeping.config.tls.as_ref()
    }

    pub(in crate::client) fn tasks(&self) -> &Tasks {
        &self.inner.keeping.tasks
    }

    /// Uses these members from now on. Requests in flight finish where they are.
    pub fn set_endpoints(&self, endpoints: &[Endpoint]) {
        self.inner.members.replace(endpoints, &self.inner.keeping.config);
        self.inner.keeping.changed.notify_waiters();
    }

    /// Sends a request and returns the answer as the member gave it, whatever it is. Trouble on the way becomes an
    /// answer with a gRPC status. Dropping the future, or the answer's body, cancels the request upstream.
    pub async fn request<B>(&self, head: &Head, body: B) -> Response<Body>
    where
        B: HttpBody<Data = Bytes, Error: Into<tonic::codegen::StdError> + Send> + Send + Unpin + 'static,
    {
        let method = Method::of(head.path.path());
        if !method.one_request {
            return self.relay(method.lane, head, body).await;
        }
        match keep(body).await {
            Ok(Kept::Whole(payload)) => self.exchange(method, head, payload).await,
            Ok(Kept::TooLarge(rest)) => self.relay(method.lane, head, rest).await,
            Err(status) => status.into_http(),
        }
    }

    /// Sends one framed message and returns the answer. Visits other members by the rules of [`Method`].
    ///
    /// A serializable read that would be older than what the client has seen is sent again as a linearizable one. All
    /// attempts together have the time that the client gave the request.
    pub async fn exchange(&self, method: Method, head: &Head, mut payload: Bytes) -> Response<Body> {
        let mut reads = Reads::of(head.path.path(), &payload);
        // Serializable reads all go to one member, so that they seldom meet one that lags behind the last.
        let mut turn = if matches!(reads, Reads::SerializableRange { .. }) { Turn::Sticky } else { Turn::Next };
        let newest = head.seen.as_ref().map(Seen::newest);
        let deadline = Deadline::of(&head.headers);
        let mut head = Cow::Borrowed(head);
        let mut avoid = Vec::new();
        let mut last = None;
        for sent in 0..ATTEMPTS_MAX {
            let on_learner = method.on_learner || matches!(reads, Reads::SerializableRange { stream: false });
            let wanted = Wanted { lane: method.lane, turn, on_learner, avoid: &avoid };
            let (member, connection) = match self.connect(wanted).await {
                Ok(found) => found,
                Err(status) => return last.unwrap_or_else(|| status.into_http()),
            };
            if sent > 0
                && let Err(status) = deadline.renew(&mut head.to_mut().headers)
            {
                return status.into_http();
            }
            match self.attempt(method, (&member, &connection), (head.as_ref(), deadline), payload.clone(), &avoid).await
            {
                Ok(answer) if goes_elsewhere(method, answer.headers()) => {
                    avoid.push(member.endpoint().clone());
                    last = Some(answer.map(Body::new));
                }
                Ok(mut answer) => {
                    if let Some(newest) = newest
                        && is_behind(&mut answer, reads, newest).await
                        && let Some(linearizable) = reads.linearizable(&payload)
                    {
                        (payload, reads, turn) = (linearizable, Reads::Other, Turn::Next);
                        continue;
                    }
                    return answer.map(Body::new);
                }
                Err(Fault::Final(status)) => return status.into_http(),
                Err(Fault::Unknown(status)) if !method.repeatable => return status.into_http(),
                Err(fault) => {
                    if matches!(fault, Fault::Limited(_)) {
                        avoid.push(member.endpoint().clone());
                    }
                    let status = fault.into_status();
                    debug!(endpoint = %member.endpoint(), %status, "request goes to another member");
                    last = Some(status.into_http());
                }
            }
        }
        last.unwrap_or_else(|| Status::unavailable("no member answered").into_http())
    }

    /// Opens a stream in both directions and returns at once, before the member has answered.
    ///
    /// # Errors
    /// When no member can be reached.
    pub async fn open(&self, lane: Lane, head: &Head) -> Result<UpstreamStream, Status> {
        self.open_elsewhere(lane, head, None).await
    }

    /// Opens a stream, at another member than `last` if one is ready.
    ///
    /// # Errors
    /// When no member can be reached.
    pub async fn open_elsewhere(
        &self,
        lane: Lane,
        head: &Head,
        last: Option<&Endpoint>,
    ) -> Result<UpstreamStream, Status> {
        let avoid = last.map(std::slice::from_ref).unwrap_or_default();
        let mut last = Status::unavailable("no member answered");
        for _ in 0..ATTEMPTS_MAX {
            let wanted = Wanted { lane, turn: Turn::Next, on_learner: false, avoid };
            let (member, connection) = match self.connect(wanted).await {
                Err(_) if !avoid.is_empty() => self.connect(Wanted { avoid: &[], ..wanted }).await?,
                found => found?,
            };
            let endpoint = member.endpoint().clone();
            match connection.start(head.to_request(connection.scheme(), &endpoint), false).await {
                Ok((answer, send)) => {
                    return Ok(UpstreamStream::new(send, UpstreamBody::waiting(answer, endpoint, connection.count())));
                }
                Err(error) => match Fault::from_start(&error, &connection, &endpoint) {
                    Fault::Final(status) => return Err(status),
                    fault => last = fault.into_status(),
                },
            }
        }
        Err(last)
    }

    /// Streams the body up and the answer down.
    async fn relay<B>(&self, lane: Lane, head: &Head, body: B) -> Response<Body>
    where
        B: HttpBody<Data = Bytes, Error: Into<tonic::codegen::StdError> + Send> + Send + Unpin + 'static,
    {
        let UpstreamStream { send, body: mut answer } = match self.open(lane, head).await {
            Ok(stream) => stream,
            Err(status) => return status.into_http(),
        };
        answer.stop_with(pump(body, send, self.tasks()));
        answer.into_response().await
    }

    /// A ready connection to some member. Waits up to the dial timeout while there is none.
    async fn connect(&self, wanted: Wanted<'_>) -> Result<(Arc<UpstreamEndpoint>, Connection), Status> {
        let Inner { members, keeping } = &*self.inner;
        let give_up = Instant::now() + keeping.config.dial_timeout;
        let start = members.start(wanted.turn);
        loop {
            // Registered before looking, so that no change is missed in between.
            let changed = keeping.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match members.pick(wanted, start, keeping) {
                Pick::Ready(member, connection) => return Ok((member, connection)),
                Pick::Nobody => return Err(Status::unavailable("no other member to ask")),
                Pick::Wait => {
                    if tokio::time::timeout_at(give_up, changed).await.is_err() {
                        return Err(self.unreachable());
                    }
                }
            }
        }
    }

    /// One try at one member.
    async fn attempt(
        &self,
        method: Method,
        (member, connection): (&Arc<UpstreamEndpoint>, &Connection),
        (head, deadline): (&Head, Deadline),
        payload: Bytes,
        avoid: &[Endpoint],
    ) -> Result<Response<UpstreamBody>, Fault> {
        let (in_flight, endpoint) = (connection.count(), member.endpoint());
        let (answer, mut send) = connection
            .start(head.to_request(connection.scheme(), endpoint), false)
            .await
            .map_err(|error| Fault::from_start(&error, connection, endpoint))?;
        // Fails when the stream is over: the member may have answered from the head alone, and its answer is what counts.
        // Where there is none, waiting for it gives the reason why the stream ended.
        let _ = send.send_data(payload, true);
        let mut answering = pin!(connection.answer(answer));
        let answer = loop {
            let limited = member.limited();
            tokio::select! {
                biased;
                answer = &mut answering => break answer,
                () = limited, if method.repeatable => {
                    if self.inner.members.has_better(method.lane, endpoint, avoid) {
                        let reason = format!("upstream {endpoint}: {}", member.standing().text());
                        return Err(Fault::Limited(Status::unavailable(reason)));
                    }
                }
            }
        };
        let answer = match answer {
            Ok(answer) => answer,
            // A member drops a request whose time is up without a word; its client would call that the deadline.
            Err(error) if is_cancel(&error) && deadline.is_over() => {
                return Err(Fault::Final(time_is_up()));
            }
            Err(error) => return Err(Fault::from_stream(&error, endpoint)),
        };
        Ok(answer.map(|stream| UpstreamBody::streaming(stream, endpoint.clone(), in_flight)))
    }

    fn unreachable(&self) -> Status {
        let reason = |member: &Arc<UpstreamEndpoint>| {
            let reason = match (member.is_ready(), member.standing()) {
                (true, standing) => standing.text().to_owned(),
                (false, _) => member.reason().unwrap_or_else(|| "no answer yet".to_owned()),
            };
            format!("{}: {reason}", member.endpoint())
        };
        let reasons: Vec<_> = self.inner.members.list().iter().map(reason).collect();
        Status::unavailable(format!("no endpoint can be reached ({})", reasons.join("; ")))
    }
}

/// Whether a read was answered from a state that is older than what the client has seen.
async fn is_behind(answer: &mut Response<UpstreamBody>, reads: Reads, newest: PeekedHeader) -> bool {
    let wrapped = match reads {
        Reads::Other => return false,
        Reads::Txn => false,
        Reads::SerializableRange { stream } => stream,
    };
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return wants_a_later_revision(&status);
    }
    let header = answer.body_mut().peek(wrapped).await;
    header.is_some_and(|header| header.cluster_id == newest.cluster_id && header.revision < newest.revision)
}

/// The revision a read asked for may only be new to this member.
fn wants_a_later_revision(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message() == ApiError::FutureRevision.text()
}

fn is_cancel(error: &h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::CANCEL)
}

/// Whether the answer is an error that came instead of any message, and another member may do better: of a read, any
/// `Unavailable`; of a write, what a member says before it has looked at the request.
fn goes_elsewhere(method: Method, headers: &HeaderMap) -> bool {
    let Some(code) = headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes())) else {
        return false;
    };
    match code {
        Code::Unavailable if method.repeatable => true,
        Code::Unavailable | Code::FailedPrecondition => {
            let status = Status::from_header_map(headers);
            let error = status.and_then(|status| ApiError::from_text(status.message()));
            matches!(error, Some(ApiError::NoLeader | ApiError::NotSupportedForLearner))
        }
        _ => false,
    }
}

enum Kept<B> {
    Whole(Bytes),
    TooLarge(Resumed<B>),
}

async fn keep<B>(mut body: B) -> Result<Kept<B>, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<tonic::codegen::StdError>,
{
    let mut first = Bytes::new();
    let mut all: Option<Vec<u8>> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::from_error(error.into()))?;
        let Ok(data) = frame.into_data() else { continue };
        match &mut all {
            None if first.is_empty() => first = data,
            None => {
                let mut joined = Vec::with_capacity(first.len() + data.len());
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&data);
                all = Some(joined);
            }
            Some(all) => all.extend_from_slice(&data),
        }
        let size = all.as_ref().map_or(first.len(), Vec::len);
        if size > KEPT_BYTES_MAX {
            let head = all.map_or(first, Bytes::from);
            return Ok(Kept::TooLarge(Resumed::new(head, body)));
        }
    }
    Ok(Kept::Whole(all.map_or(first, Bytes::from)))
}
