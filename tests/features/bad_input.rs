//! Malformed and hostile requests: etcd's code and text, never a panic, and the next request is served.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use prost::encoding::encode_varint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Request};
use watershed::pb::etcdserverpb::{
    AlarmRequest, PutRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse, request_op, response_op,
};

use crate::harness::{Deployment, client, raw_call, refused};
use crate::on_every_target;

on_every_target! {
    unknown_services_and_methods_are_named,
    large_requests_are_refused,
    garbage_messages_are_refused,
    transactions_nest_as_deep_as_max_txn_ops,
    deep_nesting_is_refused,
    unknown_enums_are_refused,
    garbage_connections_disturb_nobody,
    metadata_nobody_knows_is_fine,
    timeouts_are_read_before_the_call,
}

async fn still_serves(deployment: &mut Deployment) {
    deployment.put("alive", "yes").await;
    assert_eq!(deployment.get("alive").await.count, 1);
    for process in std::iter::once(&deployment.server).chain(deployment.front.as_ref()) {
        assert!(!process.output().contains("panicked"), "{}", process.output());
    }
}

async fn unknown_services_and_methods_are_named(deployment: &mut Deployment) {
    for (path, text) in [
        ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
        ("/foo.Bar/Baz", "unknown service foo.Bar"),
        // What looks like a query was cut off, and the method was called.
        ("/etcdserverpb.KV/Range?x=1", "unknown method Range?x=1 for service etcdserverpb.KV"),
        ("/etcdserverpb.Watch/Watch?x=1", "unknown method Watch?x=1 for service etcdserverpb.Watch"),
        (
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "unknown service grpc.reflection.v1.ServerReflection",
        ),
    ] {
        refused(raw_call(&deployment.client, path, Bytes::new()).await, Code::Unimplemented, text);
    }
    still_serves(deployment).await;
}

async fn large_requests_are_refused(deployment: &mut Deployment) {
    let put = |size: usize| PutRequest { key: "k".into(), value: vec![b'x'; size].into(), ..Default::default() };
    let mut kv = deployment.client.kv();
    kv.put(put(1_572_764)).await.expect("just small enough");
    let answer = kv.put(put(1_572_864)).await;
    refused(answer, Code::InvalidArgument, "etcdserver: request is too large");
    // The message is the value, two tags, a length of four bytes, and the key with its length.
    let answer = kv.put(put(3_000_000)).await;
    let text = "grpc: received message larger than max (3000008 vs. 2097152)";
    refused(answer, Code::ResourceExhausted, text);
    still_serves(deployment).await;
}

async fn garbage_messages_are_refused(deployment: &mut Deployment) {
    // A length that points behind the end, a wire type that does not exist, an endless number.
    for garbage in [&b"\x0a\x7fk"[..], b"\x0f\x01", &[0xff; 12]] {
        for path in
            ["/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Txn", "/etcdserverpb.Lease/LeaseGrant"]
        {
            let answer = raw_call(&deployment.client, path, Bytes::from_static(garbage)).await;
            let status = answer.expect_err("refused");
            assert_eq!(status.code(), Code::Internal, "{path} {garbage:?}: {status:?}");
        }
    }
    still_serves(deployment).await;
}

/// A transaction within a transaction, so many times, with a put at the bottom.
fn nested_txn(depth: usize) -> Bytes {
    let put = PutRequest { key: "deep".into(), value: depth.to_string().into(), ..Default::default() };
    let put = RequestOp { request: Some(request_op::Request::RequestPut(put)) };
    let mut inner = TxnRequest { success: vec![put], ..Default::default() }.encode_to_vec();
    for _ in 0..depth {
        for tag in [0x22, 0x12] {
            let mut outer = vec![tag];
            encode_varint(inner.len() as u64, &mut outer);
            outer.append(&mut inner);
            inner = outer;
        }
    }
    inner.into()
}

