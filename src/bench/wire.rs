use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::future::poll_fn;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};
use parking_lot::Mutex;

use crate::client::Endpoint;
use crate::net::{AddressTime, Alpn, ClientTls, TcpDialer, TcpSilence, secure};
pub(super) use crate::pb::frame::framed as frame;
use crate::pb::frame::{PREFIX_BYTES, Prefix};
use crate::shutdown::Tasks;

/// What reaches the members; the caller bounds the time.
pub(super) const TCP: TcpDialer =
    TcpDialer { silence: TcpSilence::MEMBER, address_time: AddressTime::Unbounded, from: None };
/// Bytes a stream may receive ahead; events of one watch stream rarely wait for more.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Bytes a connection may receive ahead, for thousands of streams.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Pause between attempts to replace a lost connection.
const REDIAL: Duration = Duration::from_millis(100);

/// The methods this generator calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Range,
    Put,
    Txn,
    Watch,
    LeaseGrant,
    LeaseRevoke,
    LeaseKeepAlive,
    Status,
    Authenticate,
}

impl Route {
    const ALL: [Self; 9] = [
        Self::Range,
        Self::Put,
        Self::Txn,
        Self::Watch,
        Self::LeaseGrant,
        Self::LeaseRevoke,
        Self::LeaseKeepAlive,
        Self::Status,
        Self::Authenticate,
    ];

    fn path(self) -> &'static str {
        match self {
            Self::Range => "/etcdserverpb.KV/Range",
            Self::Put => "/etcdserverpb.KV/Put",
            Self::Txn => "/etcdserverpb.KV/Txn",
            Self::Watch => "/etcdserverpb.Watch/Watch",
            Self::LeaseGrant => "/etcdserverpb.Lease/LeaseGrant",
            Self::LeaseRevoke => "/etcdserverpb.Lease/LeaseRevoke",
            Self::LeaseKeepAlive => "/etcdserverpb.Lease/LeaseKeepAlive",
            Self::Status => "/etcdserverpb.Maintenance/Status",
            Self::Authenticate => "/etcdserverpb.Auth/Authenticate",
        }
    }
}

/// Why a call gave no answer. Errors are counted by this text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CallError(pub(super) String);

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<h2::Error> for CallError {
    fn from(error: h2::Error) -> Self {
        Self(format!("connection: {error}"))
    }
}

/// How to reach a member.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    pub(super) tls: Option<ClientTls>,
    pub(super) dial_timeout: Duration,
    /// Token of an authenticated user.
    pub(super) token: Option<HeaderValue>,
}

/// One HTTP/2 connection with raw gRPC messages; dialled again when it is lost.
///
/// Requests go out as prebuilt bytes and answers come back as bytes, so that the generator costs a fraction of what
/// a member spends on the same request.
pub(super) struct Connection {
    target: Target,
    requests: Vec<Request<()>>,
    sender: Mutex<SendRequest<Bytes>>,
    redial: tokio::sync::Mutex<()>,
    /// Since when every attempt to replace a lost connection failed.
    lost_since: Mutex<Option<Instant>>,
    tasks: Tasks,
}

impl Connection {
    pub(super) async fn open(target: Target, tasks: &Tasks) -> Result<Self, CallError> {
        let sender = dial(&target, tasks).await?;
        let requests = Route::ALL.into_iter().map(|route| request(&target, route)).collect();
        let redial = tokio::sync::Mutex::new(());
        let (sender, lost_since) = (Mutex::new(sender), Mutex::new(None));
        Ok(Self { target, requests, sender, redial, lost_since, tasks: tasks.clone() })
    }

    /// Whether the member has been out of reach for longer than an attempt to connect may take.
    pub(super) fn is_given_up(&self) -> bool {
        self.lost_since.lock().is_some_and(|since| since.elapsed() > self.target.dial_timeout)
    }

    /// Starts a call; the answer's headers are not waited for.
    async fn start(&self, route: Route) -> Result<(ResponseFuture, SendStream<Bytes>), CallError> {
        let sender = self.sender.lock().clone();
        let mut sender = match sender.ready().await {
            Ok(sender) => sender,
            Err(error) => {
                self.replace().await;
                return Err(error.into());
            }
        };
        let template = &self.requests[route as usize];
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = template.uri().clone();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = template.headers().clone();
        Ok(sender.send_request(request, false)?)
    }

