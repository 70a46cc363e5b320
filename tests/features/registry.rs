//! `watershed discovery serve`: the discovery URL protocol on top of a member.

use serde_json::Value;
use watershed::pb::etcdserverpb::{CompactionRequest, LeaseLeasesRequest, LeaseRevokeRequest};

use crate::harness::{Deployment, HttpAnswer, Registry, Target, prefix, run, until};

fn json(answer: &HttpAnswer) -> Value {
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// Status, and the code of a failure.
fn refusal(answer: &HttpAnswer) -> (u16, u64) {
    (answer.status, json(answer)["errorCode"].as_u64().unwrap_or_default())
}

fn index(answer: &HttpAnswer) -> i64 {
    answer.headers["x-etcd-index"].parse().expect("an index")
}

#[test]
fn members_find_each_other_under_a_token() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let registry = Registry::start(deployment, &[]).await;
        let token = registry.token(2).await;
        let size = json(&registry.ask("GET", &format!("{token}/_config/size")).await);
        assert_eq!((&size["action"], &size["node"]["value"]), (&"get".into(), &"2".into()));
        let empty = registry.ask("GET", &token).await;
        assert_eq!(json(&empty)["node"]["dir"], true);
        assert!(json(&empty)["node"].get("nodes").is_none(), "{empty:?}");

        let first = registry.register(&token, "1").await;
        assert_eq!((first.status, &json(&first)["action"]), (201, &"create".into()));
        assert_eq!(refusal(&registry.register(&token, "1").await), (412, 105));
        // What has happened since is there at once.
        let waiting = |after: &HttpAnswer| format!("{token}?recursive=true&wait=true&waitIndex={}", index(after) + 1);
        let waited = registry.ask("GET", &waiting(&empty)).await;
        assert_eq!(json(&waited)["node"]["value"], "m1=http://h1:2380");
        // What has not is waited for.
        let waiting = waiting(&first);
        let (waited, second) = tokio::join!(registry.ask("GET", &waiting), async {
            until("the wait", async || {
                let page = registry.ask("GET", "/metrics").await.body;
                page.contains("watershed_registry_waits 1\n").then_some(())
            })
            .await;
            registry.register(&token, "2").await
        });
        assert_eq!(second.status, 201);
        assert_eq!(json(&waited)["node"], json(&second)["node"]);
        assert_eq!(refusal(&registry.register(&token, "3").await), (403, 103));

        // Under the paths of etcd's own servers too, in the order of their ids.
        let all = json(&registry.ask("GET", &format!("/v2/keys/_etcd/registry{token}?recursive=true")).await);
        let nodes = all["node"]["nodes"].as_array().expect("nodes");
        let keys: Vec<_> = nodes.iter().map(|node| node["key"].as_str().expect("a key").to_owned()).collect();
        assert_eq!(keys, [format!("/_etcd/registry{token}/1"), format!("/_etcd/registry{token}/2")]);
        // A member that came wrongly can be taken away, and another one comes.
        let removed = json(&registry.ask("DELETE", &format!("{token}/2")).await);
        assert_eq!(removed["prevNode"]["value"], "m2=http://h2:2380");
        assert_eq!(refusal(&registry.ask("GET", &format!("{token}/2")).await), (404, 100));
        assert_eq!(registry.register(&token, "3").await.status, 201);
        // The keys are those of etcd's v3 discovery.
        let stored = deployment.range(prefix("/_etcd/registry/")).await.kvs;
        let stored: Vec<_> = stored.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
        let expected = ["_config/size", "members/1", "members/3"].map(|key| format!("/_etcd/registry{token}/{key}"));
        assert_eq!(stored, expected);
        let page = registry.ask("GET", "/metrics").await.body;
        for line in ["watershed_registry_tokens_created_total 1\n", "watershed_registry_members_registered_total 3\n"] {
            assert!(page.contains(line), "{page}");
        }
    });
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let registry = Registry::start(deployment, &["--keys-max=3"]).await;
        for size in ["0", "-1", "1001", "x", ""] {
            assert_eq!(refusal(&registry.ask("GET", &format!("/new?size={size}")).await), (400, 209), "{size}");
        }
        assert_eq!(refusal(&registry.ask("GET", "/nowhere").await), (404, 100));
        assert_eq!(refusal(&registry.register("/nowhere", "1").await), (404, 100));
        assert_eq!(registry.ask("GET", "/").await.status, 404);
        assert_eq!(registry.ask("POST", "/nowhere").await.status, 405);
        // The operator may choose the token, once.
        let chosen = "/v2/keys/_etcd/registry/mine/_config/size?value=3";
        assert_eq!(registry.ask("PUT", chosen).await.status, 201);
        assert_eq!(refusal(&registry.ask("PUT", chosen).await), (412, 105));
        for (path, reason) in [
            ("/mine/1?value=a=http://b:1", "prevExist"),
            ("/mine/1?prevExist=false&value=", "value"),
            ("/mine/1?prevExist=false&value=http://b:1", "value"),
        ] {
            let refused = registry.ask("PUT", path).await;
            assert_eq!(refusal(&refused), (400, 209), "{path}");
            assert!(json(&refused)["cause"].as_str().expect("a cause").starts_with(reason), "{refused:?}");
        }
        assert_eq!(refusal(&registry.ask("GET", "/mine?wait=true&waitIndex=x").await), (400, 209));
        // What is compacted cannot be waited for.
        let revision = index(&registry.register("/mine", "1").await);
        let compact = CompactionRequest { revision, physical: true };
        deployment.client.kv().compact(compact).await.expect("compacted");
        let old = format!("/mine?recursive=true&wait=true&waitIndex={}", revision - 1);
        assert_eq!(refusal(&registry.ask("GET", &old).await), (400, 401));
        assert_eq!(registry.ask("GET", &format!("/mine?wait=true&waitIndex={revision}")).await.status, 200);
        // No more keys than the operator allows.
        assert_eq!(registry.register("/mine", "2").await.status, 201);
        let refused = registry.register("/mine", "3").await;
        assert_eq!(refusal(&refused), (500, 300));
        assert!(refused.body.contains("--keys-max"), "{refused:?}");
        assert_eq!(refusal(&registry.ask("GET", "/new?size=1").await), (500, 300));
        // The cluster is away, and comes back.
        deployment.server.kill();
        assert_eq!(refusal(&registry.ask("GET", "/mine").await), (500, 300));
        assert_eq!(registry.ask("GET", "/health").await.status, 503);
        deployment.start_member_again().await;
        until("an answer", async || Some(registry.ask("GET", "/mine").await).filter(|answer| answer.status == 200))
            .await;
    });
}

#[test]
fn a_token_that_nobody_uses_ends_with_its_members() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let registry = Registry::start(deployment, &["--token-ttl=1h"]).await;
        let token = registry.token(1).await;
        assert_eq!(registry.register(&token, "1").await.status, 201);
        // All of it has one lease, which ends when nobody uses the token. Here it is ended, so that no pause of the machine does.
        let stored = deployment.range(prefix("/_etcd/registry/")).await.kvs;
        let lease = stored[0].lease;
        assert!(lease != 0 && stored.len() == 2 && stored[1].lease == lease, "{stored:?}");
        assert_eq!(deployment.time_to_live(lease).await.granted_ttl, 3600);
        deployment.client.lease().lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("ended");
        assert_eq!(refusal(&registry.register(&token, "2").await), (404, 100));
        // A token that could not be made leaves no lease behind.
        let chosen = "/mine/_config/size?value=1";
        assert_eq!(registry.ask("PUT", chosen).await.status, 201);
        assert_eq!(refusal(&registry.ask("PUT", chosen).await), (412, 105));
        let leases = deployment.client.lease().lease_leases(LeaseLeasesRequest {}).await.expect("leases").into_inner();
        assert_eq!(leases.leases.len(), 1);
    });
}
