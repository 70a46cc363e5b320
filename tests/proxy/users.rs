//! Users whose requests share a proxy that has no user of its own.

use tonic::Request;
use watershed::client::Client;
use watershed::pb::authpb::permission::Type;
use watershed::pb::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, watch_request};
use watershed::pb::v3electionpb::{CampaignRequest, LeaderRequest};

use super::{get, under};
use crate::features::auth::{FLAGS, add_user, enable, log_in, permit, with};
use crate::harness::{Answers, Deployment, Target, Watching, client, in_words, refused, run, soon};

const DENIED: &str = "etcdserver: permission denied";

/// Tokens of root, and of alice and bob, who may read and write below their letter.
async fn users(deployment: &Deployment) -> [String; 3] {
    let root = enable(deployment).await;
    for (name, from, to) in [("alice", "a/", "a0"), ("bob", "b/", "b0")] {
        add_user(&deployment.endpoint, &root, name).await;
        permit(&deployment.endpoint, &root, name, Type::Readwrite, from, to).await.expect("permitted");
    }
    let alice = log_in(&deployment.endpoint, "alice").await.expect("alice");
    let bob = log_in(&deployment.endpoint, "bob").await.expect("bob");
    [root, alice, bob]
}

/// The same with the header that gRPC has for it.
fn authorized<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", token.parse().expect("ascii"));
    request
}

async fn put_as(client: &Client, token: &str, key: &'static str) -> i64 {
    let request = PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
    client.kv().put(with(token, request)).await.expect("put").into_inner().header.expect("header").revision
}

#[test]
fn a_token_may_come_as_authorization() {
    run(Target::Proxy, &FLAGS, async |deployment: &mut Deployment| {
        let [_, alice, bob] = users(deployment).await;
        let put = PutRequest { key: "a/1".into(), value: "v".into(), ..Default::default() };
        let kv = || deployment.client.kv();
        kv().put(authorized(&alice, put.clone())).await.expect("alice");
        refused(kv().put(authorized(&bob, put)).await, tonic::Code::PermissionDenied, DENIED);
        assert_eq!(kv().range(authorized(&alice, get("a/1"))).await.expect("alice").into_inner().kvs.len(), 1);
        for token in [&alice, &bob] {
            let union = watch_request::RequestUnion::CreateRequest(under("a/"));
            let asked = tokio_stream::iter([WatchRequest { request_union: Some(union) }]);
            let (mut watch, call) = (deployment.client.watch(), authorized(token, asked));
            let mut answers = Answers::new(async move { watch.watch(call).await });
            let created = soon("an answer", answers.message()).await.expect("no error").expect("an answer");
            assert_eq!((created.created, created.canceled), (true, *token == bob), "{created:?}");
            if *token == alice {
                let revision = put_as(&deployment.client, token, "a/2").await;
                let told = soon("an event", answers.message()).await.expect("no error").expect("an answer");
                assert_eq!(in_words(&told), [format!("+a/2=v@{revision}")]);
            }
        }
    });
}

#[test]
fn an_election_is_observed_with_a_token() {
    run(Target::Proxy, &FLAGS, async |deployment: &mut Deployment| {
        let [_, alice, bob] = users(deployment).await;
        let observe = |token: &str| {
            let (mut election, call) =
                (deployment.client.election(), with(token, LeaderRequest { name: "a/e".into() }));
            Answers::new(async move { election.observe(call).await })
        };
        let mut seen = observe(&alice);
        let lease =
            deployment.client.lease().lease_grant(with(&alice, grant())).await.expect("a lease").into_inner().id;
        let campaign = CampaignRequest { name: "a/e".into(), lease, value: "x".into() };
        deployment.client.election().campaign(with(&alice, campaign)).await.expect("elected");
        let leader = soon("a leader", seen.message()).await.expect("no error").expect("an answer");
        assert_eq!(&leader.kv.expect("a pair").value[..], b"x");
        // etcd ends the stream without a word.
        match soon("a refusal", observe(&bob).message()).await {
            Ok(leader) => assert_eq!(leader, None, "not bob's"),
            Err(status) => assert!(status.message().contains("permission denied"), "{status}"),
        }
    });
}

