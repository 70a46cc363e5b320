//! Members that find their cluster complete and become proxies; gateway and proxy that find the same cluster as its members did.

use std::time::Duration;

use tempfile::TempDir;
use watershed::client::{Client, ClientConfig};
use watershed::pb::etcdserverpb::{
    DeleteRangeRequest, MemberAddRequest, MemberListRequest, MemberRemoveRequest, PutRequest, RangeRequest,
};
use watershed::types::KeyRange;

use super::discovered::{Found, member_flags, ports};
use crate::harness::{
    Certificates, Deployment, DnsServer, Process, Registry, Target, client, free_port, http_get, is_stock, own_binary,
    run, server_binary, until,
};

/// Waits until the cluster is read through `client`.
async fn until_read(what: &str, client: &Client) {
    until(what, async || {
        let read = client.kv().range(RangeRequest { key: "k".into(), ..Default::default() }).await.ok()?;
        (read.into_inner().count == 1).then_some(())
    })
    .await;
}

/// Waits until a source has so many endpoints.
async fn until_endpoints(address: &str, path: &str, source: &str, count: usize) {
    let line = format!("watershed_discovery_endpoints{{source=\"{source}\"}} {count}\n");
    until("the endpoints", async || http_get(address, "GET", path).await.ok().filter(|page| page.body.contains(&line)))
        .await;
}

/// Gateway and proxy that find the cluster by these flags, each with the address of its metrics and the page.
struct Access {
    processes: Vec<Process>,
    clients: Vec<Client>,
    pages: Vec<(String, &'static str)>,
    _folder: TempDir,
}

impl Access {
    fn start(flags: &[String]) -> Self {
        let folder = TempDir::new().expect("temporary directory");
        let (mut processes, mut clients, mut pages) = (Vec::new(), Vec::new(), Vec::new());
        for mode in ["gateway", "grpc-proxy"] {
            let (listen, metrics) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
            let (url, page) = if mode == "gateway" {
                (metrics.clone(), "/metrics")
            } else {
                (format!("http://{metrics}"), "/proxy/metrics")
            };
            let own = [format!("--listen-addr={listen}"), format!("--metrics-addr={url}")];
            let mut args = vec![mode.to_owned(), "start".to_owned(), "--discovery-interval=200ms".to_owned()];
            args.extend(own);
            args.extend(flags.iter().cloned());
            processes.push(Process::start(&own_binary(), &args, folder.path(), mode));
            clients.push(client(&listen));
            pages.push((metrics, page));
        }
        Self { processes, clients, pages, _folder: folder }
    }

    async fn until_read(&self) {
        for client in &self.clients {
            until_read("a read through gateway and proxy", client).await;
        }
    }

    async fn until_endpoints(&self, source: &str, count: usize) {
        for (address, page) in &self.pages {
            until_endpoints(address, page, source, count).await;
        }
    }
}

/// A member beyond the size, told to become a proxy.
fn surplus(flags: &[String]) -> (Process, Client, TempDir) {
    let (folder, ports) = (TempDir::new().expect("temporary directory"), (free_port(), free_port()));
    let fallback = vec!["--discovery-fallback=proxy".to_owned()];
    let args = [member_flags(9, ports), flags.to_vec(), fallback].concat();
    let address = format!("127.0.0.1:{}", ports.0);
    let process = Process::start(&server_binary(), &args, folder.path(), "surplus");
    (process, client(&address), folder)
}

/// Adds a member, and takes the first one away; gives the process of the new one, and its port for clients.
async fn replace_first(found: &mut Found, ports: &[(u16, u16)]) -> (Process, u16) {
    let new = (free_port(), free_port());
    let url = format!("http://localhost:{}", new.1);
    let add = MemberAddRequest { peer_ur_ls: vec![url.clone()], ..Default::default() };
    // Members that have just begun refuse it while they do not know each other for long enough.
    until("a new member", async || found.clients[1].cluster().member_add(add.clone()).await.ok()).await;
    let mut initial: Vec<String> =
        ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}=http://localhost:{peer}")).collect();
    initial.push(format!("m3={url}"));
    let mut args = member_flags(3, new);
    args.extend(["--initial-cluster-state=existing".to_owned(), format!("--initial-cluster={}", initial.join(","))]);
    let process = Process::start(&server_binary(), &args, found.folder.path(), "m3");
    let own = client(&format!("127.0.0.1:{}", new.0));
    until("the new member", async || own.kv().range(RangeRequest { key: "k".into(), ..Default::default() }).await.ok())
        .await;
    let list = found.clients[1].cluster().member_list(MemberListRequest { linearizable: true }).await.expect("a list");
    let first = list.into_inner().members.into_iter().find(|member| member.name == "m0").expect("a member");
    until("the removal", async || {
        found.clients[1].cluster().member_remove(MemberRemoveRequest { id: first.id }).await.ok()
    })
    .await;
    found.processes[0].kill();
    (process, new.0)
}

