//! Who is which tenant, and who the tenant is for the cluster.

use rcgen::{DnType, SanType};
use tempfile::TempDir;
use tonic::{Code, Request};
use watershed::client::Client;
use watershed::pb::authpb::permission::Type;
use watershed::pb::etcdserverpb::*;

use super::{NO_TENANT, Tier, address, all, answers, put, watch_all};
use crate::features::auth::{FLAGS, add_user, auth_of, enable, log_in, permit, secure_client, with};
use crate::harness::{Authority, Deployment, Target, Watching, client, client_tls, in_words, refused, run, until};

#[test]
fn names_and_certificates_are_tenants() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let folder = TempDir::new().expect("temporary directory");
        let authority = Authority::new(folder.path(), "ca");
        authority.sign("server", |_| {});
        authority.sign("nobody", |_| {});
        authority.sign("alice", |params| params.distinguished_name.push(DnType::CommonName, "alice"));
        authority.sign("named", |params| {
            params.subject_alt_names.push(SanType::DnsName("App.Example".try_into().expect("a name")))
        });
        let uri = |text: &str| SanType::URI(text.try_into().expect("a URI"));
        authority.sign("spiffe", |params| params.subject_alt_names.push(uri("spiffe://example/app")));
        authority.sign("two", |params| {
            params.subject_alt_names.extend([uri("spiffe://example/app"), uri("spiffe://example/other")]);
        });
        let file = "tenants:\n\
            - {name: alice, namespace: cn/, match: [{common-name: alice}]}\n\
            - {name: app, namespace: dns/, match: [{dns-name: app.example}]}\n\
            - {name: spiffe, namespace: spiffe/, match: [{spiffe-id: 'spiffe://example/app'}]}\n\
            - {name: sni, namespace: sni/, match: [{sni: localhost}]}\n";
        let path = |name: &str| folder.path().join(name).display().to_string();
        let flags = [
            format!("--cert-file={}", path("server.crt")),
            format!("--key-file={}", path("server.key")),
            format!("--trusted-ca-file={}", path("ca")),
        ];
        let tls = |name: &str| client_tls(folder.path(), Some(name));
        let tls = ["nobody", "alice", "named", "spiffe", "two"].map(tls);
        let tier = Tier::in_folder(folder, &deployment.endpoint, file, &flags);
        let [nobody, alice, named, spiffe, two] = tls.clone().map(|tls| secure_client(&tier.main, tls));
        answers(&alice).await;
        let write = async |client: &Client| client.kv().put(put("k", "v")).await;
        for (client, key) in [(&alice, "cn/k"), (&named, "dns/k"), (&spiffe, "spiffe/k")] {
            write(client).await.expect("a tenant");
            assert_eq!(deployment.get(key).await.count, 1, "{key}");
        }
        // A certificate with two ids is of nobody.
        for client in [&nobody, &two] {
            refused(write(client).await, Code::PermissionDenied, NO_TENANT);
        }
        // By the name it asks for, which comes only with a name; and what is two tenants is none.
        let by_name = tier.main.replace("127.0.0.1", "localhost");
        write(&secure_client(&by_name, tls[0].clone())).await.expect("a tenant");
        assert_eq!(deployment.get("sni/k").await.count, 1);
        let both = write(&secure_client(&by_name, tls[1].clone())).await;
        refused(both, Code::PermissionDenied, "this client matches more than one tenant of the gRPC proxy");
    });
}

/// Users alice and bob, who may use the namespace of their name and its leases.
async fn alice_and_bob(deployment: &Deployment, root: &str) {
    let endpoint = &deployment.endpoint;
    const KEYS: [(&str, &str, &str); 4] = [
        ("alice", "alice/", "alice0"),
        ("alice", "\0watershed/lease/616c6963652f/", "\0watershed/lease/616c6963652f0"),
        ("bob", "bob/", "bob0"),
        ("bob", "\0watershed/lease/626f622f/", "\0watershed/lease/626f622f0"),
    ];
    for name in ["alice", "bob"] {
        add_user(endpoint, root, name).await;
    }
    for (name, from, to) in KEYS {
        permit(endpoint, root, name, Type::Readwrite, from, to).await.expect("permitted");
    }
}

