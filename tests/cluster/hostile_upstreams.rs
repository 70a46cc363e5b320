//! The proxy in front of an endpoint that lies: it is a member to whoever looks, until a client calls.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tonic::{Code, Status};
use watershed::client::Client;
use watershed::pb::etcdserverpb::{RangeRequest, RangeResponse, StatusResponse, WatchCreateRequest, WatchResponse};
use watershed::pb::healthpb::HealthCheckResponse;
use watershed::pb::mvccpb::{Event, KeyValue};
use watershed::shutdown::Tasks;

use super::story::{put, try_put};
use crate::harness::{Deployment, Proxy, Target, Watching, frame, grpc_message, raw_first, soon, until};

/// Memory that no lie may take the proxy beyond, in kB: one answer at a time is held here as a whole, where it is rewritten.
const MEMORY_MAX_KB: u64 = 300_000;
/// How much of an answer without end a liar sends.
const FLOOD: usize = 64 * 1024 * 1024;
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// What it does with the requests of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// An answer that begins and never ends.
    Endless,
    /// A message whose length is that of the largest there can be, and never comes.
    HugeLength,
    /// Headers, and nothing after them.
    HeadersOnly,
    /// A message that is cut off, and status 0.
    CutOff,
    /// A message that is no protobuf, and status 0.
    NoProtobuf,
    /// Status 0, and no message.
    NoMessage,
    /// A status that is no number, and a text that is no text.
    NoStatus,
    /// Frames that HTTP/2 does not have.
    Garbage,
    /// Resets every stream.
    Resets,
}

const LIES: [Lie; 9] = [
    Lie::Endless,
    Lie::HugeLength,
    Lie::HeadersOnly,
    Lie::CutOff,
    Lie::NoProtobuf,
    Lie::NoMessage,
    Lie::NoStatus,
    Lie::Garbage,
    Lie::Resets,
];

/// Answers checks as a member of this cluster would, and everything else with `respond`.
async fn liar<F>(
    cluster: u64,
    respond: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
) -> String
where
    F: Future<Output = Result<(), h2::Error>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound").to_string();
    let respond = Arc::new(respond);
    Tasks::new().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let respond = respond.clone();
            Tasks::new().spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, answer))) = connection.accept().await {
                    let respond = respond.clone();
                    Tasks::new().spawn(async move {
                        // What the proxy does not want any more cannot be sent.
                        let _ = match request.uri().path() {
                            "/grpc.health.v1.Health/Check" => unary(answer, &HealthCheckResponse { status: 1 }),
                            "/etcdserverpb.Maintenance/Status" => unary(answer, &status(cluster)),
                            _ => respond(request, answer).await,
                        };
                    });
                }
            });
        }
    });
    address
}

fn status(cluster_id: u64) -> StatusResponse {
    let header = header(cluster_id, 10);
    StatusResponse { header, version: "3.7.1".into(), leader: 1, ..Default::default() }
}

fn header(cluster_id: u64, revision: i64) -> Option<watershed::pb::encoded::ResponseHeader> {
    Some(watershed::pb::encoded::ResponseHeader { cluster_id, member_id: 1, revision, raft_term: 2 })
}

fn head() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).expect("a head")
}

fn trailers(status: &'static [u8], message: &'static [u8]) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_bytes(status).expect("a value"));
    trailers.insert("grpc-message", HeaderValue::from_bytes(message).expect("a value"));
    trailers
}

fn unary(mut answer: SendResponse<Bytes>, message: &impl Message) -> Result<(), h2::Error> {
    let mut body = answer.send_response(head(), false)?;
    body.send_data(grpc_message(message).into(), false)?;
    body.send_trailers(trailers(b"0", b""))
}

/// Sends zeros for as long as they are taken.
async fn flood(body: &mut h2::SendStream<Bytes>) -> Result<(), h2::Error> {
    let mut sent = 0;
    while sent < FLOOD {
        body.reserve_capacity(64 * 1024);
        let Some(room) = std::future::poll_fn(|cx| body.poll_capacity(cx)).await else { return Ok(()) };
        let piece = room?;
        body.send_data(vec![0; piece].into(), false)?;
        sent += piece;
    }
    std::future::pending().await
}

