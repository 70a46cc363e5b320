//! What the client port answers beside gRPC.

use std::io::Read;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Deployment, Target, client, free_port, http_get, is_stock, metric, run, soon};
use crate::on_every_target;

on_every_target! {
    health_live_ready_and_version_answer,
    unknown_paths_and_methods_are_refused,
    metrics_carry_etcds_names,
    refusals_are_not_to_be_sniffed,
    paths_are_cleaned_by_a_redirect,
    scripts_of_every_origin_may_read_answers,
    metrics_are_compressed_when_asked_for,
    profiles_are_not_there_without_their_flag,
}

async fn get(deployment: &Deployment, path: &str) -> (u16, String) {
    let answer = http_get(&deployment.endpoint, "GET", path).await.expect("an answer");
    (answer.status, answer.body)
}

async fn health_live_ready_and_version_answer(deployment: &mut Deployment) {
    assert_eq!(get(deployment, "/health").await, (200, r#"{"health":"true","reason":""}"#.into()));
    if deployment.target == Target::Proxy {
        return; // A proxy answers for itself; it is not a member that is live or ready.
    }
    assert_eq!(get(deployment, "/health?serializable=true").await, (200, r#"{"health":"true","reason":""}"#.into()));
    for path in
        ["/livez", "/readyz", "/livez/serializable_read", "/readyz/linearizable_read", "/readyz/data_corruption"]
    {
        assert_eq!(get(deployment, path).await, (200, "ok\n".into()), "{path}");
    }
    let (status, body) = get(deployment, "/readyz?verbose").await;
    assert_eq!(status, 200);
    let mut lines: Vec<_> = body.lines().collect();
    assert_eq!(lines.pop(), Some("ok"));
    lines.sort_unstable();
    let expected = ["[+]data_corruption ok", "[+]linearizable_read ok", "[+]non_learner ok", "[+]serializable_read ok"];
    assert_eq!(lines, expected);
    let (status, body) = get(deployment, "/version").await;
    let version: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(status, 200);
    assert!(version["etcdserver"].as_str().is_some_and(|text| text.starts_with("3.7.")), "{body}");
    assert_eq!((version["etcdcluster"].as_str(), version["storage"].as_str()), (Some("3.7.0"), Some("3.7.0")));
}

#[test]
fn addresses_of_their_own_take_all_but_grpc() {
    let http = format!("127.0.0.1:{}", free_port());
    let flag = format!("--listen-client-http-urls=http://{http}");
    run(Target::Core, &[&flag], async |deployment: &mut Deployment| {
        deployment.put("k", "v").await;
        for path in ["/version", "/health", "/metrics", "/debug/vars"] {
            assert_eq!(http_get(&http, "GET", path).await.expect("an answer").status, 200, "{path}");
            // A stock member closes the connection.
            let refused = http_get(&deployment.endpoint, "GET", path).await.map_or(415, |answer| answer.status);
            assert_eq!(refused, 415, "{path} where clients call");
        }
        let request = watershed::pb::etcdserverpb::RangeRequest { key: "k".into(), ..Default::default() };
        let range = soon("a refusal", client(&http).kv().range(request)).await;
        range.expect_err("no calls there");
    });
}

async fn unknown_paths_and_methods_are_refused(deployment: &mut Deployment) {
    let (status, body) = get(deployment, "/nothing/here").await;
    assert_eq!((status, body.trim_end()), (404, "404 page not found"));
    if deployment.target == Target::Proxy {
        return;
    }
    for path in ["/health", "/version"] {
        let answer = http_get(&deployment.endpoint, "POST", path).await.expect("an answer");
        assert_eq!((answer.status, answer.headers.get("allow").map(String::as_str)), (405, Some("GET")), "{path}");
    }
    let answer = http_get(&deployment.endpoint, "OPTIONS", "/version").await.expect("an answer");
    assert_eq!(answer.status, 200);
}

async fn metrics_carry_etcds_names(deployment: &mut Deployment) {
    for _ in 0..3 {
        deployment.put("k", "v").await;
    }
    deployment.get("k").await;
    let member = &deployment.member;
    assert_eq!(metric(member, "etcd_server_has_leader").await, Some(1.0));
    assert_eq!(metric(member, "etcd_server_is_leader").await, Some(1.0));
    assert_eq!(metric(member, "etcd_mvcc_put_total").await, Some(3.0));
    assert_eq!(metric(member, "etcd_debugging_mvcc_current_revision").await, Some(4.0));
    assert_eq!(metric(member, "etcd_debugging_mvcc_watcher_total").await, Some(0.0));
    assert!(metric(member, "process_resident_memory_bytes").await.is_some_and(|bytes| bytes > 1e6));
    let answer = http_get(member, "GET", "/metrics").await.expect("metrics");
    for name in [
        "etcd_disk_wal_fsync_duration_seconds_count",
        "etcd_server_proposals_committed_total",
        "grpc_server_handled_total",
    ] {
        assert!(answer.body.lines().any(|line| line.starts_with(name)), "{name}");
    }
    if deployment.target == Target::Proxy {
        let own = http_get(&deployment.endpoint, "GET", "/metrics").await.expect("metrics");
        assert!(own.status == 200 && own.body.contains("# TYPE"), "{own:?}");
    }
}

async fn refusals_are_not_to_be_sniffed(deployment: &mut Deployment) {
    // Only 503 had the header.
    let mut cases = vec![
        ("GET", "/nothing", 404, true),
        ("POST", "/nothing", 404, true),
        ("POST", "/health", 405, true),
        ("GET", "/version", 200, false),
        ("POST", "/metrics", 200, false),
    ];
    if deployment.target != Target::Proxy {
        cases.extend([
            ("GET", "/livez", 200, true),
            ("GET", "/readyz?verbose", 200, true),
            ("GET", "/livez/nope", 404, true),
            ("HEAD", "/readyz", 405, true),
            ("POST", "/debug/vars", 405, true),
            ("GET", "/health", 200, false),
            ("OPTIONS", "/livez", 200, false),
        ]);
        let answer = http_get(&deployment.endpoint, "GET", "/debug/vars").await.expect("an answer");
        let vars: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
        assert_eq!(vars["raft.status"]["raftState"], "StateLeader", "{vars}");
        assert!(vars["cmdline"].as_array().is_some_and(|args| args.len() > 3), "{vars}");
        let status = &vars["raft.status"];
        assert_eq!((&status["id"], &status["id"]), (&status["lead"], &status["vote"]));
        assert_eq!(status["leadtransferee"], "0", "{vars}");
        let own = &status["progress"][status["id"].as_str().expect("an id")];
        assert!(own["state"].as_str().is_some_and(|state| state.starts_with("State")), "{vars}");
        assert!(own["match"].as_u64() > Some(0) && own["next"].as_u64() > own["match"].as_u64(), "{vars}");
    }
    for (method, path, status, nosniff) in cases {
        let answer = http_get(&deployment.endpoint, method, path).await.expect("an answer");
        let header = answer.headers.get("x-content-type-options").map(String::as_str);
        assert_eq!((answer.status, header), (status, nosniff.then_some("nosniff")), "{method} {path}");
    }
}

async fn paths_are_cleaned_by_a_redirect(deployment: &mut Deployment) {
    for (path, clean) in [("//version", "/version"), ("/v3", "/v3/"), ("/a/../livez?verbose", "/livez?verbose")] {
        let answer = http_get(&deployment.endpoint, "GET", path).await.expect("an answer");
        assert_eq!((answer.status, answer.headers["location"].as_str()), (307, clean), "{path}");
    }
}

async fn scripts_of_every_origin_may_read_answers(deployment: &mut Deployment) {
    for (method, path, status) in [("GET", "/health", 200), ("OPTIONS", "/v3/kv/range", 200), ("GET", "/nothing", 404)]
    {
        let answer = http_get(&deployment.endpoint, method, path).await.expect("an answer");
        let header = |name: &str| answer.headers.get(name).map(String::as_str);
        assert_eq!((answer.status, header("access-control-allow-origin")), (status, Some("*")), "{method} {path}");
        assert_eq!(header("access-control-allow-methods"), Some("POST, GET, OPTIONS, PUT, DELETE"));
        assert_eq!(header("access-control-allow-headers"), Some("accept, content-type, authorization"));
    }
    let vars = get(deployment, "/debug/vars").await.1;
    let vars: serde_json::Value = serde_json::from_str(&vars).expect("JSON");
    assert!(vars["cmdline"].is_array() && vars["file_descriptor_limit"].is_u64(), "{vars}");
}

async fn metrics_are_compressed_when_asked_for(deployment: &mut Deployment) {
    let paths: &[&str] = match deployment.target {
        Target::Proxy => &["/metrics", "/proxy/metrics"],
        Target::Core | Target::Gateway => &["/metrics"],
    };
    for path in paths {
        let mut stream = TcpStream::connect(&deployment.endpoint).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = Vec::new();
        soon("an answer", stream.read_to_end(&mut answer)).await.expect("an answer");
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        assert!(head.starts_with("http/1.1 200") && head.contains("content-encoding: gzip"), "{head}");
        if head.contains("transfer-encoding: chunked") {
            assert!(is_stock(), "the whole page is there at once");
            continue;
        }
        let mut text = String::new();
        flate2::read::GzDecoder::new(&answer[end..]).read_to_string(&mut text).expect("gzip");
        assert!(text.lines().any(|line| line.starts_with("# TYPE process_cpu_seconds_total")), "{path}");
    }
}

async fn profiles_are_not_there_without_their_flag(deployment: &mut Deployment) {
    for path in ["/debug/pprof/", "/debug/pprof/profile?seconds=1", "/debug/pprof/cmdline"] {
        assert_eq!(get(deployment, path).await.0, 404, "{path}");
    }
}

/// Profiles of one second, one after another, while clients put: none of their calls fails.
async fn profiled_under_load(deployment: &Deployment, endpoint: &str) {
    let profiles = async {
        for _ in 0..3 {
            let answer = http_get(endpoint, "GET", "/debug/pprof/profile?seconds=1").await.expect("an answer");
            let kind = answer.headers.get("content-type").map(String::as_str);
            assert_eq!((answer.status, kind), (200, Some("application/octet-stream")), "{answer:?}");
            // Of a stock member it comes in chunks, which are not text.
            assert!(is_stock() || answer.body.starts_with('\u{1f}'), "gzip");
        }
    };
    let puts = async {
        let mut last = 0;
        for number in 0.. {
            let revision = deployment.put(format!("profiled/{}", number % 100), "v").await;
            assert!(revision > last, "{revision} after {last}");
            last = revision;
        }
    };
    tokio::select! {
        () = profiles => {}
        () = puts => unreachable!("they go on"),
    }
}

#[test]
fn a_member_and_a_proxy_under_load_can_be_profiled() {
    let metrics = format!("127.0.0.1:{}", free_port());
    let flags = ["--enable-pprof", &format!("--listen-metrics-urls=http://{metrics}")];
    run(Target::Core, &flags, async |deployment: &mut Deployment| {
        profiled_under_load(deployment, &deployment.endpoint).await;
        let (_proxy, proxied) = deployment.also_front("grpc-proxy", &["--enable-pprof"]).await;
        deployment.client = client(&proxied);
        profiled_under_load(deployment, &proxied).await;
        let refused = http_get(&metrics, "GET", "/debug/pprof/").await.expect("an answer");
        assert_eq!(refused.status, 404, "not where metrics are watched");
        if is_stock() {
            return;
        }
        let heap = get(deployment, "/debug/pprof/heap").await;
        assert!(heap.0 == 404 && heap.1.starts_with("no profile heap: "), "{heap:?}");
        let peer = deployment.peer_url().replace("http://", "");
        assert_eq!(http_get(&peer, "GET", "/debug/pprof/").await.expect("an answer").status, 404);
    });
}

// Cause: the port for the other members was held to the list, so that nobody could join a cluster that has one, and so was the
// port for metrics.
#[test]
fn a_list_of_hosts_is_for_the_ports_of_clients() {
    let metrics = format!("127.0.0.1:{}", free_port());
    let flags = ["--host-whitelist=a.example", &format!("--listen-metrics-urls=http://{metrics}")];
    run(Target::Core, &flags, async |deployment: &mut Deployment| {
        let peer = deployment.peer_url().replace("http://", "");
        let cases = [(&deployment.member, "/version", 421), (&peer, "/version", 200), (&metrics, "/metrics", 200)];
        for (address, path, status) in cases {
            let answer = http_get(address, "GET", path).await.expect("an answer");
            assert_eq!(answer.status, status, "{address}{path}");
        }
    });
}

#[test]
fn a_port_may_be_shared() {
    run(Target::Core, &["--socket-reuse-port"], async |deployment: &mut Deployment| {
        let socket = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
            socket.set_reuse_address(true).expect("settable");
            socket
        };
        for address in [&deployment.member, &deployment.peer_url().replace("http://", "")] {
            let address: std::net::SocketAddr = address.parse().expect("an address");
            let alone = socket();
            alone.bind(&address.into()).expect_err("taken");
            let shared = socket();
            shared.set_reuse_port(true).expect("settable");
            shared.bind(&address.into()).expect("shared");
        }
    });
}

#[test]
fn an_unfinished_head_does_not_stay() {
    // It lived for five minutes.
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        if is_stock() {
            return; // Stock waits five minutes, too.
        }
        let mut stream = TcpStream::connect(&deployment.endpoint).await.expect("connects");
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: ").await.expect("writes");
        let mut answer = Vec::new();
        let _ = soon("the end of the connection", stream.read_to_end(&mut answer)).await;
        let mut again = TcpStream::connect(&deployment.endpoint).await.expect("connects");
        again.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n").await.expect("writes");
        again.write_all(b"Connection: close\r\n\r\n").await.expect("writes");
        let mut answer = String::new();
        soon("an answer", again.read_to_string(&mut answer)).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "a head in two parts is fine: {answer}");
    });
}
