//! Memory, namespaces, permissions, and faults of the cluster.

use tonic::{Code, Status};
use watershed::client::{Client, ClientConfig};
use watershed::pb::authpb::Permission;
use watershed::pb::authpb::permission::Type;
use watershed::pb::etcdserverpb::{
    AuthEnableRequest, AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserRevokeRoleRequest,
    PutRequest, RangeRequest,
};

use super::{Cached, value};
use crate::features::auth::{FLAGS, add_user, auth_of, enable, log_in, permit, with};
use crate::harness::{Deployment, Target, client, run, until};

#[test]
fn a_namespace_is_cached_under_its_own_names() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        for key in ["s", "t/a", "t/b", "u"] {
            deployment.put(key, key).await;
        }
        let cached = Cached::start(deployment, &["--namespace=t/"], "a").await;
        for serializable in [false, true] {
            let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), serializable, ..Default::default() };
            let keys: Vec<_> = cached.range(all).await.kvs.into_iter().map(|kv| kv.key).collect();
            assert_eq!(keys, ["a", "b"]);
        }
        deployment.put("t/c", "new").await;
        assert_eq!(value(&cached.get("c", false).await).as_deref(), Some("new"));
        cached.put("a", "changed").await;
        assert_eq!(value(&cached.get("a", true).await).as_deref(), Some("changed"));
        assert_eq!(value(&deployment.get("t/a").await).as_deref(), Some("changed"));
        assert!(cached.answers().await >= 5.0);
    });
}

#[test]
fn what_is_larger_than_the_budget_passes() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        for number in 0..50 {
            deployment.put(format!("big/{number}"), "v".repeat(10_000)).await;
        }
        deployment.put("a/k", "small").await;
        deployment.put("b/k", "v".repeat(60_000)).await;
        let flags = ["--cache-prefix=big/", "--cache-prefix=a/", "--cache-prefix=b/", "--cache-bytes=100000"];
        let cached = Cached::start(deployment, &flags, "a/k").await;
        until("the budget is exceeded", || async {
            assert_eq!(cached.get("big/7", false).await.count, 1);
            let over = cached.metrics().await.sum("watershed_proxy_cache_replicas", "\"over_budget\"");
            (over == 1.0).then_some(())
        })
        .await;
        // Loading evicted the other, which comes back; the large one is not loaded again at once.
        cached.until_answers("a/k").await;
        cached.until_answers("b/k").await;
        assert_eq!(cached.get("big/7", false).await.kvs[0].value.len(), 10_000);
        let metrics = cached.metrics().await;
        assert_eq!(metrics.sum("watershed_proxy_cache_state_changes_total", "larger_than_budget"), 1.0);
        assert!(metrics.sum("watershed_proxy_cache_bytes", "") <= 100_000.0);
    });
}

#[test]
fn nobody_reads_from_the_cache_what_the_cluster_would_refuse() {
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        deployment.put("secret/k", "v").await;
        // Loaded before there were any users.
        let cached = Cached::start(deployment, &["--cache-prefix=secret/"], "secret/k").await;
        let endpoint = deployment.endpoint.clone();
        for user in ["root", "alice", "bob"] {
            add_user(&endpoint, "", user).await;
        }
        let permission = |key: &'static str, end: &'static str| Permission {
            perm_type: Type::Read.into(),
            key: key.into(),
            range_end: end.into(),
        };
        let grant =
            AuthRoleGrantPermissionRequest { name: "alice".to_owned(), perm: Some(permission("secret/", "secret0")) };
        auth_of(&endpoint).role_grant_permission(grant).await.expect("a permission");
        auth_of(&endpoint).auth_enable(AuthEnableRequest {}).await.expect("auth");
        let tokens =
            [log_in(&endpoint, "root").await, log_in(&endpoint, "alice").await, log_in(&endpoint, "bob").await];
        let [root, alice, bob] = tokens.map(|token| token.expect("a token"));
        let (alice, bob, nobody) = (as_user(&cached, &alice), as_user(&cached, &bob), client(&cached.endpoint));
        let read = async |client, serializable| read_as(client, "secret/k", serializable).await;
        // Within a second of the change, and for good.
        for (who, code) in [(&nobody, Code::InvalidArgument), (&bob, Code::PermissionDenied)] {
            for serializable in [true, false] {
                until("the refusal", || async {
                    read(who, serializable).await.err().map(|status| assert_eq!(status.code(), code))
                })
                .await;
                assert!(read(who, serializable).await.is_err());
            }
        }
        let before = cached.answers().await;
        until("an answer for alice from the cache", || async {
            assert_eq!(read(&alice, true).await.expect("permitted").as_deref(), Some("v"));
            (cached.answers().await > before).then_some(())
        })
        .await;
        let revoke = AuthRoleRevokePermissionRequest {
            role: "alice".to_owned(),
            key: "secret/".into(),
            range_end: "secret0".into(),
        };
        auth_of(&endpoint).role_revoke_permission(with(&root, revoke)).await.expect("revoked");
        until("the revocation", || async { read(&alice, true).await.err() }).await;
        for serializable in [true, false] {
            let status = read(&alice, serializable).await.expect_err("revoked");
            assert_eq!(status.code(), Code::PermissionDenied);
        }
    });
}

