use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;
use tracing::warn;

use super::connection_info::Accepted;
use super::first_bytes::Stream;
use super::socket::{ListenerError, NO_ADDRESS, Protection, Socket, SocketKind};
use super::worker::{Counts, HANDOVER_MAX, ListenerConfig, NewConnection, WorkerId, run};
use crate::net::{SocketFile, TcpSilence};
use crate::shutdown::Tasks;

/// Pause after an accept error, or while the process has as many connections as it may.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// At most one log line about accept errors in this time.
const ACCEPT_LOG_PERIOD: Duration = Duration::from_secs(10);

/// A running listener.
#[derive(Debug)]
pub struct Serving {
    addresses: Vec<SocketAddr>,
    listening: Listening,
    open: Vec<OpenListener>,
    stop: CancellationToken,
    ended: Vec<oneshot::Receiver<()>>,
}

impl Serving {
    /// Where clients can connect, in the order of the listeners.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Its listeners, for one who may close some of them; none when they were taken before.
    pub fn take_listeners(&mut self) -> Vec<OpenListener> {
        std::mem::take(&mut self.open)
    }

    /// Opens further listeners.
    pub fn listening(&self) -> &Listening {
        &self.listening
    }

    /// Connections that are counted now.
    #[cfg(test)]
    pub(super) fn open_connections(&self) -> usize {
        open_connections(&self.listening.workers)
    }

    /// Stops accepting, lets open requests finish within the grace period and waits for the threads.
    pub async fn finish(self) {
        self.stop.cancel();
        for ended in self.ended {
            // An error means that the thread is gone already.
            let _ = ended.await;
        }
    }
}

/// Opens listeners of a running service. Cheap to clone.
#[derive(Clone)]
pub struct Listening {
    workers: Arc<[Worker]>,
    connections_max: usize,
    next: Arc<AtomicUsize>,
    stop: CancellationToken,
    tasks: Tasks,
}

/// A listener that can be closed again; its connections stay.
#[derive(Debug)]
pub struct OpenListener {
    number: usize,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Listening {
    /// Serves one more listener; must be called on the runtime of the others.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn open(&self, socket: Socket) -> Result<OpenListener, ListenerError> {
        let address = socket.local_addr().map_err(ListenerError::Thread)?;
        let listener = Listener::new(socket.kind).map_err(ListenerError::Thread)?;
        let (number, stop) = (self.next.fetch_add(1, Ordering::Relaxed), self.stop.child_token());
        let accepting = Accepting {
            number,
            listener,
            protection: socket.protection,
            workers: self.workers.clone(),
            connections_max: self.connections_max,
            stop: stop.clone(),
        };
        self.tasks.spawn(accepting.run());
        Ok(OpenListener { number, address, stop })
    }
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listening").finish_non_exhaustive()
    }
}

impl OpenListener {
    /// What [`ConnectionInfo::listener`](super::ConnectionInfo::listener) says of its connections; never given twice.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Accepts no more connections, and frees the address soon.
    pub fn close(self) {
        self.stop.cancel();
    }
}

/// A service that gives each request to `answer`, with a copy of `handler`.
pub fn answering<T, F, A>(
    handler: T,
    answer: F,
) -> impl Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send + Unpin> + Clone + Send
where
    T: Clone + Send,
    F: Fn(T, Request<Incoming>) -> A + Clone + Send,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    tower::service_fn(move |request| answer(handler.clone(), request).map(Ok).boxed())
}

/// One serving thread as the accept loop sees it.
struct Worker {
    connections: mpsc::Sender<NewConnection>,
    open: Arc<AtomicUsize>,
}

