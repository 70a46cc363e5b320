//! The proxy with a user of its own (`--user`, `--user-cert`): one upstream watch for all users, each of whom gets what it
//! may read; and clients whose certificate names a user.

use tonic::{Code, Status};
use watershed::client::Client;
use watershed::pb::authpb::permission::Type;
use watershed::pb::etcdserverpb::*;

use super::auth::{FLAGS, add_user, auth_of, enable, log_in, permit, secure_client, with};
use crate::harness::{
    Certificates, Deployment, Process, Target, Watching, client, free_port, http_get, in_words, own_binary, prefix,
    refused, run, soon, until,
};

const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
const NOBODY: &str = "etcdserver: user name is empty";
const NOT_PASSED_ON: &str = "the gRPC proxy does not pass on the user of a client certificate: log in as \"root\"";

fn under(text: &'static str) -> WatchCreateRequest {
    let RangeRequest { key, range_end, .. } = prefix(text);
    WatchCreateRequest { key, range_end, ..Default::default() }
}

/// A stream whose metadata has a token, with one watch.
async fn watch(endpoint: &str, token: &str, request: WatchCreateRequest) -> (Watching, WatchResponse) {
    Watching::create_as(&client(endpoint), token, request).await
}

async fn put(client: &Client, token: &str, key: &'static str) -> Result<i64, Status> {
    let answer = client.kv().put(with(token, PutRequest { key: key.into(), ..Default::default() })).await?;
    Ok(answer.into_inner().header.expect("header").revision)
}

/// Watches that the proxy has on the member.
async fn upstream_watches(proxy: &str) -> String {
    let page = http_get(proxy, "GET", "/proxy/metrics").await.expect("a page").body;
    let line = page.lines().find(|line| line.starts_with("watershed_proxy_upstream_watches "));
    line.expect("the metric").to_owned()
}

/// Users alice and bob, who may read and write below their letter.
async fn alice_and_bob(deployment: &Deployment, root: &str) -> [String; 2] {
    let endpoint = &deployment.endpoint;
    for (name, from, to) in [("alice", "a/", "a0"), ("bob", "b/", "b0")] {
        add_user(endpoint, root, name).await;
        permit(endpoint, root, name, Type::Readwrite, from, to).await.expect("permitted");
    }
    [log_in(endpoint, "alice").await.expect("alice"), log_in(endpoint, "bob").await.expect("bob")]
}

#[test]
fn all_users_share_one_upstream_watch_and_get_what_they_may_read() {
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        // Before there is a user at all: authentication may be enabled while the proxy runs.
        let flags = ["--user=root:root", "--namespace="];
        let (_front, proxy) = deployment.also_front("grpc-proxy", &flags).await;
        let (mut early, created) = watch(&proxy, "", under("")).await;
        assert!(!created.canceled, "{created:?}");
        let root = enable(deployment).await;
        let [alice, bob] = alice_and_bob(deployment, &root).await;
        // Who has no credentials is nobody now, also where a watch was open.
        let ended = until_canceled(&mut early).await;
        assert!(ended.cancel_reason.ends_with(NOBODY), "{ended:?}");

        let (mut all, _) = watch(&proxy, &root, under("")).await;
        let (mut of_alice, created) = watch(&proxy, &alice, under("a/")).await;
        assert!(!created.canceled && created.header.expect("header").member_id != 0, "{created:?}");
        let (mut of_bob, created) = watch(&proxy, &bob, under("b/")).await;
        assert!(!created.canceled, "{created:?}");
        assert_eq!(upstream_watches(&proxy).await, "watershed_proxy_upstream_watches 1");
        for (token, range, reason) in [(&bob, "a/", DENIED), (&alice, "", DENIED), (&String::new(), "a/", NOBODY)] {
            let (_watching, refusal) = watch(&proxy, token, under(range)).await;
            assert!(refusal.canceled && refusal.cancel_reason.ends_with(reason), "{refusal:?}");
            assert_eq!(refusal.watch_id, -1);
        }
        let member = deployment.member_client();
        let (for_alice, for_bob) = (put(&member, &root, "a/1").await.expect("put"), put(&member, &root, "b/1").await);
        let for_bob = for_bob.expect("put");
        assert_eq!(all.events(2).await, [format!("+a/1=@{for_alice}"), format!("+b/1=@{for_bob}")]);
        assert_eq!(of_alice.events(1).await, [format!("+a/1=@{for_alice}")]);
        assert_eq!(of_bob.events(1).await, [format!("+b/1=@{for_bob}")]);
        // History is read with the proxy's credentials too, and checked with the client's.
        let past = |range| WatchCreateRequest { start_revision: for_alice, ..under(range) };
        let (mut again, _) = watch(&proxy, &alice, past("a/")).await;
        assert_eq!(again.events(1).await, [format!("+a/1=@{for_alice}")]);
        let (_refused, refusal) = watch(&proxy, &bob, past("a/")).await;
        assert!(refusal.canceled && refusal.cancel_reason == DENIED, "{refusal:?}");
        // Requests are the client's own: the proxy's user may write everywhere, alice may not.
        let through = client(&proxy);
        put(&through, &alice, "a/2").await.expect("alice");
        assert_eq!(put(&through, &alice, "b/2").await.expect_err("denied").code(), Code::PermissionDenied);
        assert_eq!(put(&through, "", "a/2").await.expect_err("nobody").message(), NOBODY);
        let health = http_get(&proxy, "GET", "/health").await.expect("a page");
        assert_eq!(health.status, 200, "{}", health.body);
    });
}

