//! What a tenant may use, and what it is told when that is used up.

use tonic::Code;
use watershed::pb::etcdserverpb::*;
use watershed::pb::v3lockpb::{LockRequest, UnlockRequest};

use super::{Tier, address, all, answers, keys, put, watch_all};
use crate::harness::{Deployment, Target, Watching, client, http_get, json, own_binary, run, until};

/// One tenant with these limits, and one beside it with none.
fn limited(a: &str, b: &str, limits: &str) -> String {
    format!(
        "tenants:\n\
         - {{name: a, namespace: t/a/, match: [{{listen: '{a}'}}], limits: {{{limits}}}}}\n\
         - {{name: b, namespace: t/b/, match: [{{listen: '{b}'}}]}}\n"
    )
}

fn text(limit: &str, max: u64) -> String {
    format!("the tenant's limit {limit:?} of {max} is reached")
}

#[test]
fn calls_of_one_tenant_are_limited_and_those_of_another_are_not() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b] = [address(), address()];
        // One call an hour would be less than one a second, so the burst is all there is for this test: 5 calls, and the next
        // one after 200 ms at the earliest.
        let tier = Tier::start(deployment, &limited(&a, &b, "requests-per-second: 5"), &[]);
        let (of_a, of_b) = (client(&a), client(&b));
        answers(&of_a).await;
        let refused = async {
            loop {
                if let Err(status) = of_a.kv().range(all()).await {
                    return status;
                }
            }
        };
        let status = crate::harness::soon("a refusal", refused).await;
        assert_eq!(
            (status.code(), status.message()),
            (Code::ResourceExhausted, text("requests-per-second", 5).as_str())
        );
        let wait: u64 =
            status.metadata().get("grpc-retry-pushback-ms").expect("a hint").to_str().unwrap().parse().unwrap();
        assert!((1..=201).contains(&wait), "{wait}");
        let details = String::from_utf8_lossy(status.details()).into_owned();
        assert!(details.contains("type.googleapis.com/google.rpc.RetryInfo"), "{details}");
        for _ in 0..20 {
            of_b.kv().range(all()).await.expect("has no limit");
        }
        // As JSON it is a status of HTTP.
        let status = async || json(&a, "/v3/kv/range", r#"{"key":"AA=="}"#).await.0;
        until("a refusal", async || (status().await == 429).then_some(())).await;
        let series = "watershed_proxy_tenant_refused_total{limit=\"requests-per-second\",tenant=\"a\"} ";
        assert!(tier.metric(series).await.expect("the series") >= 2);
        assert_eq!(tier.metric(&series.replace("\"a\"", "\"b\"")).await, Some(0));
        // A limit can be taken away while everything is open.
        let (mut watching, _) = Watching::create(&of_b, watch_all()).await;
        tier.replace(&limited(&a, &b, ""), "taken").await;
        for _ in 0..20 {
            of_a.kv().range(all()).await.expect("has no limit now");
        }
        of_b.kv().put(put("k", "v")).await.expect("put");
        assert_eq!(watching.events(1).await.len(), 1);
    });
}

#[test]
fn bytes_are_limited_after_they_have_passed() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b] = [address(), address()];
        let tier = Tier::start(deployment, &limited(&a, &b, "bytes-per-second: 1000"), &[]);
        let of_a = client(&a);
        answers(&of_a).await;
        let large = PutRequest { key: "k".into(), value: vec![b'x'; 100_000].into(), ..Default::default() };
        until("it may", async || of_a.kv().put(large.clone()).await.ok()).await;
        let status = of_a.kv().range(all()).await.expect_err("in debt for a minute and more");
        assert_eq!(
            (status.code(), status.message()),
            (Code::ResourceExhausted, text("bytes-per-second", 1000).as_str())
        );
        let wait: u64 =
            status.metadata().get("grpc-retry-pushback-ms").expect("a hint").to_str().unwrap().parse().unwrap();
        assert!((30_000..=110_000).contains(&wait), "{wait}");
        // Another limit has no debt.
        tier.replace(&limited(&a, &b, "bytes-per-second: 900"), "taken").await;
        until("it may", async || of_a.kv().range(RangeRequest { limit: 1, keys_only: true, ..all() }).await.ok()).await;
        // And leases do not end for one. This one is another tenant's, which is told as one that is gone.
        let granted = client(&b).lease().lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.expect("granted");
        let id = granted.into_inner().id;
        let opened = async || {
            let (ask, asked) = tokio::sync::mpsc::channel(4);
            let answers = of_a.lease().lease_keep_alive(tokio_stream::wrappers::ReceiverStream::new(asked)).await;
            Some((ask, answers.ok()?.into_inner()))
        };
        let (ask, mut answers) = until("it may", opened).await;
        for in_debt in [false, true] {
            if in_debt {
                until("it may", async || of_a.kv().put(large.clone()).await.ok()).await;
                of_a.kv().range(all()).await.expect_err("in debt for a minute and more");
            }
            ask.send(LeaseKeepAliveRequest { id }).await.expect("open");
            let answer = crate::harness::soon("an answer", answers.message()).await;
            assert_eq!(answer.expect("open").expect("open").ttl, 0);
        }
    });
}