async fn lie(lie: Lie, mut answer: SendResponse<Bytes>) -> Result<(), h2::Error> {
    if lie == Lie::Resets {
        answer.send_reset(h2::Reason::INTERNAL_ERROR);
        return Ok(());
    }
    let mut body = answer.send_response(head(), false)?;
    let huge = [0, 0x7f, 0xff, 0xff, 0xff];
    match lie {
        Lie::Endless => {
            body.send_data(Bytes::copy_from_slice(&huge), false)?;
            flood(&mut body).await
        }
        Lie::HugeLength => {
            body.send_data(Bytes::copy_from_slice(&huge), false)?;
            std::future::pending().await
        }
        Lie::CutOff => {
            body.send_data(Bytes::from_static(&[0, 0, 0, 0, 100, 1, 2, 3]), false)?;
            body.send_trailers(trailers(b"0", b""))
        }
        Lie::NoProtobuf => {
            body.send_data(Bytes::from_static(&[0, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]), false)?;
            body.send_trailers(trailers(b"0", b""))
        }
        Lie::NoMessage => body.send_trailers(trailers(b"0", b"")),
        Lie::NoStatus => body.send_trailers(trailers(b"often", b"%\xff%zz")),
        Lie::HeadersOnly | Lie::Garbage | Lie::Resets => std::future::pending().await,
    }
}

/// A liar of this kind in front of nothing.
async fn liar_of(kind: Lie, cluster: u64) -> String {
    if kind == Lie::Garbage {
        return garbage().await;
    }
    liar(cluster, move |_, answer| lie(kind, answer)).await
}

/// Says hello as HTTP/2 has it, and then anything but that.
async fn garbage() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound").to_string();
    Tasks::new().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = frame(4, 0, 0, &[]);
            // DATA of a stream that nobody opened, unknown kinds, HEADERS that are no HPACK, a frame larger than allowed.
            bytes.extend(frame(200, 0xff, 7, &[1; 50]));
            bytes.extend(frame(1, 4, 1, &[0xff; 40]));
            bytes.extend(frame(0, 0, 9, &[0; 1000]));
            bytes.extend([0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]);
            let _ = stream.write_all(&bytes).await;
            hold(stream);
        }
    });
    address
}

/// Keeps a connection open.
fn hold(stream: TcpStream) {
    Tasks::new().spawn(async move {
        let _stream = stream;
        std::future::pending::<()>().await
    });
}

fn memory_kb(proxy: &Proxy) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.id())).expect("the proxy runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).expect("a number")
}

/// One range; none when it took too long.
async fn range(client: &Client) -> Option<Result<RangeResponse, Status>> {
    let request = RangeRequest { key: "k".into(), ..Default::default() };
    let answer = tokio::time::timeout(CALL_TIMEOUT, client.kv().range(request)).await.ok()?;
    Some(answer.map(tonic::Response::into_inner))
}

fn on_one(test: impl AsyncFnOnce(&mut Deployment)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let mut deployment = Deployment::start(Target::Core, &[]).await;
        tokio::time::timeout(Duration::from_secs(480), test(&mut deployment)).await.expect("the test ends in time");
    });
}

/// Whatever an endpoint answers, its clients get an error or wait for their own deadline; nobody else notices, memory stays
/// bounded, and the process lives.
#[test]
fn lies_of_an_endpoint_harm_no_one_else() {
    on_one(async |deployment| {
        let cluster = deployment.get("k").await.header.expect("header").cluster_id;
        let member = deployment.member.clone();
        let check = async |kind: Lie, namespace: &'static str| {
            let address = liar_of(kind, cluster).await;
            let proxy = Proxy::spawn(&[&address, &member], &[namespace]);
            let what = format!("{kind:?} {namespace}");
            // One that meets the liar may wait for ever.
            let write = async || tokio::time::timeout(CALL_TIMEOUT, try_put(&proxy.client, "k", "v")).await.ok()?.ok();
            until("a write", write).await;
            // Both get requests; those of the liar fail, unless it can be told from a member, and then none does.
            let mut attempts = 0;
            let (calls, good) = loop {
                let calls: Vec<_> = futures::future::join_all((0..24).map(|_| range(&proxy.client))).await;
                let good = calls.iter().filter(|call| matches!(call, Some(Ok(answer)) if answer.count == 1)).count();
                if good >= 8 {
                    break (calls, good);
                }
                // While the machine stands still all of them are late, but not each time.
                attempts += 1;
                assert!(attempts < 5, "{what}: {calls:?}");
            };
            for status in calls.iter().flatten().filter_map(|call| call.as_ref().err()) {
                assert!(status.code() != Code::Ok && !status.message().is_empty(), "{what}: {status:?}");
            }
            let answers_nonsense = calls.iter().flatten().flatten().any(|answer| answer.count != 1);
            // Bytes pass as they are where nothing needs rewriting: what decodes to nothing is an empty answer.
            assert!(!answers_nonsense, "{what}: {calls:?}");
            let memory = memory_kb(&proxy);
            assert!(memory < MEMORY_MAX_KB, "{what}: {memory} kB");
            let output = proxy.output();
            assert!(!output.contains("panicked"), "{what}: {output}");
            (what, good, memory)
        };
        let cases = LIES.into_iter().flat_map(|kind| [(kind, "--namespace="), (kind, "--namespace=n/")]);
        for (kind, namespace) in cases {
            println!("{:?}", check(kind, namespace).await);
        }
    });
}

