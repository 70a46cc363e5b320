//! Metrics move under load, and under the same names, types and labels as those of etcd.

use std::collections::BTreeSet;

use bytes::Bytes;
use tonic::Code;
use watershed::client::Client;
use watershed::pb::etcdserverpb::alarm_request::AlarmAction;
use watershed::pb::etcdserverpb::auth_client::AuthClient;
use watershed::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use watershed::pb::etcdserverpb::request_op::Request;
use watershed::pb::etcdserverpb::*;

use crate::harness::{Deployment, PATIENCE, Scrape, Target, Watching, http_get, is_stock, raw_stream, run, until};

/// What moves on etcd 3.7.1 under [`load`]: name, type, label names. Obtained by running this test with
/// `WATERSHED_TEST_SERVER=etcd-3.7.1`, where it compares both ways.
const MOVES: &[(&str, &str, &str)] = &[
    ("etcd_debugging_auth_revision", "gauge", ""),
    ("etcd_debugging_lease_granted_total", "counter", ""),
    ("etcd_debugging_lease_renewed_total", "counter", ""),
    ("etcd_debugging_lease_revoked_total", "counter", ""),
    ("etcd_debugging_lease_ttl_total", "histogram", ""),
    ("etcd_debugging_mvcc_compact_revision", "gauge", ""),
    ("etcd_debugging_mvcc_current_revision", "gauge", ""),
    ("etcd_debugging_mvcc_db_compaction_keys_total", "counter", ""),
    ("etcd_debugging_mvcc_db_compaction_last", "gauge", ""),
    ("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", "histogram", ""),
    ("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", "histogram", ""),
    ("etcd_debugging_mvcc_events_total", "counter", ""),
    ("etcd_debugging_mvcc_keys_total", "gauge", ""),
    ("etcd_debugging_mvcc_total_put_size_in_bytes", "gauge", ""),
    ("etcd_debugging_mvcc_watch_stream_total", "gauge", ""),
    ("etcd_debugging_mvcc_watcher_total", "gauge", ""),
    ("etcd_debugging_server_alarms", "gauge", "alarm_type,server_id"),
    ("etcd_debugging_server_lease_expired_total", "counter", ""),
    ("etcd_debugging_server_watch_send_loop_control_stream_duration_seconds", "histogram", ""),
    ("etcd_debugging_server_watch_send_loop_progress_duration_seconds", "histogram", ""),
    ("etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds", "histogram", ""),
    ("etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds", "histogram", ""),
    ("etcd_disk_backend_commit_duration_seconds", "histogram", ""),
    ("etcd_disk_backend_defrag_duration_seconds", "histogram", ""),
    ("etcd_disk_backend_snapshot_duration_seconds", "histogram", ""),
    ("etcd_disk_wal_fsync_duration_seconds", "histogram", ""),
    ("etcd_disk_wal_write_bytes_total", "gauge", ""),
    ("etcd_disk_wal_write_duration_seconds", "histogram", ""),
    ("etcd_mvcc_db_total_size_in_bytes", "gauge", ""),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge", ""),
    ("etcd_mvcc_delete_total", "counter", ""),
    ("etcd_mvcc_hash_duration_seconds", "histogram", ""),
    ("etcd_mvcc_hash_rev_duration_seconds", "histogram", ""),
    ("etcd_mvcc_put_total", "counter", ""),
    ("etcd_mvcc_range_total", "counter", ""),
    ("etcd_mvcc_txn_total", "counter", ""),
    ("etcd_network_client_grpc_received_bytes_total", "counter", ""),
    ("etcd_network_client_grpc_sent_bytes_total", "counter", ""),
    ("etcd_server_apply_duration_seconds", "histogram", "op,success,version"),
    ("etcd_server_client_requests_total", "counter", "client_api_version,type"),
    ("etcd_server_health_failures", "counter", ""),
    ("etcd_server_health_success", "counter", ""),
    ("etcd_server_healthcheck", "gauge", "name,type"),
    ("etcd_server_healthchecks_total", "counter", "name,status,type"),
    ("etcd_server_learner_promote_failures", "counter", "Reason"),
    ("etcd_server_proposals_applied_total", "gauge", ""),
    ("etcd_server_proposals_committed_total", "gauge", ""),
    ("etcd_server_range_duration_seconds", "histogram", "success"),
    ("etcd_server_request_duration_seconds", "histogram", "success,type"),
    ("etcd_server_slow_apply_total", "counter", ""),
    ("etcd_snap_fsync_duration_seconds", "histogram", ""),
    ("grpc_server_handled_total", "counter", "grpc_code,grpc_method,grpc_service,grpc_type"),
    ("grpc_server_handling_seconds", "histogram", "grpc_method,grpc_service,grpc_type"),
    ("grpc_server_msg_received_total", "counter", "grpc_method,grpc_service,grpc_type"),
    ("grpc_server_msg_sent_total", "counter", "grpc_method,grpc_service,grpc_type"),
    ("grpc_server_started_total", "counter", "grpc_method,grpc_service,grpc_type"),
    ("process_cpu_seconds_total", "counter", ""),
    ("process_network_receive_bytes_total", "counter", ""),
    ("process_network_transmit_bytes_total", "counter", ""),
];