/// Waits until a process has logged that one endpoint is new and another one is gone.
async fn until_changed(process: &Process, new: &str, gone: &str) {
    until("the change of endpoints", async || {
        let output = process.output();
        (output.contains(new) && output.contains(gone)).then_some(())
    })
    .await;
}

/// Everything that finds the cluster serves it, and follows it when a member is replaced.
async fn serves_and_follows(found: &mut Found, ports: &[(u16, u16)], flags: &[String]) {
    found.until_complete().await;
    let (mut process, through_surplus, folder) = surplus(flags);
    let access = Access::start(flags);
    access.until_read().await;
    access.until_endpoints("registered members", 3).await;
    until_read("a read through the surplus member", &through_surplus).await;
    let put = PutRequest { key: "by-surplus".into(), ..Default::default() };
    through_surplus.kv().put(put).await.expect("a write");
    assert!(!folder.path().join("data-9/member").exists(), "a proxy has no data of a member");
    let (_new, new_port) = replace_first(found, ports).await;
    for process in access.processes.iter().chain([&process]) {
        until_changed(process, &format!("+127.0.0.1:{new_port}"), &format!("-127.0.0.1:{}", ports[0].0)).await;
    }
    // None of those that were registered is left but the one.
    found.processes[2].kill();
    access.until_read().await;
    until_read("a read through the surplus member", &through_surplus).await;
    process.terminate();
    assert!(process.wait(Duration::from_secs(60)).success());
}

#[test]
fn all_of_the_tier_finds_a_cluster_by_its_url() {
    if is_stock() {
        return;
    }
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let registry = Registry::start(deployment, &[]).await;
        let token = registry.token(3).await;
        let (flags, ports) = (registry.flags(&token), ports());
        let mut found = Found::start(&ports, &flags);
        serves_and_follows(&mut found, &ports, &flags).await;
    });
}

#[test]
fn members_that_are_known_are_found_without_their_registry() {
    // Cause: each attempt asked the registry first, for ever when it did not answer any more.
    if is_stock() {
        return;
    }
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let registry = Registry::start(deployment, &[]).await;
        let (token, ports) = (registry.token(1).await, (free_port(), free_port()));
        let url = format!("http://localhost:{}", ports.1);
        let entry = registry.ask("PUT", &format!("{token}/77?prevExist=false&value=m0={url}")).await;
        assert_eq!(entry.status, 201, "{entry:?}");
        let access = Access::start(&registry.flags(&token));
        let message = "no member of the cluster answers yet";
        for process in &access.processes {
            until("an attempt", async || process.output().contains(message).then_some(())).await;
        }
        drop(registry);
        let folder = TempDir::new().expect("temporary directory");
        let args = [member_flags(0, ports), vec![format!("--initial-cluster=m0={url}")]].concat();
        let _member = Process::start(&server_binary(), &args, folder.path(), "m0");
        let direct = client(&format!("127.0.0.1:{}", ports.0));
        let put = PutRequest { key: "k".into(), ..Default::default() };
        until("a write", async || direct.kv().put(put.clone()).await.ok()).await;
        access.until_read().await;
    });
}

/// Starts the surplus member again, as it was started before.
fn again(folder: &TempDir, ports: (u16, u16), flags: &[String], name: &str) -> Process {
    let args = [member_flags(9, ports), flags.to_vec(), vec!["--discovery-fallback=proxy".to_owned()]].concat();
    Process::start(&server_binary(), &args, folder.path(), name)
}

