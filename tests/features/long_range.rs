//! Answers that are long: the same as ever, bounded in memory, and beside other clients.

#![allow(clippy::disallowed_methods, reason = "tasks of a test end with its runtime")]

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use h2::RecvStream;
use h2::client::SendRequest;
use prost::Message;
use tokio::net::TcpStream;
use tonic::Code;
use watershed::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use watershed::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use watershed::pb::etcdserverpb::request_op::Request;
use watershed::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, LeaseLeasesRequest, PutRequest, RangeRequest,
    RangeResponse, RequestOp, SnapshotRequest, TxnRequest, response_op,
};
use watershed::pb::mvccpb::KeyValue;

use super::auth::{add_user, enable, log_in, with};
use crate::harness::{Deployment, Target, client, prefix, refused, run, soon, until};
use crate::on_every_target;

on_every_target! {
    flags = ["--max-txn-ops=1000", "--max-request-bytes=10000000"];
    long_answers_are_complete,
}

const KEYS: usize = 1000;

/// Writes `count` keys `many/0000` on, with values of `value_bytes`.
async fn fill(deployment: &Deployment, count: usize, value_bytes: usize) {
    let put = |number| {
        let value = vec![b'a' + (number % 26) as u8; value_bytes].into();
        let put = PutRequest { key: format!("many/{number:04}").into(), value, ..Default::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    };
    for first in (0..count).step_by(100) {
        let success = (first..count.min(first + 100)).map(put).collect();
        deployment.txn(TxnRequest { success, ..Default::default() }).await;
    }
}

fn numbers(kvs: &[KeyValue]) -> Vec<usize> {
    kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key)["many/".len()..].parse().expect("a number")).collect()
}

async fn long_answers_are_complete(deployment: &mut Deployment) {
    fill(deployment, KEYS, 1000).await;
    let first = deployment.range(RangeRequest { limit: 1, ..prefix("many/") }).await;
    let filled = first.header.expect("header").revision;
    for number in (0..KEYS).step_by(10) {
        deployment.put(format!("many/{number:04}"), "short").await;
    }
    let all: Vec<usize> = (0..KEYS).collect();

    let answer = deployment.range(prefix("many/")).await;
    assert_eq!((numbers(&answer.kvs), answer.count, answer.more), (all.clone(), KEYS as i64, false));
    assert_eq!(answer.kvs.iter().filter(|kv| kv.value == "short").count(), KEYS / 10);
    assert_eq!(answer.header.expect("header").revision, filled + 100);
    let old = deployment.range(RangeRequest { revision: filled, ..prefix("many/") }).await;
    assert_eq!((numbers(&old.kvs), old.count), (all.clone(), KEYS as i64));
    assert!(old.kvs.iter().all(|kv| kv.value.len() == 1000 && kv.mod_revision <= filled));
    let part = deployment.range(RangeRequest { limit: 600, ..prefix("many/") }).await;
    assert_eq!((numbers(&part.kvs), part.count, part.more), (all[..600].to_vec(), KEYS as i64, true));
    let fresh = deployment.range(RangeRequest { min_mod_revision: filled + 1, ..prefix("many/") }).await;
    assert_eq!((fresh.kvs.len(), fresh.count), (KEYS / 10, KEYS as i64));
    let names = deployment.range(RangeRequest { keys_only: true, ..prefix("many/") }).await;
    assert_eq!(numbers(&names.kvs), all);
    assert!(names.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision > 0));
    let sorted =
        RangeRequest { sort_order: SortOrder::Descend.into(), sort_target: SortTarget::Key.into(), ..prefix("many/") };
    let backwards: Vec<usize> = all.iter().rev().copied().collect();
    assert_eq!(numbers(&deployment.range(sorted.clone()).await.kvs), backwards);

    // Counts at an old revision and compares look at as much, and answer with little.
    let range = |request| RequestOp { request: Some(Request::RequestRange(request)) };
    let count = RangeRequest { count_only: true, revision: filled, ..prefix("many/") };
    assert_eq!(deployment.range(count.clone()).await.count, KEYS as i64);
    let written = Compare {
        key: prefix("many/").key,
        range_end: prefix("many/").range_end,
        target: CompareTarget::Version.into(),
        result: CompareResult::Greater.into(),
        target_union: Some(TargetUnion::Version(0)),
    };
    let put = RequestOp { request: Some(Request::RequestPut(PutRequest { key: "one".into(), ..Default::default() })) };
    for more in [None, Some(put)] {
        let success = [Some(range(count.clone())), more].into_iter().flatten().collect();
        let txn = TxnRequest { compare: vec![written.clone()], success, ..Default::default() };
        let mut answer = deployment.txn(txn).await;
        assert!(answer.succeeded);
        let first = answer.responses.remove(0).response;
        let Some(response_op::Response::ResponseRange(counted)) = first else { panic!("a range") };
        assert_eq!((counted.count, counted.kvs.len()), (KEYS as i64, 0));
    }

    // Ranges before and after a delete of the same transaction; the delete answers with what it took.
    let (key, range_end) = ("many/0500".into(), "many/0900".into());
    let delete = DeleteRangeRequest { key, range_end, prev_kv: true };
    let inner = TxnRequest { success: vec![range(prefix("many/"))], ..Default::default() };
    let success = vec![
        range(prefix("many/")),
        RequestOp { request: Some(Request::RequestDeleteRange(delete)) },
        RequestOp { request: Some(Request::RequestTxn(inner)) },
        range(sorted),
    ];
    let answer = deployment.txn(TxnRequest { success, ..Default::default() }).await;
    let left: Vec<usize> = (0..500).chain(900..KEYS).collect();
    let mut parts = answer.responses.into_iter().map(|op| op.response.expect("an answer"));
    let mut next = || parts.next().expect("four answers");
    let response_op::Response::ResponseRange(before) = next() else { panic!("a range") };
    assert_eq!((numbers(&before.kvs), before.count), (all, KEYS as i64));
    let response_op::Response::ResponseDeleteRange(deleted) = next() else { panic!("a delete") };
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (400, 400));
    let response_op::Response::ResponseTxn(mut nested) = next() else { panic!("a transaction") };
    let Some(response_op::Response::ResponseRange(inner)) = nested.responses.remove(0).response else { panic!("one") };
    assert_eq!((numbers(&inner.kvs), inner.count), (left.clone(), left.len() as i64));
    let response_op::Response::ResponseRange(after) = next() else { panic!("a range") };
    assert_eq!(numbers(&after.kvs), left.into_iter().rev().collect::<Vec<_>>());

    // A delete of its own.
    let (key, range_end) = (prefix("many/").key, prefix("many/").range_end);
    let request = DeleteRangeRequest { key, range_end, prev_kv: true };
    let deleted = deployment.client.kv().delete_range(request).await.expect("delete").into_inner();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (600, 600));
    assert_eq!(deployment.range(prefix("many/")).await.count, 0);
}