/// Serves the listeners on threads of their own, one service per thread, until `tasks` stop.
///
/// Must be called on a runtime: the accept loops run there. `make` is called on each serving thread, within its
/// runtime.
///
/// # Errors
/// When a listener or a thread cannot be set up.
pub fn serve<F, S>(
    sockets: Vec<Socket>,
    config: ListenerConfig,
    make: F,
    tasks: &Tasks,
) -> Result<Serving, ListenerError>
where
    F: Fn(WorkerId) -> S + Send + Sync + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + Unpin,
{
    let stop = tasks.stop_signal().child_token();
    let make = Arc::new(make);
    let mut workers = Vec::new();
    let mut ended = Vec::new();
    let (unfinished_bytes, unsent_bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for number in 0..config.serving_threads.max(1) {
        let (connections, incoming) = mpsc::channel(HANDOVER_MAX);
        let open = Arc::new(AtomicUsize::new(0));
        let (done, wait) = oneshot::channel();
        let (make, config, stop) = (make.clone(), config.clone(), stop.clone());
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ListenerError::Thread)?;
        let counts = Counts {
            open: open.clone(),
            unfinished_bytes: unfinished_bytes.clone(),
            unsent_bytes: unsent_bytes.clone(),
        };
        std::thread::Builder::new()
            .name(format!("serve-{number}"))
            .spawn(move || {
                runtime.block_on(async move {
                    let service = make(WorkerId(number));
                    run(incoming, service, config, counts, stop).await;
                });
                let _ = done.send(());
            })
            .map_err(ListenerError::Thread)?;
        workers.push(Worker { connections, open });
        ended.push(wait);
    }
    let listening = Listening {
        workers: workers.into(),
        connections_max: config.connections_max,
        next: Arc::default(),
        stop: stop.clone(),
        tasks: tasks.clone(),
    };
    let open = sockets.into_iter().map(|socket| listening.open(socket)).collect::<Result<Vec<_>, _>>()?;
    let addresses = open.iter().map(|listener| listener.address).collect();
    Ok(Serving { addresses, listening, open, stop, ended })
}

/// A socket on the runtime of its accept loop.
enum Listener {
    Tcp(tokio::net::TcpListener),
    Unix(#[allow(dead_code, reason = "removed with the listener")] SocketFile, tokio::net::UnixListener),
}

impl Listener {
    fn new(socket: SocketKind) -> io::Result<Self> {
        Ok(match socket {
            SocketKind::Tcp(listener) => Self::Tcp(tokio::net::TcpListener::from_std(listener)?),
            SocketKind::Unix(file, listener) => Self::Unix(file, tokio::net::UnixListener::from_std(listener)?),
        })
    }

    async fn accept(&self, listener: usize) -> io::Result<(Stream, Accepted)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                TcpSilence::CLIENT.prepare(&stream)?;
                let local = canonical(stream.local_addr()?);
                let accepted = Accepted { listener, local, peer: canonical(peer) };
                Ok((Stream::Tcp(stream.into_std()?), accepted))
            }
            Self::Unix(_, socket) => {
                let (stream, _) = socket.accept().await?;
                Ok((Stream::Unix(stream.into_std()?), Accepted { listener, local: NO_ADDRESS, peer: NO_ADDRESS }))
            }
        }
    }
}

/// An address of IPv4 as such: a socket for both families has it in the form of IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

/// One accept loop.
struct Accepting {
    number: usize,
    listener: Listener,
    protection: Protection,
    workers: Arc<[Worker]>,
    connections_max: usize,
    stop: CancellationToken,
}

impl Accepting {
    async fn run(self) {
        let Self { number, listener, protection, workers, connections_max, stop } = self;
        let mut last_log: Option<Instant> = None;
        loop {
            if open_connections(&workers) >= connections_max {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => continue,
                }
            }
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept(number) => accepted,
            };
            match accepted {
                Ok((stream, accepted)) => {
                    hand_over(NewConnection { stream, accepted, protection: protection.clone() }, &workers).await;
                }
                Err(error) => {
                    // Out of descriptors, or a client that left early: neither may end the loop or make it spin.
                    if last_log.is_none_or(|at| at.elapsed() > ACCEPT_LOG_PERIOD) {
                        last_log = Some(Instant::now());
                        warn!(%error, "connection not accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn open_connections(workers: &[Worker]) -> usize {
    workers.iter().map(|worker| worker.open.load(Ordering::Relaxed)).sum()
}

/// Gives the connection to the thread with the fewest.
async fn hand_over(connection: NewConnection, workers: &[Worker]) {
    let Some(worker) = workers.iter().min_by_key(|worker| worker.open.load(Ordering::Relaxed)) else { return };
    worker.open.fetch_add(1, Ordering::Relaxed);
    if worker.connections.send(connection).await.is_err() {
        worker.open.fetch_sub(1, Ordering::Relaxed);
    }
}