#[test]
fn a_surplus_member_starts_again_after_its_token_has_ended_and_never_for_another_cluster() {
    if is_stock() {
        return;
    }
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let registry = Registry::start(deployment, &[]).await;
        let token = registry.token(1).await;
        let (flags, member, own) = (registry.flags(&token), (free_port(), free_port()), (free_port(), free_port()));
        let folder = TempDir::new().expect("temporary directory");
        let start = |flags: &[String], name: &str| {
            let args = [member_flags(0, member), flags.to_vec()].concat();
            Process::start(&server_binary(), &args, folder.path(), name)
        };
        let mut first = start(&flags, "m0");
        let direct = client(&format!("127.0.0.1:{}", member.0));
        let put = PutRequest { key: "k".into(), ..Default::default() };
        until("a write", async || direct.kv().put(put.clone()).await.ok()).await;
        let through = client(&format!("127.0.0.1:{}", own.0));
        let mut surplus = again(&folder, own, &flags, "surplus");
        until_read("a read through the surplus member", &through).await;
        let kept = folder.path().join("data-9/proxy/cluster");
        until("the file", async || kept.exists().then_some(())).await;
        assert!(!std::fs::read_to_string(&kept).expect("readable").contains(&token[1..]), "a token is a secret");
        surplus.kill();

        // The token ends.
        let (key, range_end) = KeyRange::prefix(format!("/_etcd/registry{token}/").into()).to_wire();
        let delete = DeleteRangeRequest { key, range_end, ..Default::default() };
        client(&deployment.member).kv().delete_range(delete).await.expect("deleted");
        let mut surplus = again(&folder, own, &flags, "again");
        until_read("a read after the token has ended", &through).await;
        let output = surplus.output();
        assert!(output.contains("the registry does not know the token any more"), "{output}");
        surplus.kill();
        // What was kept is of that token alone.
        let mut other = again(&folder, own, &registry.flags("/unknown"), "other");
        assert_eq!(other.wait(Duration::from_secs(60)).code(), Some(1));
        assert!(other.output().contains("discovery: size key not found"), "{}", other.output());

        // Another cluster has the ports of the first one.
        first.kill();
        std::fs::remove_dir_all(folder.path().join("data-0")).expect("removed");
        let _second = start(&["--initial-cluster-token=second".to_owned()], "second");
        until("the second cluster", async || direct.kv().put(put.clone()).await.ok()).await;
        let surplus = again(&folder, own, &flags, "careful");
        until("a refusal", async || surplus.output().contains("a peer is of another cluster").then_some(())).await;
        assert!(tokio::net::TcpStream::connect(("127.0.0.1", own.0)).await.is_err(), "it serves nobody");
    });
}

#[test]
fn all_of_the_tier_finds_a_cluster_by_its_token() {
    if is_stock() {
        return;
    }
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("/_etcd/registry/t/_config/size", "3").await;
        let flags =
            vec!["--discovery-token=t".to_owned(), format!("--discovery-endpoints=http://{}", deployment.member)];
        let ports = ports();
        let mut found = Found::start(&ports, &flags);
        serves_and_follows(&mut found, &ports, &flags).await;
    });
}

#[test]
fn all_of_the_tier_follows_a_member_that_is_replaced_in_srv_records() {
    if is_stock() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let (dns, ports) = (DnsServer::start(), ports());
        let put = |service: &str, ports: &[u16]| {
            let records: Vec<_> = ports.iter().map(|port| (0, 0, *port)).collect();
            dns.put(&format!("_etcd-{service}._tcp.example.test"), "localhost", &records);
        };
        put("server", &ports.map(|ports| ports.1));
        // Two members only, so that there is one more that neither knows before the change.
        put("client", &[ports[0].0, ports[1].0]);
        let srv = vec!["--discovery-srv=example.test".to_owned(), format!("--discovery-dns={}", dns.address)];
        let mut found = Found::start(&ports, &srv);
        found.until_complete().await;
        // A member that no record names becomes a proxy.
        let (beyond, through_surplus, _kept) = surplus(&srv);
        let access = Access::start(&[srv, vec!["--insecure-discovery".to_owned()]].concat());
        access.until_read().await;
        until_read("a read through the surplus member", &through_surplus).await;
        access.until_endpoints("DNS SRV", 2).await;
        let (_new, new_port) = replace_first(&mut found, &ports).await;
        put("client", &[new_port, ports[2].0]);
        for process in &access.processes {
            until_changed(process, &format!("+localhost:{new_port}"), &format!("-localhost:{}", ports[0].0)).await;
        }
        // It asks the members themselves.
        until_changed(&beyond, &format!("+127.0.0.1:{new_port}"), &format!("-127.0.0.1:{}", ports[0].0)).await;
        // None of those that the records named at first is left.
        found.processes[1].kill();
        access.until_read().await;
        until_read("a read through the surplus member", &through_surplus).await;
    });
}

