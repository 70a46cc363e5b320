//! Prefixes that are cached because they are read often.

use futures::future::join_all;
use watershed::pb::etcdserverpb::request_op::Request as Operation;
use watershed::pb::etcdserverpb::{PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest};

use super::{Cached, value};
use crate::harness::{Deployment, Target, run, until};

const CHANGES: &str = "watershed_proxy_cache_state_changes_total";

/// Reads a key many times at once: one after the other would not be often enough on a slow machine.
async fn read_often(cached: &Cached, key: &'static str) -> Vec<RangeResponse> {
    join_all((0..500).map(|_| cached.get(key, false))).await
}

/// Reads until the cache answers.
async fn until_promoted(cached: &Cached, key: &'static str) {
    until("a promoted prefix", || async move {
        let before = cached.answers().await;
        read_often(cached, key).await;
        (cached.answers().await > before).then_some(())
    })
    .await;
}

#[test]
fn a_prefix_that_is_read_often_is_cached() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        for key in ["hot/a", "hot/b", "cold/a", "top"] {
            deployment.put(key, key).await;
        }
        let cached = Cached::start_empty(deployment, &[]).await;
        until_promoted(&cached, "hot/a").await;
        // What is written from now on is shown, and other keys of the prefix are cached with it.
        deployment.put("hot/a", "new").await;
        deployment.put("hot/c", "more").await;
        assert_eq!(value(&cached.get("hot/a", false).await).as_deref(), Some("new"));
        until("a range of the promoted prefix from the cache", || async {
            let before = cached.answers().await;
            let all = RangeRequest { key: "hot/".into(), range_end: "hot0".into(), ..Default::default() };
            assert_eq!(cached.range(all).await.count, 3);
            (cached.answers().await > before).then_some(())
        })
        .await;
        let before = cached.answers().await;
        assert_eq!(value(&cached.get("cold/a", false).await).as_deref(), Some("cold/a"));
        for _ in 0..4 {
            read_often(&cached, "top").await;
        }
        assert_eq!(cached.answers().await, before, "a key without a slash has no prefix");
    });
}

#[test]
fn a_large_prefix_is_not_promoted() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        for number in 0..40 {
            deployment.put(format!("big/{number:02}"), "v".repeat(1_000_000)).await;
        }
        deployment.put("big/00", "short").await;
        let cached = Cached::start_empty(deployment, &[]).await;
        let gives_up = async || cached.metrics().await.sum(CHANGES, "larger_than_budget");
        until("the prefix is found too large", || async {
            for answer in read_often(&cached, "big/00").await {
                assert_eq!(value(&answer).as_deref(), Some("short"));
            }
            (gives_up().await > 0.0).then_some(())
        })
        .await;
        for _ in 0..4 {
            read_often(&cached, "big/00").await;
        }
        assert_eq!((gives_up().await, cached.answers().await), (1.0, 0.0), "it is not tried again at once");
    });
}

#[test]
fn a_prefix_that_changes_more_than_it_is_read_is_given_up() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("busy/0", "v").await;
        let cached = Cached::start_empty(deployment, &[]).await;
        until_promoted(&cached, "busy/0").await;
        until("it is given up", || async {
            let put = |number| {
                let put = PutRequest { key: format!("busy/{number}").into(), value: "v".into(), ..Default::default() };
                RequestOp { request: Some(Operation::RequestPut(put)) }
            };
            for _ in 0..10 {
                let puts = TxnRequest { success: (0..128).map(put).collect(), ..Default::default() };
                cached.client.kv().txn(puts).await.expect("a transaction");
            }
            (cached.metrics().await.sum(CHANGES, "changes_more_than_it_is_read") > 0.0).then_some(())
        })
        .await;
        assert_eq!(value(&cached.get("busy/0", false).await).as_deref(), Some("v"));
    });
}
