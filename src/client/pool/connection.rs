use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::uri::Scheme;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::cluster::{ClusterPass, UpstreamCluster};
use super::config::PoolConfig;
use super::probe;
use super::standing::Standing;
use crate::client::{Endpoint, KeepAlive};
use crate::net::{Alpn, Batch, Batched, ByteStream, batched, secure};
use crate::shutdown::Tasks;

/// Bytes one answer may run ahead of its reader.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// No bound across streams: one reader that stops would stall all others. Each stream has its own.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// Streams opened before the member has said how many it allows.
const STREAMS_UNTIL_SETTINGS: usize = 10_000;
/// Least pause between pings, whatever is configured.
const PING_PAUSE_MIN: Duration = Duration::from_millis(10);
const FRAME_BYTES: u32 = 64 * 1024;
const HEADER_LIST_BYTES: u32 = 64 * 1024;
/// Streams reset at once. Members end a connection on which more streams were reset than they had looked at; the
/// least that is in use is 20.
const RESETS_AT_ONCE: usize = 16;
/// Cancelled requests that wait to be reset; more are reset at once, even if the member then ends the connection.
const CANCELLED_MAX: usize = 1024;

/// One HTTP/2 connection. Cheap to clone; closed by [`close`](Self::close) or by the other side.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    is_tls: bool,
    retired: AtomicBool,
    /// Cancelled when it takes no new requests.
    over: CancellationToken,
    /// Tells the driver to cut it.
    cut: CancellationToken,
    traffic: Arc<Traffic>,
    /// Streams the member allows at once, as last looked at.
    streams_max: AtomicUsize,
    /// Locked while an answer is waited for, by tasks only.
    pings: tokio::sync::Mutex<Pings>,
    cancelled: Mutex<Cancelled>,
    /// Says that the cluster in use is reached by it.
    pass: OnceLock<ClusterPass>,
    tasks: Tasks,
}

/// The pings of a connection.
struct Pings {
    /// None where HTTP/2 gives none, which it does once for each connection.
    pings: Option<PingPong>,
    /// Whether one is not answered, of which nobody may wait for the answer any more.
    is_sent: bool,
}

impl Pings {
    /// Waits for the answer to a ping.
    async fn pong(&mut self) -> Result<(), h2::Error> {
        let Some(pings) = &mut self.pings else { return Ok(()) };
        if !self.is_sent {
            pings.send_ping(Ping::opaque())?;
            self.is_sent = true;
        }
        poll_fn(|cx| pings.poll_pong(cx)).await?;
        self.is_sent = false;
        Ok(())
    }
}

impl std::fmt::Debug for Pings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pings").field("is_sent", &self.is_sent).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Traffic {
    in_flight: AtomicUsize,
    /// Grows with everything the member answers.
    heard: AtomicUsize,
}

/// Requests whose clients left, and which the member has not answered.
#[derive(Debug, Default)]
struct Cancelled {
    waiting: VecDeque<ResponseFuture>,
    /// Whether a task resets them.
    resetting: bool,
}

/// Counts a request for as long as its answer is not complete.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Traffic>);

