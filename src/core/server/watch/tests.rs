use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::Code;
use tonic::transport::{Channel, Server};

use super::*;
use crate::core::backend::{Backend, ChangeSet};
use crate::core::mvcc::{LeaseView, Store};
use crate::pb::etcdserverpb::watch_client::WatchClient;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, PutRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchResponse,
};
use crate::telemetry::Metrics;
use crate::types::{ClusterId, LeaseId, LogIndex, LogPosition, MemberId};

struct NoLeases;

impl LeaseView for NoLeases {
    fn exists(&self, _: LeaseId) -> bool {
        false
    }
}

/// A store that is written by hand, and its Watch service on a socket.
struct Member {
    store: Store,
    backend: Backend,
    index: u64,
    watch: CoreWatch,
    metrics: WatchMetrics,
    leader: watch::Sender<bool>,
    corrupt: watch::Sender<bool>,
    channel: Channel,
    tasks: Tasks,
}

impl Member {
    async fn start(log_bytes_max: usize) -> Self {
        let backend = Backend::in_memory().unwrap();
        let store = Store::open(backend.clone()).unwrap();
        let watch = CoreWatch::new(store.reader(), log_bytes_max);
        let metrics = WatchMetrics::register(&Metrics::default());
        let corrupt = watch::Sender::new(false);
        let context = WatchContext {
            watch: watch.clone(),
            header_source: Arc::new(HeaderSource::new(ClusterId(11), MemberId(12), Term(0))),
            limits: WatchLimits { fragment_bytes: 1000, ..WatchLimits::default() },
            metrics: metrics.clone(),
            may_read: Arc::new(|_, range| {
                ReadDecision::Now(match range.start().starts_with(b"secret") {
                    true => Err(ApiError::PermissionDenied.into()),
                    false => Ok(()),
                })
            }),
            corrupt: corrupt.subscribe(),
            election_timeout: Duration::from_millis(10),
        };
        let tasks = Tasks::new();
        let (leader, leader_seen) = watch::channel(true);
        let read = |known: &bool| (*known, Term(13));
        let service = WatchService::start(Arc::new(context), 0, leader_seen, read, &tasks);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(encoded::watch_server::WatchServer::new(service));
        let stop = tasks.stop_signal();
        tasks.spawn(server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned()));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { store, backend, index: 0, watch, metrics, leader, corrupt, channel, tasks }
    }

    fn apply<R>(&mut self, written: crate::core::mvcc::Written<R>) {
        self.index += 1;
        let position = LogPosition { index: LogIndex(self.index), term: Term(1) };
        self.backend.submit(ChangeSet { position, changes: written.changes });
        self.store.publish();
        self.watch.append(written.events);
    }

    fn put(&mut self, key: &str, value: &str) {
        let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        let written = self.store.put(&request, &NoLeases).unwrap();
        self.apply(written);
    }

    fn delete(&mut self, key: &str, end: &str) {
        let request =
            DeleteRangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() };
        let written = self.store.delete_range(&request).unwrap();
        self.apply(written);
    }

    async fn stream(&self, require_leader: bool) -> Client {
        let (requests, outgoing) = mpsc::channel(8);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        if require_leader {
            request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        }
        let responses = WatchClient::new(self.channel.clone()).watch(request).await.unwrap().into_inner();
        Client { requests: Some(requests), responses }
    }
}

struct Client {
    requests: Option<mpsc::Sender<WatchRequest>>,
    responses: Streaming<WatchResponse>,
}

impl Client {
    async fn send(&self, union: RequestUnion) {
        let request = WatchRequest { request_union: Some(union) };
        self.requests.as_ref().unwrap().send(request).await.unwrap();
    }

    async fn watch(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.send(RequestUnion::CreateRequest(request)).await;
        self.next().await
    }

    async fn next(&mut self) -> WatchResponse {
        self.responses.message().await.unwrap().expect("the stream goes on")
    }
}

fn watch_key(key: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.into(), ..Default::default() }
}

/// `PUT key=value<previous@revision` for each event.
fn told(response: &WatchResponse) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let events = response.events.iter().map(|event| {
        let kv = event.kv.as_ref().unwrap();
        let kind = if event.r#type == 0 { "PUT" } else { "DELETE" };
        let prev = event.prev_kv.as_ref().map_or(String::new(), |prev| format!("<{}", text(&prev.value)));
        format!("{kind} {}={}{prev}@{}", text(&kv.key), text(&kv.value), kv.mod_revision)
    });
    format!("{}: {}", response.header.unwrap().revision, events.collect::<Vec<_>>().join(", "))
}