#[test]
fn a_revoked_permission_ends_open_watches_within_a_second() {
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        let [alice, bob] = alice_and_bob(deployment, &root).await;
        let (_front, proxy) = front(deployment, &["--user=root", "--password=root"]).await;
        let (mut of_alice, mut created) = watch(&proxy, &alice, under("a/")).await;
        let (mut of_bob, _) = watch(&proxy, &bob, under("b/")).await;
        let member = deployment.member_client();
        put(&member, &root, "a/1").await.expect("put");
        assert_eq!(of_alice.events(1).await.len(), 1);
        let mut late = Vec::new();
        loop {
            let revoke = AuthUserRevokeRoleRequest { name: "alice".into(), role: "alice".into() };
            auth_of(&deployment.endpoint).user_revoke_role(with(&root, revoke)).await.expect("revoked");
            let revoked = std::time::Instant::now();
            let ended = until_canceled(&mut of_alice).await;
            let took = revoked.elapsed();
            let expected = (created.watch_id, DENIED, 0);
            assert_eq!((ended.watch_id, ended.cancel_reason.as_str(), ended.compact_revision), expected);
            // The stream goes on, and so does everybody else.
            assert!(of_alice.add(under("a/")).await.canceled);
            let revision = put(&member, &root, "b/1").await.expect("put");
            assert_eq!(of_bob.events(1).await, [format!("+b/1=@{revision}")]);
            let grant = AuthUserGrantRoleRequest { user: "alice".into(), role: "alice".into() };
            auth_of(&deployment.endpoint).user_grant_role(with(&root, grant)).await.expect("granted");
            created = of_alice.add(under("a/")).await;
            assert!(!created.canceled, "a permission that was just granted counts at once: {created:?}");
            let revision = put(&member, &root, "a/2").await.expect("put");
            assert_eq!(of_alice.events(1).await, [format!("+a/2=@{revision}")]);
            // The promise is a second; the rest, and another attempt, are for a machine that runs many tests.
            if took.as_millis() < 3000 {
                break;
            }
            late.push(took);
            assert!(late.len() < 5, "it took {late:?}");
        }
    });
}

#[test]
fn the_proxys_token_is_renewed_when_it_has_expired() {
    // A token that nobody uses for so long is gone. The questions come every second, which may be late.
    let flags = ["--bcrypt-cost=4", "--auth-token-ttl=4"];
    run(Target::Core, &flags, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        let [alice, _] = alice_and_bob(deployment, &root).await;
        let file = deployment.folder.path().join("password");
        std::fs::write(&file, "root\n").expect("written");
        let flag = format!("--password-file={}", file.display());
        let (front, proxy) = front(deployment, &["--user=root", &flag]).await;
        // The questions about its permission keep alice's token in use; the proxy's own is not.
        let (mut of_alice, created) = watch(&proxy, &alice, under("a/")).await;
        assert!(!created.canceled, "{created:?}");
        tokio::time::sleep(std::time::Duration::from_millis(6500)).await;
        let root = log_in(&deployment.endpoint, "root").await.expect("root");
        let first = put(&deployment.member_client(), &root, "a/1").await.expect("put");
        assert_eq!(of_alice.events(1).await, [format!("+a/1=@{first}")]);
        let (mut past, created) =
            watch(&proxy, &alice, WatchCreateRequest { start_revision: first, ..under("a/") }).await;
        assert!(!created.canceled, "{created:?}");
        assert_eq!(past.events(1).await, [format!("+a/1=@{first}")]);
        // A new member process: what is open is resumed, with another token.
        deployment.server.kill();
        deployment.restart_without_waiting();
        let root = until("the member", async || log_in(&deployment.endpoint, "root").await.ok()).await;
        let second = put(&deployment.member_client(), &root, "a/2").await.expect("put");
        let told = soon("the event, or the end", of_alice.next()).await;
        // etcd before 3.6 calls a token that it does not know a permission that is missing.
        let reasons = ["invalid auth token", "permission denied"];
        let by_token = told.canceled && reasons.iter().any(|reason| told.cancel_reason.contains(reason));
        assert!(by_token || in_words(&told) == [format!("+a/2=@{second}")], "{told:?}");
        let alice = log_in(&deployment.endpoint, "alice").await.expect("alice");
        let (mut new, created) =
            watch(&proxy, &alice, WatchCreateRequest { start_revision: second, ..under("a/") }).await;
        assert!(!created.canceled, "{created:?}");
        assert_eq!(new.events(1).await, [format!("+a/2=@{second}")]);
        assert!(!front.output().contains("root:root") && !front.output().contains("refuses"), "{}", front.output());
    });
}

