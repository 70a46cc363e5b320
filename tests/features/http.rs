//! What the client port answers beside gRPC.

use crate::harness::{Target, World, http_get, metric};
use crate::on_every_target;

on_every_target! {
    health_live_ready_and_version_answer,
    unknown_paths_and_methods_are_refused,
    metrics_carry_etcds_names,
}

async fn get(world: &World, path: &str) -> (u16, String) {
    let answer = http_get(&world.endpoint, "GET", path).await.expect("an answer");
    (answer.status, answer.body)
}

async fn health_live_ready_and_version_answer(world: &mut World) {
    assert_eq!(get(world, "/health").await, (200, r#"{"health":"true","reason":""}"#.into()));
    if world.target == Target::Proxy {
        return; // A proxy answers for itself; it is not a member that is live or ready.
    }
    assert_eq!(get(world, "/health?serializable=true").await, (200, r#"{"health":"true","reason":""}"#.into()));
    for path in
        ["/livez", "/readyz", "/livez/serializable_read", "/readyz/linearizable_read", "/readyz/data_corruption"]
    {
        assert_eq!(get(world, path).await, (200, "ok\n".into()), "{path}");
    }
    let (status, body) = get(world, "/readyz?verbose").await;
    assert_eq!(status, 200);
    let mut lines: Vec<_> = body.lines().collect();
    assert_eq!(lines.pop(), Some("ok"));
    lines.sort_unstable();
    let expected = ["[+]data_corruption ok", "[+]linearizable_read ok", "[+]non_learner ok", "[+]serializable_read ok"];
    assert_eq!(lines, expected);
    let (status, body) = get(world, "/version").await;
    let version: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(status, 200);
    assert!(version["etcdserver"].as_str().is_some_and(|text| text.starts_with("3.7.")), "{body}");
    assert_eq!((version["etcdcluster"].as_str(), version["storage"].as_str()), (Some("3.7.0"), Some("3.7.0")));
}

async fn unknown_paths_and_methods_are_refused(world: &mut World) {
    let (status, body) = get(world, "/nothing/here").await;
    assert_eq!((status, body.trim_end()), (404, "404 page not found"));
    if world.target == Target::Proxy {
        return;
    }
    for path in ["/health", "/version"] {
        let answer = http_get(&world.endpoint, "POST", path).await.expect("an answer");
        assert_eq!((answer.status, answer.headers.get("allow").map(String::as_str)), (405, Some("GET")), "{path}");
    }
    let answer = http_get(&world.endpoint, "OPTIONS", "/version").await.expect("an answer");
    assert_eq!(answer.status, 200);
}

async fn metrics_carry_etcds_names(world: &mut World) {
    for _ in 0..3 {
        world.put("k", "v").await;
    }
    world.get("k").await;
    let member = &world.member;
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
    if world.target == Target::Proxy {
        let own = http_get(&world.endpoint, "GET", "/metrics").await.expect("metrics");
        assert!(own.status == 200 && own.body.contains("# TYPE"), "{own:?}");
    }
}
