//! Three members with TLS and users, a gateway that passes TLS through, and a proxy with TLS on both sides.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use watershed::client::{Client, ClientConfig, Credentials};
use watershed::net::ClientTls;
use watershed::pb::authpb::permission::Type;
use watershed::pb::authpb::{Permission, UserAddOptions};
use watershed::pb::etcdserverpb::*;
use watershed::shutdown::Tasks;

use super::story::{assert_equal, try_put};
use crate::harness::{Answers, Certificates, Cluster, Process, free_port, own_binary, soon, until};

/// Writes that must be answered between one thing that happens and the next.
const WRITES: usize = 15;

fn connect(endpoint: &str, tls: ClientTls, user: Option<&str>) -> Client {
    let endpoint = format!("https://{endpoint}").parse().expect("an endpoint");
    let user = user.map(|name| Credentials { name: name.to_owned(), password: name.to_owned() });
    Client::connect(ClientConfig { tls: Some(tls), user, ..ClientConfig::new([endpoint]) }).expect("a client")
}

/// Root and alice by certificate, bob by password; the latter two may use what begins with k.
async fn add_users(root: &Client) {
    let mut auth = root.auth();
    for (name, password) in [("root", ""), ("alice", ""), ("bob", "bob")] {
        let options = password.is_empty().then_some(UserAddOptions { no_password: true });
        let user = AuthUserAddRequest { name: name.into(), password: password.into(), options, ..Default::default() };
        auth.user_add(user).await.expect("a user");
        auth.role_add(AuthRoleAddRequest { name: name.into() }).await.expect("a role");
        if name != "root" {
            let perm = Permission { perm_type: Type::Readwrite as i32, key: "k".into(), range_end: "l".into() };
            let grant = AuthRoleGrantPermissionRequest { name: name.into(), perm: Some(perm) };
            auth.role_grant_permission(grant).await.expect("permitted");
        }
        auth.user_grant_role(AuthUserGrantRoleRequest { user: name.into(), role: name.into() }).await.expect("granted");
    }
    auth.auth_enable(AuthEnableRequest {}).await.expect("on");
}

/// A client that writes one key after the other, each until it is answered, and one that watches them.
struct Traffic {
    name: &'static str,
    written: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    writer: JoinHandle<()>,
    watcher: JoinHandle<BTreeSet<String>>,
}

impl Traffic {
    fn start(name: &'static str, client: Client) -> Self {
        let (written, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stop, own) = (written.clone(), ended.clone(), client.clone());
        let tasks = Tasks::new();
        let writer = tasks.spawn(async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let key = format!("k/{name}/{number:05}");
                until("a write", async || try_put(&own, &key, name).await.ok()).await;
                number += 1;
                count.store(number, Ordering::Relaxed);
            }
            let last = format!("k/{name}/z");
            until("the last write", async || try_put(&own, &last, name).await.ok()).await;
        });
        Self { name, written, ended, writer, watcher: tasks.spawn(watch(name, client)) }
    }

    /// Waits for some more writes.
    async fn goes_on(&self) {
        let goal = self.written.load(Ordering::Relaxed) + WRITES;
        let name = format!("writes through {}", self.name);
        until(&name, async || (self.written.load(Ordering::Relaxed) >= goal).then_some(())).await;
    }

    /// Ends the writes; every one of them is in the store and was seen by the watch.
    async fn finish(self, root: &Client) {
        self.ended.store(true, Ordering::Relaxed);
        soon("the last write", self.writer).await.expect("no panic");
        let seen = soon("the last event", self.watcher).await.expect("no panic");
        let range = RangeRequest {
            key: format!("k/{}/", self.name).into(),
            range_end: format!("k/{}0", self.name).into(),
            ..Default::default()
        };
        let stored = root.kv().range(range).await.expect("root").into_inner().kvs;
        let stored: BTreeSet<String> = stored.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
        assert_eq!(stored.len(), self.written.load(Ordering::Relaxed) + 1, "{}", self.name);
        assert_eq!(seen, stored, "{}", self.name);
    }
}