/// What the dashboards and alert rules of etcd's mixin read of a member; the traffic between members is in
/// `tests/cluster/metrics.rs`.
const DASHBOARDS: [&str; 19] = [
    "etcd_disk_backend_commit_duration_seconds",
    "etcd_disk_wal_fsync_duration_seconds",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "etcd_server_has_leader",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_failed_total",
    "etcd_server_proposals_pending",
    "etcd_server_quota_backend_bytes",
    "grpc_server_handled_total",
    "grpc_server_handling_seconds",
    "grpc_server_started_total",
    "process_open_fds",
    "process_max_fds",
    "process_resident_memory_bytes",
];

/// Series that they select by labels, all of which the load has to move: name, parts of the labels.
const SELECTED: [(&str, &[&str]); 8] = [
    ("grpc_server_started_total", &["grpc_type=\"unary\""]),
    ("grpc_server_started_total", &["grpc_service=\"etcdserverpb.Watch\"", "grpc_type=\"bidi_stream\""]),
    ("grpc_server_started_total", &["grpc_service=\"etcdserverpb.Lease\"", "grpc_type=\"bidi_stream\""]),
    ("grpc_server_handled_total", &["grpc_service=\"etcdserverpb.Watch\"", "grpc_type=\"bidi_stream\""]),
    ("grpc_server_handled_total", &["grpc_service=\"etcdserverpb.Lease\"", "grpc_type=\"bidi_stream\""]),
    ("grpc_server_handled_total", &["grpc_type=\"unary\"", "grpc_code=\"FailedPrecondition\""]),
    ("grpc_server_handled_total", &["grpc_code=\"Internal\""]),
    ("grpc_server_handling_seconds", &["_bucket", "grpc_method=\"Put\"", "grpc_type=\"unary\"", "le=\""]),
];

/// What moves here and not on etcd: its library ends the stream before the failure is looked at.
const MORE: (&str, &str, &str) = ("etcd_network_server_stream_failures_total", "counter", "API,Type");

/// What moves on etcd and does not exist here, by the beginning of the name, and why.
const ABSENT: &[(&str, &str)] = &[
    ("etcd_debugging_disk_backend_commit_", "steps of a commit of bbolt, which we do not use"),
    (
        "etcd_debugging_mvcc_index_compaction_pause_",
        "a slice of a compaction covers index and rows: db_compaction_pause",
    ),
    ("etcd_debugging_snap_save_", "there is no snapshot file beside the record in the log: etcd_snap_fsync"),
    ("etcd_debugging_store_", "the store of the v2 API"),
    ("go_", "the Go runtime"),
    ("promhttp_", "the Go library"),
];

/// What ours shows and the load does not move, with the reason. Gauges that describe a state, and counters of faults.
const STILL: &[(&str, &str)] = &[
    ("etcd_cluster_version", "a fact"),
    ("etcd_debugging_mvcc_pending_events_total", "0 again when nothing waits"),
    ("etcd_debugging_mvcc_slow_watcher_total", "0 again when nothing waits"),
    ("etcd_disk_defrag_inflight", "0 again at the end"),
    ("etcd_mvcc_db_open_read_transactions", "0 again at the end"),
    ("etcd_server_feature_enabled", "a fact"),
    ("etcd_server_has_leader", "a fact"),
    ("etcd_server_heartbeat_send_failures_total", "needs followers: tests/cluster/metrics.rs"),
    ("etcd_server_id", "a fact"),
    ("etcd_server_is_leader", "a fact"),
    ("etcd_server_is_learner", "a fact"),
    ("etcd_server_leader_changes_seen_total", "needs other members: tests/cluster/metrics.rs"),
    ("etcd_server_learner_promote_successes", "needs a learner: tests/cluster/members.rs"),
    ("etcd_server_proposals_failed_total", "needs a lost quorum: tests/cluster/metrics.rs"),
    ("etcd_server_proposals_pending", "0 again at the end"),
    ("etcd_server_quota_backend_bytes", "a fact"),
    ("etcd_server_read_indexes_failed_total", "needs other members: tests/cluster/metrics.rs"),
    ("etcd_server_slow_read_indexes_total", "needs a lost quorum: tests/cluster/metrics.rs"),
    ("etcd_server_snapshot_apply_in_progress_total", "0 again at the end"),
    ("etcd_server_version", "a fact"),
    ("etcd_snap_db_", "needs other members: tests/cluster/metrics.rs"),
    ("os_fd_", "a state of the process"),
    ("process_", "a state of the process"),
    ("watershed_build_info", "a fact"),
];

