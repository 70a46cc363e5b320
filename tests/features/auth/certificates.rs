//! Users by the CommonName of their certificate (`--client-cert-auth`), over real connections.

use tonic::Code;
use watershed::client::Client;
use watershed::pb::authpb::permission::Type;
use watershed::pb::etcdserverpb::*;

use super::permissions::alice;
use super::{auth_of, permit, secure_client, with};
use crate::harness::{Certificates, Deployment, Target, Watching, https, refused, run, until};

const DENIED: &str = "etcdserver: permission denied";
const NOBODY: &str = "etcdserver: user name is empty";

/// Runs a test on a member with certificates and these flags, beside those.
fn run_secured(flags: &[&str], test: impl AsyncFnOnce(&mut Deployment, &Certificates)) {
    let certificates = Certificates::new(&["root", "alice", "stranger"]);
    let tls = certificates.client_flags();
    let flags: Vec<&str> =
        tls.iter().map(String::as_str).chain(["--bcrypt-cost=4"]).chain(flags.iter().copied()).collect();
    run(Target::Core, &flags, async |deployment: &mut Deployment| test(deployment, &certificates).await);
}

async fn put(client: &Client, token: &str, key: &'static str) -> Result<tonic::Response<PutResponse>, tonic::Status> {
    client.kv().put(with(token, PutRequest { key: key.into(), ..Default::default() })).await
}

#[test]
fn a_certificate_is_its_user() {
    run_secured(&["--client-cert-auth"], async |deployment, certificates| {
        let (root_token, alice_token) = alice(deployment, &[(Type::Readwrite, "k", "l")]).await;
        let (_gateway, gateway) = deployment.secure_gateway();
        for endpoint in [&deployment.secure.clone(), &gateway] {
            let by = |name: &str| secure_client(endpoint, certificates.tls(name));
            let [alice, root, nameless, stranger] = ["alice", "root", "nameless", "stranger"].map(by);
            until("an answer", async || put(&alice, "", "k1").await.ok()).await;
            refused(put(&alice, "", "x").await, Code::PermissionDenied, DENIED);
            refused(alice.auth().user_list(AuthUserListRequest {}).await, Code::PermissionDenied, DENIED);
            put(&root, "", "x").await.expect("root");
            root.auth().user_list(AuthUserListRequest {}).await.expect("root");
            // Credentials without a name: no permission, and what takes any credentials.
            refused(put(&nameless, "", "k1").await, Code::PermissionDenied, DENIED);
            refused(nameless.auth().user_list(AuthUserListRequest {}).await, Code::InvalidArgument, NOBODY);
            nameless.maintenance().status(StatusRequest {}).await.expect("any credentials");
            // A name that no user has: verified, and allowed nothing.
            refused(put(&stranger, "", "k1").await, Code::PermissionDenied, DENIED);
            // A token counts before the certificate, whoever is the mightier.
            put(&nameless, &alice_token, "k1").await.expect("alice");
            put(&alice, &root_token, "x").await.expect("root");
            refused(put(&root, &alice_token, "x").await, Code::PermissionDenied, DENIED);
            refused(put(&root, "abc.1", "x").await, Code::Unauthenticated, "etcdserver: invalid auth token");
            // Leases and watches.
            let grant = LeaseGrantRequest { ttl: 60, id: 0 };
            let id = alice.lease().lease_grant(grant).await.expect("a lease").into_inner().id;
            let leased = PutRequest { key: "x".into(), lease: id, ..Default::default() };
            root.kv().put(leased).await.expect("root");
            let revoke = LeaseRevokeRequest { id };
            refused(alice.lease().lease_revoke(revoke).await, Code::PermissionDenied, DENIED);
            let watch = |key: &'static str| WatchCreateRequest { key: key.into(), ..Default::default() };
            let (mut allowed, _) = Watching::create(&alice, watch("k1")).await;
            put(&alice, "", "k1").await.expect("alice");
            assert_eq!(allowed.events(1).await.len(), 1);
            let (_denied, answer) = Watching::create(&alice, watch("x")).await;
            assert!(answer.canceled && answer.cancel_reason.contains(DENIED), "{answer:?}");
        }
    });
}

#[test]
fn a_certificate_is_refused_through_json_and_what_it_may_ends_at_once() {
    run_secured(&["--client-cert-auth"], async |deployment, certificates| {
        let body = r#"{"key":"azE="}"#;
        let range = async |name: &str| {
            let endpoint = format!("https://{}", deployment.secure);
            https(&endpoint, Some(&certificates.tls(name)), "POST", "/v3/kv/range", body).await.expect("an answer")
        };
        until("an answer", async || (range("alice").await.0 == 200).then_some(())).await;
        let (root_token, _) = alice(deployment, &[(Type::Readwrite, "k", "l")]).await;
        for name in ["alice", "root", "stranger"] {
            let (status, answer) = range(name).await;
            let text =
                "CommonName of client sending a request against gateway will be ignored and not used as expected";
            assert!(status == 400 && answer.contains(text), "{name}: {answer}");
        }
        let (status, answer) = range("nameless").await;
        assert!(status == 400 && answer.contains(NOBODY), "{answer}");
        let client = secure_client(&deployment.secure, certificates.tls("alice"));
        put(&client, "", "k1").await.expect("alice");
        // A certificate has no revision that could be old: what changed counts for the next request.
        permit(&deployment.endpoint, &root_token, "alice", Type::Read, "m", "").await.expect("more");
        put(&client, "", "k1").await.expect("alice, still");
        let revoke = AuthUserRevokeRoleRequest { name: "alice".into(), role: "alice".into() };
        auth_of(&deployment.endpoint).user_revoke_role(with(&root_token, revoke)).await.expect("revoked");
        refused(put(&client, "", "k1").await, Code::PermissionDenied, DENIED);
    });
}

#[test]
fn without_the_flag_a_verified_certificate_is_nobody() {
    run_secured(&[], async |deployment, certificates| {
        let (_, alice_token) = alice(deployment, &[(Type::Readwrite, "k", "l")]).await;
        let client = secure_client(&deployment.secure, certificates.tls("root"));
        until("an answer", async || put(&client, &alice_token, "k1").await.ok()).await;
        refused(put(&client, "", "k1").await, Code::InvalidArgument, NOBODY);
        let endpoint = format!("https://{}", deployment.secure);
        let tls = certificates.tls("root");
        let (status, answer) =
            https(&endpoint, Some(&tls), "POST", "/v3/kv/range", r#"{"key":"azE="}"#).await.expect("one");
        assert!(status == 400 && answer.contains(NOBODY), "{answer}");
    });
}
