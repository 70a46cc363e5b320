//! `--max-concurrent-streams`: a client opens one stream more only when another one has ended. `--max-send-bytes` and
//! `--max-recv-bytes` of the proxy, and what it takes without them: whatever the member does. Connections of clients, which leave
//! the member descriptors for itself.

use std::path::Path;
use std::time::Duration;

use prost::Message;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Status};
use watershed::client::Client;
use watershed::pb::etcdserverpb::watch_request::RequestUnion;
use watershed::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, WatchCreateRequest, WatchRequest,
};

use crate::harness::{
    Deployment, PATIENCE, Process, RawHttp2, Target, Watching, cancel_frame, client, data_frame, frame, free_port,
    grpc_headers, grpc_message, json, member_args, refused, run, soon, until,
};

const LIMIT: &str = "--max-concurrent-streams=2";
const REFUSED_STREAM: u32 = 7;

#[test]
fn streams_at_once_are_limited_on_the_core() {
    run(Target::Core, &[LIMIT], async |deployment: &mut Deployment| limited(&deployment.endpoint).await);
}

#[test]
fn streams_at_once_are_limited_on_the_proxy() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (_proxy, endpoint) = deployment.also_front("grpc-proxy", &[LIMIT]).await;
        limited(&endpoint).await;
    });
}

async fn limited(endpoint: &str) {
    let raw = RawHttp2::connect(endpoint).await;
    assert_eq!(raw.wait("the settings", |seen| Some(seen.streams_max)).await, Some(2), "clients keep to it and wait");
    let create = WatchCreateRequest { key: "k".into(), ..Default::default() };
    let request = grpc_message(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) });
    for stream in [1, 3] {
        let call = [grpc_headers(stream, "/etcdserverpb.Watch/Watch", &[], false), data_frame(stream, &request, false)];
        raw.write(&call.concat()).await;
        raw.wait("the watch", |seen| (seen.messages(stream).len() == 1).then_some(())).await;
    }
    let put = grpc_message(&PutRequest { key: "other".into(), ..Default::default() });
    let put =
        |stream| [grpc_headers(stream, "/etcdserverpb.KV/Put", &[], false), data_frame(stream, &put, true)].concat();
    // One that does not is refused, for that stream alone.
    raw.write(&grpc_headers(5, "/etcdserverpb.KV/Put", &[], true)).await;
    assert_eq!(raw.wait("the refusal", |seen| seen.resets.get(&5).copied()).await, REFUSED_STREAM);
    raw.write(&cancel_frame(1)).await;
    raw.write(&put(7)).await;
    raw.wait("the answer", |seen| (seen.messages(7).len() == 1).then_some(())).await;
    assert!(raw.alive().await);
}

const SEND_MAX: usize = 1000;
const RECEIVE_MAX: usize = 3000;

fn put_of(key: &'static str, value_bytes: usize) -> PutRequest {
    PutRequest { key: key.into(), value: vec![b'v'; value_bytes].into(), ..Default::default() }
}

/// A put whose message has this length.
fn put_message(key: &'static str, length: usize) -> PutRequest {
    let around = put_of(key, length).encoded_len() - length;
    let put = put_of(key, length - around);
    assert_eq!(put.encoded_len(), length);
    put
}

fn get(key: &'static str) -> RangeRequest {
    RangeRequest { key: key.into(), ..Default::default() }
}

#[test]
fn the_proxy_limits_messages_where_its_flags_say_so() {
    let flags = [format!("--max-send-bytes={SEND_MAX}"), format!("--max-recv-bytes={RECEIVE_MAX}")];
    for more in [&[][..], &["--namespace=t/"], &["--cache=linearizable"]] {
        run(Target::Core, &[], async |deployment: &mut Deployment| {
            let flags: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
            let (_proxy, endpoint) = deployment.also_front("grpc-proxy", &flags).await;
            requests_are_limited(&endpoint).await;
            let before = if more.contains(&"--namespace=t/") { "t/" } else { "" };
            answers_are_limited(deployment, &endpoint, before).await;
        });
    }
}

async fn requests_are_limited(endpoint: &str) {
    let client = client(endpoint);
    let too_long = |length| format!("trying to send message larger than max ({length} vs. {SEND_MAX})");
    client.kv().put(put_message("k", SEND_MAX)).await.expect("as long as allowed");
    refused(client.kv().put(put_message("k", SEND_MAX + 1)).await, Code::ResourceExhausted, &too_long(SEND_MAX + 1));
    // The same through the JSON gateway, where the length is that of the message in protobuf.
    let body = |value_bytes: usize| format!(r#"{{"key":"aw==","value":"{}"}}"#, "dnZ2".repeat(value_bytes / 3));
    let (status, answer) = json(endpoint, "/v3/kv/put", &body(600)).await;
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = json(endpoint, "/v3/kv/put", &body(3000)).await;
    let length = put_of("k", 3000).encoded_len();
    assert_eq!((status, &answer["message"]), (429, &too_long(length).into()), "{answer}");
    // A watch whose request is too long ends its stream, and no other.
    let (mut watching, _) =
        Watching::create(&client, WatchCreateRequest { key: "k".into(), ..Default::default() }).await;
    let long = Watching::open(&client);
    long.ask(WatchCreateRequest { key: vec![b'k'; SEND_MAX].into(), ..Default::default() }).await;
    let refusal = soon("the end", long.half_close().message()).await.expect_err("too long");
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal}");
    assert!(refusal.message().starts_with("trying to send message larger than max"), "{refusal}");
    client.kv().put(put_of("k", 5)).await.expect("put");
    assert_eq!(watching.next().await.events.len(), 1);
    let grant = client.lease().lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("grant").into_inner();
    let asked = tokio_stream::once(LeaseKeepAliveRequest { id: grant.id });
    let mut kept = client.lease().lease_keep_alive(asked).await.expect("a stream").into_inner();
    assert_eq!(kept.message().await.expect("an answer").expect("an answer").ttl, 60);
}

