use std::collections::{BTreeMap, BTreeSet, HashMap};
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
use tracing::{debug, info, warn};

use super::config::{Peer, PeerConfig};
use super::dial::{Dialed, silence};
use super::hello::{Greeting, Hello, Purpose, Refusal, answer, cluster_of, sender_of};
use super::lanes::keep_connected;
use super::link::Link;
use super::peer_set::{PeerChanges, PeerSet};
use super::receiver::{CallError, PeerReceiver};
use super::snapshot_receive::{Slot, receive, remove_leftovers};
use super::{incoming, snapshot_send};
use crate::core::raft::{Lane, Outbound, PeerSink};
use crate::listener::{Counted, plain_tcp};
use crate::shutdown::Tasks;
use crate::telemetry::PeerMetrics;
use crate::types::MemberId;

/// Threads for disk work of snapshot transfers, and of receivers that have some.
const BLOCKING_THREADS_MAX: usize = 8;
/// The lanes that are kept connected.
const LANES: [Purpose; 3] = [Purpose::Control, Purpose::Append, Purpose::Calls];
/// Pause between two warnings about connections of one member that are refused for one reason.
const REFUSAL_TOLD_AGAIN: Duration = Duration::from_secs(60);
/// Senders and reasons that are remembered for that; more come from a sender that changes its id.
const REFUSALS_TOLD_MAX: usize = 64;
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
    /// Held while `links` follow a change of it.
    peer_set: Mutex<PeerSet>,
    /// One for each peer of the peer set, replaced as a whole.
    links: ArcSwap<HashMap<MemberId, Arc<Link>>>,
    /// The one accepted connection of each lane of each peer; a new one ends the old one.
    accepted: Mutex<Accepted>,
    pub(super) snapshots_out: Semaphore,
    pub(super) snapshots_in: Semaphore,
    /// When the refusal of a sender was last logged as a warning.
    refusals_told: Mutex<BTreeMap<(Option<MemberId>, Refusal), Instant>>,
    /// One for each peer that ever sent a db snapshot.
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
    /// When the thread cannot start, or leftovers of received db snapshots cannot be removed.
    pub fn start(
        config: PeerConfig,
        receiver: Arc<dyn PeerReceiver>,
        metrics: PeerMetrics,
        tasks: &Tasks,
    ) -> std::io::Result<Self> {
        remove_leftovers(&receiver.snapshot_dir())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("peer-disk")
            .build()?;
        let shared = Shared {
            snapshots_out: Semaphore::new(config.limits.snapshots_out_max),
            snapshots_in: Semaphore::new(config.limits.snapshots_in_max),
            peer_set: Mutex::new(PeerSet::new(config.cluster, config.member)),
            links: ArcSwap::default(),
            config,
            receiver,
            metrics,
            tasks: tasks.clone(),
            runtime: runtime.handle().clone(),
            accepted: Mutex::default(),
            refusals_told: Mutex::default(),
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

    /// Follows the member list: connects to `peers`, drops the connections of all others except unlisted peers that are
    /// connected. This member itself is left out; the others are sent its URLs.
    pub fn set_peers(&self, peers: Vec<Peer>, removed: BTreeSet<MemberId>) {
        let shared = &self.shared;
        let mut peer_set = shared.peer_set.lock();
        let changes = peer_set.set_peers(peers, removed, |peer| shared.has_accepted(peer));
        shared.follow(changes);
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
        let calls = match self.shared.links.load().get(&to) {
            Some(link) => link.calls.clone(),
            None => return Err(CallError::UnknownPeer(to)),
        };
        let stop = self.shared.tasks.stop_signal();
        let answer = calls.call(method, body, &self.shared.config.limits);
        stop.run_until_cancelled(answer).await.unwrap_or(Err(CallError::Stopped))
    }

    /// Since when messages can be sent to this peer without a break.
    pub fn active_since(&self, peer: MemberId) -> Option<Instant> {
        self.shared.links.load().get(&peer)?.active_since()
    }

    /// Answers a request for [`PEER_PATH`](super::PEER_PATH) on the peer port and, if it is one of a peer, takes the
    /// connection over.
    pub fn upgrade<B>(&self, request: &mut Request<B>) -> Response<Full<Bytes>> {
        let judged = match request.version() {
            Version::HTTP_11 => self.judge(request.headers()),
            _ => Err(Refusal::Malformed),
        };
        let outcome = judged.as_ref().map(|_| ()).map_err(|refusal| *refusal);
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
                self.shared.tell_refused(refusal, request.headers());
                self.shared.metrics.refused.with_label_values(&[refusal.name()]).inc();
            }
        }
        answer(self.shared.config.cluster, outcome)
    }

    /// Decides about a request to connect.
    ///
    /// # Errors
    /// The reason that the answer gives.
    pub fn judge(&self, headers: &http::HeaderMap) -> Result<Greeting, Refusal> {
        self.shared.peer_set.lock().judge(headers)
    }

    /// Serves a connection that passed the handshake; `first` is what arrived with the end of it.
    pub fn accept(&self, greeting: Greeting, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, first: Bytes) {
        self.shared.clone().serve(greeting, Dialed { io: Box::new(io), first });
    }

    fn take_over(&self, greeting: Greeting, upgraded: Upgraded) {
        match plain_tcp(upgraded) {
            Ok((stream, open, first)) => match self.shared.adopt(stream) {
                Ok(stream) => self.accept(greeting, Counted::new(stream, open), first),
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
        self.links.load()[&peer].clone()
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
        self.peer_set.lock().hello(to, purpose)
    }

    /// What is kept of the db snapshots of a peer.
    pub(super) fn slot(&self, from: MemberId) -> Arc<tokio::sync::Mutex<Slot>> {
        self.slots.lock().entry(from).or_default().clone()
    }

    fn connect(self: &Arc<Self>, link: &Arc<Link>) {
        for purpose in LANES {
            self.spawn(keep_connected(self.clone(), link.clone(), purpose));
        }
    }

    /// Opens, moves and ends connections as the peer set has changed, which is locked until then.
    fn follow(self: &Arc<Self>, changes: PeerChanges) {
        let mut links = HashMap::clone(&self.links.load());
        for peer in changes.moved {
            if let Some(link) = links.get(&peer.id) {
                link.urls.store(Arc::new(peer.urls));
                link.redial.notify_waiters();
            }
        }
        let new = |peer: Peer| Arc::new(Link::new(peer.id, peer.urls, &self.config, &self.metrics));
        let added: Vec<_> = changes.added.into_iter().map(new).collect();
        links.extend(added.iter().map(|link| (link.peer, link.clone())));
        let ended: Vec<_> = changes.ended.iter().filter_map(|peer| links.remove(peer)).collect();
        self.links.store(Arc::new(links));
        for link in ended {
            link.end();
            self.end_accepted(link.peer);
            self.slots.lock().remove(&link.peer);
        }
        for link in added {
            self.connect(&link);
        }
    }

    fn has_accepted(&self, peer: MemberId) -> bool {
        self.accepted.lock().open.keys().any(|(from, _)| *from == peer)
    }

    /// Logs that a connection was refused. A refused member tries again every second on each lane: each sender and
    /// cause is a warning once in a while only.
    fn tell_refused(&self, refusal: Refusal, headers: &http::HeaderMap) {
        let (peer, theirs) = (sender_of(headers), cluster_of(headers));
        let is_news = || {
            let mut told = self.refusals_told.lock();
            let now = Instant::now();
            if told.get(&(peer, refusal)).is_some_and(|at| now.duration_since(*at) < REFUSAL_TOLD_AGAIN) {
                return false;
            }
            if told.len() >= REFUSALS_TOLD_MAX {
                told.clear();
            }
            told.insert((peer, refusal), now);
            true
        };
        let named = |id: Option<String>| id.unwrap_or_default();
        let (peer_text, theirs) = (named(peer.map(|id| id.to_string())), named(theirs.map(|id| id.to_string())));
        match refusal {
            Refusal::WrongCluster if is_news() => {
                warn!(peer = peer_text, theirs, own = %self.config.cluster, "request cluster ID mismatch");
            }
            Refusal::WrongVersion | Refusal::WrongMember if is_news() => {
                warn!(peer = peer_text, %refusal, "connection of a peer refused");
            }
            // The rest comes from unknown senders, or passes: a member that is being added or removed.
            _ => debug!(peer = peer_text, %refusal, "connection of a peer refused"),
        }
    }

    /// Moves a socket from the runtime that accepted it to ours.
    fn adopt(&self, stream: TcpStream) -> std::io::Result<TcpStream> {
        let stream = stream.into_std()?;
        let _here = self.runtime.enter();
        let stream = TcpStream::from_std(stream)?;
        silence(self.config.limits.silence_max).prepare(&stream)?;
        Ok(stream)
    }

    fn serve(self: Arc<Self>, greeting: Greeting, dialed: Dialed) {
        if greeting.unlisted_urls.is_some() {
            let mut peer_set = self.peer_set.lock();
            let changes = peer_set.admit(&greeting);
            for Peer { id, urls } in &changes.added {
                info!(member = %id, ?urls, "a member of this cluster that is not in the list yet has connected");
            }
            self.follow(changes);
        }
        let Greeting { from, purpose, .. } = greeting;
        let key = (from, purpose);
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
        match self.links.load().get(&from) {
            Some(link) => link.redial.notify_waiters(),
            None => ended.cancel(),
        }
        let shared = self.clone();
        self.spawn(async move {
            let serving = async {
                match purpose {
                    Purpose::Snapshot => receive(&shared, from, dialed).await,
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
                warn!(peer = %from, lane = %purpose, %error, "connection of a peer closed");
                shared.metrics.received_failures.with_label_values(&[&from.to_string()]).inc();
            } else {
                debug!(peer = %from, lane = %purpose, %error, "connection of a peer ended");
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
        let links = self.shared.links.load();
        for message in messages {
            // A member that left the list gets nothing more.
            let Some(link) = links.get(&message.to) else { continue };
            match message.lane {
                Lane::Control => {
                    link.push(&link.control, message.bytes);
                }
                Lane::Append => {
                    if link.push(&link.append, message.bytes).began_dropping {
                        self.shared.receiver.unreachable(link.peer);
                    }
                }
                Lane::Snapshot => snapshot_send::start(&self.shared, link, message.bytes),
            }
        }
    }

    fn append_room(&self, to: MemberId) -> usize {
        let links = self.shared.links.load();
        links.get(&to).map_or(0, |link| link.append.room())
    }
}