/// What a client is told when there is nothing but the liar.
#[test]
fn a_lie_is_an_error_for_its_client() {
    on_one(async |deployment| {
        let cluster = deployment.get("k").await.header.expect("header").cluster_id;
        for kind in [Lie::CutOff, Lie::NoProtobuf, Lie::NoMessage, Lie::NoStatus, Lie::Garbage, Lie::Resets] {
            for namespace in ["--namespace=", "--namespace=n/"] {
                let address = liar_of(kind, cluster).await;
                let proxy = Proxy::spawn(&[&address], &[namespace]);
                let status = until("an answer of the proxy", async || {
                    let mut kv = proxy.client.kv();
                    let request = RangeRequest { key: "k".into(), ..Default::default() };
                    let status = soon("an answer", kv.range(request)).await.expect_err("a lie");
                    // Before it listens.
                    (!status.message().contains("refused")).then_some(status)
                })
                .await;
                let known = [Code::Internal, Code::Unknown, Code::Unavailable];
                assert!(known.contains(&status.code()), "{kind:?} {namespace}: {status:?}");
                assert!(!status.message().is_empty(), "{kind:?} {namespace}: {status:?}");
            }
        }
    });
}

/// Watch answers, one list for each stream that is opened; the last one for all that follow.
async fn watch_liar(cluster: u64, streams: Vec<Vec<WatchResponse>>) -> String {
    let next = Arc::new(parking_lot::Mutex::new(streams));
    liar(cluster, move |request, mut answer| {
        let next = next.clone();
        async move {
            if request.uri().path() != "/etcdserverpb.Watch/Watch" {
                return unary(answer, &RangeResponse { header: header(cluster, 10), ..Default::default() });
            }
            let mut body = answer.send_response(head(), false)?;
            let answers = {
                let mut next = next.lock();
                if next.len() > 1 { next.remove(0) } else { next[0].clone() }
            };
            for answer in answers {
                body.send_data(grpc_message(&answer).into(), false)?;
            }
            let _requests = request;
            std::future::pending().await
        }
    })
    .await
}

fn created(cluster: u64, revision: i64) -> WatchResponse {
    WatchResponse { header: header(cluster, revision), created: true, ..Default::default() }
}

fn event(cluster: u64, header_revision: i64, revision: i64) -> WatchResponse {
    let kv = KeyValue { key: "k".into(), mod_revision: revision, ..Default::default() };
    let events = vec![Event { kv: Some(kv), ..Default::default() }];
    WatchResponse { header: header(cluster, header_revision), events, ..Default::default() }
}