// Cause: the decoder's limit of 100 messages within one another, two for each level, and a check that kept below it.
async fn transactions_nest_as_deep_as_max_txn_ops(deployment: &mut Deployment) {
    for depth in [20, 49, 101, 127] {
        let answer = raw_call(&deployment.client, "/etcdserverpb.KV/Txn", nested_txn(depth)).await.expect("taken");
        let mut answer = TxnResponse::decode(answer.into_inner()).expect("an answer");
        let mut levels = 0;
        while let Some(ResponseOp { response: Some(response_op::Response::ResponseTxn(nested)) }) =
            answer.responses.pop()
        {
            (answer, levels) = (nested, levels + 1);
        }
        assert_eq!(levels, depth);
        assert_eq!(deployment.get("deep").await.kvs[0].value, depth.to_string());
    }
    for depth in [128, 150] {
        let answer = raw_call(&deployment.client, "/etcdserverpb.KV/Txn", nested_txn(depth)).await;
        refused(answer, Code::InvalidArgument, "etcdserver: too many operations in txn request");
    }
    deployment.crash_and_restart().await;
    assert_eq!(deployment.get("deep").await.kvs[0].value, "127", "the log is readable");

    // The proxy rewrites requests and answers for its namespace.
    let (_proxy, endpoint) = deployment.also_front("grpc-proxy", &["--namespace=tenant/"]).await;
    let client = client(&endpoint);
    let answer = raw_call(&client, "/etcdserverpb.KV/Txn", nested_txn(127)).await.expect("taken");
    TxnResponse::decode(answer.into_inner()).expect("an answer");
    assert_eq!(deployment.get("tenant/deep").await.kvs[0].value, "127");
    let answer = raw_call(&client, "/etcdserverpb.KV/Txn", nested_txn(128)).await;
    refused(answer, Code::InvalidArgument, "etcdserver: too many operations in txn request");
}

async fn deep_nesting_is_refused(deployment: &mut Deployment) {
    for depth in [200, 5_000] {
        let answer = raw_call(&deployment.client, "/etcdserverpb.KV/Txn", nested_txn(depth)).await;
        let status = answer.expect_err("too deep");
        assert!(matches!(status.code(), Code::InvalidArgument | Code::Internal), "{depth}: {status:?}");
    }
    still_serves(deployment).await;
}

async fn unknown_enums_are_refused(deployment: &mut Deployment) {
    if crate::harness::is_stock() {
        return; // Stock does not answer this one.
    }
    let status = deployment.client.maintenance().alarm(AlarmRequest { action: 77, ..Default::default() }).await;
    assert_eq!(status.expect_err("refused").code(), Code::InvalidArgument);
    still_serves(deployment).await;
}

async fn garbage_connections_disturb_nobody(deployment: &mut Deployment) {
    let endless_header = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 2_000_000]].concat();
    let bad_frame = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec();
    for garbage in [b"\0\x01\x02\x03".to_vec(), b"GET\r\n\r\n".to_vec(), endless_header, bad_frame] {
        let mut stream = TcpStream::connect(&deployment.endpoint).await.expect("connects");
        // The other side may hang up in the middle; it only has to go on serving others.
        let _ = stream.write_all(&garbage).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut answer)).await;
        still_serves(deployment).await;
    }
}

async fn metadata_nobody_knows_is_fine(deployment: &mut Deployment) {
    let put = |metadata: &[(&'static str, &str)]| {
        let mut request = Request::new(PutRequest { key: "k".into(), ..Default::default() });
        for &(key, value) in metadata {
            request.metadata_mut().insert(key, value.parse().expect("ascii"));
        }
        let mut kv = deployment.client.kv();
        async move { kv.put(request).await }
    };
    put(&[("hasleader", "true"), ("client-api-version", "9.9"), ("x-nobody", "knows")]).await.expect("put");
    still_serves(deployment).await;
}

async fn timeouts_are_read_before_the_call(deployment: &mut Deployment) {
    // Nobody looked at the header before the handlers of locks did.
    let put = |timeout: &str| {
        let mut request = Request::new(PutRequest { key: "timed".into(), ..Default::default() });
        request.metadata_mut().insert("grpc-timeout", timeout.parse().expect("ascii"));
        let mut kv = deployment.client.kv();
        async move { kv.put(request).await }
    };
    let text = "malformed grpc-timeout: transport: timeout unit is not recognized: \"5x\"";
    refused(put("5x").await, Code::Internal, text);
    let text = "malformed grpc-timeout: transport: timeout string is too long: \"123456789S\"";
    refused(put("123456789S").await, Code::Internal, text);
    refused(put("0n").await, Code::DeadlineExceeded, "context deadline exceeded");
    assert_eq!(deployment.get("timed").await.count, 0);
    put("30S").await.expect("in time");
    still_serves(deployment).await;
}
