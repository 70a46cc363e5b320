use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::Service;
use tracing::{debug, warn};

use super::connection_info::{Accepted, ConnectionInfo};
use super::connection_limits::CONNECTIONS_MAX;
use super::counted::{Counted, OpenConnection};
use super::first_bytes::{Beginning, Stream, beginning_tcp, beginning_unix};
use super::misdirected;
use super::outgoing::{OpenCall, Outgoing};
use super::paced::Paced;
use super::pings::PingPolicy;
use super::rejections::Rejections;
use super::socket::Protection;
use super::unfinished::refusal;
use super::unsent::StallWatch;
use crate::net::{ByteStream, Rejected, ServerTls, TlsPeer, batched};

/// One serving thread, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WorkerId(pub usize);

/// How connections are served.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// Threads, each with its own runtime and its own connections.
    pub serving_threads: usize,
    /// HTTP/2 streams one connection may have open.
    pub max_concurrent_streams: u32,
    /// Pause after which an idle connection is pinged; zero turns pings off.
    pub keepalive_interval: Duration,
    /// Wait for the answer to a ping before the connection is closed.
    pub keepalive_timeout: Duration,
    /// Least time between two pings of a client; one that pings more often is disconnected. None for no limit.
    pub ping_min_time: Option<Duration>,
    /// Connections at once; more wait in the kernel's queue.
    pub connections_max: usize,
    /// Time that open requests get to finish at a stop.
    pub grace: Duration,
    /// Bound of the first byte of a connection together with its TLS handshake.
    pub handshake_timeout: Duration,
    /// What is logged of a connection that is rejected before its first request.
    pub rejection_message: &'static str,
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            serving_threads: std::thread::available_parallelism().map_or(1, usize::from),
            max_concurrent_streams: u32::MAX,
            keepalive_interval: Duration::from_secs(2 * 60 * 60),
            keepalive_timeout: Duration::from_secs(20),
            ping_min_time: None,
            connections_max: CONNECTIONS_MAX,
            grace: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(5),
            rejection_message: "rejected connection on client endpoint",
        }
    }
}

// What one connection may make this process hold, whatever it does: input that handlers do not take up to the
// connection window, unsent output up to the send buffer of each stream that has any, and what `Paced` lets in.
//
// The library ends a connection whose untaken DATA frames lack more than half of the connection window to 256 bytes
// each. A handler that stops reading must meet the end of its stream's window first: 64 KiB of the smallest messages
// (seven bytes) lack 2.2 MiB.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const SEND_BUFFER_BYTES: usize = 64 * 1024;
const HEADER_LIST_BYTES: u32 = 32 * 1024;
/// Streams that were reset before their handler began. More than fit into what is read in one turn, after which all
/// that came are accepted.
const PENDING_RESETS_MAX: usize = 8 * 1024;

/// Time from the end of one HTTP/1 request to the end of the next one's head: unfinished and idle connections end.
const HTTP1_HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const HTTP1_HEAD_BYTES: usize = 64 * 1024;

/// Connections waiting for their serving thread; a full queue delays the accept loop.
pub(super) const HANDOVER_MAX: usize = 256;

/// A connection on its way to its serving thread.
pub(super) struct NewConnection {
    pub(super) stream: Stream,
    pub(super) accepted: Accepted,
    /// Of the listener that accepted it.
    pub(super) protection: Protection,
}

/// What serving threads count.
pub(super) struct Counts {
    /// Connections of this thread.
    pub(super) open: Arc<AtomicUsize>,
    /// Bytes of unfinished requests, on all threads.
    pub(super) unfinished_bytes: Arc<AtomicUsize>,
    /// Bytes of answers that are not sent, on all threads.
    pub(super) unsent_bytes: Arc<AtomicUsize>,
}

