//! TLS of every listener and every dial, with certificates made here.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use rcgen::{SerialNumber, date_time_ymd};
use tempfile::TempDir;
use watershed::client::{Client, ClientConfig, Endpoint};
use watershed::net::{ClientTls, ClientTlsConfig};
use watershed::pb::etcdserverpb::{PutRequest, RangeRequest};

use crate::harness::{Authority, Process, client_tls, free_port, https, server_binary, until};

const REVOKED: u64 = 77;

/// The folder of everything, and the authorities of the deployment and of a stranger.
fn certificates() -> (TempDir, Authority) {
    let folder = TempDir::new().expect("temporary directory");
    let (ours, other) = (Authority::new(folder.path(), "ca"), Authority::new(folder.path(), "other-ca"));
    ours.sign("server", |_| {});
    ours.sign_user("good", "somebody");
    ours.sign("nameless", |_| {});
    ours.sign("expired", |params| params.not_after = date_time_ymd(2020, 1, 1));
    ours.sign("revoked", |params| params.serial_number = Some(SerialNumber::from(REVOKED)));
    other.sign("stranger", |_| {});
    ours.revoke(REVOKED);
    (folder, ours)
}

fn client(endpoint: &str, tls: Option<ClientTls>) -> Client {
    let endpoint: Endpoint = endpoint.parse().expect("an endpoint");
    let dial_timeout = Duration::from_secs(2);
    Client::connect(ClientConfig { tls, dial_timeout, ..ClientConfig::new([endpoint]) }).expect("a client")
}

async fn read(client: &Client) -> Result<(), String> {
    let request = RangeRequest { key: "k".into(), ..Default::default() };
    client.kv().range(request).await.map(drop).map_err(|status| status.message().to_owned())
}

/// The status of the answer to a GET, and its text.
async fn http(endpoint: &str, tls: Option<&ClientTls>, path: &str) -> Result<(u16, String), String> {
    https(endpoint, tls, "GET", path, "").await
}

/// Where a deployment with TLS on everything listens.
struct Secured {
    client: String,
    metrics: String,
    peer: String,
    proxy: String,
    proxy_metrics: String,
    gateway: String,
    processes: Vec<Process>,
}

fn loopback() -> String {
    format!("127.0.0.1:{}", free_port())
}

impl Secured {
    async fn start(folder: &Path) -> Self {
        let file = |name: &str| folder.join(name).display().to_string();
        let [client, metrics, peer, proxy, proxy_metrics, gateway] = std::array::from_fn(|_| loopback());
        let member = [
            "--name=m".to_owned(),
            format!("--data-dir={}", file("data")),
            format!("--listen-client-urls=https://{client}"),
            format!("--advertise-client-urls=https://{client}"),
            format!("--listen-metrics-urls=https://{metrics}"),
            format!("--listen-peer-urls=https://{peer}"),
            format!("--initial-advertise-peer-urls=https://{peer}"),
            format!("--initial-cluster=m=https://{peer}"),
            format!("--cert-file={}", file("server.crt")),
            format!("--key-file={}", file("server.key")),
            format!("--trusted-ca-file={}", file("ca")),
            format!("--client-crl-file={}", file("crl")),
            format!("--peer-cert-file={}", file("server.crt")),
            format!("--peer-key-file={}", file("server.key")),
            format!("--peer-trusted-ca-file={}", file("ca")),
            format!("--peer-crl-file={}", file("crl")),
        ];
        let in_front = [
            "grpc-proxy".to_owned(),
            "start".to_owned(),
            format!("--endpoints=https://{client}"),
            format!("--listen-addr={proxy}"),
            format!("--metrics-addr=https://{proxy_metrics}"),
            format!("--cacert={}", file("ca")),
            format!("--cert={}", file("nameless.crt")),
            format!("--key={}", file("nameless.key")),
            format!("--cert-file={}", file("server.crt")),
            format!("--key-file={}", file("server.key")),
            format!("--trusted-ca-file={}", file("ca")),
            format!("--client-crl-file={}", file("crl")),
        ];
        let passing = [
            "gateway".to_owned(),
            "start".to_owned(),
            format!("--endpoints=https://{client}"),
            format!("--listen-addr={gateway}"),
        ];
        let processes = vec![
            Process::start(&server_binary(), &member, folder, "member"),
            Process::start(&server_binary(), &in_front, folder, "proxy"),
            Process::start(&server_binary(), &passing, folder, "gateway"),
        ];
        let secured = Self { client, metrics, peer, proxy, proxy_metrics, gateway, processes };
        for endpoint in [&secured.client, &secured.proxy, &secured.gateway] {
            let client = self::client(endpoint, Some(client_tls(folder, Some("good"))));
            until("the start", || async { read(&client).await.ok() }).await;
        }
        secured
    }
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(480), test()).await.expect("in time") });
}

