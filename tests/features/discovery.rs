//! Endpoints that SRV records name, with a DNS server whose answers the tests change.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use rcgen::SanType;
use tempfile::TempDir;
use tokio::sync::watch;
use watershed::client::{Client, ClientConfig, Endpoint};
use watershed::config::SrvConfig;
use watershed::discovery::{Discovery, EndpointSet, Origin, SrvError, SrvRecords, find_endpoints};
use watershed::net::{Alpn, ClientTls, ClientTlsConfig};
use watershed::pb::etcdserverpb::{PutRequest, RangeRequest};
use watershed::shutdown::Tasks;

use super::auth::{FLAGS, enable};
use crate::harness::{
    Authority, Deployment, DnsServer, Process, Target, client_tls, free_port, http_get, own_binary, run, server_binary,
    soon, until,
};

const DOMAIN: &str = "example.test";
const PLAIN: &str = "_etcd-client._tcp.example.test";
const TLS: &str = "_etcd-client-ssl._tcp.example.test";

fn config(dns: &DnsServer, insecure: bool) -> SrvConfig {
    let server = dns.address.to_string();
    SrvConfig::from_flags(DOMAIN, "", insecure, &server).expect("valid").expect("a domain")
}

fn system_tls() -> ClientTls {
    ClientTls::new(&ClientTlsConfig::new(Alpn::H2)).expect("usable")
}

async fn records(dns: &DnsServer, tasks: &Tasks) -> Result<SrvRecords, SrvError> {
    SrvRecords::start(&config(dns, true), system_tls(), tasks).await
}

/// `host:port priority weight addresses` of each endpoint.
fn words(set: &EndpointSet) -> Vec<String> {
    let word = |listed: &watershed::discovery::ListedEndpoint| {
        assert_eq!(listed.origin, Origin::Srv);
        let addresses = listed.endpoint.addresses().expect("looked up").iter().map(ToString::to_string);
        let addresses: Vec<_> = addresses.collect();
        format!("{} {} {} {}", listed.endpoint, listed.priority, listed.weight, addresses.join(","))
    };
    set.iter().map(word).collect()
}

/// Waits for a set of these words.
async fn becomes(sets: &mut watch::Receiver<EndpointSet>, expected: &[&str]) {
    soon("the set", sets.wait_for(|set| words(set) == expected)).await.expect("the source is there");
}

/// Waits until the source has failed once more.
async fn fails_again(source: &SrvRecords) {
    let before = source.status().failures();
    until("a failure", async || (source.status().failures() > before).then_some(())).await;
}

fn on_runtime(test: impl AsyncFnOnce()) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(test());
}

#[test]
fn priorities_weights_and_all_addresses_are_read() {
    on_runtime(async || {
        let (dns, tasks) = (DnsServer::start(), Tasks::new());
        dns.change(|zone| {
            let record = |priority, weight, port, host: &str| (priority, weight, port, host.to_owned());
            let records = vec![
                record(20, 1, 1, "c.example.test"),
                record(10, 7, 1, "B.example.test"),
                record(10, 5, 1, "a.example.test"),
                // One endpoint in two records has the better one.
                record(30, 0, 1, "a.example.test"),
                // "No such service", and a host without an address.
                record(0, 0, 0, ""),
                record(0, 0, 1, "unknown.example.test"),
            ];
            zone.services.insert(PLAIN.to_owned(), records);
            for (host, addresses) in [("a", "127.0.0.2,127.0.0.1"), ("b", "::1"), ("c", "127.0.0.3,::1")] {
                let addresses = addresses.split(',').map(|address| address.parse().expect("an address"));
                zone.addresses.insert(format!("{host}.example.test"), addresses.collect());
            }
        });
        let source = records(&dns, &tasks).await.expect("endpoints");
        let expected = [
            "a.example.test:1 10 5 127.0.0.1,127.0.0.2",
            "b.example.test:1 10 7 ::1",
            "c.example.test:1 20 1 127.0.0.3,::1",
        ];
        assert_eq!(words(&source.endpoints().borrow()), expected);
        tasks.stop();
    });
}