/// The serving thread's side: takes connections until `stop`, then waits for them.
pub(super) async fn run<S>(
    mut connections: mpsc::Receiver<NewConnection>,
    service: S,
    config: ListenerConfig,
    counts: Counts,
    stop: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + Unpin,
{
    let tracker = TaskTracker::new();
    let shared = Arc::new(Shared {
        builder: connection_builder(&config),
        ping_min_time: config.ping_min_time,
        handshake_timeout: config.handshake_timeout,
        rejections: Rejections::new(config.rejection_message),
        unfinished_bytes: counts.unfinished_bytes,
        unsent_bytes: counts.unsent_bytes,
        tracker: tracker.clone(),
        stop: stop.clone(),
    });
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = connections.recv() => accepted,
        };
        let Some(connection) = accepted else { break };
        let open = OpenConnection::counted_in(counts.open.clone());
        tracker.spawn(begin(shared.clone(), connection, service.clone(), open));
    }
    tracker.close();
    if tokio::time::timeout(config.grace, tracker.wait()).await.is_err() {
        debug!(connections = tracker.len(), "connections cut at the end of the grace period");
    }
}

/// What the connections of one thread share.
struct Shared {
    builder: auto::Builder<TokioExecutor>,
    ping_min_time: Option<Duration>,
    handshake_timeout: Duration,
    rejections: Rejections,
    unfinished_bytes: Arc<AtomicUsize>,
    unsent_bytes: Arc<AtomicUsize>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// Detects the client's protocol and does the TLS handshake; serving it is a task of its own, which is smaller.
async fn begin<S>(shared: Arc<Shared>, connection: NewConnection, service: S, open: OpenConnection)
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + Unpin,
{
    let NewConnection { stream, accepted, protection } = connection;
    let limited = tokio::time::timeout(shared.handshake_timeout, async {
        match stream {
            Stream::Tcp(stream) => {
                let stream = TcpStream::from_std(stream)?;
                let Some(beginning) = beginning_tcp(&stream).await? else { return Ok(()) };
                match shared.fitting(&protection, accepted, beginning) {
                    Fitting::Plain => serve(&shared, stream, accepted, None, service, open),
                    Fitting::Tls(tls) => {
                        let Some((stream, peer)) = handshake(&shared, tls, stream, accepted).await else {
                            return Ok(());
                        };
                        serve(&shared, stream, accepted, Some(peer), service, open);
                    }
                    Fitting::No => misdirected::answer(stream, beginning).await,
                }
            }
            Stream::Unix(stream) => {
                let stream = UnixStream::from_std(stream)?;
                let Some(beginning) = beginning_unix(&stream).await? else { return Ok(()) };
                let stream: Box<dyn ByteStream> = Box::new(stream);
                match shared.fitting(&protection, accepted, beginning) {
                    Fitting::Plain => serve(&shared, stream, accepted, None, service, open),
                    Fitting::Tls(tls) => {
                        let Some((stream, peer)) = handshake(&shared, tls, stream, accepted).await else {
                            return Ok(());
                        };
                        serve(&shared, stream, accepted, Some(peer), service, open);
                    }
                    Fitting::No => misdirected::answer(stream, beginning).await,
                }
            }
        }
        std::io::Result::Ok(())
    });
    match shared.stop.run_until_cancelled(limited).await {
        None | Some(Ok(Ok(()))) => {}
        Some(Ok(Err(error))) => debug!(%error, "connection ended before its first byte"),
        Some(Err(_)) => shared.rejections.log(accepted.peer, &Rejected::early("i/o timeout before the first request")),
    }
}

/// Whether the socket serves the client's protocol.
enum Fitting<'a> {
    Plain,
    Tls(&'a ServerTls),
    No,
}

impl Shared {
    fn fitting<'p>(&self, protection: &'p Protection, accepted: Accepted, beginning: Beginning) -> Fitting<'p> {
        let client = accepted.peer;
        match (protection, beginning) {
            (Protection::Tls(tls) | Protection::Both(tls), Beginning::Tls) => Fitting::Tls(tls),
            (Protection::Plain | Protection::Both(_), Beginning::Http2 | Beginning::Other) => Fitting::Plain,
            (Protection::Tls(_), Beginning::Http2 | Beginning::Other) => {
                let reason = "tls: first record does not look like a TLS handshake";
                self.rejections.log(client, &Rejected::early(reason));
                Fitting::No
            }
            (Protection::Plain, Beginning::Tls) => {
                debug!(%client, "TLS handshake on a plain port");
                Fitting::No
            }
        }
    }
}