/// `before` is what the proxy puts before keys.
async fn answers_are_limited(deployment: &Deployment, endpoint: &str, before: &str) {
    let client = client(endpoint);
    let refusal = |answer: Result<_, Status>| {
        let refusal = answer.map(|_: tonic::Response<_>| ()).expect_err("too long");
        let text = refusal.message();
        let form = text.starts_with("grpc: received message larger than max (") && text.ends_with(" vs. 3000)");
        assert!(form && refusal.code() == Code::ResourceExhausted, "{refusal}");
    };
    deployment.put(format!("{before}long"), vec![b'v'; RECEIVE_MAX]).await;
    deployment.put(format!("{before}short"), vec![b'v'; RECEIVE_MAX / 2]).await;
    refusal(client.kv().range(get("long")).await);
    assert_eq!(client.kv().range(get("short")).await.expect("short enough").into_inner().kvs.len(), 1);
    let (status, answer) = json(endpoint, "/v3/kv/range", r#"{"key":"bG9uZw=="}"#).await;
    assert_eq!(status, 429, "{answer}");
    // An event that is too long ends the stream of its watch, and no other.
    let (mut of_short, _) =
        Watching::create(&client, WatchCreateRequest { key: "short".into(), ..Default::default() }).await;
    let (of_long, _) = Watching::create(&client, WatchCreateRequest { key: "long".into(), ..Default::default() }).await;
    deployment.put(format!("{before}long"), vec![b'w'; RECEIVE_MAX]).await;
    let ended = soon("the end", of_long.half_close().message()).await.expect_err("too long");
    assert_eq!(ended.code(), Code::ResourceExhausted, "{ended}");
    deployment.put(format!("{before}short"), "w").await;
    assert_eq!(of_short.next().await.events.len(), 1);
}

/// etcd's proxy takes no more than 4 MiB, whatever its flags and the member's are.
#[test]
fn without_flags_the_member_decides_how_long_messages_may_be() {
    const MIB: usize = 1024 * 1024;
    run(Target::Core, &["--max-request-bytes=10485760"], async |deployment: &mut Deployment| {
        let (_proxy, endpoint) = deployment.also_front("grpc-proxy", &[]).await;
        let through = client(&endpoint);
        through.kv().put(put_of("k", 5 * MIB)).await.expect("the member takes it");
        let pair = through.kv().range(get("k")).await.expect("the member gives it").into_inner();
        assert_eq!(pair.kvs[0].value.len(), 5 * MIB);
        let put = async |client: &Client| {
            let refusal = client.kv().put(put_of("k", 11 * MIB)).await.expect_err("too long");
            (refusal.code(), refusal.message().to_owned())
        };
        assert_eq!(put(&through).await, put(&deployment.member_client()).await);
    });
}

/// Connects as an HTTP/2 client, and tells whether the connection is served within this time; it stays either way.
async fn connected(endpoint: &str, limit: Duration) -> (TcpStream, bool) {
    const SETTINGS: u8 = 4;
    let mut stream = TcpStream::connect(endpoint).await.expect("the kernel accepts it");
    let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat();
    stream.write_all(&hello).await.expect("the kernel takes it");
    let read = tokio::time::timeout(limit, stream.read(&mut [0; 9])).await;
    (stream, read.is_ok_and(|read| read.is_ok_and(|bytes| bytes > 0)))
}

// As many connections as there were descriptors were accepted: the member ended when it could not make its next log segment.
#[tokio::test]
async fn clients_leave_the_member_descriptors_for_its_log() {
    /// Surely allowed.
    const HELD_MIN: usize = 32;
    let folder = TempDir::new().expect("temporary directory");
    let (endpoint, data) = (format!("127.0.0.1:{}", free_port()), folder.path().join("data"));
    let args = member_args(&endpoint, free_port(), &data);
    let quoted: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
    let program = env!("CARGO_BIN_EXE_watershed");
    let line = format!("ulimit -n 256; exec '{program}' {} --serving-threads=2 --unsafe-no-fsync", quoted.join(" "));
    let mut process = Process::start(Path::new("/bin/sh"), &["-c", &line], folder.path(), "member");
    let through = client(&endpoint);
    until("the start", || {
        let mut kv = through.kv();
        async move { kv.put(put_of("k", 1)).await.ok() }
    })
    .await;
    let mut held = Vec::new();
    loop {
        let limit = if held.len() < HELD_MIN { PATIENCE } else { Duration::from_secs(1) };
        let (stream, is_served) = connected(&endpoint, limit).await;
        held.push(stream);
        if !is_served {
            break;
        }
        assert!(held.len() < 256, "more connections than descriptors");
    }
    assert!(held.len() > HELD_MIN, "only {} were served", held.len() - 1);
    // These would take whatever descriptor becomes free.
    for _ in 0..50 {
        held.push(connected(&endpoint, Duration::ZERO).await.0);
    }
    // A log segment has 64 MB.
    for _ in 0..48 {
        soon("a put", through.kv().put(put_of("k", 1_500_000))).await.expect("the member goes on");
    }
    let files = std::fs::read_dir(data.join("member/wal")).expect("the log");
    let names = files.map(|file| file.expect("a name").file_name());
    let segments = names.filter(|name| name.to_string_lossy().ends_with(".wal")).count();
    assert!(segments > 1, "the log has begun a segment");
    assert!(process.ended().is_none());
    drop(held);
    assert!(connected(&endpoint, PATIENCE).await.1, "served when others have ended");
}