impl InFlight {
    /// Notes that the member answered something.
    pub(super) fn heard(&self) {
        self.0.heard.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    /// Dials and begins the HTTP/2 session. Nothing has come from the other side then: the caller waits for an answer
    /// before it uses the connection, and bounds the time of both.
    pub(super) async fn open(endpoint: &Endpoint, config: &PoolConfig, tasks: &Tasks) -> io::Result<Self> {
        Self::on(config.dialer.dial(endpoint).await?, endpoint, config, tasks).await
    }

    /// The same on a connection to the endpoint that is there already.
    pub(super) async fn on(
        stream: Box<dyn ByteStream>,
        endpoint: &Endpoint,
        config: &PoolConfig,
        tasks: &Tasks,
    ) -> io::Result<Self> {
        let is_tls = endpoint.uses_tls(config.tls.is_some());
        let stream = secure(endpoint, stream, config.tls.as_ref(), Alpn::H2).await?;
        let (stream, batch) = batched(stream);
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_max_send_streams(STREAMS_UNTIL_SETTINGS)
            .max_frame_size(FRAME_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES)
            .enable_push(false)
            // Counted over the life of the connection: a member that ends calls before it has read them would use it up.
            .max_local_error_reset_streams(None)
            .handshake(stream)
            .await
            .map_err(io::Error::other)?;
        let shared = Arc::new(Shared {
            endpoint: endpoint.clone(),
            is_tls,
            retired: AtomicBool::new(false),
            over: CancellationToken::new(),
            cut: CancellationToken::new(),
            traffic: Arc::default(),
            streams_max: AtomicUsize::new(usize::MAX),
            pings: tokio::sync::Mutex::new(Pings { pings: connection.ping_pong(), is_sent: false }),
            cancelled: Mutex::default(),
            pass: OnceLock::new(),
            tasks: tasks.clone(),
        });
        tasks.spawn(drive(connection, batch, config.keepalive, Closing(shared.clone())));
        Ok(Self { sender, shared })
    }

    /// Asks for an answer before the first request. With `cluster`, it must show that the endpoint is of that cluster.
    ///
    /// # Errors
    /// Why the connection is of no use.
    pub(super) async fn admit(&self, cluster: Option<&UpstreamCluster>) -> Result<(), String> {
        match cluster {
            None => {
                self.standing().await?;
            }
            Some(cluster) => {
                if let Some(id) = probe::cluster_id(self, &self.shared.endpoint).await? {
                    let pass = cluster.admit(&self.shared.endpoint, id).map_err(|mismatch| mismatch.to_string())?;
                    let _ = self.shared.pass.set(pass);
                }
            }
        }
        // What a member allows comes before its first answer.
        self.look_at_streams_max();
        Ok(())
    }

    /// Takes note of how many streams the member allows, which it may change.
    pub(super) fn look_at_streams_max(&self) {
        // A lock of the connection's, so not done for each request.
        self.shared.streams_max.store(self.sender.current_max_send_streams(), Ordering::Relaxed);
    }

    /// Whether a request would wait until another one on it has ended, because the member allows no more streams.
    pub(super) fn is_full(&self) -> bool {
        self.shared.traffic.in_flight.load(Ordering::Relaxed) >= self.shared.streams_max.load(Ordering::Relaxed)
    }

    /// Waits for the answer to a ping, which needs no stream. To be called by tasks: it may wait for that of another one.
    ///
    /// # Errors
    /// Why the connection is of no use.
    pub(super) async fn pong(&self) -> Result<(), String> {
        self.shared.pings.lock().await.pong().await.map_err(|error| error.to_string())
    }

    /// Waits for the answer to a health check.
    ///
    /// # Errors
    /// Why the endpoint is of no use.
    pub(super) async fn standing(&self) -> Result<Standing, String> {
        probe::standing(self, &self.shared.endpoint).await
    }

    pub(super) fn count(&self) -> InFlight {
        self.shared.traffic.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.shared.traffic.clone())
    }

    /// Whether a request on it is not answered in full.
    pub(super) fn is_busy(&self) -> bool {
        self.shared.traffic.in_flight.load(Ordering::Relaxed) > 0
    }

