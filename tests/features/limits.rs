//! `--max-concurrent-streams`: a client opens one stream more only when another one has ended.

use watershed::pb::etcdserverpb::watch_request::RequestUnion;
use watershed::pb::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest};

use crate::harness::{Deployment, RawHttp2, Target, cancel_frame, data_frame, grpc_headers, grpc_message, run};

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