/// A watch that is told of revisions in disorder ends with a reason; one that is told nonsense goes on without it.
#[test]
fn a_watch_survives_what_it_is_told() {
    const CLUSTER: u64 = 77;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let broken = "the cluster announced progress before it had sent all events";
        let back = vec![created(CLUSTER, 10), event(CLUSTER, 12, 12), event(CLUSTER, 5, 5)];
        let before_start = vec![created(CLUSTER, 10), event(CLUSTER, 10, 3)];
        for answers in [back, before_start] {
            let address = watch_liar(CLUSTER, vec![answers]).await;
            let proxy = Proxy::spawn(&[&address], &[]);
            let mut watching = watching(&proxy).await;
            let reason = loop {
                let answer = watching.next().await;
                if answer.canceled {
                    break answer.cancel_reason;
                }
            };
            assert_eq!(reason, broken);
        }
        // Events without a key, another cluster, ids that nobody asked for, and at last what is right.
        let keyless = WatchResponse { events: vec![Event::default()], ..event(CLUSTER, 11, 11) };
        let foreign = vec![created(CLUSTER + 1, 99)];
        let negative = vec![created(CLUSTER, -5), event(CLUSTER, -1, -1)];
        let right = vec![created(CLUSTER, 20), event(CLUSTER, 21, 21)];
        let mut strange = event(CLUSTER, 15, 15);
        strange.watch_id = i64::MIN;
        for lie in [vec![keyless], foreign, negative, vec![created(CLUSTER, 14), strange], vec![]] {
            let address = watch_liar(CLUSTER, vec![lie.clone(), right.clone()]).await;
            let proxy = Proxy::spawn(&[&address], &["--watch-progress-notify-interval=1s"]);
            let mut watch = watching(&proxy).await;
            // No answer may ever come where the liar gives none; the client goes away then.
            let _ = tokio::time::timeout(Duration::from_secs(2), watch.next()).await;
            drop(watch);
            let again = Watching::open(&proxy.client);
            again.ask(WatchCreateRequest { key: "k".into(), ..Default::default() }).await;
            let page = crate::harness::http_get(&proxy.endpoint, "GET", "/livez").await.expect("alive");
            assert_eq!(page.status, 200, "{lie:?}");
            assert!(memory_kb(&proxy) < MEMORY_MAX_KB && !proxy.output().contains("panicked"), "{}", proxy.output());
        }
    });
}

async fn watching(proxy: &Proxy) -> Watching {
    until("the proxy", async || {
        let page = crate::harness::http_get(&proxy.endpoint, "GET", "/livez").await.ok()?;
        (page.status == 200).then_some(())
    })
    .await;
    let watching = Watching::open(&proxy.client);
    watching.ask(WatchCreateRequest { key: "k".into(), ..Default::default() }).await;
    watching
}

/// An endpoint that says hello and nothing more is left for those that answer.
#[test]
fn silence_after_the_preface_is_noticed() {
    on_one(async |deployment| {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound").to_string();
        Tasks::new().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(&frame(4, 0, 0, &[])).await;
                hold(stream);
            }
        });
        let proxy = Proxy::spawn(&[&address, &deployment.member], &[]);
        until("a write", async || try_put(&proxy.client, "k", "v").await.ok()).await;
        for number in 0..50 {
            put(&proxy.client, &format!("k{number}"), "v").await;
        }
    });
}

/// Clients and members that are newer than the proxy understand each other.
#[test]
fn unknown_fields_reach_the_member_and_the_client() {
    const PATHS: [&str; 5] = [
        "/etcdserverpb.KV/Range",
        "/etcdserverpb.KV/Put",
        "/etcdserverpb.KV/Txn",
        "/etcdserverpb.Lease/LeaseGrant",
        "/etcdserverpb.KV/OfAnotherVersion",
    ];
    // Field 1234, a number, and field 1235, bytes.
    let unknown = [0x90, 0x4d, 7, 0x9a, 0x4d, 3, b'n', b'e', b'w'];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let received = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let log = received.clone();
        let address = liar(7, move |mut request, mut answer| {
            let log = log.clone();
            async move {
                let mut bytes = Vec::new();
                while let Some(data) = request.body_mut().data().await {
                    let data = data?;
                    request.body_mut().flow_control().release_capacity(data.len())?;
                    bytes.extend_from_slice(&data);
                }
                log.lock().push((request.uri().path().to_owned(), bytes));
                let mut message = RangeResponse { header: header(7, 10), ..Default::default() }.encode_to_vec();
                message.extend(unknown);
                let mut body = answer.send_response(head(), false)?;
                body.send_data([&[0, 0, 0, 0, message.len() as u8], &message[..]].concat().into(), false)?;
                body.send_trailers(trailers(b"0", b""))
            }
        })
        .await;
        let proxy = Proxy::spawn(&[&address], &[]);
        drop(watching(&proxy).await);
        for path in PATHS {
            let mut message = RangeRequest { key: "k".into(), ..Default::default() }.encode_to_vec();
            message.extend(unknown);
            received.lock().clear();
            let answer = raw_first(&proxy.client, path, "", message.clone().into(), true).await.expect("an answer");
            assert!(answer.expect("a message").ends_with(&unknown), "{path}");
            let sent = [&[0, 0, 0, 0, message.len() as u8], &message[..]].concat();
            assert!(received.lock().contains(&(path.to_owned(), sent)), "{path}: {:?}", received.lock());
        }
    });
}