/// None when it fails.
async fn handshake<I: ByteStream + 'static>(
    shared: &Shared,
    tls: &ServerTls,
    stream: I,
    accepted: Accepted,
) -> Option<(Box<dyn ByteStream>, TlsPeer)> {
    let client = accepted.peer.ip();
    match tls.accept(stream, Some(client).filter(|client| !client.is_unspecified())).await {
        Ok((stream, peer)) => Some((Box::new(stream), peer)),
        Err(rejected) => {
            shared.rejections.log(accepted.peer, &rejected);
            None
        }
    }
}

fn serve<I, S>(
    shared: &Arc<Shared>,
    stream: I,
    accepted: Accepted,
    peer: Option<TlsPeer>,
    service: S,
    open: OpenConnection,
) where
    I: ByteStream + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + Unpin,
{
    let (unfinished, unsent) = (shared.unfinished_bytes.clone(), shared.unsent_bytes.clone());
    let info = Arc::new(ConnectionInfo::new(accepted, peer, unfinished, unsent));
    let service = ConnectionService { service, info };
    let stream = PingPolicy::new(Counted::new(stream, open), shared.ping_min_time);
    shared.tracker.spawn(serve_connection(stream, shared.builder.clone(), service, shared.stop.clone()));
}

fn connection_builder(config: &ListenerConfig) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HTTP1_HEAD_TIMEOUT).max_buf_size(HTTP1_HEAD_BYTES);
    let mut http2 = builder.http2();
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_concurrent_streams)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        // Counted over the life of a connection, and what arrives for a stream that was answered early counts. The
        // resets that wait for a client that does not read are bounded by `Paced`.
        .max_local_error_reset_streams(None);
    if !config.keepalive_interval.is_zero() && !config.keepalive_timeout.is_zero() {
        http2.keep_alive_interval(config.keepalive_interval).keep_alive_timeout(config.keepalive_timeout);
    }
    builder
}

async fn serve_connection<I, S>(
    stream: I,
    builder: auto::Builder<TokioExecutor>,
    service: ConnectionService<S>,
    stop: CancellationToken,
) where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + Unpin,
{
    let (stream, batch) = batched(Paced::new(stream));
    let stream = TokioIo::new(stream);
    let (info, mut stall) = (service.info.clone(), StallWatch::default());
    let connection = builder.serve_connection_with_upgrades(stream, service);
    tokio::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                // A connection that has ended has closed its stream before.
                match (polled, batch.poll_flush(cx)) {
                    (Poll::Ready(ended), _) => Poll::Ready(Some(ended)),
                    (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Some(Err(error.into()))),
                    (Poll::Pending, _) => stall.poll(&info.unsent, cx).map(|()| None),
                }
            }) => {
                match ended {
                    Some(Ok(())) => {}
                    Some(Err(error)) => debug!(error, "connection ended"),
                    None => warn!(peer = %info.peer, "connection closed: the client does not take its answers"),
                }
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// The service of one connection, which puts what is known of the connection into each request, and refuses calls while too
/// much of earlier answers is not sent.
///
/// Calls without `poll_ready`: what would wait for the readiness of a copy of the service is larger than the request, and is
/// copied with it several times. The services here are always ready.
struct ConnectionService<S> {
    service: S,
    info: Arc<ConnectionInfo>,
}

impl<S> hyper::service::Service<Request<Incoming>> for ConnectionService<S>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone,
    S::Future: Unpin,
{
    type Response = Response<Outgoing<Body>>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let call = OpenCall::new(self.info.clone());
        if !self.info.unsent.has_room() {
            return Answering { answer: None, call: Some(call) };
        }
        request.extensions_mut().insert(self.info.clone());
        Answering { answer: Some(self.service.clone().call(request)), call: Some(call) }
    }
}

/// The answer to a call; none for one that is refused.
struct Answering<F> {
    answer: Option<F>,
    call: Option<OpenCall>,
}

impl<F> Future for Answering<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>> + Unpin,
{
    type Output = Result<Response<Outgoing<Body>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = match &mut self.answer {
            Some(answer) => match std::task::ready!(Pin::new(answer).poll(cx)) {
                Ok(response) => response,
                Err(never) => match never {},
            },
            None => refusal().into_http(),
        };
        let call = self.call.take().expect("polled until its end");
        Poll::Ready(Ok(response.map(|body| Outgoing::new(body, call))))
    }
}