#[test]
fn an_answer_that_was_cut_is_asked_for_by_tcp() {
    on_runtime(async || {
        let (dns, tasks) = (DnsServer::start(), Tasks::new());
        let targets: Vec<_> = (1..=200).map(|port| (0, 0, port)).collect();
        dns.put(PLAIN, "a.example.test", &targets);
        dns.change(|zone| zone.truncates = true);
        let source = records(&dns, &tasks).await.expect("endpoints");
        assert_eq!(source.endpoints().borrow().len(), 200);
        assert!(dns.change(|zone| zone.asked_by_tcp) > 0);
        tasks.stop();
    });
}

#[test]
fn the_set_follows_the_records_and_outlives_their_failures() {
    on_runtime(async || {
        let (dns, tasks) = (DnsServer::start(), Tasks::new());
        dns.put(PLAIN, "a.example.test", &[(0, 0, 1)]);
        // No time at all is a second.
        dns.change(|zone| zone.ttl = 0);
        let source = records(&dns, &tasks).await.expect("endpoints");
        let mut sets = source.endpoints();
        becomes(&mut sets, &["a.example.test:1 0 0 127.0.0.1"]).await;
        dns.put(PLAIN, "a.example.test", &[(0, 0, 2)]);
        becomes(&mut sets, &["a.example.test:2 0 0 127.0.0.1"]).await;
        // The host moves.
        dns.change(|zone| {
            let moved = vec!["127.0.0.9".parse().expect("an address")];
            zone.addresses.insert("a.example.test".to_owned(), moved)
        });
        becomes(&mut sets, &["a.example.test:2 0 0 127.0.0.9"]).await;
        // No such name; then a server that fails.
        let gone = dns.change(|zone| zone.services.remove(PLAIN)).expect("records");
        fails_again(&source).await;
        dns.change(|zone| zone.failing.extend([PLAIN, TLS].map(str::to_owned)));
        fails_again(&source).await;
        assert_eq!(words(&sets.borrow()), ["a.example.test:2 0 0 127.0.0.9"]);
        // The addresses fail alone: the last ones count for the host that is known.
        dns.change(|zone| {
            zone.failing = BTreeSet::from(["a.example.test".to_owned()]);
            let records = gone.into_iter().map(|(priority, _, port, host)| (priority, 3, port, host));
            zone.services.insert(PLAIN.to_owned(), records.collect());
        });
        becomes(&mut sets, &["a.example.test:2 0 3 127.0.0.9"]).await;
        tasks.stop();
    });
}

#[test]
fn endpoints_with_and_without_tls_are_never_in_one_set() {
    on_runtime(async || {
        let (dns, tasks) = (DnsServer::start(), Tasks::new());
        dns.put(PLAIN, "a.example.test", &[(0, 0, 1)]);
        dns.put(TLS, "a.example.test", &[(5, 0, 2)]);
        let source = records(&dns, &tasks).await.expect("endpoints");
        let secure = |set: &EndpointSet| set.iter().map(|listed| listed.endpoint.uses_tls(false)).collect::<Vec<_>>();
        assert_eq!(secure(&source.endpoints().borrow()), [true]);
        // The others do not take their place, whatever DNS says.
        dns.change(|zone| zone.services.remove(TLS));
        fails_again(&source).await;
        assert_eq!(secure(&source.endpoints().borrow()), [true]);
        // At a start they do where they are accepted, and where it is certain that there are no others.
        let found = find_endpoints(&config(&dns, true)).await.expect("endpoints");
        assert_eq!(found.iter().map(|endpoint| endpoint.uses_tls(true)).collect::<Vec<_>>(), [false]);
        let refused = find_endpoints(&config(&dns, false)).await.expect_err("not accepted");
        assert!(refused.to_string().contains("--insecure-discovery"), "{refused}");
        dns.change(|zone| zone.failing.insert(TLS.to_owned()));
        let refused = find_endpoints(&config(&dns, true)).await.expect_err("not certain");
        assert!(refused.to_string().contains("Server Failure"), "{refused}");
        tasks.stop();
    });
}

/// What a mode is told of DNS.
fn srv_flags(dns: &DnsServer) -> Vec<String> {
    vec![format!("--discovery-srv={DOMAIN}"), format!("--discovery-dns={}", dns.address)]
}

