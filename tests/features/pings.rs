//! `--grpc-keepalive-min-time`: a client that pings more often is disconnected, with etcd's code and text.

use watershed::pb::etcdserverpb::watch_request::RequestUnion;
use watershed::pb::etcdserverpb::{WatchCreateRequest, WatchRequest};

use crate::harness::{Deployment, RawHttp2, data_frame, grpc_headers, grpc_message, until};
use crate::on_every_target;

on_every_target! {
    pings_without_a_stream_end_the_connection,
    pings_beside_answers_are_no_matter,
}

/// ENHANCE_YOUR_CALM.
const CODE: u32 = 0xb;

/// Pings as fast as they are answered until the connection is ended for it.
async fn ends_for_pings(raw: &RawHttp2) {
    until("the end for pings", async || (!raw.alive().await).then_some(())).await;
    let goaway = raw.wait("GOAWAY", |seen| seen.goaway.clone()).await;
    assert_eq!(goaway, (CODE, "too_many_pings".to_owned()));
    raw.wait("the end", |seen| seen.closed.then_some(())).await;
}

async fn pings_without_a_stream_end_the_connection(deployment: &mut Deployment) {
    // Cause: the flag was read and dropped; pings were answered however often they came.
    let raw = RawHttp2::connect(&deployment.endpoint).await;
    for ping in 0..3 {
        assert!(raw.alive().await, "ping {ping}");
    }
    ends_for_pings(&raw).await;
}

async fn pings_beside_answers_are_no_matter(deployment: &mut Deployment) {
    let raw = RawHttp2::connect(&deployment.endpoint).await;
    let create = WatchCreateRequest { key: "pinged".into(), ..Default::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let call =
        [grpc_headers(1, "/etcdserverpb.Watch/Watch", &[], false), data_frame(1, &grpc_message(&request), false)];
    raw.write(&call.concat()).await;
    for answers in 1..=4 {
        raw.wait("an answer", |seen| (seen.messages(1).len() == answers).then_some(())).await;
        for ping in 0..3 {
            assert!(raw.alive().await, "ping {ping} after answer {answers}");
        }
        deployment.put("pinged", "v").await;
    }
    raw.wait("the last answer", |seen| (seen.messages(1).len() == 5).then_some(())).await;
    ends_for_pings(&raw).await;
}