#[test]
fn watches_and_leases_are_counted() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b] = [address(), address()];
        let tier = Tier::start(deployment, &limited(&a, &b, "watches: 2, leases: 2"), &[]);
        let of_a = client(&a);
        answers(&of_a).await;
        let (mut first, created) = Watching::create(&of_a, watch_all()).await;
        assert!(!created.canceled);
        assert!(!first.add(watch_all()).await.canceled);
        let (second, refused) = Watching::create(&of_a, watch_all()).await;
        assert!(refused.canceled && refused.cancel_reason == text("watches", 2), "{refused:?}");
        drop(second);
        assert_eq!(tier.metric("watershed_proxy_tenant_watches{tenant=\"a\"} ").await, Some(2));
        let one_more = async || {
            let (watching, created) = Watching::create(&of_a, watch_all()).await;
            (!created.canceled).then_some(watching)
        };
        first.cancel(created.watch_id).await;
        let _second = until("room", one_more).await;
        drop(first);
        let third = until("room", one_more).await;
        // So does who waits for a lock, and has a watch for that.
        let grant = async || of_a.lease().lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await;
        let [holder, waiter] = [grant().await, grant().await].map(|granted| granted.expect("granted").into_inner().id);
        let lock = async |lease| of_a.lock().lock(LockRequest { name: "l".into(), lease }).await;
        let held = lock(holder).await.expect("nobody has it");
        let status = lock(waiter).await.expect_err("has to wait, and both watches are open");
        assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, text("watches", 2).as_str()));
        drop(third);
        let key = held.into_inner().key;
        until("the lock", async || {
            let unlock = async { of_a.lock().unlock(UnlockRequest { key: key.clone() }).await.expect("unlocked") };
            let (locked, _) = tokio::join!(lock(waiter), unlock);
            locked.ok()
        })
        .await;
        for id in [holder, waiter] {
            of_a.lease().lease_revoke(LeaseRevokeRequest { id }).await.expect("revoked");
        }

        let id = grant().await.expect("the first").into_inner().id;
        grant().await.expect("the second");
        let status = grant().await.expect_err("the third");
        assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, text("leases", 2).as_str()));
        of_a.lease().lease_revoke(LeaseRevokeRequest { id }).await.expect("revoked");
        grant().await.expect("in its place");
    });
}

#[test]
fn an_answer_may_be_too_long_for_a_tenant() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b] = [address(), address()];
        let _tier = Tier::start(deployment, &limited(&a, &b, "answer-bytes: 10000"), &[]);
        let of_a = client(&a);
        answers(&of_a).await;
        let large = PutRequest { key: "k".into(), value: vec![b'x'; 9_000].into(), ..Default::default() };
        of_a.kv().put(large.clone()).await.expect("put");
        assert_eq!(keys(&of_a).await, ["k"]);
        of_a.kv().put(PutRequest { key: "l".into(), ..large }).await.expect("put");
        let status = of_a.kv().range(all()).await.expect_err("too long");
        assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, text("answer-bytes", 10_000).as_str()));
        let page = RangeRequest { limit: 1, ..all() };
        assert!(of_a.kv().range(page).await.expect("a page").into_inner().more);
    });
}

