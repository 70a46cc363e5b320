use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::Full;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::config::{Peer, PeerConfig};
use super::dial::{Dialed, prepare};
use super::hello::{Greeting, Hello, Purpose, Refusal, answer};
use super::lanes::keep_connected;
use super::link::{Link, Roster};
use super::receiver::{CallError, PeerReceiver};
use super::snapshot_receive::{Slot, clear_room, receive};
use super::{incoming, snapshot_send};
use crate::core::raft::{Lane, Outbound, PeerSink};
use crate::shutdown::Tasks;
use crate::telemetry::PeerMetrics;
use crate::types::MemberId;

/// Threads for disk work of snapshot transfers, and of receivers that have some.
const BLOCKING_THREADS_MAX: usize = 8;
/// Wait at a stop for disk work that has begun.
const BLOCKING_GRACE: Duration = Duration::from_secs(1);

/// The connections to the other members. Cheap to clone.
#[derive(Clone)]
pub struct PeerTransport {
    pub(super) shared: Arc<Shared>,
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) config: PeerConfig,
    pub(super) receiver: Arc<dyn PeerReceiver>,
    pub(super) metrics: PeerMetrics,
    tasks: Tasks,
    runtime: Handle,
    roster: ArcSwap<Roster>,
    /// Held while the roster changes.
    changing: Mutex<()>,
    /// The one accepted connection of each lane of each peer; a new one ends the old one.
    accepted: Mutex<Accepted>,
    pub(super) snapshots_out: Semaphore,
    pub(super) snapshots_in: Semaphore,
    /// One for each peer that ever sent an image.
    slots: Mutex<HashMap<MemberId, Arc<tokio::sync::Mutex<Slot>>>>,
}

#[derive(Default)]
struct Accepted {
    count: u64,
    open: HashMap<(MemberId, Purpose), (u64, CancellationToken)>,
}