/// A client that asks and does not read.
struct Stalled {
    _sender: SendRequest<Bytes>,
    _answer: RecvStream,
    connection: tokio::task::JoinHandle<()>,
}

impl Stalled {
    /// Completes when the answer has begun.
    async fn start(endpoint: &str, request: &RangeRequest) -> Self {
        Self::call(endpoint, "etcdserverpb.KV/Range", request).await
    }

    async fn call(endpoint: &str, method: &str, request: &impl Message) -> Self {
        let stream = TcpStream::connect(endpoint).await.expect("connects");
        let (sender, connection) = h2::client::handshake(stream).await.expect("handshake");
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut sender = sender.ready().await.expect("ready");
        let head = http::Request::post(format!("http://{endpoint}/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let (answer, mut body) = sender.send_request(head, false).expect("a stream");
        let mut message = vec![0];
        message.extend((request.encoded_len() as u32).to_be_bytes());
        message.extend(request.encode_to_vec());
        body.send_data(message.into(), true).expect("sent");
        let mut answer = soon("the head of an answer", answer).await.expect("an answer").into_body();
        soon("its beginning", answer.data()).await.expect("data").expect("data");
        Self { _sender: sender, _answer: answer, connection }
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Memory of a process, in bytes.
#[cfg(target_os = "linux")]
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[cfg(target_os = "linux")]
#[test]
fn readers_that_do_not_read_hold_what_the_bound_says() {
    // Every one of them held the whole answer, encoded: 24 times 64 MiB here.
    const BOUND: u64 = 32 * 1024 * 1024;
    let flags = [format!("--answer-memory-bytes={BOUND}"), "--max-request-bytes=10000000".to_owned()];
    run(Target::Core, &flags.each_ref().map(String::as_str), async |deployment: &mut Deployment| {
        fill(deployment, 1024, 64 * 1024).await;
        // Once before it is measured, so that what a first answer sets aside is not counted.
        let len = deployment.range(prefix("many/")).await.encoded_len();
        let before = resident(deployment.server.id());
        let mut stalled = Vec::new();
        for _ in 0..24 {
            stalled.push(Stalled::start(&deployment.member, &prefix("many/")).await);
        }
        let grown = resident(deployment.server.id()).saturating_sub(before);
        println!("24 answers of {len} bytes: {grown} bytes");
        assert!(grown <= BOUND, "{grown} bytes more than before");
        // Others are served meanwhile.
        deployment.put("other", "value").await;
        assert_eq!(deployment.get("other").await.count, 1);
        assert_eq!(deployment.range(prefix("many/")).await.kvs.len(), 1024);
    });
}

#[test]
fn without_room_a_long_range_waits_and_is_refused_and_short_ones_are_answered() {
    // Room for two: a quarter of it at 128 KiB each.
    run(Target::Core, &["--answer-memory-bytes=1048576"], async |deployment: &mut Deployment| {
        fill(deployment, 1000, 1000).await;
        let one = Stalled::start(&deployment.member, &prefix("many/")).await;
        let other = Stalled::start(&deployment.member, &prefix("many/")).await;
        let mut kv = deployment.client.kv();
        let text = "etcdserver: too many requests";
        refused(soon("a refusal", kv.range(prefix("many/"))).await, Code::ResourceExhausted, text);
        // What is short needs no room, nor does what is long for its values.
        assert_eq!(deployment.range(RangeRequest { limit: 200, ..prefix("many/") }).await.kvs.len(), 200);
        assert_eq!(deployment.range(RangeRequest { count_only: true, ..prefix("many/") }).await.count, 1000);
        deployment.put("other", "value").await;
        deployment.delete("other").await;
        // Room is given back by whoever leaves, and one who waits gets it.
        let waiting = tokio::spawn(async move { kv.range(prefix("many/")).await });
        drop(one);
        let answer: RangeResponse = soon("room", waiting).await.expect("no panic").expect("an answer").into_inner();
        assert_eq!(answer.kvs.len(), 1000);
        drop(other);
        // By whoever read everything, too: more answers than there is room for, one after the other.
        for _ in 0..5 {
            assert_eq!(deployment.range(prefix("many/")).await.kvs.len(), 1000);
        }
        // A gathered answer that needs more than there is gets it all, alone.
        let sorted = RangeRequest { sort_target: SortTarget::Mod.into(), ..prefix("many/") };
        let stalled = Stalled::start(&deployment.member, &RangeRequest { revision: 2, ..sorted.clone() }).await;
        let waiting = deployment.client.kv();
        let (refusal, ()) = tokio::join!(async { waiting.clone().range(sorted.clone()).await }, async {
            assert_eq!(deployment.range(prefix("many/")).await.kvs.len(), 1000)
        });
        refused(refusal, Code::ResourceExhausted, text);
        drop(stalled);
        until("room for a sorted answer", async || waiting.clone().range(sorted.clone()).await.ok()).await;
    });
}

#[test]
fn snapshots_that_nobody_reads_leave_threads_for_others() {
    // Each had a thread of its serving thread's five hundred, and watches that catch up and hashes need those, too.
    run(Target::Core, &["--max-request-bytes=10000000"], async |deployment: &mut Deployment| {
        fill(deployment, 128, 64 * 1024).await;
        let snapshot = SnapshotRequest::default();
        let mut stalled = Vec::new();
        for _ in 0..16 {
            stalled.push(Stalled::call(&deployment.member, "etcdserverpb.Maintenance/Snapshot", &snapshot).await);
        }
        let mut maintenance = deployment.client.maintenance();
        let refusal = soon("a refusal", maintenance.snapshot(snapshot)).await;
        refused(refusal, Code::ResourceExhausted, "etcdserver: too many requests");
        soon("a hash", maintenance.hash_kv(HashKvRequest { revision: 0 })).await.expect("a hash");
        stalled.pop();
        until("a place for a snapshot", async || deployment.client.maintenance().snapshot(snapshot).await.ok()).await;
    });
}

// A write that nobody had permitted took room that others needed, or waited for it, and was refused after that.
#[test]
fn a_write_that_is_not_permitted_takes_no_room() {
    run(Target::Core, &["--answer-memory-bytes=1048576", "--bcrypt-cost=4"], async |deployment: &mut Deployment| {
        fill(deployment, 1000, 1000).await;
        let sorted = RangeRequest { sort_target: SortTarget::Mod.into(), revision: 2, ..prefix("many/") };
        let all_room = Stalled::start(&deployment.member, &sorted).await;
        let root = enable(deployment).await;
        add_user(&deployment.endpoint, &root, "alice").await;
        let alice = log_in(&deployment.endpoint, "alice").await.expect("alice");
        let RangeRequest { key, range_end, .. } = prefix("many/");
        let delete = DeleteRangeRequest { key, range_end, prev_kv: true };
        let op = RequestOp { request: Some(Request::RequestDeleteRange(delete.clone())) };
        let txn = TxnRequest { success: vec![op], ..Default::default() };
        let mut kv = deployment.client.kv();
        let (nobody, denied) = ("etcdserver: user name is empty", "etcdserver: permission denied");
        refused(kv.delete_range(delete.clone()).await, Code::InvalidArgument, nobody);
        refused(kv.txn(txn.clone()).await, Code::InvalidArgument, nobody);
        refused(kv.delete_range(with(&alice, delete.clone())).await, Code::PermissionDenied, denied);
        refused(kv.txn(with(&alice, txn)).await, Code::PermissionDenied, denied);
        let full = "etcdserver: too many requests";
        refused(kv.delete_range(with(&root, delete)).await, Code::ResourceExhausted, full);
        drop(all_room);
    });
}

#[test]
fn a_long_list_of_leases_is_complete() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let grant = |id| {
            let mut lease = deployment.client.lease();
            async move { lease.lease_grant(LeaseGrantRequest { ttl: 1000, id }).await.expect("grant").into_inner().id }
        };
        // More than are listed at once, and more bytes than are sent at once.
        let ids = (1..=6000).map(|id| grant(id << 40));
        let mut granted: Vec<i64> = stream::iter(ids).buffer_unordered(256).collect().await;
        let answer = deployment.client.lease().lease_leases(LeaseLeasesRequest {}).await.expect("leases").into_inner();
        let mut listed: Vec<i64> = answer.leases.iter().map(|lease| lease.id).collect();
        listed.sort_unstable();
        granted.sort_unstable();
        assert_eq!(listed, granted);
        assert!(answer.header.expect("header").member_id != 0);
    });
}

#[test]
fn a_proxy_with_a_namespace_holds_no_more_answers_than_it_has_room_for() {
    // The proxy held every answer twice, however many and however long: 50 clients with 500 MB each ended it.
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        // A megabyte each, held twice: room for two of them.
        fill(deployment, 1000, 1000).await;
        // An answer from the cache is not rewritten, and held once for all.
        let flags = ["--namespace=ma", "--answer-memory-bytes=5000000", "--cache=off"];
        let (proxy, endpoint) = deployment.also_front("grpc-proxy", &flags).await;
        let tenant = client(&endpoint);
        let one = Stalled::start(&endpoint, &prefix("ny/")).await;
        let other = Stalled::start(&endpoint, &prefix("ny/")).await;
        let mut kv = tenant.kv();
        let text = "etcdserver: too many requests";
        refused(soon("a refusal", kv.range(prefix("ny/"))).await, Code::ResourceExhausted, text);
        let short = kv.range(RangeRequest { limit: 20, ..prefix("ny/") }).await.expect("short").into_inner();
        assert_eq!((short.kvs.len(), short.count), (20, 1000));
        let waiting = tokio::spawn(async move { kv.range(prefix("ny/")).await });
        drop(one);
        let answer = soon("room", waiting).await.expect("no panic").expect("an answer").into_inner();
        assert_eq!((answer.kvs.len(), answer.kvs[0].key.as_ref()), (1000, &b"ny/0000"[..]));
        drop(other);
        for _ in 0..5 {
            let answer = tenant.kv().range(prefix("ny/")).await.expect("an answer").into_inner();
            assert_eq!(answer.kvs.len(), 1000);
        }
        drop(proxy);
    });
}

#[test]
fn a_put_beside_one_who_lists_everything_in_a_loop_makes_progress() {
    run(Target::Core, &["--max-request-bytes=10000000"], async |deployment: &mut Deployment| {
        fill(deployment, 1024, 64 * 1024).await;
        let (reader, mut kv) = (deployment.member_client(), deployment.client.kv());
        let listing = tokio::spawn(async move {
            let mut lists = 0u32;
            loop {
                assert_eq!(reader.kv().range(prefix("many/")).await.expect("list").get_ref().kvs.len(), 1024);
                lists += 1;
                if lists == 3 {
                    return;
                }
            }
        });
        let mut puts = 0u32;
        while !listing.is_finished() {
            kv.put(PutRequest { key: "other".into(), ..Default::default() }).await.expect("put");
            puts += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        listing.await.expect("all lists are complete");
        assert!(puts > 3, "{puts} puts during three lists");
    });
}