#[test]
fn where_nothing_is_found_nothing_starts() {
    let (dns, folder) = (DnsServer::start(), TempDir::new().expect("temporary directory"));
    for words in ["gateway start", "grpc-proxy start", "ctl get k", "bench put --total=1"] {
        let mut args: Vec<String> = words.split(' ').map(str::to_owned).collect();
        args.extend(srv_flags(&dns));
        let mut process = Process::start(&own_binary(), &args, folder.path(), &words.replace(' ', "-"));
        assert_eq!(process.wait(Duration::from_secs(60)).code(), Some(1), "{words}");
        let output = process.output();
        for part in ["--discovery-srv=example.test", PLAIN, TLS, "NXDOMAIN"] {
            assert!(output.contains(part), "{words}: no {part:?} in {output}");
        }
        assert!(!output.contains("127.0.0.1:2379"), "{output}");
    }
}

#[test]
fn every_mode_finds_the_cluster_by_its_domain() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let dns = DnsServer::start();
        let port = deployment.member.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        dns.put(PLAIN, "m.example.test", &[(0, 0, port)]);
        let flags = srv_flags(&dns);
        let tool = |words: &str| {
            let mut args: Vec<String> = words.split(' ').map(str::to_owned).collect();
            args.extend(flags.clone());
            let mut process =
                Process::start(&own_binary(), &args, &deployment.data_dir(), words.split(' ').next().expect("a word"));
            assert!(process.wait(Duration::from_secs(60)).success(), "{words}: {}", process.output());
            process.output()
        };
        assert!(tool("ctl put k v").ends_with("OK\n"));
        assert!(tool("ctl endpoint health").contains(&format!("http://m.example.test:{port} is healthy")));
        tool("bench put --total=1");
        for mode in ["gateway", "grpc-proxy"] {
            let listen = format!("127.0.0.1:{}", free_port());
            let pages = format!("127.0.0.1:{}", free_port());
            let metrics = if mode == "gateway" { pages.clone() } else { format!("http://{pages}") };
            let mut args = vec![mode.to_owned(), "start".to_owned(), "--insecure-discovery".to_owned()];
            args.extend([format!("--listen-addr={listen}"), format!("--metrics-addr={metrics}")]);
            args.extend(flags.clone());
            let process = Process::start(&own_binary(), &args, &deployment.data_dir(), mode);
            let client = crate::harness::client(&listen);
            until("a read", async || {
                let request = RangeRequest { key: "k".into(), ..Default::default() };
                client.kv().range(request).await.ok()
            })
            .await;
            let path = if mode == "gateway" { "/metrics" } else { "/proxy/metrics" };
            let page = http_get(&pages, "GET", path).await.expect("an answer").body;
            assert!(page.contains("watershed_discovery_endpoints{source=\"DNS SRV\"} 1"), "{}", process.output());
        }
    });
}

/// A member with TLS, whose certificate is also valid for this name.
fn member_with_tls(folder: &Path, authority: &Authority, name: &str, port: u16) -> Process {
    authority.sign("server", |params| {
        params.subject_alt_names.push(SanType::DnsName(name.try_into().expect("a name")));
    });
    let file = |name: &str| folder.join(name).display().to_string();
    let peers = format!("http://127.0.0.1:{}", free_port());
    let args = [
        "--name=m".to_owned(),
        format!("--data-dir={}", file("data")),
        format!("--listen-client-urls=https://127.0.0.1:{port}"),
        format!("--advertise-client-urls=https://127.0.0.1:{port}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=m={peers}"),
        format!("--cert-file={}", file("server.crt")),
        format!("--key-file={}", file("server.key")),
    ];
    Process::start(&server_binary(), &args, folder, "member")
}

