//! What a tenant may have stored.

use std::fs;

use futures::future::join_all;
use tempfile::TempDir;
use tonic::{Code, Status};
use watershed::client::Client;
use watershed::pb::etcdserverpb::*;
use watershed::pb::v3lockpb::LockRequest;

use super::{Tier, address, all, answers, put};
use crate::harness::{Between, Deployment, Target, client, json, run, until};

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

async fn count(client: &Client) -> i64 {
    client.kv().range(RangeRequest { count_only: true, ..all() }).await.expect("range").into_inner().count
}

/// Waits until the proxy has counted so many keys of tenant `a`.
async fn has_counted(tier: &Tier, keys: i64) {
    let series = "watershed_proxy_tenant_stored_keys{tenant=\"a\"} ";
    let keys = u64::try_from(keys).expect("a count");
    until("the count", async || (tier.metric(series).await == Some(keys)).then_some(())).await;
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
        assert_eq!(count(&of_a).await, 45);
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
        of_a.kv().txn(txn("none", &["new"], &[])).await.expect("there is room");
        set(&of_a, "new", 1).await.expect("there is room");
        // Around the proxy: counted, and never removed.
        deployment.put("t/a/x", "v").await;
        delete(&of_a, "01").await;
        has_counted(&tier, 45).await;
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
        set(&of_a, "m", 98).await.expect("there is room");
        assert_full(&set(&of_a, "n", 0).await.expect_err("it is full again"), "stored-bytes", 1000);
    });
}

#[test]
fn what_is_deleted_makes_room_at_once() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b] = [address(), address()];
        let _tier = Tier::start(deployment, &limited(&a, &b, "stored-keys: 3"), &[]);
        let of_a = client(&a);
        answers(&of_a).await;
        for key in ["1", "2", "3"] {
            set(&of_a, key, 1).await.expect("there is room");
        }
        for round in 0..20 {
            delete(&of_a, "1").await;
            set(&of_a, "1", 1).await.unwrap_or_else(|status| panic!("round {round}: {status}"));
            deployment.delete("t/a/2").await;
            set(&of_a, "2", 1).await.unwrap_or_else(|status| panic!("round {round}, beside the proxy: {status}"));
            let grant = LeaseGrantRequest { ttl: 600, id: 0 };
            let lease = of_a.lease().lease_grant(grant).await.expect("grant").into_inner().id;
            let leased = PutRequest { key: "3".into(), value: "v".into(), lease, ..Default::default() };
            of_a.kv().put(leased).await.expect("it exists");
            of_a.lease().lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("never refused");
            set(&of_a, "3", 1).await.unwrap_or_else(|status| panic!("round {round}, with its lease: {status}"));
            assert_full(&set(&of_a, "4", 1).await.expect_err("it is full"), "stored-keys", 3);
        }
    });
}

/// What is in flight is taken for the most that it can add, which is no reason to refuse another put.
#[test]
fn values_that_are_replaced_meanwhile_take_no_room_from_others() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("t/a/k", "v".repeat(499)).await;
        let [a, b] = [address(), address()];
        let _tier = Tier::start(deployment, &limited(&a, &b, "stored-bytes: 1000"), &[]);
        let of_a = client(&a);
        answers(&of_a).await;
        for round in 0..10 {
            let replaced = join_all((0..20).map(|_| set(&of_a, "k", 499)));
            let (replaced, new) = tokio::join!(replaced, set(&of_a, "new", 497));
            new.unwrap_or_else(|status| panic!("round {round}: {status}"));
            for outcome in replaced {
                outcome.unwrap_or_else(|status| panic!("round {round}: {status}"));
            }
            assert_full(&set(&of_a, "n", 0).await.expect_err("it is full"), "stored-bytes", 1000);
            delete(&of_a, "new").await;
        }
    });
}

#[test]
fn a_value_may_be_replaced_that_is_longer_than_an_answer_may_be() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("t/a/k", "v".repeat(5000)).await;
        let [a, b] = [address(), address()];
        let _tier = Tier::start(deployment, &limited(&a, &b, "stored-bytes: 6000, answer-bytes: 1000"), &[]);
        let of_a = client(&a);
        until("the tenant is served", async || set(&of_a, "k", 5000).await.ok()).await;
        assert_full(&set(&of_a, "k", 6000).await.expect_err("too long"), "stored-bytes", 6000);
    });
}

