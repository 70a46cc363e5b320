//! What a read from the cache must show.

use tonic::Code;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
    compare, request_op,
};

use super::{Cached, value};
use crate::harness::{Deployment, Target, refused, run, until};

const ALL: &[&str] = &["--cache-prefix="];

fn put(key: &'static str, value: &'static str) -> RequestOp {
    let put = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestPut(put)) }
}

fn delete(key: &'static str, range_end: &'static str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}

/// What a linearizable read, and after a while a serializable one, answers for a key.
async fn shows(cached: &Cached, key: &'static str, expected: Option<&str>) {
    assert_eq!(value(&cached.get(key, false).await).as_deref(), expected, "linearizable {key}");
    until("the staleness bound", || async {
        (value(&cached.get(key, true).await).as_deref() == expected).then_some(())
    })
    .await;
}

#[test]
fn writes_from_anywhere_and_of_any_kind_are_seen() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("k", "old").await;
        let first = Cached::start(deployment, ALL, "k").await;
        let second = Cached::start(deployment, ALL, "k").await;
        let both = async |key: &'static str, expected: Option<&str>| {
            shows(&first, key, expected).await;
            shows(&second, key, expected).await;
        };
        both("k", Some("old")).await;
        deployment.put("k", "directly").await;
        both("k", Some("directly")).await;
        second.put("k", "by the other").await;
        both("k", Some("by the other")).await;

        let inner = TxnRequest { success: vec![put("n", "nested"), put("k", "nested")], ..Default::default() };
        let inner = RequestOp { request: Some(request_op::Request::RequestTxn(inner)) };
        let txn = TxnRequest { success: vec![put("t", "txn"), inner], ..Default::default() };
        first.client.kv().txn(txn).await.expect("txn");
        both("t", Some("txn")).await;
        both("n", Some("nested")).await;
        both("k", Some("nested")).await;

        let lease = deployment.grant(1000).await;
        let leased = PutRequest { key: "l".into(), value: "leased".into(), lease, ..Default::default() };
        deployment.put_with(leased).await;
        both("l", Some("leased")).await;
        watershed::pb::etcdserverpb::lease_client::LeaseClient::new(deployment.client.channel())
            .lease_revoke(LeaseRevokeRequest { id: lease })
            .await
            .expect("revoke");
        both("l", None).await;

        second.client.kv().delete_range(delete("k", "\0")).await.expect("delete");
        for key in ["k", "n", "t"] {
            both(key, None).await;
        }
        assert!(first.answers().await > 10.0 && second.answers().await > 10.0, "the cache was not used");
    });
}

#[test]
fn ranges_to_the_end_and_of_everything_are_fresh() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("b", "1").await;
        let cached = Cached::start(deployment, ALL, "b").await;
        let ranges = [("\0", "\0"), ("b", "\0"), ("b", "c"), ("b", "")];
        let counts = async |expected: [i64; 4]| {
            for ((key, end), expected) in ranges.into_iter().zip(expected) {
                let request = RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() };
                let answer = cached.range(request.clone()).await;
                assert_eq!((answer.count, answer.kvs.len() as i64), (expected, expected), "{key:?}..{end:?}");
                // On the same connection: not behind what it has just been shown.
                let answer = cached.range(RangeRequest { serializable: true, ..request }).await;
                assert_eq!(answer.count, expected, "serializable {key:?}..{end:?}");
            }
        };
        counts([1, 1, 1, 1]).await;
        for (key, expected) in [("a", [2, 1, 1, 1]), ("bb", [3, 2, 2, 1]), ("z", [4, 3, 2, 1])] {
            deployment.put(key, "").await;
            counts(expected).await;
        }
        deployment.client.kv().delete_range(delete("bb", "\0")).await.expect("delete");
        counts([2, 1, 1, 1]).await;
        cached.client.kv().delete_range(delete("\0", "\0")).await.expect("delete");
        counts([0, 0, 0, 0]).await;
    });
}

#[test]
fn a_client_reads_its_own_writes_while_others_read() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("k", "0").await;
        let cached = Cached::start(deployment, ALL, "k").await;
        let stop = tokio_util::sync::CancellationToken::new();
        let readers = (0..6).map(|_| {
            let (client, stop) = (cached.client.clone(), stop.clone());
            async move {
                let mut kv = client.kv();
                while !stop.is_cancelled() {
                    let request = RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
                    kv.range(request).await.expect("range");
                }
            }
        });
        let writer = async {
            let own = crate::harness::client(&cached.endpoint);
            for number in 0..500 {
                let value = number.to_string();
                let put = PutRequest { key: "k".into(), value: value.clone().into(), ..Default::default() };
                own.kv().put(put).await.expect("put");
                let request = RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
                let answer = own.kv().range(request).await.expect("range").into_inner();
                assert_eq!(super::value(&answer), Some(value));
            }
            stop.cancel();
        };
        tokio::join!(futures::future::join_all(readers), writer);
        assert!(cached.answers().await > 500.0);
    });
}