const FLAGS: [&str; 7] = [
    "--heartbeat-interval=50",
    "--election-timeout=500",
    "--snapshot-count=20",
    "--metrics=extensive",
    "--watch-progress-notify-interval=100ms",
    "--warning-apply-duration=1ns",
    "--warning-unary-request-duration=1ns",
];

const LARGE_BYTES: usize = 200_000;

fn range(key: &'static str, revision: i64) -> RangeRequest {
    RangeRequest { key: key.into(), revision, ..Default::default() }
}

/// Asks for everything that has a metric. Leaves a watch open and an alarm raised.
async fn load(client: &Client, member: &str) -> Watching {
    let (mut kv, mut lease, mut maintenance) = (client.kv(), client.lease(), client.maintenance());
    let create =
        WatchCreateRequest { key: "k".into(), range_end: "l".into(), progress_notify: true, ..Default::default() };
    let (mut watch, _) = Watching::create(client, create).await;
    let put = |prev_kv| PutRequest { key: "k".into(), value: "value".into(), prev_kv, ..Default::default() };
    for number in 0..50 {
        kv.put(put(number % 2 == 0)).await.expect("put");
    }
    watch.events(50).await;
    kv.range(range("k", 0)).await.expect("range");
    kv.range(range("k", 1_000_000)).await.expect_err("a future revision");
    let op = |request| RequestOp { request: Some(request) };
    let compare = Compare {
        result: CompareResult::Greater as i32,
        target: CompareTarget::Mod as i32,
        key: "k".into(),
        target_union: Some(TargetUnion::ModRevision(0)),
        ..Default::default()
    };
    let success = vec![op(Request::RequestPut(put(false))), op(Request::RequestRange(range("k", 0)))];
    kv.txn(TxnRequest { compare: vec![compare.clone()], success, failure: vec![] }).await.expect("txn");
    let success = vec![op(Request::RequestRange(range("k", 0)))];
    kv.txn(TxnRequest { compare: vec![compare], success, failure: vec![] }).await.expect("read-only txn");
    kv.delete_range(DeleteRangeRequest { key: "k".into(), ..Default::default() }).await.expect("delete");
    // Large enough that the state on disk takes more room.
    let value = vec![b'v'; LARGE_BYTES].into();
    kv.put(PutRequest { key: "other".into(), value, ..Default::default() }).await.expect("put");
    let kept = lease.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("grant").into_inner().id;
    let requests = tokio_stream::once(LeaseKeepAliveRequest { id: kept });
    lease.lease_keep_alive(requests).await.expect("keep-alive").into_inner().message().await.expect("an answer");
    lease.lease_revoke(LeaseRevokeRequest { id: kept }).await.expect("revoke");
    // Expires meanwhile.
    lease.lease_grant(LeaseGrantRequest { ttl: 1, id: 0 }).await.expect("grant");
    kv.compact(CompactionRequest { revision: 40, physical: true }).await.expect("compaction");
    maintenance.hash(HashRequest {}).await.expect("hash");
    maintenance.hash_kv(HashKvRequest { revision: 0 }).await.expect("HashKV");
    maintenance.defragment(DefragmentRequest {}).await.expect("defragmentation");
    let mut snapshot = maintenance.snapshot(SnapshotRequest {}).await.expect("snapshot").into_inner();
    while snapshot.message().await.expect("snapshot").is_some() {}
    let status = maintenance.status(StatusRequest {}).await.expect("status").into_inner();
    let member_id = status.header.expect("header").member_id;
    let mut auth = AuthClient::new(client.channel());
    auth.role_add(AuthRoleAddRequest { name: "r".into() }).await.expect("a role");
    let promotion = client.cluster().member_promote(MemberPromoteRequest { id: member_id }).await;
    promotion.expect_err("a voter cannot be promoted");
    for path in ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"] {
        let ended = raw_stream(client, path, vec![Bytes::from_static(&[0xff; 8])], usize::MAX, PATIENCE).await;
        assert_eq!(ended.map_err(|status| status.code()), Err(Code::Internal), "{path}");
    }
    for path in ["/health", "/livez", "/readyz"] {
        assert_eq!(http_get(member, "GET", path).await.expect("an answer").status, 200, "{path}");
    }
    until("progress and the end of the lease", async || {
        let now = Scrape::of(member, "/metrics").await;
        let progress = "etcd_debugging_server_watch_send_loop_progress_duration_seconds";
        let moved = now.sum("etcd_debugging_server_lease_expired_total", "") > 0.0
            && now.sum(progress, "_count") > 0.0
            && now.sum("etcd_snap_fsync_duration_seconds", "_count") > 0.0;
        moved.then_some(())
    })
    .await;
    let alarm = AlarmRequest { action: AlarmAction::Activate as i32, member_id, alarm: AlarmType::Nospace as i32 };
    maintenance.alarm(alarm).await.expect("alarm");
    assert_eq!(http_get(member, "GET", "/health").await.expect("an answer").status, 503);
    watch
}