#[test]
fn a_token_is_the_tenant_of_the_user_it_was_given_to() {
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        alice_and_bob(deployment, &root).await;
        let file = "tenants:\n\
            - {name: a, namespace: alice/, match: [{user: alice}]}\n\
            - {name: b, namespace: bob/, match: [{user: bob}]}\n";
        let tier = Tier::start(deployment, file, &[]);
        let through = client(&tier.main);
        let alice = until("the proxy", async || log_in(&tier.main, "alice").await.ok()).await;
        let bob = log_in(&tier.main, "bob").await.expect("bob");
        through.kv().put(with(&alice, put("k", "a"))).await.expect("alice");
        through.kv().put(with(&bob, put("k", "b"))).await.expect("bob");
        let found = deployment.client.kv().range(with(&root, all())).await.expect("all").into_inner().kvs;
        let found: Vec<_> = found.iter().map(|kv| (&kv.key[..], &kv.value[..])).collect();
        assert_eq!(found, [(&b"alice/k"[..], &b"a"[..]), (b"bob/k", b"b")]);
        let (mut watching, created) = Watching::create_as(&through, &alice, watch_all()).await;
        assert!(!created.canceled, "{created:?}");
        through.kv().put(with(&bob, put("k", "c"))).await.expect("bob");
        let header = through.kv().put(with(&alice, put("k", "d"))).await.expect("alice").into_inner().header;
        assert_eq!(in_words(&watching.next().await), [format!("+k=d@{}", header.expect("header").revision)]);
        // Nobody is a tenant without a token, with one of another door, or as a user that is no tenant.
        refused(through.kv().range(all()).await, Code::InvalidArgument, "etcdserver: user name is empty");
        let direct = log_in(&deployment.endpoint, "alice").await.expect("alice");
        refused(
            through.kv().range(with(&direct, all())).await,
            Code::Unauthenticated,
            "etcdserver: invalid auth token",
        );
        const FAILED: &str = "etcdserver: authentication failed, invalid user ID or password";
        refused(log_in(&tier.main, "root").await.map(tonic::Response::new), Code::InvalidArgument, FAILED);
        let wrong = AuthenticateRequest { name: "alice".into(), password: "guess".into() };
        refused(auth_of(&tier.main).authenticate(Request::new(wrong)).await, Code::InvalidArgument, FAILED);
    });
}

#[test]
fn a_tenant_is_the_user_that_the_file_names() {
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        alice_and_bob(deployment, &root).await;
        let [a, b] = [address(), address()];
        let folder = TempDir::new().expect("temporary directory");
        std::fs::write(folder.path().join("bob.password"), "bob\n").expect("written");
        let file = format!(
            "tenants:\n\
             - {{name: a, namespace: alice/, match: [{{listen: '{a}'}}], upstream: {{user: alice, password: alice}}}}\n\
             - {{name: b, namespace: alice/b/, match: [{{listen: '{b}'}}], upstream: {{user: bob, password-file: bob.password}}}}\n"
        )
        .replace("name: a,", "name: a, contains: [b],");
        let _tier = Tier::in_folder(folder, &deployment.endpoint, &file, &[]);
        let (of_a, of_b) = (client(&a), client(&b));
        answers(&of_a).await;
        of_a.kv().put(put("k", "v")).await.expect("as alice");
        // Whatever the client sends, it is the user of its tenant.
        of_a.kv().put(with("nonsense", put("k", "w"))).await.expect("as alice");
        refused(of_b.kv().put(with(&root, put("k", "v"))).await, Code::PermissionDenied, super::DENIED);
        let (_refused, refusal) = Watching::create(&of_b, watch_all()).await;
        assert!(refusal.canceled && refusal.cancel_reason.ends_with(super::DENIED), "{refusal:?}");
        let (mut watching, created) = Watching::create(&of_a, watch_all()).await;
        assert!(!created.canceled, "{created:?}");
        let id = of_a.lease().lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.expect("grant").into_inner().id;
        let (sender, requests) = tokio::sync::mpsc::channel(4);
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut alive = of_a.lease().lease_keep_alive(requests).await.expect("a stream").into_inner();
        sender.send(LeaseKeepAliveRequest { id }).await.expect("sent");
        assert!(alive.message().await.expect("open").expect("an answer").ttl > 0);
        // The member forgets all tokens when it starts again: streams go on with others.
        deployment.server.kill();
        deployment.restart_without_waiting();
        let written = until("alice is logged in again", async || of_a.kv().put(put("k", "x")).await.ok()).await;
        let revision = written.into_inner().header.expect("header").revision;
        loop {
            let answer = watching.next().await;
            assert!(!answer.canceled, "{answer:?}");
            let words = in_words(&answer);
            assert!(words.iter().all(|word| word.starts_with("+k=")), "{words:?}");
            // Others may come with it.
            if words.contains(&format!("+k=x@{revision}")) {
                break;
            }
        }
        sender.send(LeaseKeepAliveRequest { id }).await.expect("sent");
        assert!(alive.message().await.expect("open").expect("an answer").ttl > 0);
    });
}

