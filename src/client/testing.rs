//! Scripted members for tests: they record what they receive and answer, or fail, as told. [`FakeMember`] listens on
//! TCP; [`FakeNetwork`] is a network in memory, for tests on paused time.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use h2::Reason;
use http::{HeaderMap, Request, Response};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Endpoint;
use super::pool::Dialer;
use crate::net::ByteStream;
use crate::pb::etcdserverpb::{ResponseHeader, StatusResponse};
use crate::pb::frame::framed;
use crate::shutdown::Tasks;

/// What a member received.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// What a member does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// One framed message and status OK.
    Message(Vec<u8>),
    /// The same after this time.
    Late(Duration, Vec<u8>),
    /// Only a status, with one header of the member's own.
    Status(i32, &'static str),
    /// RST_STREAM with this reason.
    Reset(Reason),
    /// The connection dies without a word.
    Cut,
    /// No answer; the log gets [`CANCELLED`] when the client gives up.
    Never,
}

/// Path of the entry for a request that its client gave up.
const CANCELLED: &str = "cancelled";

/// A member that follows a script.
pub(crate) struct FakeMember {
    pub(crate) endpoint: Endpoint,
    received: Arc<Mutex<Vec<Received>>>,
    tasks: Tasks,
}

impl FakeMember {
    pub(crate) async fn start(script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let tasks = Tasks::new();
        let (stop, log, script) = (tasks.stop_signal(), received.clone(), Arc::new(script));
        let inner = tasks.clone();
        tasks.spawn(async move {
            loop {
                let (socket, _) = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap(),
                    () = stop.cancelled() => return,
                };
                let own = Own { cluster: 1, health: healthy(), streams_max: None };
                let serve = connection(socket, own, script.clone(), log.clone(), inner.clone());
                let stop = stop.clone();
                inner.spawn(async move {
                    tokio::select! { () = serve => {}, () = stop.cancelled() => {} }
                });
            }
        });
        Self { endpoint, received, tasks }
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().clone()
    }

    pub(crate) fn stop(&self) {
        self.tasks.stop();
    }
}

/// What happens to a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dial {
    /// RST.
    Refused,
    /// No packet comes back.
    Dark,
    /// TCP connects, and that is all: a hung process, a full accept queue.
    Silent,
    /// Bytes that are no HTTP.
    Garbage,
    /// A server of HTTP/1.
    Http1,
    /// Closed at once.
    Closed,
    /// A member of this cluster.
    Member(u64),
}

/// Endpoints by their authority.
#[derive(Clone)]
pub(crate) struct FakeNetwork {
    places: Arc<Mutex<HashMap<String, Place>>>,
    tasks: Tasks,
    script: Script,
}

type Script = Arc<dyn Fn(&Received) -> Reply + Send + Sync>;

struct Place {
    dial: Dial,
    /// No byte passes while this is true, on connections that were made since it was last replaced.
    hung: watch::Sender<bool>,
    dials: Vec<Instant>,
    received: Arc<Mutex<Vec<Received>>>,
    health: Health,
    /// Streams it allows at once on a connection; none for no bound.
    streams_max: Option<u32>,
}

/// What a member answers to health checks.
type Health = Arc<Mutex<Reply>>;

fn healthy() -> Health {
    Arc::new(Mutex::new(Reply::Message(vec![0; 5])))
}

impl std::fmt::Debug for FakeNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeNetwork").finish_non_exhaustive()
    }
}

impl FakeNetwork {
    /// Every member answers by this script.
    pub(crate) fn new(script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        Self { places: Arc::default(), tasks: Tasks::new(), script: Arc::new(script) }
    }

    pub(crate) fn place(&self, authority: &str, dial: Dial) -> Endpoint {
        let hung = watch::Sender::new(false);
        let place =
            Place { dial, hung, dials: Vec::new(), received: Arc::default(), health: healthy(), streams_max: None };
        self.places.lock().insert(authority.to_owned(), place);
        authority.parse().unwrap()
    }

    fn at<T>(&self, endpoint: &Endpoint, with: impl FnOnce(&mut Place) -> T) -> T {
        with(self.places.lock().get_mut(endpoint.authority().as_str()).unwrap())
    }

    /// Stops or wakes the process at an endpoint. Connections stay, new ones find the same.
    pub(crate) fn hang(&self, endpoint: &Endpoint, hung: bool) {
        self.at(endpoint, |place| place.hung.send_replace(hung));
    }

    /// What the member answers to health checks from now on.
    pub(crate) fn health(&self, endpoint: &Endpoint, reply: Reply) {
        self.at(endpoint, |place| *place.health.lock() = reply);
    }

    /// How many streams the member allows at once, on connections that are made from now on.
    pub(crate) fn allows_streams(&self, endpoint: &Endpoint, streams_max: u32) {
        self.at(endpoint, |place| place.streams_max = Some(streams_max));
    }

    /// Another address from now on; what was connected stays as it is.
    pub(crate) fn moves(&self, endpoint: &Endpoint, dial: Dial) {
        self.at(endpoint, |place| {
            place.dial = dial;
            let old = std::mem::replace(&mut place.hung, watch::Sender::new(false));
            // Kept open: a host that is gone closes no connection.
            self.tasks.spawn(async move { old.closed().await });
        });
    }

    pub(crate) fn dials(&self, endpoint: &Endpoint) -> Vec<Instant> {
        self.at(endpoint, |place| place.dials.clone())
    }