impl PeerTransport {
    /// Starts the thread that does the peers' I/O; it ends when `tasks` stop. Must be called on a runtime.
    ///
    /// # Errors
    /// When the thread cannot start, or leftovers of received images cannot be removed.
    pub fn start(
        config: PeerConfig,
        receiver: Arc<dyn PeerReceiver>,
        metrics: PeerMetrics,
        tasks: &Tasks,
    ) -> std::io::Result<Self> {
        clear_room(&receiver.snapshot_room())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("peer-disk")
            .build()?;
        let shared = Shared {
            snapshots_out: Semaphore::new(config.limits.snapshots_out_max),
            snapshots_in: Semaphore::new(config.limits.snapshots_in_max),
            config,
            receiver,
            metrics,
            tasks: tasks.clone(),
            runtime: runtime.handle().clone(),
            roster: ArcSwap::default(),
            changing: Mutex::default(),
            accepted: Mutex::default(),
            slots: Mutex::default(),
        };
        let stop = tasks.stop_signal();
        let (done, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("peers".into()).spawn(move || {
            runtime.block_on(stop.cancelled());
            // Every task waits somewhere harmless; what it still holds goes with it.
            runtime.shutdown_timeout(BLOCKING_GRACE);
            drop(done);
        })?;
        tasks.spawn(async move {
            let _ = ended.await;
        });
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Follows the member list: connects to `peers`, drops the connections of everybody else. This member itself is
    /// left out.
    pub fn set_peers(&self, peers: Vec<Peer>, removed: BTreeSet<MemberId>) {
        let shared = &self.shared;
        let _changing = shared.changing.lock();
        let old = shared.roster.load_full();
        let mut links = HashMap::new();
        let mut new = Vec::new();
        for peer in peers {
            if peer.id == shared.config.member || removed.contains(&peer.id) {
                continue;
            }
            let link = match old.links.get(&peer.id) {
                Some(link) => {
                    if **link.urls.load() != peer.urls {
                        link.urls.store(Arc::new(peer.urls));
                        link.promising.notify_waiters();
                    }
                    link.clone()
                }
                None => {
                    let link = Arc::new(Link::new(peer.id, peer.urls, &shared.config, &shared.metrics));
                    new.push(link.clone());
                    link
                }
            };
            links.insert(peer.id, link);
        }
        let gone = old.links.values().filter(|link| !links.contains_key(&link.peer)).cloned().collect::<Vec<_>>();
        shared.roster.store(Arc::new(Roster { links, removed }));
        for link in gone {
            link.end();
            shared.end_accepted(link.peer);
            shared.slots.lock().remove(&link.peer);
        }
        for link in new {
            for purpose in [Purpose::Control, Purpose::Append, Purpose::Calls] {
                shared.spawn(keep_connected(shared.clone(), link.clone(), purpose));
            }
        }
    }

    /// Where raft puts its messages.
    pub fn sink(&self) -> PeerQueue {
        PeerQueue { shared: self.shared.clone() }
    }

    /// Asks one member and waits for its answer, at most as long as the limits say. Dropping the future ends the
    /// waiting only.
    ///
    /// # Errors
    /// See [`CallError`]; what the peer answered is passed on unchanged.
    pub async fn call(&self, to: MemberId, method: &'static str, body: Bytes) -> Result<Bytes, CallError> {
        let calls = match self.shared.roster.load().links.get(&to) {
            Some(link) => link.calls.clone(),
            None => return Err(CallError::UnknownPeer(to)),
        };
        let stop = self.shared.tasks.stop_signal();
        let answer = calls.call(method, body, &self.shared.config.limits);
        stop.run_until_cancelled(answer).await.unwrap_or(Err(CallError::Stopped))
    }

    /// Since when messages can be sent to this peer without a break.
    pub fn active_since(&self, peer: MemberId) -> Option<Instant> {
        self.shared.roster.load().links.get(&peer)?.active_since()
    }

    /// Answers a request for [`PEER_PATH`](super::PEER_PATH) on the peer port and, if it is one of a peer, takes the
    /// connection over.
    pub fn upgrade<B>(&self, request: &mut Request<B>) -> Response<Full<Bytes>> {
        let judged = match request.version() {
            Version::HTTP_11 => self.judge(request.headers()),
            _ => Err(Refusal::Malformed),
        };
        match judged {
            Ok(greeting) => {
                let upgrade = hyper::upgrade::on(request);
                let limit = self.shared.config.limits.handshake_timeout;
                let transport = self.clone();
                self.shared.spawn(async move {
                    match tokio::time::timeout(limit, upgrade).await {
                        Ok(Ok(upgraded)) => transport.take_over(greeting, upgraded),
                        Ok(Err(error)) => debug!(%error, "peer left during the handshake"),
                        Err(_) => debug!("peer did not finish the handshake"),
                    }
                });
            }
            Err(refusal) => {
                debug!(%refusal, "connection of a peer refused");
                self.shared.metrics.refused.with_label_values(&[refusal.name()]).inc();
            }
        }
        answer(&self.shared.config, judged.map(|_| ()))
    }

    /// Decides about a request to connect.
    ///
    /// # Errors
    /// The reason that the answer gives.
    pub fn judge(&self, headers: &http::HeaderMap) -> Result<Greeting, Refusal> {
        let roster = self.shared.roster.load();
        let is_peer = |member| roster.links.contains_key(&member);
        Hello::judge(headers, &self.shared.config, is_peer, &roster.removed)
    }

    /// Serves a connection that passed the handshake; `first` is what arrived with the end of it.
    pub fn accept(&self, greeting: Greeting, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, first: Bytes) {
        self.shared.clone().serve(greeting, Dialed { io: Box::new(io), first });
    }

    fn take_over(&self, greeting: Greeting, upgraded: Upgraded) {
        match hyper_util::server::conn::auto::upgrade::downcast::<TokioIo<TcpStream>>(upgraded) {
            Ok(parts) => match self.shared.adopt(parts.io.into_inner()) {
                Ok(stream) => self.accept(greeting, stream, parts.read_buf),
                Err(error) => warn!(%error, "connection of a peer cannot be taken over"),
            },
            // Not plain TCP: it stays registered where it was accepted.
            Err(upgraded) => self.accept(greeting, TokioIo::new(upgraded), Bytes::new()),
        }
    }
}

impl Shared {
    #[cfg(test)]
    pub(super) fn link(&self, peer: MemberId) -> Arc<Link> {
        self.roster.load().links[&peer].clone()
    }

    #[cfg(test)]
    pub(super) fn accepted_connections(&self) -> usize {
        self.accepted.lock().open.len()
    }

    /// Runs a task on the transport's thread.
    pub(super) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let _here = self.runtime.enter();
        self.tasks.spawn(task)
    }

    pub(super) fn hello(&self, to: MemberId, purpose: Purpose) -> Hello {
        Hello { cluster: self.config.cluster, from: self.config.member, to, purpose }
    }

    /// What is kept of the images of a peer.
    pub(super) fn slot(&self, from: MemberId) -> Arc<tokio::sync::Mutex<Slot>> {
        self.slots.lock().entry(from).or_default().clone()
    }

    /// Moves a socket from the runtime that accepted it to ours.
    fn adopt(&self, stream: TcpStream) -> std::io::Result<TcpStream> {
        let stream = stream.into_std()?;
        let _here = self.runtime.enter();
        let stream = TcpStream::from_std(stream)?;
        prepare(&stream, self.config.limits.silence_max)?;
        Ok(stream)
    }

    fn serve(self: Arc<Self>, greeting: Greeting, dialed: Dialed) {
        let key = (greeting.from, greeting.purpose);
        let ended = CancellationToken::new();
        let number = {
            let mut accepted = self.accepted.lock();
            accepted.count += 1;
            let number = accepted.count;
            if let Some((_, old)) = accepted.open.insert(key, (number, ended.clone())) {
                old.cancel();
            }
            number
        };
        // After the entry is made, so that a change of the list either sees it or is seen here.
        match self.roster.load().links.get(&greeting.from) {
            Some(link) => link.promising.notify_waiters(),
            None => ended.cancel(),
        }
        let shared = self.clone();
        self.spawn(async move {
            let serving = async {
                match greeting.purpose {
                    Purpose::Snapshot => receive(&shared, greeting.from, dialed).await,
                    _ => incoming::serve(&shared, greeting, dialed).await,
                }
            };
            let outcome = ended.run_until_cancelled(serving).await;
            let mut accepted = shared.accepted.lock();
            if accepted.open.get(&key).is_some_and(|(current, _)| *current == number) {
                accepted.open.remove(&key);
            }
            drop(accepted);
            let Some(Err(error)) = outcome else { return };
            if error.is_foul() {
                warn!(peer = %greeting.from, lane = %greeting.purpose, %error, "connection of a peer closed");
                shared.metrics.received_failures.with_label_values(&[&greeting.from.to_string()]).inc();
            } else {
                debug!(peer = %greeting.from, lane = %greeting.purpose, %error, "connection of a peer ended");
            }
        });
    }

    /// Ends what a former peer has open here.
    fn end_accepted(&self, peer: MemberId) {
        for ((from, _), (_, ended)) in &self.accepted.lock().open {
            if *from == peer {
                ended.cancel();
            }
        }
    }
}

/// Raft's way to the peers.
pub struct PeerQueue {
    shared: Arc<Shared>,
}

impl PeerSink for PeerQueue {
    fn send(&mut self, messages: Vec<Outbound>) {
        let roster = self.shared.roster.load();
        for message in messages {
            // Whoever left the list gets nothing more.
            let Some(link) = roster.links.get(&message.to) else { continue };
            match message.lane {
                Lane::Control => {
                    let pushed = link.control.push(message.bytes);
                    link.sent_failures.inc_by(pushed.dropped);
                }
                Lane::Append => {
                    let pushed = link.append.push(message.bytes);
                    link.sent_failures.inc_by(pushed.dropped);
                    if pushed.began_dropping {
                        self.shared.receiver.unreachable(link.peer);
                    }
                }
                Lane::Snapshot => snapshot_send::start(&self.shared, link, message.bytes),
            }
        }
    }
}
