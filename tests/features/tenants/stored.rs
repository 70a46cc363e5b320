//! What a tenant may have stored.

use futures::future::join_all;
use tonic::{Code, Status};
use watershed::client::Client;
use watershed::pb::etcdserverpb::*;
use watershed::pb::v3lockpb::LockRequest;

use super::{Tier, address, all, answers, put};
use crate::harness::{Deployment, Target, client, json, run, until};

/// One tenant with these limits, and one beside it with none.
fn limited(a: &str, b: &str, limits: &str) -> String {
    format!(
        "tenants:\n\
         - {{name: a, namespace: t/a/, match: [{{listen: '{a}'}}], limits: {{{limits}}}}}\n\
         - {{name: b, namespace: t/b/, match: [{{listen: '{b}'}}]}}\n"
    )
}

fn assert_full(status: &Status, limit: &str, max: u64) {
    let text = format!("the tenant's limit {limit:?} of {max} is reached");
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, text.as_str()));
    let pushback = status.metadata().get("grpc-retry-pushback-ms").expect("a hint");
    assert_eq!(pushback, "-1", "waiting makes no room");
}

async fn set(client: &Client, key: &str, bytes: usize) -> Result<(), Status> {
    let request = PutRequest { key: key.to_owned().into(), value: vec![b'v'; bytes].into(), ..Default::default() };
    client.kv().put(request).await.map(drop)
}

async fn delete(client: &Client, key: &'static str) {
    let request = DeleteRangeRequest { key: key.into(), ..Default::default() };
    client.kv().delete_range(request).await.expect("deletes are never refused");
}

fn op(key: &'static str) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestPut(put(key, "w"))) }
}

/// Puts `then` where `key` exists, else `otherwise`.
fn txn(key: &'static str, then: &[&'static str], otherwise: &[&'static str]) -> TxnRequest {
    let exists = Compare {
        result: compare::CompareResult::Greater.into(),
        target: compare::CompareTarget::Version.into(),
        key: key.into(),
        target_union: Some(compare::TargetUnion::Version(0)),
        ..Compare::default()
    };
    let ops = |keys: &[&'static str]| keys.iter().map(|key| op(key)).collect();
    TxnRequest { compare: vec![exists], success: ops(then), failure: ops(otherwise) }
}

#[test]
fn keys_are_counted_whoever_has_put_them() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        // More than a page before the proxy is there, and neighbours.
        for number in 0..40 {
            deployment.put(format!("t/a/{number:02}"), "v").await;
            deployment.put(format!("t/b/{number:02}"), "v").await;
        }
        let [a, b] = [address(), address()];
        let tier = Tier::start(deployment, &limited(&a, &b, "stored-keys: 45"), &[]);
        let (of_a, of_b) = (client(&a), client(&b));
        answers(&of_a).await;
        // Fifty at once: no more than there is room for, and no fewer.
        let names: Vec<String> = (50..100).map(|number| number.to_string()).collect();
        let outcomes = join_all(names.iter().map(|key| set(&of_a, key, 1))).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 5);
        outcomes.into_iter().filter_map(Result::err).for_each(|status| assert_full(&status, "stored-keys", 45));
        let count =
            of_a.kv().range(RangeRequest { count_only: true, ..all() }).await.expect("range").into_inner().count;
        assert_eq!(count, 45);
        // A key that exists may have another value, and a transaction may put such keys alone.
        set(&of_a, "05", 2).await.expect("exists");
        of_a.kv().txn(txn("05", &["06", "07"], &[])).await.expect("they exist");
        let status = of_a.kv().txn(txn("05", &["06", "new"], &[])).await.expect_err("one is new");
        assert_full(&status, "stored-keys", 45);
        let status = of_a.kv().txn(txn("05", &[], &["new"])).await.expect_err("it may be the other branch");
        assert_full(&status, "stored-keys", 45);
        let status = of_a.lock().lock(LockRequest { name: "l".into(), lease: 0 }).await.expect_err("puts a key");
        assert_full(&status, "stored-keys", 45);
        assert_eq!(json(&a, "/v3/kv/put", r#"{"key":"bmV3"}"#).await.0, 429);
        set(&of_b, "more", 1).await.expect("the other tenant has no limit");
        // A transaction that puts nothing takes no room.
        delete(&of_a, "00").await;
        until("room", async || of_a.kv().txn(txn("none", &["new"], &[])).await.ok()).await;
        set(&of_a, "new", 1).await.expect("there is room");
        // Around the proxy: counted, and never removed.
        deployment.put("t/a/x", "v").await;
        delete(&of_a, "01").await;
        until("the count", async || {
            let series = |name: &str| format!("watershed_proxy_tenant_stored_{name}{{tenant=\"a\"}} ");
            (tier.metric(&series("keys")).await == Some(45)).then_some(())
        })
        .await;
        assert_full(&set(&of_a, "y", 1).await.expect_err("it is full"), "stored-keys", 45);
        // A limit that is gone is counted no more, one that is new from its first request on.
        tier.replace(&limited(&a, &b, ""), "taken").await;
        set(&of_a, "y", 1).await.expect("no limit");
        tier.replace(&limited(&a, &b, "stored-keys: 46"), "taken").await;
        assert_full(&set(&of_a, "z", 1).await.expect_err("it is full"), "stored-keys", 46);
    });
}

#[test]
fn bytes_are_those_of_keys_and_values() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("t/a/k", "v".repeat(899)).await;
        let [a, b] = [address(), address()];
        let _tier = Tier::start(deployment, &limited(&a, &b, "stored-bytes: 1000"), &[]);
        let of_a = client(&a);
        answers(&of_a).await;
        assert_full(&set(&of_a, "l", 100).await.expect_err("one byte too much"), "stored-bytes", 1000);
        set(&of_a, "l", 99).await.expect("fits");
        assert_full(&set(&of_a, "m", 0).await.expect_err("it is full"), "stored-bytes", 1000);
        // What is no longer than before may be put, and a shorter value makes room.
        set(&of_a, "k", 899).await.expect("as long as before");
        assert_full(&set(&of_a, "k", 900).await.expect_err("longer"), "stored-bytes", 1000);
        let lease = LeaseGrantRequest { ttl: 600, id: 0 };
        let lease = of_a.lease().lease_grant(lease).await.expect("a lease stores nothing").into_inner().id;
        let kept = PutRequest { key: "k".into(), ignore_value: true, lease, ..Default::default() };
        of_a.kv().put(kept).await.expect("the value stays");
        set(&of_a, "k", 800).await.expect("shorter");
        until("room", async || set(&of_a, "m", 98).await.ok()).await;
        assert_full(&set(&of_a, "n", 0).await.expect_err("it is full again"), "stored-bytes", 1000);
    });
}