fn as_user(cached: &Cached, token: &str) -> Client {
    let endpoint = cached.endpoint.parse().expect("an endpoint");
    Client::connect(ClientConfig { token: Some(token.to_owned()), ..ClientConfig::new([endpoint]) }).expect("a client")
}

async fn read_as(client: &Client, key: &'static str, serializable: bool) -> Result<Option<String>, Status> {
    let answer = client.kv().range(RangeRequest { key: key.into(), serializable, ..Default::default() }).await?;
    Ok(value(&answer.into_inner()))
}

#[test]
fn all_users_share_what_the_proxys_own_user_has_read() {
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        for key in ["a/k", "b/k"] {
            deployment.put(key, key).await;
        }
        let cached = Cached::start(deployment, &["--cache-prefix=", "--user=root:root"], "a/k").await;
        let root = enable(deployment).await;
        let endpoint = &deployment.endpoint;
        let mut users = Vec::new();
        for (name, from, to) in [("alice", "a/", "a0"), ("bob", "b/", "b0")] {
            add_user(endpoint, &root, name).await;
            permit(endpoint, &root, name, Type::Read, from, to).await.expect("permitted");
            users.push(as_user(&cached, &log_in(endpoint, name).await.expect("a token")));
        }
        let [alice, bob] = &users[..] else { unreachable!("two users") };
        for (user, own, other) in [(alice, "a/k", "b/k"), (bob, "b/k", "a/k")] {
            for serializable in [false, true] {
                until("an answer from the cache", || async {
                    let before = cached.answers().await;
                    assert_eq!(read_as(user, own, serializable).await.expect("permitted").as_deref(), Some(own));
                    (cached.answers().await > before).then_some(())
                })
                .await;
                let refusal = read_as(user, other, serializable).await.expect_err("not permitted");
                assert_eq!(refusal.code(), Code::PermissionDenied);
            }
        }
        let replicas = cached.metrics().await.sum("watershed_proxy_cache_replicas", "\"live\"");
        assert_eq!(replicas, 1.0, "one for both");
        // A change that a member is told directly counts within a second, for good.
        let revoke = |name: &str| AuthUserRevokeRoleRequest { name: name.to_owned(), role: name.to_owned() };
        auth_of(endpoint).user_revoke_role(with(&root, revoke("alice"))).await.expect("revoked");
        until("the revocation", || async { read_as(alice, "a/k", true).await.err() }).await;
        // One that goes through the proxy counts at once.
        assert!(read_as(bob, "b/k", true).await.is_ok());
        auth_of(&cached.endpoint).user_revoke_role(with(&root, revoke("bob"))).await.expect("revoked");
        for (user, key) in [(bob, "b/k"), (alice, "a/k")] {
            for serializable in [true, false] {
                let refusal = read_as(user, key, serializable).await.expect_err("revoked");
                assert_eq!(refusal.code(), Code::PermissionDenied);
            }
        }
    });
}

#[test]
fn a_restarted_member_is_followed_again() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("k", "1").await;
        let cached = Cached::start(deployment, &["--cache-prefix="], "k").await;
        deployment.crash_and_restart().await;
        deployment.put("k", "2").await;
        until("the proxy", || async {
            let request = RangeRequest { key: "k".into(), ..Default::default() };
            let answer = cached.client.kv().range(request).await.ok()?.into_inner();
            assert_eq!(value(&answer).as_deref(), Some("2"), "a linearizable read");
            Some(())
        })
        .await;
        cached.until_answers("k").await;
        let changes = cached.metrics().await.sum("watershed_proxy_cache_state_changes_total", "\"behind\"");
        assert!(changes >= 1.0, "it was resumed");
        assert_eq!(value(&cached.get("k", true).await).as_deref(), Some("2"));
    });
}

#[test]
fn nothing_of_a_wiped_cluster_is_served() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        for number in 0..50 {
            deployment.put("k", number.to_string()).await;
        }
        deployment.put("only before", "x").await;
        let cached = Cached::start(deployment, &["--cache-prefix="], "k").await;
        deployment.server.kill();
        std::fs::remove_dir_all(deployment.data_dir()).expect("the data");
        deployment.start_member_again().await;
        let put = PutRequest { key: "k".into(), value: "anew".into(), ..Default::default() };
        deployment.put_with(put).await;
        // From the first answer on, and for as long as it takes until the new contents are cached.
        let answered = until("an answer of the new cluster", || async {
            let before = cached.answers().await;
            let mut last = None;
            for (key, expected) in [("k", Some("anew")), ("only before", None)] {
                for serializable in [false, true] {
                    let request = RangeRequest { key: key.into(), serializable, ..Default::default() };
                    let answer = cached.client.kv().range(request).await.ok()?.into_inner();
                    assert_eq!(value(&answer).as_deref(), expected, "{key}, serializable: {serializable}");
                    last = answer.header;
                }
            }
            (cached.answers().await >= before + 4.0).then_some(last)
        });
        let header = answered.await.expect("header");
        assert!(header.revision < 50, "{header:?}");
    });
}