    /// Dials until there is a working connection again. One caller does it, the others wait.
    async fn replace(&self) {
        let _turn = self.redial.lock().await;
        let sender = self.sender.lock().clone();
        if sender.ready().await.is_ok() {
            return;
        }
        match dial(&self.target, &self.tasks).await {
            Ok(sender) => {
                *self.sender.lock() = sender;
                *self.lost_since.lock() = None;
            }
            Err(_) => {
                self.lost_since.lock().get_or_insert_with(Instant::now);
                tokio::time::sleep(REDIAL).await;
            }
        }
    }

    /// One request, one answer. The answer is the whole message without its prefix.
    pub(super) async fn unary(&self, route: Route, frame: Bytes) -> Result<Bytes, CallError> {
        let (answer, mut send) = self.start(route).await?;
        send.send_data(frame, true)?;
        let answer = answer.await?;
        status_of(answer.headers())?;
        let mut body = answer.into_body();
        let mut whole = Bytes::new();
        let mut pieces = BytesMut::new();
        while let Some(piece) = body.data().await {
            let piece = piece?;
            // A release only fails when more is released than was received.
            let _ = body.flow_control().release_capacity(piece.len());
            if whole.is_empty() && pieces.is_empty() {
                whole = piece;
            } else {
                pieces.extend_from_slice(&std::mem::take(&mut whole));
                pieces.extend_from_slice(&piece);
            }
        }
        match body.trailers().await? {
            Some(trailers) => status_of(&trailers)?,
            None => return Err(CallError("answer without a status".into())),
        }
        let mut whole = if pieces.is_empty() { whole } else { pieces.freeze() };
        if whole.len() < PREFIX_BYTES {
            return Err(CallError("answer without a message".into()));
        }
        Ok(whole.split_off(PREFIX_BYTES))
    }

    /// Opens a stream in both directions.
    pub(super) async fn stream(&self, route: Route) -> Result<(StreamSender, StreamReceiver), CallError> {
        let (answer, send) = self.start(route).await?;
        Ok((StreamSender(send), StreamReceiver { state: Receiving::Headers(answer), buffer: BytesMut::new() }))
    }
}

async fn dial(target: &Target, tasks: &Tasks) -> Result<SendRequest<Bytes>, CallError> {
    let endpoint = &target.endpoint;
    let connect = async {
        let stream = TCP.connect_endpoint(endpoint, 0).await.map_err(|error| {
            let reason = error.to_string();
            let reason = reason.split(" (os error").next().unwrap_or_default().to_lowercase();
            CallError(format!("dial tcp {endpoint}: connect: {reason}"))
        })?;
        let stream = secure(endpoint, stream, target.tls.as_ref(), Alpn::H2).await;
        let stream = stream.map_err(|error| CallError(format!("dial tcp {endpoint}: {error}")))?;
        let handshake = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            .handshake(stream)
            .await;
        handshake.map_err(|error| CallError(format!("dial tcp {endpoint}: {error}")))
    };
    let connected = tokio::time::timeout(target.dial_timeout, connect).await;
    let (sender, connection) = connected.map_err(|_| CallError(format!("dial tcp {endpoint}: i/o timeout")))??;
    tasks.spawn(async move {
        // Callers learn of its end from their own calls.
        let _ = connection.await;
    });
    Ok(sender)
}

fn request(target: &Target, route: Route) -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = Uri::builder()
        .scheme(if target.endpoint.uses_tls(target.tls.is_some()) { "https" } else { "http" })
        .authority(target.endpoint.authority().clone())
        .path_and_query(route.path())
        .build()
        .expect("an authority and a constant path are a URI");
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    if let Some(token) = &target.token {
        headers.insert("token", token.clone());
    }
    request
}

/// The status in headers or trailers; headers without one are fine.
fn status_of(headers: &HeaderMap) -> Result<(), CallError> {
    let Some(code) = headers.get("grpc-status") else { return Ok(()) };
    if code.as_bytes() == b"0" {
        return Ok(());
    }
    let status = tonic::Status::from_header_map(headers);
    Err(match status {
        Some(status) => CallError(format!("{:?}: {}", status.code(), status.message())),
        None => CallError(format!("status {code:?}")),
    })
}