#[test]
fn every_listener_serves_verified_clients_only() {
    run(async || {
        let (folder, _authority) = certificates();
        let folder = folder.path();
        let secured = Secured::start(folder).await;
        // What the client shows, and what a refused one is told.
        let kinds = BTreeMap::from([
            ("good", None),
            ("plain", Some("client sent a plain request to a port that speaks TLS")),
            ("none", Some("remote error: tls: certificate required")),
            ("stranger", Some("remote error: tls: unknown certificate authority")),
            ("expired", Some("remote error: tls: expired certificate")),
            ("revoked", Some("remote error: tls: revoked certificate")),
        ]);
        let http_listeners = [
            ("client", &secured.client, "/version"),
            ("metrics", &secured.metrics, "/health"),
            ("peer", &secured.peer, "/members"),
            ("proxy", &secured.proxy, "/proxy/health"),
            ("proxy metrics", &secured.proxy_metrics, "/metrics"),
            ("gateway", &secured.gateway, "/version"),
        ];
        let grpc_listeners = [("client", &secured.client), ("proxy", &secured.proxy), ("gateway", &secured.gateway)];
        let tls_of = |kind: &str| match kind {
            "plain" => None,
            "none" => Some(client_tls(folder, None)),
            name => Some(client_tls(folder, Some(name))),
        };
        let mut over_http = Vec::new();
        let mut over_grpc = Vec::new();
        for (&kind, &refusal) in &kinds {
            for (listener, endpoint, path) in http_listeners {
                over_http.push(async move {
                    let answer = http(endpoint, tls_of(kind).as_ref(), path).await;
                    match (refusal, answer) {
                        (None, Ok((200, _))) => {}
                        (Some(text), Ok((400, said))) if kind == "plain" && said.contains(text) => {}
                        (Some(text), Err(said)) if kind != "plain" && said.contains(text) => {}
                        (_, answer) => panic!("{kind} at {listener} over HTTP/1.1: {answer:?}"),
                    }
                });
            }
            for (listener, endpoint) in grpc_listeners {
                over_grpc.push(async move {
                    let answer = read(&client(endpoint, tls_of(kind))).await;
                    match (refusal, answer) {
                        (None, Ok(())) => {}
                        (Some(text), Err(said)) if kind == "plain" || said.contains(text) => {}
                        (_, answer) => panic!("{kind} at {listener} over gRPC: {answer:?}"),
                    }
                });
            }
        }
        join_all(over_http).await;
        join_all(over_grpc).await;
        let log = secured.processes[0].output();
        for line in ["rejected connection on client endpoint", "rejected connection on peer endpoint"] {
            assert!(log.contains(line), "{line}:\n{log}");
        }
        assert!(log.contains("tls: first record does not look like a TLS handshake"), "{log}");
        assert!(log.contains("serving client traffic securely"), "{log}");
    });
}

#[test]
fn renewed_files_are_taken_up_while_connections_stay() {
    run(async || {
        let (folder, authority) = certificates();
        let folder = folder.path();
        let secured = Secured::start(folder).await;
        let [old, through] =
            [&secured.client, &secured.proxy].map(|endpoint| client(endpoint, Some(client_tls(folder, Some("good")))));
        let put = async |client: &Client| {
            let request = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
            client.kv().put(request).await.map(drop).expect("no request is lost")
        };
        let shown = async |endpoint: &str| {
            let stream = tokio::net::TcpStream::connect(endpoint).await.expect("connected");
            let dialed = client_tls(folder, Some("good")).connect("127.0.0.1", stream).await.expect("a handshake");
            dialed.certificates()[0].to_vec()
        };
        let listeners = [&secured.client, &secured.metrics, &secured.peer, &secured.proxy, &secured.proxy_metrics];
        let mut before = Vec::new();
        for endpoint in listeners {
            before.push(shown(endpoint).await);
        }
        put(&old).await;
        for round in 0..3 {
            authority.sign("server", |_| {});
            authority.sign("nameless", |_| {});
            for _ in 0..20 {
                tokio::join!(put(&old), put(&through));
            }
            for (endpoint, before) in listeners.into_iter().zip(&mut before) {
                let now = shown(endpoint).await;
                assert_ne!(now, *before, "round {round}");
                *before = now;
            }
        }
        // The list counts for new connections, without a restart.
        assert_eq!(
            http(&secured.client, Some(&client_tls(folder, Some("good"))), "/version").await.map(|(code, _)| code),
            Ok(200)
        );
        authority.sign("good", |params| params.serial_number = Some(SerialNumber::from(REVOKED)));
        for endpoint in listeners {
            let refused = http(endpoint, Some(&client_tls(folder, Some("good"))), "/version").await;
            assert_eq!(refused, Err("remote error: tls: revoked certificate".to_owned()));
        }
        put(&old).await;
        let log = secured.processes[0].output();
        assert!(!log.contains("PRIVATE KEY"), "{log}");
    });
}

