//! Range with every option, and its stream.

use tonic::Code;
use watershed::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use watershed::pb::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};

use crate::harness::{Deployment, prefix, refused};
use crate::on_every_target;

on_every_target! {
    bounds_select_keys,
    a_limit_does_not_change_the_count,
    sorting_follows_target_and_order,
    sorting_without_an_order_sorts_what_the_limit_let_through,
    filters_bound_revisions,
    keys_only_and_count_only_leave_values_out,
    old_revisions_stay_readable,
    refused_ranges,
    a_stream_merges_to_the_same_answer,
    a_stream_refuses_what_it_cannot_order,
}

fn keys(answer: &RangeResponse) -> String {
    let keys: Vec<_> = answer.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
    keys.join(" ")
}

async fn bounds_select_keys(deployment: &mut Deployment) {
    for key in ["a", "aa", "ab", "b", "c"] {
        deployment.put(key, "").await;
    }
    for (key, end, expected) in [
        ("a", "", "a"),
        ("a", "b", "a aa ab"),
        ("a", "\0", "a aa ab b c"),
        ("\0", "\0", "a aa ab b c"),
        ("b", "a", ""),
        ("b", "b", ""),
        ("x", "", ""),
        ("aa", "ac", "aa ab"),
    ] {
        let answer =
            deployment.range(RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() }).await;
        assert_eq!(keys(&answer), expected, "{key:?}..{end:?}");
        assert_eq!(answer.count as usize, answer.kvs.len());
        assert!(!answer.more);
    }
}

async fn a_limit_does_not_change_the_count(deployment: &mut Deployment) {
    for key in ["k1", "k2", "k3"] {
        deployment.put(key, "").await;
    }
    for (limit, expected, more) in
        [(2, "k1 k2", true), (3, "k1 k2 k3", false), (0, "k1 k2 k3", false), (-1, "k1 k2 k3", false)]
    {
        for serializable in [false, true] {
            let answer = deployment.range(RangeRequest { limit, serializable, ..prefix("k") }).await;
            assert_eq!((keys(&answer).as_str(), answer.more, answer.count), (expected, more, 3), "limit {limit}");
        }
    }
}

async fn sorting_follows_target_and_order(deployment: &mut Deployment) {
    // Created c a b, last written a c b, versions a1 b2 c3, values a=3 b=2 c=1.
    for (key, value) in [("c", "x"), ("a", "3"), ("b", "x"), ("c", "x"), ("c", "1"), ("b", "2")] {
        deployment.put(key, value).await;
    }
    let all = RangeRequest { key: "a".into(), range_end: "d".into(), ..Default::default() };
    for (target, ascending) in [
        (SortTarget::Key, "a b c"),
        (SortTarget::Version, "a b c"),
        (SortTarget::Create, "c a b"),
        (SortTarget::Mod, "a c b"),
        (SortTarget::Value, "c b a"),
    ] {
        let sorted = |order: SortOrder, limit| RangeRequest {
            sort_target: target.into(),
            sort_order: order.into(),
            limit,
            ..all.clone()
        };
        let mut descending: Vec<_> = ascending.split(' ').collect();
        descending.reverse();
        assert_eq!(keys(&deployment.range(sorted(SortOrder::Ascend, 0)).await), ascending, "{target:?}");
        assert_eq!(keys(&deployment.range(sorted(SortOrder::Descend, 0)).await), descending.join(" "), "{target:?}");
        let answer = deployment.range(sorted(SortOrder::Descend, 1)).await;
        assert_eq!((keys(&answer).as_str(), answer.more, answer.count), (descending[0], true, 3), "{target:?}");
    }
}

async fn sorting_without_an_order_sorts_what_the_limit_let_through(deployment: &mut Deployment) {
    for (key, value) in [("k1", "5"), ("k2", "4"), ("k3", "3"), ("k4", "2"), ("k5", "1")] {
        deployment.put(key, value).await;
    }
    let request = RangeRequest { sort_target: SortTarget::Value.into(), limit: 2, ..prefix("k") };
    let answer = deployment.range(request).await;
    assert_eq!((keys(&answer).as_str(), answer.more), ("k3 k2", true));
}

async fn filters_bound_revisions(deployment: &mut Deployment) {
    // k1 created 2 written 5; k2 created 3; k3 created 4.
    for key in ["k1", "k2", "k3", "k1"] {
        deployment.put(key, "").await;
    }
    let cases = [
        (RangeRequest { min_mod_revision: 4, ..prefix("k") }, "k1 k3"),
        (RangeRequest { max_mod_revision: 4, ..prefix("k") }, "k2 k3"),
        (RangeRequest { min_create_revision: 3, ..prefix("k") }, "k2 k3"),
        (RangeRequest { max_create_revision: 3, ..prefix("k") }, "k1 k2"),
        (RangeRequest { min_mod_revision: 3, max_mod_revision: 3, ..prefix("k") }, "k2"),
    ];
    for (request, expected) in cases {
        let answer = deployment.range(request.clone()).await;
        assert_eq!((keys(&answer).as_str(), answer.count, answer.more), (expected, 3, false), "{request:?}");
    }
    let answer = deployment.range(RangeRequest { min_mod_revision: 4, limit: 1, ..prefix("k") }).await;
    assert_eq!((keys(&answer).as_str(), answer.count, answer.more), ("k1", 3, true));
}