#[tokio::test]
async fn new_and_old_events_arrive_with_the_facts_of_the_member() {
    let mut member = Member::start(1 << 20).await;
    member.put("a", "1");
    let mut client = member.stream(false).await;
    let created = client.watch(WatchCreateRequest { prev_kv: true, ..watch_key("a") }).await;
    let header = created.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id, header.revision, header.raft_term), (11, 12, 2, 13));
    assert!(created.created && created.watch_id == 0);
    member.put("a", "2");
    assert_eq!(told(&client.next().await), "3: PUT a=2<1@3");
    member.put("b", "x");
    member.delete("a", "c");
    assert_eq!(told(&client.next().await), "5: DELETE a=<2@5");
    let all = WatchCreateRequest { range_end: "\0".into(), start_revision: 2, ..watch_key("") };
    assert_eq!(client.watch(all).await.watch_id, 1);
    assert_eq!(told(&client.next().await), "5: PUT a=1@2, PUT a=2@3, PUT b=x@4, DELETE a=@5, DELETE b=@5");
    client.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    let progress = client.next().await;
    assert_eq!((progress.watch_id, told(&progress).as_str()), (-1, "5: "));
    // Half-close: existing watches continue.
    client.requests = None;
    member.put("a", "3");
    let ids = [client.next().await.watch_id, client.next().await.watch_id];
    assert!(ids == [0, 1] || ids == [1, 0]);
}

#[tokio::test]
async fn a_refused_watch_leaves_its_stream_usable() {
    let member = Member::start(1 << 20).await;
    let mut client = member.stream(false).await;
    let denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    for (request, reason) in [
        (
            WatchCreateRequest { start_revision: -1, ..watch_key("a") },
            "etcdserver: mvcc: required revision has been compacted",
        ),
        (watch_key("secret/x"), denied),
        (WatchCreateRequest { range_end: "a".into(), ..watch_key("a") }, "mvcc: watcher range is empty"),
    ] {
        let refused = client.watch(request).await;
        assert!(refused.created && refused.canceled);
        assert_eq!((refused.watch_id, refused.cancel_reason.as_str()), (-1, reason));
    }
    assert_eq!(client.watch(WatchCreateRequest { watch_id: 7, ..watch_key("a") }).await.watch_id, 7);
    client.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 5 })).await;
    client.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 7 })).await;
    let canceled = client.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.cancel_reason.as_str()), (7, true, ""));
    assert_eq!(member.metrics.watchers.get(), 0);
}

#[tokio::test]
async fn what_left_the_log_is_read_from_the_store_until_it_is_compacted() {
    let mut member = Member::start(2000).await;
    for value in 0..2500 {
        member.put("a", &value.to_string());
    }
    let mut client = member.stream(false).await;
    client.watch(WatchCreateRequest { start_revision: 2, ..watch_key("a") }).await;
    let mut seen = Vec::new();
    while seen.len() < 2500 {
        let response = client.next().await;
        assert!(response.events.len() <= 1000);
        assert_eq!(response.header.unwrap().revision, 2501);
        seen.extend(response.events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision));
    }
    assert_eq!(seen, (2..=2501).collect::<Vec<i64>>());
    let written = member.store.compact(Revision(1000)).unwrap();
    member.backend.submit(ChangeSet { position: LogPosition::default(), changes: written.changes });
    member.store.publish();
    let below = client.watch(WatchCreateRequest { start_revision: 999, ..watch_key("a") }).await;
    let canceled = client.next().await;
    assert_eq!((below.watch_id, below.created, canceled.watch_id, canceled.canceled), (1, true, 1, true));
    assert_eq!((canceled.compact_revision, canceled.header.unwrap().revision), (1000, 0));
    client.watch(WatchCreateRequest { start_revision: 1000, ..watch_key("a") }).await;
    assert_eq!(client.next().await.events[0].kv.as_ref().unwrap().mod_revision, 1000);
}

#[tokio::test]
async fn large_revisions_are_cut_for_those_who_ask() {
    let mut member = Member::start(1 << 20).await;
    let value = "v".repeat(400);
    for key in ["a1", "a2", "a3"] {
        member.put(key, &value);
    }
    let mut client = member.stream(false).await;
    let range = WatchCreateRequest { range_end: "b".into(), prev_kv: true, ..watch_key("a") };
    client.watch(WatchCreateRequest { fragment: true, ..range.clone() }).await;
    client.watch(range).await;
    member.delete("a", "b");
    let mut pieces = Vec::new();
    for _ in 0..3 {
        let response = client.next().await;
        pieces.push((response.watch_id, response.fragment, response.events.len()));
    }
    pieces.sort_unstable();
    assert_eq!(pieces, vec![(0, false, 1), (0, true, 2), (1, false, 3)]);
}

#[tokio::test]
async fn streams_end_with_the_leader_they_asked_for_or_with_the_member() {
    let member = Member::start(1 << 20).await;
    let mut strict = member.stream(true).await;
    let mut relaxed = member.stream(false).await;
    strict.watch(watch_key("a")).await;
    relaxed.watch(watch_key("a")).await;
    member.leader.send(false).unwrap();
    let status = strict.responses.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    member.tasks.stop();
    let status = relaxed.responses.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: server stopped"));
}

#[tokio::test]
async fn a_corrupt_member_ends_every_stream() {
    let member = Member::start(1 << 20).await;
    let mut stream = member.stream(false).await;
    stream.watch(watch_key("a")).await;
    member.corrupt.send_replace(true);
    let status = stream.responses.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "etcdserver: corrupt cluster"));
}