    pub(crate) fn received(&self, endpoint: &Endpoint) -> usize {
        self.at(endpoint, |place| place.received.lock().iter().filter(|entry| entry.path != CANCELLED).count())
    }

    /// Requests that their client gave up.
    pub(crate) fn cancelled(&self, endpoint: &Endpoint) -> usize {
        self.at(endpoint, |place| place.received.lock().iter().filter(|entry| entry.path == CANCELLED).count())
    }
}

impl Dialer for FakeNetwork {
    fn dial<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn ByteStream>>> {
        let (dial, hung, log, health, streams_max) = self.at(endpoint, |place| {
            place.dials.push(Instant::now());
            (place.dial, place.hung.subscribe(), place.received.clone(), place.health.clone(), place.streams_max)
        });
        async move {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            match dial {
                Dial::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
                Dial::Dark => std::future::pending().await,
                Dial::Closed => drop(far),
                Dial::Silent => {
                    self.tasks.spawn(async move {
                        let _far = far;
                        tokio::time::sleep(Duration::from_secs(3600)).await;
                    });
                }
                Dial::Garbage | Dial::Http1 => {
                    self.tasks.spawn(async move {
                        let mut first = [0; 24];
                        let _ = far.read_exact(&mut first).await;
                        let answer: &[u8] = match dial {
                            Dial::Http1 => b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n",
                            _ => &[0xa5; 200],
                        };
                        let _ = far.write_all(answer).await;
                    });
                }
                Dial::Member(cluster) => {
                    let (server, wire) = tokio::io::duplex(1 << 20);
                    let script = self.script.clone();
                    let script = Arc::new(move |received: &Received| script(received));
                    let own = Own { cluster, health, streams_max };
                    self.tasks.spawn(connection(server, own, script, log, self.tasks.clone()));
                    self.tasks.spawn(pass(far, wire, hung));
                }
            }
            Ok(Box::new(near) as Box<dyn ByteStream>)
        }
        .boxed()
    }
}

/// Moves bytes both ways until an end, and none while `hung`.
async fn pass(one: DuplexStream, other: DuplexStream, hung: watch::Receiver<bool>) {
    async fn one_way(
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        mut hung: watch::Receiver<bool>,
    ) {
        let mut buffer = vec![0; 1 << 20];
        loop {
            // What comes in while it is hung waits in the kernel and is read at once when it goes on.
            if hung.wait_for(|&hung| !hung).await.is_err() {
                return std::future::pending().await;
            }
            let count = tokio::select! {
                biased;
                Ok(()) = hung.changed() => continue,
                count = from.read(&mut buffer) => count,
            };
            match count {
                Ok(count) if count > 0 => {
                    if to.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    }
    let ((one_in, one_out), (other_in, other_out)) = (tokio::io::split(one), tokio::io::split(other));
    tokio::select! {
        () = one_way(one_in, other_out, hung.clone()) => {}
        () = one_way(other_in, one_out, hung) => {}
    }
}

/// What a member has of its own.
struct Own {
    cluster: u64,
    health: Health,
    streams_max: Option<u32>,
}

async fn connection(
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    own: Own,
    script: Arc<impl Fn(&Received) -> Reply + Send + Sync + 'static>,
    log: Arc<Mutex<Vec<Received>>>,
    tasks: Tasks,
) {
    let cut = tokio_util::sync::CancellationToken::new();
    let mut builder = h2::server::Builder::new();
    if let Some(streams_max) = own.streams_max {
        builder.max_concurrent_streams(streams_max);
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(socket).await else { return };
    let own = (own.cluster, own.health);
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = cut.cancelled() => return,
        };
        let Some(Ok((request, respond))) = accepted else { return };
        tasks.spawn(stream(request, respond, own.clone(), script.clone(), log.clone(), cut.clone()));
    }
}

async fn stream(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    (cluster, health): (u64, Health),
    script: Arc<impl Fn(&Received) -> Reply + Send + Sync + 'static>,
    log: Arc<Mutex<Vec<Received>>>,
    cut: tokio_util::sync::CancellationToken,
) {
    let (parts, mut body) = request.into_parts();
    let mut bytes = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
    }
    let received = Received { path: parts.uri.path().to_owned(), headers: parts.headers, body: bytes };
    let reply = match received.path.as_str() {
        // What the pool asks on its own.
        "/grpc.health.v1.Health/Check" => health.lock().clone(),
        "/etcdserverpb.Maintenance/Status" => {
            let header = ResponseHeader { cluster_id: cluster, ..Default::default() };
            Reply::Message(framed(&StatusResponse { header: Some(header), ..Default::default() }).to_vec())
        }
        _ => {
            log.lock().push(received.clone());
            script(&received)
        }
    };
    let reply = match reply {
        Reply::Late(time, message) => {
            tokio::time::sleep(time).await;
            Reply::Message(message)
        }
        reply => reply,
    };
    match reply {
        Reply::Message(message) | Reply::Late(_, message) => {
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            send.send_data(message.into(), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            trailers.insert("x-trailer", "kept".parse().unwrap());
            send.send_trailers(trailers).unwrap();
        }
        Reply::Status(code, message) => {
            let head = Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", code)
                .header("grpc-message", message)
                .header("x-member", "own")
                .body(())
                .unwrap();
            respond.send_response(head, true).unwrap();
        }
        Reply::Reset(reason) => respond.send_reset(reason),
        Reply::Never => {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            log.lock().push(Received { path: CANCELLED.to_owned(), ..received });
        }
        Reply::Cut => {
            cut.cancel();
            // Dropped earlier, the stream would still say goodbye with a reset.
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        }
    }
}