#[test]
fn an_endpoint_has_to_show_its_certificate() {
    on_runtime(async || {
        let (dns, tasks, folder) = (DnsServer::start(), Tasks::new(), TempDir::new().expect("temporary directory"));
        let (authority, port) = (Authority::new(folder.path(), "ca"), free_port());
        let _member = member_with_tls(folder.path(), &authority, "m.example.test", port);
        let tls = client_tls(folder.path(), None);
        let endpoint: Endpoint = format!("https://127.0.0.1:{port}").parse().expect("an endpoint");
        let client = Client::connect(ClientConfig { tls: Some(tls.clone()), ..ClientConfig::new([endpoint]) });
        let client = client.expect("a client");
        until("the start", async || client.kv().put(PutRequest { key: "k".into(), ..Default::default() }).await.ok())
            .await;
        // What listens there speaks no TLS: a connection alone proves nothing.
        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let other_port = silent.local_addr().expect("bound").port();
        std::thread::spawn(move || silent.incoming().flatten().for_each(drop));
        dns.put(TLS, "m.example.test", &[(0, 0, port), (0, 0, other_port)]);
        let source = SrvRecords::start(&config(&dns, false), tls.clone(), &tasks).await.expect("endpoints");
        assert_eq!(words(&source.endpoints().borrow()), [format!("m.example.test:{port} 0 0 127.0.0.1")]);
        // DNS names the right address under a name that the certificate does not have.
        dns.put(TLS, "stranger.test", &[(0, 0, port)]);
        let refused = SrvRecords::start(&config(&dns, false), tls.clone(), &tasks).await.expect_err("another name");
        assert!(
            refused.to_string().contains("stranger.test, not") || refused.to_string().contains("not stranger.test"),
            "{refused}"
        );
        // The name of the domain serves as well, and connections ask for it.
        let domain = SrvConfig { domain: "m.example.test".to_owned(), ..config(&dns, false) };
        dns.put("_etcd-client-ssl._tcp.m.example.test", "stranger.test", &[(0, 0, port)]);
        let source = SrvRecords::start(&domain, tls.clone(), &tasks).await.expect("endpoints");
        let endpoint = source.endpoints().borrow()[0].endpoint.clone();
        assert_eq!((endpoint.host(), endpoint.server_name()), ("stranger.test", "m.example.test"));
        let client =
            Client::connect(ClientConfig { tls: Some(tls), ..ClientConfig::new([endpoint]) }).expect("a client");
        let request = RangeRequest { key: "k".into(), ..Default::default() };
        assert_eq!(client.kv().range(request).await.expect("a read").into_inner().count, 1);
        tasks.stop();
    });
}

#[test]
fn sighup_has_a_proxy_ask_for_the_member_list_at_once() {
    member_list_at_sighup("grpc-proxy");
}

#[test]
fn sighup_has_a_gateway_ask_for_the_member_list_at_once() {
    member_list_at_sighup("gateway");
}

fn member_list_at_sighup(mode: &str) {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (listen, port) =
            (format!("127.0.0.1:{}", free_port()), deployment.member.rsplit(':').next().expect("a port"));
        let args = [
            mode.to_owned(),
            "start".to_owned(),
            format!("--endpoints=localhost:{port}"),
            format!("--listen-addr={listen}"),
            "--endpoints-auto-sync-interval=1h".to_owned(),
        ];
        let process = Process::start(&own_binary(), &args, deployment.folder.path(), mode);
        let client = Client::connect(ClientConfig::new([listen.parse().expect("an endpoint")])).expect("a client");
        let read = RangeRequest { key: "k".into(), ..Default::default() };
        until("a read", async || client.kv().range(read.clone()).await.ok()).await;
        process.signal(rustix::process::Signal::HUP);
        until("the member list", async || {
            let output = process.output();
            let asked = output.contains("endpoints are asked for again") && output.contains("\"member list\"");
            (asked && output.contains(&format!("-localhost:{port}"))).then_some(())
        })
        .await;
        until("a read", async || client.kv().range(read.clone()).await.ok()).await;
    });
}

#[test]
fn proxy_and_gateway_read_the_member_list_as_a_user_of_their_own() {
    // Cause: it was read as nobody, which a cluster with users refuses.
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        enable(deployment).await;
        let port = deployment.member.rsplit(':').next().expect("a port");
        for (mode, user) in [("grpc-proxy", "--user=root:root"), ("gateway", "--resolver-user=root:root")] {
            let args = [
                mode.to_owned(),
                "start".to_owned(),
                format!("--endpoints=localhost:{port}"),
                format!("--listen-addr=127.0.0.1:{}", free_port()),
                "--endpoints-auto-sync-interval=100ms".to_owned(),
                user.to_owned(),
            ];
            let process = Process::start(&own_binary(), &args, deployment.folder.path(), mode);
            let removed = format!("-localhost:{port}");
            until("the member list", async || process.output().contains(&removed).then_some(())).await;
        }
    });
}