#[test]
fn all_of_the_tier_finds_a_cluster_with_tls_in_srv_records() {
    if is_stock() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let (dns, ports, certificates) = (DnsServer::start(), ports(), Certificates::new(&[]));
        let records = |port: fn(&(u16, u16)) -> u16, members: &[usize]| -> Vec<_> {
            members.iter().map(|member| (0, 0, port(&ports[*member]))).collect()
        };
        dns.put("_etcd-server-ssl._tcp.example.test", "localhost", &records(|ports| ports.1, &[0, 1, 2]));
        dns.put("_etcd-client-ssl._tcp.example.test", "localhost", &records(|ports| ports.0, &[0, 1]));
        let srv = ["--discovery-srv=example.test".to_owned(), format!("--discovery-dns={}", dns.address)];
        let tls = [certificates.client_flags(), certificates.peer_flags()].concat();
        let member = |number: usize, ports: (u16, u16)| {
            let plain = [member_flags(number, ports), srv.to_vec(), tls.clone()].concat();
            plain.into_iter().map(|flag| flag.replace("=http://", "=https://")).collect::<Vec<_>>()
        };
        let folder = TempDir::new().expect("temporary directory");
        let start = |number: usize, ports: (u16, u16), more: &[String]| {
            let args = [member(number, ports), more.to_vec()].concat();
            Process::start(&server_binary(), &args, folder.path(), &format!("m{number}"))
        };
        let mut members: Vec<_> = (0..3).map(|number| start(number, ports[number], &[])).collect();
        let secure = |address: String| {
            let endpoint = format!("https://{address}").parse().expect("an endpoint");
            let tls = Some(certificates.tls("nameless"));
            Client::connect(ClientConfig { tls, ..ClientConfig::new([endpoint]) }).expect("a client")
        };
        let direct = secure(format!("127.0.0.1:{}", ports[0].0));
        until("a write", async || direct.kv().put(PutRequest { key: "k".into(), ..Default::default() }).await.ok())
            .await;
        // A member that no record names.
        let other = (free_port(), free_port());
        let _surplus = start(9, other, &["--discovery-fallback=proxy".to_owned()]);
        until_read("a read through the surplus member", &secure(format!("127.0.0.1:{}", other.0))).await;
        let (gateway, proxy) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let [ca, _, _] = certificates.dial_flags().try_into().expect("three flags");
        let (pages, proxy_pages) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let own = [
            format!("--listen-addr={gateway}"),
            format!("--metrics-addr={pages}"),
            ca.replace("--cacert", "--trusted-ca-file"),
        ];
        let args = [vec!["gateway".to_owned(), "start".to_owned()], own.to_vec(), srv.to_vec()].concat();
        let _gateway = Process::start(&own_binary(), &args, folder.path(), "gateway");
        let listen = vec![format!("--listen-addr={proxy}"), format!("--metrics-addr=http://{proxy_pages}")];
        let own = [listen, certificates.dial_flags()].concat();
        let args = [vec!["grpc-proxy".to_owned(), "start".to_owned()], own, srv.to_vec()].concat();
        let _proxy = Process::start(&own_binary(), &args, folder.path(), "proxy");
        let clients = [secure(gateway), client(&proxy)];
        for client in &clients {
            until_read("a read", client).await;
        }
        // The records name the third member alone; the second keeps the quorum.
        dns.put("_etcd-client-ssl._tcp.example.test", "localhost", &records(|ports| ports.0, &[2]));
        until_endpoints(&pages, "/metrics", "DNS SRV", 1).await;
        until_endpoints(&proxy_pages, "/proxy/metrics", "DNS SRV", 1).await;
        members[0].kill();
        for client in &clients {
            until_read("a read after the change", client).await;
        }
    });
}