#[test]
fn a_tenant_that_is_a_user_reads_from_its_cache_what_that_user_may_read() {
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        alice_and_bob(deployment, &root).await;
        let a = address();
        let file = format!(
            "tenants:\n\
             - {{name: a, namespace: alice/, match: [{{listen: '{a}'}}], upstream: {{user: alice, password: alice}}}}\n"
        );
        let tier = Tier::start(deployment, &file, &[]);
        let of_a = client(&a);
        answers(&of_a).await;
        of_a.kv().put(put("k", "v")).await.expect("as alice");
        let hits = async || tier.metric("etcd_grpc_proxy_cache_hits_total ").await.unwrap_or(0);
        // One that came from the cache.
        let cached = async || {
            let before = hits().await;
            let answer = of_a.kv().range(with("nonsense", all())).await.ok()?.into_inner();
            (hits().await > before).then_some(answer.kvs.len())
        };
        assert_eq!(until("an answer from the cache", cached).await, 1);
        // A write beside the proxy is in the next answer, whether that comes from the cache or not.
        let beside = PutRequest { key: "alice/l".into(), ..Default::default() };
        deployment.client.kv().put(with(&root, beside.clone())).await.expect("as root");
        assert_eq!(of_a.kv().range(all()).await.expect("range").into_inner().kvs.len(), 2);
        // What is revoked beside the proxy is not read from the cache for long.
        let revoke =
            AuthRoleRevokePermissionRequest { role: "alice".into(), key: "alice/".into(), range_end: "alice0".into() };
        auth_of(&deployment.endpoint).role_revoke_permission(with(&root, revoke)).await.expect("revoked");
        let status = until("the refusal", async || of_a.kv().range(all()).await.err()).await;
        assert_eq!((status.code(), status.message()), (Code::PermissionDenied, super::DENIED));
        for _ in 0..20 {
            of_a.kv().range(all()).await.expect_err("a refusal lasts");
        }
        permit(&deployment.endpoint, &root, "alice", Type::Readwrite, "alice/", "alice0").await.expect("permitted");
        assert_eq!(until("an answer from the cache", cached).await, 2);
        // The member forgets all tokens when it starts again.
        deployment.server.kill();
        deployment.restart_without_waiting();
        let root = until("root", async || log_in(&deployment.endpoint, "root").await.ok()).await;
        assert_eq!(until("an answer from the cache", cached).await, 2);
        deployment.client.kv().put(with(&root, PutRequest { key: "alice/m".into(), ..beside })).await.expect("as root");
        assert_eq!(of_a.kv().range(all()).await.expect("range").into_inner().kvs.len(), 3);
    });
}

#[test]
fn what_a_tenant_stores_is_counted_as_its_user() {
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        alice_and_bob(deployment, &root).await;
        let [a, b] = [address(), address()];
        let limited = "upstream: {user: alice, password: alice}, limits: {stored-keys: 1}";
        let file = format!(
            "tenants:\n\
             - {{name: a, namespace: alice/, match: [{{listen: '{a}'}}], {limited}}}\n\
             - {{name: b, namespace: bob/, match: [{{listen: '{b}'}}], {limited}}}\n"
        );
        let _tier = Tier::start(deployment, &file, &[]);
        let (of_a, of_b) = (client(&a), client(&b));
        answers(&of_a).await;
        of_a.kv().put(put("k", "v")).await.expect("as alice");
        let full = "the tenant's limit \"stored-keys\" of 1 is reached";
        refused(of_a.kv().put(put("l", "v")).await, Code::ResourceExhausted, full);
        // What its user may not read cannot be counted, and a limit that is not watched over refuses.
        let uncounted = format!("what the tenant stores is not counted: {}", super::DENIED);
        refused(of_b.kv().put(put("k", "v")).await, Code::Unavailable, &uncounted);
        permit(&deployment.endpoint, &root, "alice", Type::Readwrite, "bob/", "bob0").await.expect("permitted");
        until("the count", async || of_b.kv().put(put("k", "v")).await.ok()).await;
        refused(of_b.kv().put(put("l", "v")).await, Code::ResourceExhausted, full);
        // The member forgets all tokens when it starts again, those of the counting watches too.
        deployment.server.kill();
        deployment.restart_without_waiting();
        until("alice is logged in again", async || of_a.kv().put(put("k", "w")).await.ok()).await;
        let wipe = DeleteRangeRequest { key: "k".into(), ..Default::default() };
        of_a.kv().delete_range(wipe).await.expect("never refused");
        until("room", async || of_a.kv().put(put("l", "v")).await.ok()).await;
        refused(of_a.kv().put(put("m", "v")).await, Code::ResourceExhausted, full);
    });
}