#[test]
fn two_proxies_exceed_a_limit_by_what_they_write_at_once() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b, other_a, other_b] = [address(), address(), address(), address()];
        let tier = Tier::start(deployment, &limited(&a, &b, "stored-keys: 20"), &[]);
        let other_tier = Tier::start(deployment, &limited(&other_a, &other_b, "stored-keys: 20"), &[]);
        let (one, other) = (client(&a), client(&other_a));
        answers(&one).await;
        answers(&other).await;
        let names: Vec<String> = (0..60).map(|number| number.to_string()).collect();
        let put = |(number, key): (usize, &String)| {
            let (client, key) = (if number % 2 == 0 { &one } else { &other }, key.clone());
            async move { set(client, &key, 1).await }
        };
        let outcomes = join_all(names.iter().enumerate().map(put)).await;
        outcomes.into_iter().filter_map(Result::err).for_each(|status| assert_full(&status, "stored-keys", 20));
        let stored = count(&one).await;
        assert!((20..=40).contains(&stored), "{stored}");
        has_counted(&tier, stored).await;
        has_counted(&other_tier, stored).await;
        for client in [&one, &other] {
            assert_full(&set(client, "new", 1).await.expect_err("it is full"), "stored-keys", 20);
        }
        for key in names {
            if count(&one).await < 20 {
                break;
            }
            let request = DeleteRangeRequest { key: key.into(), ..Default::default() };
            one.kv().delete_range(request).await.expect("deletes are never refused");
        }
        set(&other, "new", 1).await.expect("the other proxy asks the cluster");
        assert_full(&set(&one, "more", 1).await.expect_err("it is full"), "stored-keys", 20);
    });
}

#[test]
fn by_a_count_that_is_behind_nobody_is_refused() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let between = Between::start(&deployment.endpoint).await;
        let [a, b] = [address(), address()];
        let file = limited(&a, &b, "stored-keys: 2");
        let folder = TempDir::new().expect("temporary directory");
        let _tier = Tier::in_folder(folder, &between.endpoint, &file, &["--cache=off".to_owned()]);
        let of_a = client(&a);
        answers(&of_a).await;
        for key in ["1", "2"] {
            set(&of_a, key, 1).await.expect("there is room");
        }
        assert_full(&set(&of_a, "3", 1).await.expect_err("it is full"), "stored-keys", 2);
        between.end_watches(Code::Unavailable, usize::MAX);
        until("the count stands still", async || (between.refusals_left() < usize::MAX).then_some(())).await;
        deployment.delete("t/a/1").await;
        let status = set(&of_a, "3", 1).await.expect_err("whether there is room is not known");
        let text = "what the tenant stores is not counted: the count has not come to the revision of the cluster";
        assert_eq!((status.code(), status.message()), (Code::Unavailable, text));
        set(&of_a, "2", 1).await.expect("what takes no room needs no count");
        between.end_watches(Code::Unavailable, 0);
        until("room", async || set(&of_a, "3", 1).await.ok()).await;
        assert_full(&set(&of_a, "4", 1).await.expect_err("it is full"), "stored-keys", 2);
    });
}

/// A cluster that was made anew behind the same endpoint has other revisions: what was counted in the old one is nothing there.
#[test]
fn a_cluster_that_is_made_anew_is_counted_anew() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b] = [address(), address()];
        let _tier = Tier::start(deployment, &limited(&a, &b, "stored-keys: 2"), &[]);
        let of_a = client(&a);
        answers(&of_a).await;
        for round in 0..20 {
            set(&of_a, "1", round).await.expect("it exists");
        }
        set(&of_a, "2", 1).await.expect("there is room");
        assert_full(&set(&of_a, "3", 1).await.expect_err("it is full"), "stored-keys", 2);
        deployment.server.kill();
        fs::remove_dir_all(deployment.data_dir()).expect("removed");
        deployment.start_member_again().await;
        for key in ["3", "4"] {
            until("room", async || set(&of_a, key, 1).await.ok()).await;
        }
        assert_eq!(count(&of_a).await, 2);
        assert_full(&set(&of_a, "5", 1).await.expect_err("it is full"), "stored-keys", 2);
    });
}
