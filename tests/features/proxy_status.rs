//! What a proxy shows of itself to people: `/proxy/status`, the status page at `/ui` and `ctl proxy status`.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use watershed::pb::etcdserverpb::RangeRequest;

use super::cache::Cached;
use crate::harness::{Deployment, Target, free_port, http_get, own_binary, run, until};

async fn status(endpoint: &str) -> Value {
    let answer = http_get(endpoint, "GET", "/proxy/status").await.expect("an answer");
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "application/json"));
    serde_json::from_str(&answer.body).expect("JSON")
}

fn ctl(args: &[&str]) -> (bool, String) {
    let ran = Command::new(own_binary()).arg("ctl").args(args).output().expect("runs");
    (ran.status.success(), String::from_utf8_lossy(if ran.status.success() { &ran.stdout } else { &ran.stderr }).into())
}

#[test]
fn endpoints_cached_ranges_and_counts_are_shown() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        for number in 0..5 {
            deployment.put(format!("/jobs/{number}"), "x").await;
        }
        let flags = ["--cache-prefix=/jobs/"];
        let cached = Cached::start(deployment, &flags, "/jobs/1").await;
        let shown = status(&cached.endpoint).await;
        let header = cached.range(RangeRequest { key: "/jobs/1".into(), ..Default::default() }).await.header;
        let header = header.expect("header");
        assert_eq!(shown["cluster_id"], format!("{:x}", header.cluster_id));
        let range = &shown["namespaces"][0]["cached"][0];
        assert_eq!((&range["range"], &range["state"]), (&Value::from("/jobs/*"), &Value::from("live")), "{shown}");
        assert_eq!((&range["keys"], &range["revision"]), (&Value::from(5), &Value::from(header.revision)));
        assert!(range["bytes"].as_u64().expect("bytes") > 0 && range["age_ms"].is_u64(), "{range}");
        assert!(shown["metrics"]["etcd_grpc_proxy_cache_hits_total"].as_f64().expect("hits") >= 1.0);

        let (well, text) = ctl(&["--endpoints", &cached.endpoint, "proxy", "status"]);
        assert!(well, "{text}");
        for part in ["CACHED RANGE", "/jobs/*", "live", "calls of clients"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let (well, text) = ctl(&["--endpoints", &cached.endpoint, "-w", "json", "proxy", "status"]);
        let json: Value = serde_json::from_str(&text).expect("JSON");
        assert!(well && json[0]["Status"]["namespaces"][0]["cached"][0]["range"] == "/jobs/*", "{text}");
        let (well, text) = ctl(&["--endpoints", &deployment.endpoint, "proxy", "status"]);
        assert!(!well && text.contains("has no /proxy/status") && text.contains("no other server has it"), "{text}");
        let (well, text) = ctl(&["--endpoints", &cached.endpoint, "-w", "protobuf", "proxy", "status"]);
        assert!(!well && text.contains("protobuf not supported as output format"), "{text}");
    });
}

#[test]
fn a_failed_endpoint_is_shown_with_its_reason() {
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        deployment.put("k", "v").await;
        let state = async || status(&deployment.endpoint).await["endpoints"][0]["state"].clone();
        until("a ready endpoint", async || (state().await == "ready").then_some(())).await;
        deployment.server.kill();
        until("the failure", async || {
            let shown = status(&deployment.endpoint).await;
            let endpoint = &shown["endpoints"][0];
            (endpoint["state"] == "failed" && endpoint["reason"].is_string()).then_some(())
        })
        .await;
    });
}

/// Looks at the status page at an address and at all that it loads.
pub(super) async fn page_loads_only_its_own_files(address: &str) {
    let page = http_get(address, "GET", "/ui").await.expect("an answer");
    assert_eq!((page.status, page.headers["content-type"].as_str()), (200, "text/html; charset=utf-8"));
    let policy = &page.headers["content-security-policy"];
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let named: Vec<&str> =
        page.body.split('"').filter(|part| part.starts_with("/ui/") || part.contains("://")).collect();
    assert_eq!(named.len(), 3, "{named:?}");
    for path in named {
        let file = http_get(address, "GET", path).await.expect("an answer");
        assert_eq!(file.status, 200, "{path}");
        assert!(!file.body.contains("://"), "{path} loads something from another host");
    }
    let refused = http_get(address, "POST", "/ui").await.expect("an answer");
    assert_eq!(refused.status, 405);
    assert_eq!(http_get(address, "GET", "/ui/other").await.expect("an answer").status, 404);
}

