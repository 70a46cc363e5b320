use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::rt::{Read, Write};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::Code;

use super::super::{
    CallFailure, Peer, PeerConfig, PeerDialer, PeerLimits, PeerReceiver, PeerTls, PeerTransport, SnapshotSource,
};
use super::soon;
use crate::core::raft::{Lane, Outbound, PeerSink};
use crate::listener::as_served;
use crate::net::ServerTls;
use crate::shutdown::Tasks;
use crate::telemetry::{Metrics, PeerMetrics};
use crate::types::{ClusterId, LogIndex, LogPosition, MemberId, Term};

pub(super) const CLUSTER: ClusterId = ClusterId(0xc1);
pub(super) const A: MemberId = MemberId(0xa);
pub(super) const B: MemberId = MemberId(0xb);

/// What a member heard, and how it answers.
pub(super) struct Heard {
    messages: mpsc::Sender<(MemberId, Bytes)>,
    db_snapshots: mpsc::Sender<(MemberId, Bytes, Vec<u8>)>,
    sent: mpsc::Sender<(MemberId, bool)>,
    pub(super) unreachable: AtomicUsize,
    pub(super) removed: AtomicUsize,
    pub(super) room: tempfile::TempDir,
    /// DbSnapshot that goes with the next snapshot messages.
    pub(super) db_snapshot: Mutex<Vec<u8>>,
    pub(super) calls_begun: AtomicUsize,
}

impl PeerReceiver for Heard {
    fn message(&self, from: MemberId, bytes: Bytes) -> Result<(), String> {
        if bytes.as_ref() == b"forged" {
            return Err("this message is forged".into());
        }
        self.messages.try_send((from, bytes)).map_err(|error| error.to_string())
    }

    fn unreachable(&self, _peer: MemberId) {
        self.unreachable.fetch_add(1, Ordering::Relaxed);
    }

    fn removed(&self, _by: MemberId) {
        self.removed.fetch_add(1, Ordering::Relaxed);
    }

    fn call(&self, from: MemberId, method: String, body: Bytes) -> BoxFuture<'static, Result<Bytes, CallFailure>> {
        self.calls_begun.fetch_add(1, Ordering::Relaxed);
        match method.as_str() {
            "echo" => async move { Ok([from.to_string().as_bytes(), b" ", &body].concat().into()) }.boxed(),
            "long" => async move { Ok(vec![1; 1 << 20].into()) }.boxed(),
            "held" => futures::future::pending().boxed(),
            _ => {
                let text = format!("etcdserver: no {method}, {}", body.len());
                async move { Err(CallFailure { code: Code::FailedPrecondition, text }) }.boxed()
            }
        }
    }

    fn snapshot_source(&self, _to: MemberId, message: Bytes) -> BoxFuture<'static, Result<SnapshotSource, String>> {
        let db_snapshot = self.db_snapshot.lock().clone();
        async move {
            if db_snapshot.is_empty() {
                return Err("no db snapshot".into());
            }
            let mut file = tempfile::tempfile().expect("a file");
            std::io::Write::write_all(&mut file, &db_snapshot).expect("written");
            Ok(SnapshotSource {
                message: [b"rewritten ", &message[..]].concat().into(),
                position: LogPosition { index: LogIndex(7), term: Term(2) },
                db_snapshot: file,
                size_bytes: db_snapshot.len() as u64,
            })
        }
        .boxed()
    }

    fn snapshot_dir(&self) -> PathBuf {
        self.room.path().join("incoming")
    }

    fn snapshot_received(
        &self,
        from: MemberId,
        message: Bytes,
        file: PathBuf,
    ) -> BoxFuture<'static, Result<(), String>> {
        let db_snapshot = std::fs::read(file).expect("the db snapshot is there");
        let heard = self.db_snapshots.try_send((from, message, db_snapshot));
        async move { heard.map_err(|_| "nobody listens".into()) }.boxed()
    }

    fn snapshot_sent(&self, to: MemberId, ok: bool) {
        let _ = self.sent.try_send((to, ok));
    }
}

/// A member: its transport behind a peer port.
pub(super) struct Node {
    pub(super) transport: PeerTransport,
    pub(super) heard: Arc<Heard>,
    pub(super) address: SocketAddr,
    pub(super) metrics: PeerMetrics,
    pub(super) messages: mpsc::Receiver<(MemberId, Bytes)>,
    pub(super) db_snapshots: mpsc::Receiver<(MemberId, Bytes, Vec<u8>)>,
    pub(super) sent: mpsc::Receiver<(MemberId, bool)>,
    pub(super) tasks: Tasks,
}

impl Node {
    pub(super) async fn start(member: MemberId, limits: PeerLimits) -> Self {
        Self::start_in(CLUSTER, member, limits).await
    }

    pub(super) async fn start_in(cluster: ClusterId, member: MemberId, limits: PeerLimits) -> Self {
        Self::start_with(cluster, member, limits, tempfile::tempdir().expect("a directory")).await
    }