fn grant() -> watershed::pb::etcdserverpb::LeaseGrantRequest {
    watershed::pb::etcdserverpb::LeaseGrantRequest { ttl: 600, id: 0 }
}

/// In etcd's proxy all upstream watches are those of the first client's user.
#[test]
fn each_user_watches_what_it_may_read() {
    run(Target::Proxy, &FLAGS, async |deployment: &mut Deployment| {
        let [root, alice, bob] = users(deployment).await;
        let endpoint = &deployment.endpoint;
        let watch =
            async |token: &str, prefix: &str| Watching::create_as(&client(endpoint), token, under(prefix)).await;
        let (mut of_alice, created) = watch(&alice, "a/").await;
        assert!(!created.canceled, "{created:?}");
        let (mut of_bob, created) = watch(&bob, "b/").await;
        assert!(!created.canceled, "{created:?}");
        let (mut of_root, created) = watch(&root, "").await;
        assert!(!created.canceled, "{created:?}");
        for (token, prefix) in [(&bob, "a/"), (&alice, "b/"), (&alice, "")] {
            let (_, refusal) = watch(token, prefix).await;
            assert!(refusal.canceled && refusal.cancel_reason.contains(DENIED), "{refusal:?}");
        }
        let (_, refusal) = watch("", "a/").await;
        assert!(refusal.canceled, "without a token: {refusal:?}");
        let first = put_as(&deployment.client, &alice, "a/1").await;
        let second = put_as(&deployment.client, &bob, "b/1").await;
        assert_eq!(of_alice.events(1).await, [format!("+a/1=v@{first}")]);
        assert_eq!(of_bob.events(1).await, [format!("+b/1=v@{second}")]);
        assert_eq!(of_root.events(2).await, [format!("+a/1=v@{first}"), format!("+b/1=v@{second}")]);
    });
}

/// In etcd's proxy they got the answer from its cache.
#[test]
fn nobody_reads_what_another_user_has_read() {
    run(Target::Proxy, &FLAGS, async |deployment: &mut Deployment| {
        let [_, alice, bob] = users(deployment).await;
        put_as(&deployment.client, &alice, "a/1").await;
        for serializable in [true, false] {
            let request = || watershed::pb::etcdserverpb::RangeRequest { serializable, ..get("a/1") };
            let kv = || deployment.client.kv();
            for _ in 0..2 {
                assert_eq!(kv().range(with(&alice, request())).await.expect("alice").into_inner().kvs.len(), 1);
                refused(kv().range(with(&bob, request())).await, tonic::Code::PermissionDenied, DENIED);
                kv().range(request()).await.expect_err("nobody");
            }
        }
    });
}

/// A token is forgotten by a member that restarts: its watches go on or say why they end.
#[test]
fn a_watch_whose_token_has_ended_is_not_silent() {
    let flags = ["--bcrypt-cost=4", "--auth-token-ttl=1"];
    run(Target::Proxy, &flags, async |deployment: &mut Deployment| {
        let [_, alice, _] = users(deployment).await;
        let (mut watching, created) = Watching::create_as(
            &client(&deployment.endpoint),
            &alice,
            WatchCreateRequest { key: "a/1".into(), ..Default::default() },
        )
        .await;
        assert!(!created.canceled, "{created:?}");
        deployment.server.kill();
        deployment.restart_without_waiting();
        let alice =
            crate::harness::until("the member", async || log_in(&deployment.endpoint, "alice").await.ok()).await;
        let revision = put_as(&deployment.client, &alice, "a/1").await;
        let answer = watching.next().await;
        // The second is what a member of 3.5 tells a watch whose token it does not know.
        let reasons = ["invalid auth token", "etcdserver: permission denied"];
        let ended = answer.canceled && reasons.iter().any(|reason| answer.cancel_reason.contains(reason));
        assert!(ended || in_words(&answer) == [format!("+a/1=v@{revision}")], "{answer:?}");
    });
}