#[test]
fn the_status_page_is_made_of_files_of_its_own() {
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        page_loads_only_its_own_files(&deployment.endpoint).await;
    });
}

#[test]
fn with_a_listener_for_metrics_that_one_alone_shows_the_state() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let metrics = format!("127.0.0.1:{}", free_port());
        let flag = format!("--metrics-addr=http://{metrics}");
        let (_proxy, endpoint) = deployment.also_front("grpc-proxy", &[&flag]).await;
        for path in ["/ui", "/ui/script.js", "/proxy/status"] {
            let of = async |address: &str| http_get(address, "GET", path).await.expect("an answer").status;
            assert_eq!((of(&endpoint).await, of(&metrics).await), (404, 200), "{path}");
        }
    });
}

/// Cause: the listener for metrics served the whole API, in plain text beside one for clients with certificates.
#[test]
fn the_listener_for_metrics_does_not_serve_the_api() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let metrics = format!("127.0.0.1:{}", free_port());
        let flag = format!("--metrics-addr=http://{metrics}");
        let (_proxy, endpoint) = deployment.also_front("grpc-proxy", &[&flag]).await;
        for (address, is_served) in [(&endpoint, true), (&metrics, false)] {
            let answer = http_get(address, "POST", "/v3/kv/range").await.expect("an answer");
            assert_eq!(answer.status != 404, is_served, "{address}: {} {}", answer.status, answer.body);
            let mut client = etcd_client::Client::connect([address], None).await.expect("connects");
            assert_eq!(client.get("k", None).await.is_ok(), is_served, "{address}");
        }
        assert_eq!(http_get(&metrics, "GET", "/proxy/metrics").await.expect("an answer").status, 200);
    });
}

/// Names of metrics in a text, by the beginnings that ours have.
fn metric_names(text: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let beginnings = ["watershed_", "etcd_", "grpc_server_", "process_"];
    text.split(word).filter(|name| beginnings.iter().any(|start| name.starts_with(start))).map(str::to_owned).collect()
}

/// The dashboard and the alerts name nothing that a proxy does not have. A metric with labels is there once it has counted.
#[test]
fn the_dashboard_and_the_alerts_find_their_metrics() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let cached = Cached::start(deployment, &["--cache-prefix=/jobs/"], "/jobs/1").await;
        cached.range(RangeRequest { key: "/elsewhere".into(), ..Default::default() }).await;
        let page = http_get(&cached.endpoint, "GET", "/proxy/metrics").await.expect("an answer").body;
        let shown = metric_names(&page);
        let later = BTreeSet::from(["watershed_proxy_cache_checks_total".to_owned()]);
        let documented = metric_names(include_str!("../../docs/metrics.md"));
        for file in [
            include_str!("../../contrib/prometheus/grpc-proxy.rules.yml"),
            include_str!("../../contrib/grafana/grpc-proxy.json"),
        ] {
            let named = metric_names(file);
            assert!(named.len() > 5, "{named:?}");
            let missing: Vec<_> = named.difference(&shown).filter(|name| !later.contains(*name)).collect();
            assert!(missing.is_empty(), "{missing:?}");
            let unknown: Vec<_> = named.iter().filter(|name| name.contains("_proxy_")).collect();
            assert!(unknown.iter().all(|name| documented.contains(*name)), "not in docs/metrics.md: {unknown:?}");
        }
        assert!(page.contains("watershed_proxy_cluster_answers 1\n"), "{page}");
        assert!(page.contains("watershed_proxy_upstream_endpoints{state=\"ready\"} 1\n"), "{page}");
    });
}