/// Requests that the member refused for their token.
async fn refused_tokens(member: &str) -> Vec<String> {
    let page = http_get(member, "GET", "/metrics").await.expect("a page").body;
    let refused = |line: &&str| line.starts_with("grpc_server_handled_total") && line.contains("\"Unauthenticated\"");
    page.lines().filter(refused).filter(|line| !line.ends_with(" 0")).map(str::to_owned).collect()
}

/// It was renewed only when it had been refused.
#[test]
fn the_proxys_signed_token_is_renewed_before_it_ends() {
    let secret = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(secret.path(), [7; 64]).expect("written");
    let token = format!("--auth-token=jwt,sign-method=HS256,priv-key={},ttl=9s", secret.path().display());
    run(Target::Core, &["--bcrypt-cost=4", &token], async |deployment: &mut Deployment| {
        // A change of users makes signed tokens old.
        let endpoint = deployment.endpoint.clone();
        add_user(&endpoint, "", "alice").await;
        permit(&endpoint, "", "alice", Type::Readwrite, "a/", "a0").await.expect("permitted");
        enable(deployment).await;
        let (_front, proxy) = front(deployment, &["--user=root:root"]).await;
        let through = client(&proxy);
        let began = std::time::Instant::now();
        let mut rounds = 0;
        while began.elapsed() < std::time::Duration::from_secs(15) {
            let alice = log_in(&proxy, "alice").await.expect("alice");
            let (mut of_alice, created) = watch(&proxy, &alice, under("a/")).await;
            assert!(!created.canceled, "{created:?}");
            let revision = put(&through, &alice, "a/1").await.expect("put");
            assert_eq!(of_alice.events(1).await, [format!("+a/1=@{revision}")]);
            rounds += 1;
        }
        let refused = refused_tokens(&deployment.member).await;
        assert!(refused.is_empty(), "in {rounds} rounds: {refused:?}");
    });
}

#[test]
fn a_watch_and_calls_outlive_the_tokens_of_the_proxy() {
    let flags = ["--bcrypt-cost=4", "--auth-token-ttl=3"];
    run(Target::Core, &flags, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        let [alice, _] = alice_and_bob(deployment, &root).await;
        let (_front, proxy) = front(deployment, &["--user=root:root"]).await;
        let (mut of_alice, created) = watch(&proxy, &alice, under("a/")).await;
        assert!(!created.canceled, "{created:?}");
        let (through, began) = (client(&proxy), std::time::Instant::now());
        // Alice's token is kept in use by the questions about her permission, the proxy's is not.
        while began.elapsed() < std::time::Duration::from_secs(12) {
            let revision = put(&through, &alice, "a/1").await.expect("put");
            assert_eq!(of_alice.events(1).await, [format!("+a/1=@{revision}")]);
            let past = WatchCreateRequest { start_revision: revision, ..under("a/") };
            let (mut of_past, created) = watch(&proxy, &alice, past).await;
            assert!(!created.canceled, "{created:?}");
            assert_eq!(of_past.events(1).await, [format!("+a/1=@{revision}")]);
            drop(of_past);
            let pause =
                until("a pause of a token's time", async || (began.elapsed().as_millis() % 3750 > 3600).then_some(()));
            pause.await;
        }
    });
}

#[test]
fn where_the_proxys_user_may_not_read_a_client_reads_for_itself() {
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        let [alice, bob] = alice_and_bob(deployment, &root).await;
        // One that may read less than its clients, and one that the cluster does not know.
        for user in ["--user=bob:bob", "--user=nobody:x"] {
            let (_front, proxy) = front(deployment, &[user]).await;
            let (mut of_alice, created) = watch(&proxy, &alice, under("a/")).await;
            assert!(!created.canceled, "{user}: {created:?}");
            let (_refused, refusal) = watch(&proxy, &bob, under("a/")).await;
            assert!(refusal.canceled && refusal.cancel_reason == DENIED, "{user}: {refusal:?}");
            let revision = put(&deployment.member_client(), &root, "a/1").await.expect("put");
            assert_eq!(of_alice.events(1).await, [format!("+a/1=@{revision}")], "{user}");
        }
    });
}