#[test]
fn people_are_shown_what_tenants_use() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b] = [address(), address()];
        let tier = Tier::start(
            deployment,
            &limited(&a, &b, "watches: 1, leases: 1, stored-keys: 1, requests-per-second: 1000"),
            &[],
        );
        let (of_a, of_b) = (client(&a), client(&b));
        answers(&of_a).await;
        of_a.kv().put(put("k", "value")).await.expect("put");
        of_a.kv().put(put("l", "v")).await.expect_err("a second key");
        let (_watching, _) = Watching::create(&of_a, watch_all()).await;
        answers(&of_b).await;
        let grant = LeaseGrantRequest { ttl: 600, id: 0 };
        let lease = of_a.lease().lease_grant(grant).await.expect("grant").into_inner().id;
        of_a.lease().lease_grant(grant).await.expect_err("a second lease");
        let status = async || -> serde_json::Value {
            let page = http_get(&tier.metrics, "GET", "/proxy/status").await.expect("an answer");
            serde_json::from_str(&page.body).expect("JSON")
        };
        let counted = until("the count", async || {
            let status = status().await;
            (status["tenants"][0]["stored"]["keys"] == 1).then_some(status)
        });
        let shown = counted.await;
        let tenant = &shown["tenants"][0];
        assert_eq!((&tenant["name"], &tenant["namespace"]), (&"a".into(), &"t/a/".into()), "{shown}");
        assert_eq!((&tenant["watches"], &tenant["stored"]["bytes"]), (&1.into(), &6.into()), "{shown}");
        let limits = serde_json::json!([
            {"limit": "requests-per-second", "max": 1000, "used": null},
            {"limit": "watches", "max": 1, "used": 1},
            {"limit": "leases", "max": 1, "used": 1},
            {"limit": "stored-keys", "max": 1, "used": 1},
        ]);
        assert_eq!(
            (&tenant["limits"], &tenant["refused"]),
            (&limits, &serde_json::json!({"leases": 1, "stored-keys": 1})),
            "{shown}"
        );
        assert!(tenant["requests"].as_u64() >= Some(4) && tenant["bytes"].as_u64() > Some(20), "{shown}");
        assert_eq!((&shown["tenants_total"], &shown["tenants"][1]["name"]), (&2.into(), &"b".into()), "{shown}");
        assert!(!shown["metrics"].to_string().contains("proxy_tenant_"), "they would be there twice: {shown}");
        let args = ["ctl", "--endpoints", &tier.metrics, "proxy", "status"];
        let table = std::process::Command::new(own_binary()).args(args).output().expect("runs").stdout;
        let table = String::from_utf8_lossy(&table).into_owned();
        assert!(table.contains("watches 1/1, leases 1/1 (refused 1), stored-keys 1/1 (refused 1)"), "{table}");
        // One that ended is seen by the next grant.
        of_a.lease().lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("revoked");
        of_a.lease().lease_grant(grant).await.expect("in its place");
        assert_eq!(status().await["tenants"][0]["limits"][2]["used"], 1);
        tier.replace(&limited(&a, &b, ""), "taken").await;
        let tenant = &status().await["tenants"][0];
        assert_eq!((&tenant["limits"], &tenant["refused"]["leases"]), (&serde_json::json!([]), &1.into()), "{tenant}");
        let table = std::process::Command::new(own_binary()).args(args).output().expect("runs").stdout;
        let table = String::from_utf8_lossy(&table).into_owned();
        assert!(table.contains("leases (refused 1), stored-keys (refused 1)"), "{table}");
        // Cause: the proxy was told not to be one, where its page is on another port.
        let args = ["ctl", "--endpoints", &a, "proxy", "status"];
        let refused = std::process::Command::new(own_binary()).args(args).output().expect("runs").stderr;
        let refused = String::from_utf8_lossy(&refused).into_owned();
        assert!(
            refused.contains(&format!("{a} has no /proxy/status: ")) && refused.contains("--metrics-addr only"),
            "{refused}"
        );
        // Nothing of it is where tenants are.
        for address in [&a, &tier.main] {
            for path in ["/proxy/status", "/ui", "/proxy/metrics"] {
                assert_eq!(http_get(address, "GET", path).await.expect("an answer").status, 404, "{path}");
            }
        }
    });
}