fn named(list: &[(&str, &str)], name: &str) -> bool {
    list.iter().any(|(start, _)| name.starts_with(start))
}

#[test]
fn every_metric_of_a_member_moves() {
    // Sixteen metrics were registered and never moved, alert rules among them; others were missing, and two
    // counters of the process were gauges. A look at their presence found none of it.
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        // The first rendering shows what the process is at its start.
        let before = Scrape::of(&deployment.member, "/metrics").await;
        let watch = load(&deployment.client, &deployment.member).await;
        let after = Scrape::of(&deployment.member, "/metrics").await;
        drop(watch);
        let moved = after.moved_since(&before);
        if is_stock() {
            let listed = |name: &str| MOVES.iter().any(|(listed, _, _)| *listed == name) || named(ABSENT, name);
            let more: Vec<_> = moved.iter().filter(|name| !listed(name) && !named(STILL, name)).collect();
            assert!(more.is_empty(), "moves on etcd too: {more:?}");
        } else {
            let gone: Vec<_> = after.0.keys().filter(|name| named(ABSENT, name)).collect();
            assert!(gone.is_empty(), "listed as absent: {gone:?}");
            let still: Vec<_> = after.0.keys().filter(|name| !moved.contains(*name) && !named(STILL, name)).collect();
            assert!(still.is_empty(), "does not move: {still:?}");
            after.check(MORE);
            for api in ["API=\"watch\"", "API=\"lease-keepalive\""] {
                assert_eq!(after.sum(MORE.0, api), 1.0, "{api}");
            }
        }
        let missing: BTreeSet<_> = MOVES.iter().filter(|(name, _, _)| !moved.contains(*name)).collect();
        assert!(missing.is_empty(), "does not move: {missing:?}");
        for &listed in MOVES {
            after.check(listed);
        }
        for name in DASHBOARDS {
            let needs_others = name.starts_with("etcd_server_proposals_") || name.contains("leader_changes");
            let family = after.0.get(name).unwrap_or_else(|| panic!("{name} is missing"));
            assert!(needs_others || family.series.values().any(|value| *value > 0.0), "{name} is 0");
        }
        for (name, labels) in SELECTED {
            let selected = |scrape: &Scrape| {
                let series = scrape.0[name].series.iter();
                let sum = series.filter(|(series, _)| labels.iter().all(|label| series.contains(label)));
                sum.map(|(_, value)| value).sum::<f64>()
            };
            assert!(selected(&after) > selected(&before), "{name} {labels:?} does not move");
        }
        check_values(&before, &after);
        let output = deployment.server.output();
        // The last one: a slow read names its client.
        for line in ["apply request took too long", "read-only range ", "request stats", "\"remote\":\"127.0.0.1:"] {
            assert!(output.contains(line), "not in the log: {line}");
        }
    });
}

