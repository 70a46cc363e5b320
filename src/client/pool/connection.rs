use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::dispatch::PoolConfig;
use crate::client::{Endpoint, KeepAlive};
use crate::shutdown::Tasks;

/// Bytes one answer may run ahead of its reader.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// No bound across streams: one reader that stops would stall all others. Each stream has its own.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// Streams opened before the member has said how many it allows.
const STREAMS_UNTIL_SETTINGS: usize = 10_000;
/// No configuration may turn pings into a flood.
const PING_PAUSE_MIN: Duration = Duration::from_millis(10);
const FRAME_BYTES: u32 = 64 * 1024;
const HEADER_LIST_BYTES: u32 = 64 * 1024;

/// One HTTP/2 connection. Cheap to clone; closed when told to, or by the other side.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    closed: Arc<AtomicBool>,
    close: CancellationToken,
    in_flight: Arc<AtomicUsize>,
}

/// Counts a request for as long as its answer is not complete.
#[derive(Debug)]
pub(super) struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    pub(super) async fn open(endpoint: &Endpoint, config: &PoolConfig, tasks: &Tasks) -> io::Result<Self> {
        let dial = async {
            let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await?;
            stream.set_nodelay(true)?;
            h2::client::Builder::new()
                .initial_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .initial_max_send_streams(STREAMS_UNTIL_SETTINGS)
                .max_frame_size(FRAME_BYTES)
                .max_header_list_size(HEADER_LIST_BYTES)
                .enable_push(false)
                .handshake(stream)
                .await
                .map_err(io::Error::other)
        };
        let (sender, connection) = tokio::time::timeout(config.dial_timeout, dial)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connect timed out"))??;
        let closed = Arc::new(AtomicBool::new(false));
        let close = CancellationToken::new();
        let in_flight = Arc::new(AtomicUsize::new(0));
        let pings = config.keepalive.map(|keepalive| (keepalive, in_flight.clone()));
        tasks.spawn(drive(connection, pings, Closing { closed: closed.clone() }, close.clone(), endpoint.clone()));
        Ok(Self { sender, closed, close, in_flight })
    }

    pub(super) fn count(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.in_flight.clone())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes no new requests on it; those in flight go on.
    pub(super) fn retire(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Cuts it, and with it every stream on it.
    pub(super) fn close(&self) {
        self.retire();
        self.close.cancel();
    }

    /// Opens a stream. An error here means that nothing was sent, and that the connection is of no further use.
    pub(super) async fn start(
        &self,
        head: http::Request<()>,
        end_of_stream: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let started = match self.sender.clone().ready().await {
            Ok(mut sender) => sender.send_request(head, end_of_stream),
            Err(error) => Err(error),
        };
        if started.is_err() {
            self.retire();
        }
        started
    }
}

/// Marks the connection closed, however its driver ends.
struct Closing {
    closed: Arc<AtomicBool>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
    }
}

async fn drive(
    mut connection: h2::client::Connection<TcpStream, Bytes>,
    pings: Option<(KeepAlive, Arc<AtomicUsize>)>,
    closing: Closing,
    close: CancellationToken,
    endpoint: Endpoint,
) {
    let pings = connection.ping_pong().zip(pings);
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                debug!(%endpoint, %error, "upstream connection ended");
            }
        }
        () = ping(pings) => debug!(%endpoint, "upstream connection answers no pings"),
        () = close.cancelled() => {}
    }
    drop(closing);
}

/// Ends when a ping stays unanswered.
async fn ping(pings: Option<(PingPong, (KeepAlive, Arc<AtomicUsize>))>) {
    let Some((mut pings, (keepalive, in_flight))) = pings else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(keepalive.interval.max(PING_PAUSE_MIN)).await;
        if !keepalive.while_idle && in_flight.load(Ordering::Relaxed) == 0 {
            continue;
        }
        match tokio::time::timeout(keepalive.timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