/// Watches the keys of a writer until its last one, and returns those it saw. A stream that ends is opened again from
/// where it was; an older event than that must not come.
async fn watch(name: &'static str, client: Client) -> BTreeSet<String> {
    let (mut seen, mut revision) = (BTreeSet::new(), 0);
    let last = format!("k/{name}/z");
    while !seen.contains(&last) {
        let (requests, receiver) = mpsc::channel(1);
        let create = WatchCreateRequest {
            key: format!("k/{name}/").into(),
            range_end: format!("k/{name}0").into(),
            start_revision: revision + 1,
            ..Default::default()
        };
        let union = Some(watch_request::RequestUnion::CreateRequest(create));
        requests.send(WatchRequest { request_union: union }).await.expect("room");
        let mut watch = client.watch();
        let mut answers = Answers::new(async move { watch.watch(ReceiverStream::new(receiver)).await });
        while !seen.contains(&last) {
            let Ok(Some(answer)) = answers.message().await else {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                break;
            };
            assert!(!answer.canceled, "{name}: {answer:?}");
            for kv in answer.events.iter().filter_map(|event| event.kv.as_ref()) {
                assert!(kv.mod_revision > revision, "{name}: {kv:?} after {revision}");
                revision = kv.mod_revision;
                seen.insert(String::from_utf8_lossy(&kv.key).into_owned());
            }
        }
    }
    seen
}

/// A gateway or proxy in front of all members.
fn front(mode: &str, cluster: &Cluster, flags: &[String], folder: &TempDir) -> (Process, String) {
    let endpoint = format!("127.0.0.1:{}", free_port());
    let scheme = if mode == "gateway" { "" } else { "https://" };
    let members: Vec<_> = (0..3).map(|number| format!("{scheme}{}", cluster.endpoint(number))).collect();
    let mut args = vec![mode.to_owned(), "start".to_owned(), format!("--endpoints={}", members.join(","))];
    args.push(format!("--listen-addr={endpoint}"));
    args.extend_from_slice(flags);
    (Process::start(&own_binary(), &args, folder.path(), mode), endpoint)
}

#[test]
fn members_and_certificates_change_one_after_the_other_under_traffic() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let test = async {
        let (certificates, folder) =
            (Certificates::new(&["root", "alice"]), TempDir::new().expect("temporary directory"));
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "a shared secret").expect("written");
        let mut flags = [certificates.client_flags(), certificates.peer_flags()].concat();
        flags.push(format!("--auth-token=jwt,sign-method=HS256,priv-key={}", secret.display()));
        let own = ["--client-cert-auth", "--peer-client-cert-auth", "--bcrypt-cost=4"];
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain(own).collect();
        let mut cluster = Cluster::start_with(3, &flags, Some(certificates.tls("root"))).await;
        add_users(&cluster.client()).await;

        let (_gateway, gateway) = front("gateway", &cluster, &[], &folder);
        let both = [certificates.client_flags(), certificates.dial_flags()].concat();
        let (_proxy, proxy) = front("grpc-proxy", &cluster, &both, &folder);
        // The gateway shows nothing of its own: members see alice's certificate. The proxy ends TLS: members know bob by
        // his token, and by the certificate of the proxy a user without a name.
        let by_certificate = connect(&gateway, certificates.tls("alice"), None);
        let by_token = connect(&proxy, certificates.tls("nameless"), Some("bob"));
        let lost = connect(&proxy, certificates.tls("alice"), None);
        until("the gateway", async || try_put(&by_certificate, "k", "v").await.ok()).await;
        until("the proxy", async || try_put(&by_token, "k", "v").await.ok()).await;
        for client in [&by_certificate, &by_token] {
            let denied = try_put(client, "x", "v").await.expect_err("not permitted");
            assert_eq!(denied.message(), "etcdserver: permission denied");
        }
        let nobody = try_put(&lost, "k", "v").await.expect_err("a certificate does not pass the proxy");
        assert_eq!(nobody.message(), "etcdserver: permission denied");

        let traffic = [Traffic::start("gateway", by_certificate), Traffic::start("proxy", by_token)];
        for number in 0..3 {
            for one in &traffic {
                one.goes_on().await;
            }
            certificates.renew();
            match number {
                0 => drop(cluster.terminate(number).await),
                _ => cluster.kill(number),
            }
            // Two of three go on.
            for one in &traffic {
                one.goes_on().await;
            }
            cluster.restart(number).await;
        }
        certificates.renew();
        // New connections, with certificates of the last renewal on both sides.
        let fresh = connect(&gateway, certificates.tls("alice"), None);
        until("a new connection", async || try_put(&fresh, "k", "v").await.ok()).await;
        for one in traffic {
            one.finish(&cluster.client()).await;
        }
        assert_equal(&cluster).await;
    };
    runtime.block_on(async { tokio::time::timeout(crate::harness::PATIENCE * 4, test).await.expect("in time") });
}