    pub(super) async fn start_with(
        cluster: ClusterId,
        member: MemberId,
        limits: PeerLimits,
        room: tempfile::TempDir,
    ) -> Self {
        let config = PeerConfig { limits, ..PeerConfig::new(cluster, member) };
        Self::start_from(config, room).await
    }

    pub(super) async fn start_tls(member: MemberId, limits: PeerLimits, tls: PeerTls) -> Self {
        let config = PeerConfig {
            limits,
            dialer: PeerDialer { tls: Some(tls), local_address: None },
            ..PeerConfig::new(CLUSTER, member)
        };
        Self::start_from(config, tempfile::tempdir().expect("a directory")).await
    }

    async fn start_from(config: PeerConfig, room: tempfile::TempDir) -> Self {
        let (message_sender, messages) = mpsc::channel(100_000);
        let (snapshot_sender, db_snapshots) = mpsc::channel(10);
        let (sent_sender, sent) = mpsc::channel(10);
        let heard = Arc::new(Heard {
            messages: message_sender,
            db_snapshots: snapshot_sender,
            sent: sent_sender,
            unreachable: AtomicUsize::new(0),
            removed: AtomicUsize::new(0),
            room,
            db_snapshot: Mutex::default(),
            calls_begun: AtomicUsize::new(0),
        });
        let tasks = Tasks::new();
        let metrics = PeerMetrics::register(&Metrics::new());
        let tls = config.dialer.tls.as_ref().map(|tls| tls.accepting.clone());
        let transport =
            PeerTransport::start(config, heard.clone(), metrics.clone(), &tasks).expect("the transport starts");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tasks.spawn(peer_port(listener, tls, transport.clone(), tasks.clone()));
        Self { transport, heard, address, metrics, messages, db_snapshots, sent, tasks }
    }

    /// The only peer from now on.
    pub(super) fn follow(&self, member: MemberId, address: SocketAddr) {
        self.transport.set_peers(vec![Peer { id: member, urls: vec![format!("http://{address}")] }], BTreeSet::new());
    }

    /// The only peer from now on, by TLS.
    pub(super) fn follow_tls(&self, member: MemberId, address: SocketAddr) {
        self.transport.set_peers(vec![Peer { id: member, urls: vec![format!("https://{address}")] }], BTreeSet::new());
    }

    pub(super) fn send(&self, to: MemberId, lane: Lane, bytes: impl Into<Bytes>) {
        self.transport.sink().send(vec![Outbound { to, lane, bytes: bytes.into() }]);
    }

    /// The next message.
    pub(super) async fn hear(&mut self) -> Bytes {
        soon(self.messages.recv()).await.expect("the transport runs").1
    }

    /// Sends until one such message arrives: for after a fault, when messages may be lost.
    pub(super) async fn send_until_heard(&self, to: &mut Self, lane: Lane, bytes: &'static [u8]) {
        let member = to.transport.shared.config.member;
        let repeat = async {
            loop {
                self.send(member, lane, bytes);
                let heard = tokio::time::timeout(std::time::Duration::from_millis(20), to.messages.recv()).await;
                if matches!(heard, Ok(Some((_, heard))) if heard == bytes) {
                    return;
                }
            }
        };
        soon(repeat).await;
    }

    pub(super) async fn stop(self) {
        assert!(self.tasks.finish(super::PATIENCE).await, "every task ends");
    }

    /// Files in the room for db snapshots.
    pub(super) fn files(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.heard.snapshot_dir()).expect("the room is there");
        files.map(|file| file.expect("readable").file_name().to_string_lossy().into_owned()).collect()
    }
}

/// As the real peer port does: TLS if any, HTTP in front, the transport behind the upgrade.
async fn peer_port(listener: TcpListener, tls: Option<ServerTls>, transport: PeerTransport, tasks: Tasks) {
    let stop = tasks.stop_signal();
    while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
        let (transport, tls) = (transport.clone(), tls.clone());
        let connection = async move {
            match tls {
                None => serve(as_served(stream), transport).await,
                Some(tls) => {
                    if let Ok((stream, _)) = tls.accept(stream, None).await {
                        serve(TokioIo::new(stream), transport).await;
                    }
                }
            }
        };
        let connection_stop = stop.clone();
        tasks.spawn(async move { connection_stop.run_until_cancelled(connection).await });
    }
}

async fn serve(stream: impl Read + Write + Send + Unpin + 'static, transport: PeerTransport) {
    let service = tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        let response = transport.upgrade(&mut request);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(service);
    let _ = builder.serve_connection_with_upgrades(stream, service).await;
}

/// Two members that know each other, A through whatever is at `to_b`.
pub(super) async fn pair(limits: PeerLimits) -> (Node, Node) {
    let (a, b) = (Node::start(A, limits.clone()).await, Node::start(B, limits).await);
    a.follow(B, b.address);
    b.follow(A, a.address);
    (a, b)
}

/// Limits under which a busy machine does not look like a broken link.
pub(super) fn patient() -> PeerLimits {
    PeerLimits {
        silence_max: super::PATIENCE,
        handshake_timeout: super::PATIENCE,
        call_timeout: super::PATIENCE,
        call_connect_timeout: super::PATIENCE,
        ..PeerLimits::default()
    }
}