async fn keys_only_and_count_only_leave_values_out(deployment: &mut Deployment) {
    let lease = deployment.grant(60).await;
    deployment.put_with(PutRequest { key: "k1".into(), value: "v".into(), lease, ..Default::default() }).await;
    deployment.put("k2", "v").await;
    let answer = deployment.range(RangeRequest { keys_only: true, ..prefix("k") }).await;
    assert_eq!(keys(&answer), "k1 k2");
    assert!(answer.kvs.iter().all(|kv| kv.value.is_empty() && kv.lease == 0 && kv.version == 1));
    let by_value = RangeRequest { keys_only: true, sort_target: SortTarget::Value.into(), ..prefix("k") };
    let answer = deployment.range(by_value).await;
    let first = answer.kvs.iter().find(|kv| kv.key == "k1").expect("k1");
    assert_eq!((first.value.len(), first.lease), (0, lease), "sorting by value reads the record");

    let answer = deployment.range(RangeRequest { count_only: true, limit: 1, ..prefix("k") }).await;
    assert_eq!((answer.kvs.len(), answer.count, answer.more), (0, 2, false));
}

async fn old_revisions_stay_readable(deployment: &mut Deployment) {
    let first = deployment.put("k", "1").await;
    deployment.put("k", "2").await;
    deployment.put("k2", "").await;
    deployment.delete("k").await;
    let at = |revision| RangeRequest { revision, ..prefix("k") };
    let answer = deployment.range(at(first)).await;
    assert_eq!((answer.kvs[0].value.as_ref(), answer.count), (b"1".as_ref(), 1));
    assert_eq!(answer.header.expect("header").revision, first + 3, "the header shows the present");
    assert_eq!(deployment.range(at(first + 1)).await.kvs[0].value, "2");
    assert_eq!(keys(&deployment.range(at(first + 2)).await), "k k2");
    assert_eq!(keys(&deployment.range(at(0)).await), "k2");
    assert_eq!(keys(&deployment.range(at(-7)).await), "k2", "a negative revision is the latest");
}

async fn refused_ranges(deployment: &mut Deployment) {
    let mut kv = deployment.client.kv();
    let invalid = Code::InvalidArgument;
    refused(kv.range(RangeRequest::default()).await, invalid, "etcdserver: key is not provided");
    for bad in [-1, 3, 100] {
        let request = RangeRequest { sort_order: bad, ..prefix("k") };
        refused(kv.range(request).await, invalid, "etcdserver: invalid sort option");
    }
    for bad in [-1, 5] {
        let request = RangeRequest { sort_target: bad, ..prefix("k") };
        refused(kv.range(request).await, invalid, "etcdserver: invalid sort option");
    }
    for serializable in [false, true] {
        let request = RangeRequest { revision: 99, serializable, ..prefix("k") };
        let text = "etcdserver: mvcc: required revision is a future revision";
        refused(kv.range(request).await, Code::OutOfRange, text);
    }
}

async fn stream(deployment: &Deployment, request: RangeRequest) -> (RangeResponse, usize) {
    let mut chunks = deployment.client.kv().range_stream(request).await.expect("stream").into_inner();
    let mut merged = RangeResponse::default();
    let mut count = 0;
    while let Some(chunk) = chunks.message().await.expect("a chunk") {
        assert!(merged.header.is_none(), "the header comes with the last chunk");
        let chunk = chunk.range_response.expect("an answer");
        merged.kvs.extend(chunk.kvs);
        merged.header = chunk.header;
        merged.more = chunk.more;
        merged.count = chunk.count;
        count += 1;
    }
    (merged, count)
}

async fn a_stream_merges_to_the_same_answer(deployment: &mut Deployment) {
    for number in 0..35 {
        deployment.put(format!("k{number:02}"), "v").await;
    }
    for request in [
        prefix("k"),
        RangeRequest { limit: 12, ..prefix("k") },
        RangeRequest { limit: 35, ..prefix("k") },
        RangeRequest { keys_only: true, ..prefix("k") },
        RangeRequest { count_only: true, ..prefix("k") },
        RangeRequest { revision: 20, ..prefix("k") },
        RangeRequest { serializable: true, ..prefix("k") },
        prefix("nothing"),
    ] {
        let (merged, chunks) = stream(deployment, request.clone()).await;
        assert_eq!(merged, deployment.range(request.clone()).await, "{request:?}");
        assert!(chunks >= 1);
    }
    assert!(stream(deployment, prefix("k")).await.1 > 1, "35 keys do not come at once");
}

async fn a_stream_refuses_what_it_cannot_order(deployment: &mut Deployment) {
    deployment.put("k", "v").await;
    let cases = [
        (RangeRequest::default(), Code::InvalidArgument, "etcdserver: key is not provided"),
        (
            RangeRequest { sort_order: SortOrder::Descend.into(), ..prefix("k") },
            Code::Unimplemented,
            "RangeStream does not support custom sort orders",
        ),
        (
            RangeRequest { min_mod_revision: 1, ..prefix("k") },
            Code::Unimplemented,
            "RangeStream does not support revision filters",
        ),
        (
            RangeRequest { revision: 99, ..prefix("k") },
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
    ];
    for (request, code, text) in cases {
        let status = match deployment.client.kv().range_stream(request).await {
            Err(status) => status,
            Ok(answer) => answer.into_inner().message().await.expect_err("refused"),
        };
        assert_eq!((status.code(), status.message()), (code, text));
    }
}