#[test]
fn revisions_of_a_connection_never_go_back() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("k", "0").await;
        let first = Cached::start(deployment, ALL, "k").await;
        let mut newest = 0;
        for number in 0..200 {
            // Now and then something of the connection's own that the replica has to catch up with.
            let revision = match number % 4 {
                0 => first.put("k", "x").await,
                1 => deployment.put("k", "y").await,
                _ => 0,
            };
            let answer = first.get("k", number % 3 != 0).await;
            let header = answer.header.expect("header");
            assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0, "{header:?}");
            assert!(header.revision >= newest, "{} after {newest}", header.revision);
            if number % 4 == 0 {
                assert!(header.revision >= revision, "behind the connection's own write");
            }
            newest = header.revision;
        }
    });
}

#[test]
fn what_leasing_got_wrong() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("k", "kept").await;
        let cached = Cached::start(deployment, ALL, "k").await;
        let lease = deployment.grant(1000).await;
        let touch = PutRequest { key: "k".into(), ignore_value: true, lease, ..Default::default() };
        cached.client.kv().put(touch).await.expect("put");
        let answer = cached.get("k", false).await;
        assert_eq!((value(&answer).as_deref(), answer.kvs[0].lease), (Some("kept"), lease));

        let absent = Compare {
            key: "absent".into(),
            target: compare::CompareTarget::Value.into(),
            target_union: Some(compare::TargetUnion::Value("x".into())),
            ..Default::default()
        };
        let txn = TxnRequest { compare: vec![absent], ..Default::default() };
        assert!(!cached.client.kv().txn(txn).await.expect("txn").into_inner().succeeded);

        cached.client.kv().delete_range(delete("k", "")).await.expect("delete");
        let answer = cached.get("k", false).await;
        assert_eq!((answer.count, answer.kvs.len()), (0, 0));
    });
}

#[test]
fn pages_at_one_revision_come_from_the_cache_until_it_is_compacted() {
    const KEYS: [&str; 4] = ["p/0", "p/1", "p/2", "p/3"];
    let page = |key: &'static str, revision| RangeRequest {
        key: key.into(),
        range_end: "p0".into(),
        limit: 2,
        revision,
        ..Default::default()
    };
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        for key in KEYS {
            deployment.put(key, "before").await;
        }
        let cached = Cached::start(deployment, &["--cache-prefix=p/"], "p/0").await;
        let revision_of = |answer: &RangeResponse| answer.header.expect("header").revision;
        // A state is kept for ten seconds, which may be over on a machine that is busy with other tests.
        let old = until("an answer from a kept state", || async {
            let first = cached.range(page("p/", 0)).await;
            let revision = revision_of(&first);
            for key in KEYS {
                cached.put(key, "after").await;
            }
            let newest = deployment.delete("p/2").await.header.expect("header").revision;
            let before = cached.answers().await;
            let second = cached.range(page("p/2", revision)).await;
            let from_the_cache = cached.answers().await > before;
            let member = deployment.client.kv().range(page("p/2", revision)).await.expect("range").into_inner();
            assert_eq!((&second.kvs, second.more, second.count), (&member.kvs, member.more, member.count));
            assert_eq!((second.kvs.len(), revision_of(&second)), (2, newest), "the header is of the newest");
            deployment.put("p/2", "before").await;
            from_the_cache.then_some(revision)
        })
        .await;
        deployment.compact(old + 1).await;
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        refused(cached.client.kv().range(page("p/2", old)).await, Code::OutOfRange, compacted);
        let serializable = RangeRequest { serializable: true, ..page("p/2", old) };
        refused(cached.client.kv().range(serializable).await, Code::OutOfRange, compacted);
        // Others are not held up by the compacted one.
        cached.until_answers("p/0").await;
    });
}

#[test]
fn a_compaction_leaves_the_cache_in_use() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let newest = deployment.put("k", "1").await;
        let cached = Cached::start(deployment, ALL, "k").await;
        let compaction = watershed::pb::etcdserverpb::CompactionRequest { revision: newest, physical: true };
        cached.client.kv().compact(compaction).await.expect("compaction");
        // A read that the cache cannot answer in time is passed on, which may happen on a busy machine.
        let answered = async || {
            let before = cached.answers().await;
            for _ in 0..20 {
                assert_eq!(value(&cached.get("k", false).await).as_deref(), Some("1"));
            }
            (cached.answers().await >= before + 20.0).then_some(())
        };
        until("only answers of the cache", answered).await;
        deployment.put("k", "2").await;
        assert_eq!(value(&cached.get("k", false).await).as_deref(), Some("2"));
    });
}

/// Many readers and few reads of the cluster.
#[test]
fn concurrent_linearizable_reads_share_reads_of_the_cluster() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("k", "1").await;
        let cached = Cached::start(deployment, ALL, "k").await;
        let before = cached.metrics().await.sum("watershed_proxy_cache_read_index_total", "");
        let clients: Vec<Client> = (0..8).map(|_| crate::harness::client(&cached.endpoint)).collect();
        let reads = (0..2000).map(|number| {
            let mut kv = clients[number % 8].kv();
            async move {
                let request = RangeRequest { key: "k".into(), ..Default::default() };
                kv.range(request).await.expect("range");
            }
        });
        futures::future::join_all(reads).await;
        let sent = cached.metrics().await.sum("watershed_proxy_cache_read_index_total", "") - before;
        assert!(sent > 0.0 && sent < 1000.0, "{sent} reads of the cluster for 2000");
    });
}