/// Units and what is counted, by numbers that are known: as on etcd.
fn check_values(before: &Scrape, after: &Scrape) {
    let rose = |name: &str, part: &str| after.sum(name, part) - before.sum(name, part);
    assert_eq!(rose("etcd_mvcc_put_total", ""), 52.0);
    assert_eq!(rose("etcd_mvcc_delete_total", ""), 1.0);
    // Puts that read the pair before, and the parts of the transactions that hold more than one operation.
    assert_eq!(rose("etcd_mvcc_txn_total", ""), 27.0);
    assert_eq!(rose("etcd_debugging_mvcc_total_put_size_in_bytes", ""), 51.0 * 6.0 + 5.0 + LARGE_BYTES as f64);
    assert_eq!(rose("etcd_server_apply_duration_seconds", "_count{op=\"Put\",success=\"true\""), 51.0);
    assert_eq!(rose("etcd_server_request_duration_seconds", "_count{success=\"false\",type=\"Range\"}"), 1.0);
    assert_eq!(rose("etcd_server_request_duration_seconds", "_count{success=\"true\",type=\"ReadonlyTxn\"}"), 1.0);
    assert_eq!(rose("etcd_debugging_lease_ttl_total", "_sum"), 61.0);
    let received = rose("etcd_network_client_grpc_received_bytes_total", "");
    let received = received - LARGE_BYTES as f64;
    assert!((50.0 * 10.0..20_000.0).contains(&received), "{received} bytes of requests beside the large one");
    let buckets = |name: &str| after.0[name].buckets.len();
    assert_eq!(buckets("etcd_server_apply_duration_seconds"), 21);
    assert_eq!(buckets("etcd_server_request_duration_seconds"), 15);
    assert_eq!(buckets("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds"), 14);
    assert_eq!(buckets("grpc_server_handling_seconds"), 12);
}

/// What moves on `/proxy/metrics` of etcd's proxy when clients call it, and what ours adds.
#[test]
fn the_proxy_counts_calls() {
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        let before = Scrape::of(&deployment.endpoint, "/proxy/metrics").await;
        let create = WatchCreateRequest { key: "k".into(), ..Default::default() };
        let (mut watch, _) = Watching::create(&deployment.client, create).await;
        for _ in 0..3 {
            deployment.put("k", "v").await;
        }
        watch.events(3).await;
        deployment.client.kv().range(range("k", 1_000_000)).await.expect_err("a future revision");
        let lease = deployment.grant(60).await;
        let requests = tokio_stream::once(LeaseKeepAliveRequest { id: lease });
        let mut answers = deployment.client.lease().lease_keep_alive(requests).await.expect("keep-alive").into_inner();
        assert_eq!(answers.message().await.expect("an answer").expect("an answer").id, lease);
        let after = Scrape::of(&deployment.endpoint, "/proxy/metrics").await;
        for listed in MOVES.iter().filter(|(name, _, _)| {
            name.starts_with("grpc_server_") && *name != "grpc_server_handling_seconds"
                || name.starts_with("process_network_")
        }) {
            after.check(*listed);
            assert!(after.moved_since(&before).contains(listed.0), "{}", listed.0);
        }
        let rose = |name: &str, part: &str| after.sum(name, part) - before.sum(name, part);
        assert_eq!(rose("grpc_server_handled_total", "grpc_code=\"OK\",grpc_method=\"Put\""), 3.0);
        assert_eq!(rose("grpc_server_started_total", "grpc_method=\"Put\""), 3.0);
        assert_eq!(rose("grpc_server_handled_total", "grpc_code=\"OutOfRange\",grpc_method=\"Range\""), 1.0);
        assert_eq!(rose("grpc_server_msg_received_total", "grpc_method=\"Watch\""), 1.0);
        // The confirmation, and the events in one response or in several.
        assert!((2.0..=4.0).contains(&rose("grpc_server_msg_sent_total", "grpc_method=\"Watch\"")));
        assert_eq!(rose("grpc_server_msg_received_total", "grpc_method=\"LeaseKeepAlive\""), 1.0);
        assert_eq!(rose("grpc_server_msg_sent_total", "grpc_method=\"LeaseKeepAlive\""), 1.0);
        assert!(rose("etcd_network_client_grpc_received_bytes_total", "") > 0.0);
        assert!(rose("etcd_network_client_grpc_sent_bytes_total", "") > 0.0);
        // What the proxy serves without a member, counted all the same.
        drop((watch, answers));
        until("the ended streams", async || {
            let now = Scrape::of(&deployment.endpoint, "/proxy/metrics").await;
            let ended = now.sum("grpc_server_handled_total", "grpc_method=\"Watch\"")
                + now.sum("grpc_server_handled_total", "grpc_method=\"LeaseKeepAlive\"");
            (ended >= 2.0).then_some(())
        })
        .await;
    });
}
