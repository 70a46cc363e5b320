//! Metrics of the core under etcd's names, one struct per room; made once by the wiring and passed in.
//!
//! Only what a room can fill belongs here: dashboards would show a metric that nothing fills as 0.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::durations::Durations;
use super::metrics::{Metrics, exponential_buckets};
use super::operation::OperationKind;

/// Declares a struct of metrics and its `register`, one line each: `field: kind name, help;`. Labels and buckets
/// follow the name.
macro_rules! room {
    (@type counter) => { IntCounter };
    (@type gauge) => { IntGauge };
    (@type counter_vec) => { IntCounterVec };
    (@type gauge_vec) => { IntGaugeVec };
    (@type durations) => { Durations };
    (@type durations_by) => { Durations };
    (@type histogram) => { Histogram };
    (@type histogram_vec) => { HistogramVec };
    ($(#[$doc:meta])* $room:ident { $($field:ident: $kind:ident($name:literal, $help:literal $(, $more:expr)*);)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $room {
            $(#[doc = $help] pub $field: room!(@type $kind),)*
        }

        impl $room {
            /// Makes the metrics and registers them.
            pub fn register(metrics: &Metrics) -> Self {
                Self { $($field: metrics.$kind($name, $help $(, $more)*),)* }
            }
        }
    };
}

room! {
    /// The server and its consensus.
    ServerMetrics {
        has_leader: gauge("etcd_server_has_leader", "1 while this member knows a leader.");
        is_leader: gauge("etcd_server_is_leader", "1 while this member leads.");
        is_learner: gauge("etcd_server_is_learner", "1 while this member is a learner.");
        leader_changes: counter("etcd_server_leader_changes_seen_total", "Changes of leader this member saw.");
        id: gauge_vec("etcd_server_id", "1 for the hexadecimal id of this member.", &["server_id"]);
        version: gauge_vec("etcd_server_version", "1 for the API version served.", &["server_version"]);
        cluster_version: gauge_vec("etcd_cluster_version", "1 for the version the cluster agreed on.", &["cluster_version"]);
        build: gauge_vec("watershed_build_info", "1 for the version of this program and of its compiler.", &["version", "rustc"]);
        features: gauge_vec("etcd_server_feature_enabled", "1 for a feature gate whose behaviour is in effect, else 0.", &["name", "stage"]);
        auth_revision: gauge("etcd_debugging_auth_revision", "Revision of users and roles.");
        alarms: gauge_vec("etcd_debugging_server_alarms", "1 for each alarm that is raised.", &["server_id", "alarm_type"]);
        proposals_committed: gauge("etcd_server_proposals_committed_total", "Proposals committed.");
        proposals_applied: gauge("etcd_server_proposals_applied_total", "Proposals applied.");
        proposals_pending: gauge("etcd_server_proposals_pending", "Proposals that wait for their commit.");
        proposals_failed: counter("etcd_server_proposals_failed_total", "Proposals that failed.");
        quota_backend_bytes: gauge("etcd_server_quota_backend_bytes", "Size at which writes are refused.");
        health_success: counter("etcd_server_health_success", "Health checks passed.");
        health_failures: counter("etcd_server_health_failures", "Health checks failed.");
        healthcheck: gauge_vec("etcd_server_healthcheck", "Last result of each check: 1 passed, 0 failed.", &["type", "name"]);
        healthchecks: counter_vec("etcd_server_healthchecks_total", "Runs of each check by result.", &["type", "name", "status"]);
        slow_apply: counter("etcd_server_slow_apply_total", "Entries and reads that took longer than --warning-apply-duration.");
        slow_read_indexes: counter("etcd_server_slow_read_indexes_total", "Linearizable reads that got no read index in time.");
        read_indexes_failed: counter("etcd_server_read_indexes_failed_total", "Read index requests that were lost with a leader and are asked again, and reads that ended without an index.");
        heartbeat_send_failures: counter("etcd_server_heartbeat_send_failures_total", "Heartbeats that this member sent late while it led.");
        snapshot_apply_in_progress: gauge("etcd_server_snapshot_apply_in_progress_total", "1 while a snapshot of the leader is being applied.");
        learner_promote_successes: counter("etcd_server_learner_promote_successes", "Promotions of learners that this member decided and that succeeded.");
        learner_promote_failures: counter_vec("etcd_server_learner_promote_failures", "Promotions of learners that this member decided and that failed.", &["Reason"]);
        stream_failures: counter_vec("etcd_network_server_stream_failures_total", "Streams of clients that ended because a message could not be read.", &["Type", "API"]);
        client_requests: counter_vec("etcd_server_client_requests_total", "Requests by the version of the client.", &["type", "client_api_version"]);
        apply_duration: durations_by("etcd_server_apply_duration_seconds", "Time to apply one entry.", &["version", "op", "success"], &OperationKind::rows(&["v3"]), exponential_buckets(0.0001, 20));
        range_duration: durations_by("etcd_server_range_duration_seconds", "Time to answer a range from the store.", &["success"], &[vec!["false"], vec!["true"]], exponential_buckets(0.0001, 20));
        request_duration: durations_by("etcd_server_request_duration_seconds", "Time from the proposal of a request, or the start of a read, to its answer.", &["type", "success"], &OperationKind::rows(&[]), exponential_buckets(0.001, 14));
    }
}

room! {
    /// The log and the checkpointed state.
    DiskMetrics {
        wal_fsync: histogram("etcd_disk_wal_fsync_duration_seconds", "Time of one fdatasync of the log.", exponential_buckets(0.001, 14));
        wal_write: histogram("etcd_disk_wal_write_duration_seconds", "Time of one write to the log.", exponential_buckets(0.001, 14));
        wal_write_bytes: gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the log.");
        snap_fsync: histogram("etcd_snap_fsync_duration_seconds", "Time to make a snapshot record of the log durable.", exponential_buckets(0.001, 14));
        backend_commit: histogram("etcd_disk_backend_commit_duration_seconds", "Time of one durable commit of the state.", exponential_buckets(0.001, 14));
        backend_defrag: histogram("etcd_disk_backend_defrag_duration_seconds", "Time of one defragmentation.", exponential_buckets(0.1, 13));
        backend_snapshot: histogram("etcd_disk_backend_snapshot_duration_seconds", "Time from the start to the end of reading a snapshot of the state.", exponential_buckets(0.01, 17));
        defrag_inflight: gauge("etcd_disk_defrag_inflight", "1 while a defragmentation runs.");
    }
}

room! {
    /// The store of keys.
    MvccMetrics {
        db_total_size: gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes the state takes on disk.");
        db_total_size_in_use: gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of the state on disk that hold something.");
        open_reads: gauge("etcd_mvcc_db_open_read_transactions", "Read transactions that are open on the state on disk.");
        puts: counter("etcd_mvcc_put_total", "Puts applied here.");
        deletes: counter("etcd_mvcc_delete_total", "Deletes of a key or range applied here.");
        ranges: counter("etcd_mvcc_range_total", "Ranges answered here, those of transactions and their comparisons among them.");
        txns: counter("etcd_mvcc_txn_total", "Transactions of more than one operation answered here.");
        hash_duration: histogram("etcd_mvcc_hash_duration_seconds", "Time to hash the whole state.", exponential_buckets(0.01, 15));
        hash_rev_duration: histogram("etcd_mvcc_hash_rev_duration_seconds", "Time to hash the keys at a revision.", exponential_buckets(0.01, 15));
        current_revision: gauge("etcd_debugging_mvcc_current_revision", "Revision of the store.");
        compact_revision: gauge("etcd_debugging_mvcc_compact_revision", "Revision of the last compaction.");
        keys: gauge("etcd_debugging_mvcc_keys_total", "Keys in the index.");
        put_bytes: gauge("etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values put here.");
        compacted_keys: counter("etcd_debugging_mvcc_db_compaction_keys_total", "Records removed by compactions.");
        compaction_last: gauge("etcd_debugging_mvcc_db_compaction_last", "Unix time at which the last compaction finished; 0 after a start.");
        compaction_pause: histogram("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", "Time for which one slice of a compaction holds up the application of entries.", exponential_buckets(1.0, 13));
        compaction_total: histogram("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", "Time from the start to the end of a compaction.", exponential_buckets(100.0, 14));
    }
}

room! {
    /// Watchers and their streams.
    WatchMetrics {
        watchers: gauge("etcd_debugging_mvcc_watcher_total", "Watchers.");
        streams: gauge("etcd_debugging_mvcc_watch_stream_total", "Streams of watchers.");
        slow_watchers: gauge("etcd_debugging_mvcc_slow_watcher_total", "Watchers that are catching up.");
        pending_events: gauge("etcd_debugging_mvcc_pending_events_total", "Events that wait to be sent.");
        events: counter("etcd_debugging_mvcc_events_total", "Events sent.");
        send_events: durations("etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds", "Time to encode one response with events and to wait until the connection takes more.", exponential_buckets(0.001, 14));
        send_per_event: durations("etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds", "The same, per event of the response.", exponential_buckets(0.001, 14));
        send_control: durations("etcd_debugging_server_watch_send_loop_control_stream_duration_seconds", "The same for a response without events.", exponential_buckets(0.001, 14));
        send_progress: durations("etcd_debugging_server_watch_send_loop_progress_duration_seconds", "Time of one turn of periodic progress notifications.", exponential_buckets(0.001, 14));
    }
}

room! {
    /// Leases.
    LeaseMetrics {
        granted: counter("etcd_debugging_lease_granted_total", "Leases granted.");
        revoked: counter("etcd_debugging_lease_revoked_total", "Leases revoked.");
        renewed: counter("etcd_debugging_lease_renewed_total", "Leases renewed by this member as the leader.");
        expired: counter("etcd_debugging_server_lease_expired_total", "Leases that expired.");
        ttl: histogram("etcd_debugging_lease_ttl_total", "Granted times to live in seconds.", exponential_buckets(1.0, 24));
    }
}

room! {
    /// Bytes of gRPC messages on the port for clients, without the prefix of each message.
    NetworkMetrics {
        client_received_bytes: counter("etcd_network_client_grpc_received_bytes_total", "Bytes of messages received from clients.");
        client_sent_bytes: counter("etcd_network_client_grpc_sent_bytes_total", "Bytes of messages sent to clients.");
    }
}

room! {
    /// Traffic between members. Peers are named by their hexadecimal ids.
    PeerMetrics {
        sent_bytes: counter_vec("etcd_network_peer_sent_bytes_total", "Bytes sent to peers.", &["To"]);
        received_bytes: counter_vec("etcd_network_peer_received_bytes_total", "Bytes received from peers.", &["From"]);
        sent_failures: counter_vec("etcd_network_peer_sent_failures_total", "Messages to peers that were dropped, and connections to them that failed.", &["To"]);
        received_failures: counter_vec("etcd_network_peer_received_failures_total", "Connections of peers closed for what came in.", &["From"]);
        round_trip: histogram_vec("etcd_network_peer_round_trip_time_seconds", "Time of a ping to a peer and back.", &["To"], exponential_buckets(0.0001, 16));
        active: gauge_vec("etcd_network_active_peers", "1 while messages can be sent to a peer.", &["Local", "Remote"]);
        known: gauge_vec("etcd_network_known_peers", "1 for each peer.", &["Local", "Remote"]);
        disconnected: counter_vec("etcd_network_disconnected_peers_total", "Times a peer was lost.", &["Local", "Remote"]);
        refused: counter_vec("watershed_network_peer_refused_total", "Connections refused in the handshake, by reason.", &["Reason"]);
        snapshot_send_success: counter_vec("etcd_network_snapshot_send_success", "Snapshots sent.", &["To"]);
        snapshot_send_failures: counter_vec("etcd_network_snapshot_send_failures", "Snapshots whose sending was given up.", &["To"]);
        snapshot_send_inflights: gauge_vec("etcd_network_snapshot_send_inflights_total", "Snapshots that are being sent to a peer.", &["To"]);
        snapshot_send_duration: histogram_vec("etcd_network_snapshot_send_total_duration_seconds", "Time to send a snapshot.", &["To"], exponential_buckets(0.1, 10));
        snapshot_receive_success: counter_vec("etcd_network_snapshot_receive_success", "Snapshots received.", &["From"]);
        snapshot_receive_failures: counter_vec("etcd_network_snapshot_receive_failures", "Connections on which receiving a snapshot failed.", &["From"]);
        snapshot_receive_inflights: gauge_vec("etcd_network_snapshot_receive_inflights_total", "Snapshots that are being received from a peer.", &["From"]);
        snapshot_receive_duration: histogram_vec("etcd_network_snapshot_receive_total_duration_seconds", "Time to receive a snapshot.", &["From"], exponential_buckets(0.1, 10));
        snap_db_fsync: histogram("etcd_snap_db_fsync_duration_seconds", "Time to make a received snapshot durable.", exponential_buckets(0.001, 14));
        snap_db_save: histogram("etcd_snap_db_save_total_duration_seconds", "Time from the first byte of a received snapshot until it is durable.", exponential_buckets(0.1, 10));
    }
}

#[cfg(test)]
mod tests {
    use super::super::grpc::GrpcCalls;
    use super::*;

    #[test]
    fn the_rooms_live_in_one_registry() {
        let metrics = Metrics::new();
        ServerMetrics::register(&metrics).has_leader.set(1);
        DiskMetrics::register(&metrics).wal_fsync.observe(0.0015);
        MvccMetrics::register(&metrics);
        WatchMetrics::register(&metrics);
        LeaseMetrics::register(&metrics);
        GrpcCalls::register(&metrics, false, []);
        PeerMetrics::register(&metrics);
        let text = metrics.render();
        assert!(text.contains("\netcd_server_has_leader 1\n"));
        assert!(text.contains("etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.002\"} 1\n"));
    }
}