#[test]
fn one_port_serves_both_kinds_of_urls_and_certificates_are_made() {
    run(async || {
        let folder = TempDir::new().expect("temporary directory");
        let (folder, client_port, peer) = (folder.path(), loopback(), loopback());
        let socket = folder.join("etcd.sock:1");
        let unix = format!("unix://{}", socket.display());
        let data = folder.join("data");
        let args = [
            "--name=m".to_owned(),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls=http://{client_port},https://{client_port},{unix}"),
            format!("--advertise-client-urls=https://{client_port}"),
            format!("--listen-peer-urls=https://{peer}"),
            format!("--initial-advertise-peer-urls=https://{peer}"),
            format!("--initial-cluster=m=https://{peer}"),
            "--auto-tls".to_owned(),
            "--peer-auto-tls".to_owned(),
        ];
        let start = || Process::start(&server_binary(), &args, folder, "member");
        let mut member = start();
        let skip = ClientTlsConfig::from_flags("", "", "", true).expect("a flag").expect("given");
        let skip = || ClientTls::new(&skip).expect("usable");
        let clients = [
            client(&format!("http://{client_port}"), None),
            client(&format!("https://{client_port}"), Some(skip())),
            client(&unix, None),
        ];
        for client in &clients {
            until("an answer", || async { read(client).await.ok() }).await;
        }
        let plain = http(&format!("http://{client_port}"), None, "/version").await.expect("an answer");
        let secure = http(&client_port, Some(&skip()), "/version").await.expect("an answer");
        assert_eq!((plain.0, secure.0), (200, 200));
        // Unless it is told otherwise, a client verifies.
        let untrusted = read(&client(&format!("https://{client_port}"), None)).await.expect_err("not trusted");
        assert!(untrusted.contains("certificate signed by unknown authority"), "{untrusted}");
        let certificate = data.join("fixtures").join("client").join("cert.pem");
        let made = std::fs::read(&certificate).expect("made");
        assert!(data.join("fixtures").join("peer").join("key.pem").exists());
        member.kill();
        member = start();
        until("an answer", || async { read(&clients[1]).await.ok() }).await;
        assert_eq!(std::fs::read(&certificate).expect("kept"), made);
        member.terminate();
        member.wait(Duration::from_secs(60));
        assert!(!socket.exists(), "the socket is removed at the end");
    });
}

#[test]
fn certificates_that_cannot_be_used_stop_the_start() {
    let (folder, _authority) = certificates();
    let folder = folder.path();
    let key = std::fs::read_to_string(folder.join("server.key")).expect("there");
    std::fs::write(folder.join("encrypted.key"), key.replace("PRIVATE", "ENCRYPTED PRIVATE")).expect("written");
    let file = |name: &str| folder.join(name).display().to_string();
    let url = format!("https://{}", loopback());
    for (certificate, key, text) in [
        ("server.crt", "good.key", "tls: private key does not match public key"),
        ("server.crt", "encrypted.key", "encrypted.key is encrypted, which is not supported"),
        ("no.crt", "good.key", "no.crt: no such file or directory"),
        ("server.key", "server.key", "server.key cannot be read: no certificate in it"),
    ] {
        let args = [
            format!("--data-dir={}", file("refused")),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            format!("--cert-file={}", file(certificate)),
            format!("--key-file={}", file(key)),
        ];
        let mut process = Process::start(&server_binary(), &args, folder, &format!("{certificate}-{key}"));
        assert!(!process.wait(Duration::from_secs(60)).success());
        assert!(process.output().contains(text), "{text}: {}", process.output());
    }
    assert!(!folder.join("refused").exists(), "nothing is written");
    let args = [
        "grpc-proxy".to_owned(),
        "start".to_owned(),
        format!("--cert={}", file("good.crt")),
        format!("--key={}", file("good.key")),
    ];
    let mut process = Process::start(&server_binary(), &args, folder, "proxy");
    assert!(!process.wait(Duration::from_secs(60)).success());
    assert!(process.output().contains("cert has non empty Common Name (somebody)"), "{}", process.output());
}