/// Who shows a certificate with a name is that user on a member. Behind the proxy it was nobody, and was told only
/// "user name is empty".
#[test]
fn a_clients_certificate_is_nobody_and_the_client_is_told_why() {
    let certificates = Certificates::new(&["root"]);
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        let mut flags = certificates.client_flags();
        for user in [None, Some("--user=root:root")] {
            flags.extend(user.map(str::to_owned));
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            let (_front, proxy) = spawn_front(&deployment.member, deployment, &flags);
            let client = secure_client(&proxy, certificates.tls("root"));
            until("the proxy", async || put(&client, &root, "k").await.ok()).await;
            let refusal = put(&client, "", "k").await.expect_err("no token");
            assert_eq!(refusal.code(), Code::Unauthenticated);
            assert!(refusal.message().starts_with(NOT_PASSED_ON), "{refusal}");
            let (_watching, refusal) = Watching::create(&client, under("")).await;
            assert!(refusal.canceled && refusal.cancel_reason.contains(NOT_PASSED_ON), "{refusal:?}");
            let (_watching, created) = Watching::create_as(&client, &root, under("")).await;
            assert!(!created.canceled, "{created:?}");
            // One without a name gets the member's own words.
            let nameless = secure_client(&proxy, certificates.tls("nameless"));
            let put = nameless.kv().put(PutRequest { key: "k".into(), ..Default::default() }).await;
            refused(put, Code::InvalidArgument, NOBODY);
        }
    });
}

#[test]
fn the_proxys_user_may_have_a_certificate() {
    let certificates = Certificates::new(&["root", "alice"]);
    let tls = certificates.client_flags();
    let member: Vec<&str> = tls.iter().map(String::as_str).chain(["--bcrypt-cost=4", "--client-cert-auth"]).collect();
    run(Target::Core, &member, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        let [alice, bob] = alice_and_bob(deployment, &root).await;
        let mut flags = certificates.dial_flags();
        flags.extend(certificates.user_flags("root"));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let (_front, proxy) = spawn_front(&format!("https://{}", deployment.secure), deployment, &flags);
        let through = client(&proxy);
        until("the proxy", async || put(&through, &alice, "a/0").await.ok()).await;
        let (mut of_alice, created) = watch(&proxy, &alice, under("a/")).await;
        assert!(!created.canceled, "{created:?}");
        let (mut of_bob, _) = watch(&proxy, &bob, under("b/")).await;
        let (_refused, refusal) = watch(&proxy, &bob, under("a/")).await;
        assert!(refusal.canceled && refusal.cancel_reason == DENIED, "{refusal:?}");
        // A request without a token is not the proxy's user.
        let refusal = put(&through, "", "a/1").await.expect_err("nobody");
        assert!(matches!(refusal.code(), Code::PermissionDenied | Code::InvalidArgument), "{refusal}");
        let revision = put(&through, &alice, "a/1").await.expect("alice");
        assert_eq!(of_alice.events(1).await, [format!("+a/1=@{revision}")]);
        let revision = put(&through, &bob, "b/1").await.expect("bob");
        assert_eq!(of_bob.events(1).await, [format!("+b/1=@{revision}")]);
    });
}

/// Reads answers until a watch is cancelled.
async fn until_canceled(watching: &mut Watching) -> WatchResponse {
    loop {
        let answer = watching.next().await;
        if answer.canceled {
            return answer;
        }
    }
}

fn spawn_front(endpoints: &str, deployment: &Deployment, flags: &[&str]) -> (Process, String) {
    let endpoint = format!("127.0.0.1:{}", free_port());
    let args = ["grpc-proxy", "start"].map(str::to_owned);
    let own = [format!("--endpoints={endpoints}"), format!("--listen-addr={endpoint}")];
    let args: Vec<String> = args.into_iter().chain(own).chain(flags.iter().map(|&flag| flag.to_owned())).collect();
    (Process::start(&own_binary(), &args, deployment.folder.path(), "proxy"), endpoint)
}

/// A proxy in front of a member that requires users: nobody can read to see whether it is ready.
async fn front(deployment: &Deployment, flags: &[&str]) -> (Process, String) {
    let (process, endpoint) = spawn_front(&deployment.member, deployment, flags);
    until("the proxy", async || {
        let page = http_get(&endpoint, "GET", "/readyz").await.ok()?;
        (page.status == 200).then_some(())
    })
    .await;
    (process, endpoint)
}