/// The sending half of a stream.
pub(super) struct StreamSender(SendStream<Bytes>);

impl StreamSender {
    pub(super) fn send(&mut self, frame: Bytes) -> Result<(), CallError> {
        Ok(self.0.send_data(frame, false)?)
    }
}

enum Receiving {
    Headers(ResponseFuture),
    Body(RecvStream),
}

/// The receiving half of a stream.
pub(super) struct StreamReceiver {
    state: Receiving,
    buffer: BytesMut,
}

impl StreamReceiver {
    /// The next message without its prefix. Safe to drop while it waits.
    pub(super) async fn message(&mut self) -> Result<Bytes, CallError> {
        poll_fn(|cx| self.poll_message(cx)).await
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, CallError>> {
        loop {
            if let Some(message) = take_message(&mut self.buffer) {
                return Poll::Ready(Ok(message));
            }
            match &mut self.state {
                Receiving::Headers(answer) => {
                    let answer = std::task::ready!(Pin::new(answer).poll(cx))?;
                    status_of(answer.headers())?;
                    self.state = Receiving::Body(answer.into_body());
                }
                Receiving::Body(body) => match std::task::ready!(body.poll_data(cx)) {
                    Some(piece) => {
                        let piece = piece?;
                        let _ = body.flow_control().release_capacity(piece.len());
                        self.buffer.extend_from_slice(&piece);
                    }
                    None => {
                        if let Some(trailers) = std::task::ready!(body.poll_trailers(cx))? {
                            status_of(&trailers)?;
                        }
                        return Poll::Ready(Err(CallError("stream ended".into())));
                    }
                },
            }
        }
    }
}

/// Cuts one whole message off the front.
fn take_message(buffer: &mut BytesMut) -> Option<Bytes> {
    let (prefix, rest) = Prefix::split(buffer)?;
    if rest.len() < prefix.length {
        return None;
    }
    let mut message = buffer.split_to(PREFIX_BYTES + prefix.length).freeze();
    Some(message.split_off(PREFIX_BYTES))
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;
    use crate::pb::etcdserverpb::PutRequest;

    #[test]
    fn messages_are_cut_out_wherever_the_pieces_end() {
        let one = frame(&PutRequest { key: "k".into(), ..Default::default() });
        let two = frame(&PutRequest { key: "long key".into(), ..Default::default() });
        let wire = [one.clone(), two.clone()].concat();
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for byte in wire {
            buffer.put_u8(byte);
            found.extend(take_message(&mut buffer));
        }
        assert_eq!(found, [one.slice(PREFIX_BYTES..), two.slice(PREFIX_BYTES..)]);
        assert!(buffer.is_empty());
    }

    #[tokio::test]
    async fn a_member_that_stays_away_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target {
            tls: None,
            endpoint: listener.local_addr().unwrap().to_string().parse().unwrap(),
            dial_timeout: Duration::from_millis(150),
            token: None,
        };
        let connection = Connection::open(target, &Tasks::new()).await.unwrap();
        assert!(!connection.is_given_up());
        drop(listener);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !connection.is_given_up() {
            assert!(connection.unary(Route::Put, frame(&PutRequest::default())).await.is_err());
            assert!(Instant::now() < deadline, "never gives up");
        }
    }

    #[test]
    fn a_status_is_read_from_headers() {
        let mut headers = HeaderMap::new();
        assert_eq!(status_of(&headers), Ok(()));
        headers.insert("grpc-status", HeaderValue::from_static("0"));
        assert_eq!(status_of(&headers), Ok(()));
        headers.insert("grpc-status", HeaderValue::from_static("5"));
        headers.insert("grpc-message", HeaderValue::from_static("no%20such"));
        assert_eq!(status_of(&headers), Err(CallError("NotFound: no such".into())));
    }

    #[test]
    fn every_route_has_its_own_template() {
        let target = Target {
            endpoint: "127.0.0.1:1".parse().unwrap(),
            tls: None,
            dial_timeout: Duration::from_secs(1),
            token: None,
        };
        for (at, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!(route as usize, at);
            assert_eq!(request(&target, route).uri().path(), route.path());
        }
    }
}