    /// Differs from an earlier value when the member has answered something since.
    pub(super) fn heard(&self) -> usize {
        self.shared.traffic.heard.load(Ordering::Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shared.retired.load(Ordering::Acquire)
    }

    /// Waits until it takes no new requests any more.
    pub(super) async fn over(&self) {
        self.shared.over.cancelled().await;
    }

    /// Takes no new requests on it; those in flight go on.
    pub(super) fn retire(&self) {
        self.shared.retire();
    }

    /// Cuts it, and with it every stream on it.
    pub(super) fn close(&self) {
        self.retire();
        self.shared.cut.cancel();
    }

    /// The scheme of requests on it.
    pub(super) fn scheme(&self) -> Scheme {
        if self.shared.is_tls { Scheme::HTTPS } else { Scheme::HTTP }
    }

    /// Opens a stream. An error here means that nothing was sent. The connection is then of no further use and
    /// [closed](Self::is_closed), unless it is the request that HTTP/2 cannot carry.
    pub(super) async fn start(
        &self,
        head: http::Request<()>,
        end_of_stream: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut sender = match self.sender.clone().ready().await {
            Ok(sender) => sender,
            Err(error) => {
                self.retire();
                return Err(error);
            }
        };
        let started = sender.send_request(head, end_of_stream);
        // All requests share the connection: what is wrong with one of them must not end it.
        if started.is_err() && sender.ready().await.is_err() {
            self.retire();
        }
        started
    }

    /// Waits for the answer's head. Dropping the future cancels the request upstream, at a pace that the member accepts.
    pub(super) async fn answer(&self, answer: ResponseFuture) -> Result<http::Response<h2::RecvStream>, h2::Error> {
        let mut waiting = Waiting { connection: self, answer: Some(answer) };
        let answered = match &mut waiting.answer {
            Some(answer) => answer.await,
            None => std::future::pending().await,
        };
        waiting.answer = None;
        if answered.is_ok() {
            self.shared.traffic.heard.fetch_add(1, Ordering::Relaxed);
        }
        answered
    }

    /// Resets a request whose client has left. Some at once; when there are more, the next ones follow when the member
    /// has answered, because it then has looked at what came before. So a burst of clients that give up while the
    /// member stalls does not count as an attack, which would end the connection for everybody on it.
    fn cancel(&self, answer: ResponseFuture) {
        let mut cancelled = self.shared.cancelled.lock();
        // There is no runtime while it shuts down.
        let resets_later = !self.is_closed() && tokio::runtime::Handle::try_current().is_ok();
        if !resets_later || cancelled.waiting.len() >= CANCELLED_MAX {
            return;
        }
        cancelled.waiting.push_back(answer);
        if !cancelled.resetting {
            cancelled.resetting = true;
            self.shared.tasks.spawn(reset_paced(self.clone()));
        }
    }
}

impl Shared {
    fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.over.cancel();
    }
}

/// A request whose answer has not begun.
struct Waiting<'a> {
    connection: &'a Connection,
    answer: Option<ResponseFuture>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            self.connection.cancel(answer);
        }
    }
}

/// Ends when nothing waits, or the connection is over.
async fn reset_paced(connection: Connection) {
    loop {
        let batch: Vec<_> = {
            let mut cancelled = connection.shared.cancelled.lock();
            let count = cancelled.waiting.len().min(RESETS_AT_ONCE);
            if count == 0 || connection.is_closed() {
                cancelled.resetting = false;
                cancelled.waiting.clear();
                return;
            }
            cancelled.waiting.drain(..count).collect()
        };
        drop(batch);
        tokio::select! {
            () = connection.over() => {}
            _ = connection.standing() => {}
        }
    }
}

/// Marks the connection closed, however its driver ends.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.retire();
    }
}

async fn drive(
    mut connection: h2::client::Connection<Batched<Box<dyn ByteStream>>, Bytes>,
    batch: Batch<Box<dyn ByteStream>>,
    keepalive: Option<KeepAlive>,
    closing: Closing,
) {
    let Shared { endpoint, cut, .. } = &*closing.0;
    let driven = poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        // A connection that has ended has closed its stream before.
        match (polled, batch.poll_flush(cx)) {
            (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (polled, _) => polled.map_err(io::Error::other),
        }
    });
    tokio::select! {
        ended = driven => {
            if let Err(error) = ended {
                debug!(%endpoint, %error, "upstream connection ended");
            }
        }
        () = ping(keepalive, &closing.0) => debug!(%endpoint, "upstream connection answers no pings"),
        () = cut.cancelled() => {}
    }
}

/// Ends when a ping stays unanswered.
async fn ping(keepalive: Option<KeepAlive>, shared: &Shared) {
    let Some(keepalive) = keepalive else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(keepalive.interval.max(PING_PAUSE_MIN)).await;
        if !keepalive.while_idle && shared.traffic.in_flight.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let pong = async { shared.pings.lock().await.pong().await };
        match tokio::time::timeout(keepalive.timeout, pong).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
