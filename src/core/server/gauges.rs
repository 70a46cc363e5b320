use std::sync::Arc;

use super::metrics::CoreMetrics;
use super::parts::Parts;
use crate::config::FeatureGates;
use crate::core::raft::RaftHandle;
use crate::pb::etcdserverpb::AlarmType;
use crate::shutdown::Tasks;
use crate::telemetry::{Metrics, raise_to};
use crate::types::{API_VERSION, MemberId};

/// Fills the gauges that are cheaper to read when the metrics are read than to keep current.
pub(super) fn refresh_gauges(registry: &Metrics, parts: Parts, gates: FeatureGates) {
    let server = &parts.metrics.server;
    server.id.with_label_values(&[&parts.info.member().to_string()]).set(1);
    server.version.with_label_values(&[API_VERSION]).set(1);
    server.quota_backend_bytes.set(parts.limits.quota_bytes);
    server.build.with_label_values(&[env!("CARGO_PKG_VERSION"), env!("WATERSHED_RUSTC")]).set(1);
    for (name, stage, enabled) in gates.features() {
        server.features.with_label_values(&[name, stage]).set(i64::from(enabled));
    }
    registry.before_render(move || {
        let (server, mvcc) = (&parts.metrics.server, &parts.metrics.mvcc);
        let status = *parts.raft.status().borrow();
        server.has_leader.set(i64::from(status.leader.is_some()));
        server.is_leader.set(i64::from(status.is_leader));
        let cluster = parts.published.cluster();
        server.is_learner.set(i64::from(parts.published.is_learner()));
        if let Some(version) = cluster.version() {
            // One version at a time.
            server.cluster_version.reset();
            let short = version.rsplit_once('.').map_or(version, |(short, _)| short);
            server.cluster_version.with_label_values(&[short]).set(1);
        }
        server.alarms.reset();
        for alarm in parts.published.alarms().list(AlarmType::None) {
            let kind = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |kind| kind.as_str_name());
            server.alarms.with_label_values(&[&MemberId(alarm.member_id).to_string(), kind]).set(1);
        }
        server.auth_revision.set(parts.published.auth().revision() as i64);
        raise_to(&server.heartbeat_send_failures, parts.raft.late_heartbeats());
        raise_to(&server.read_indexes_failed, parts.raft.lost_reads());
        server.proposals_committed.set(parts.raft.committed().0 as i64);
        server.proposals_applied.set(parts.apply.applied().0 as i64);
        let state = parts.store.snapshot();
        mvcc.db_total_size.set(parts.backend.size_bytes() as i64);
        mvcc.db_total_size_in_use.set(parts.backend.size_in_use_bytes() as i64);
        mvcc.open_reads.set(parts.backend.open_reads());
        mvcc.current_revision.set(state.revision().0);
        mvcc.compact_revision.set(state.compacted().0);
        mvcc.keys.set(state.len() as i64);
    });
}

/// Counts changes of leader.
pub(super) async fn count_leaders(raft: RaftHandle, metrics: Arc<CoreMetrics>, tasks: Tasks) {
    let stop = tasks.stop_signal();
    let mut status = raft.status();
    let mut seen = None;
    loop {
        if changes_leader(&mut seen, status.borrow_and_update().leader) {
            metrics.server.leader_changes.inc();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
        }
    }
}

/// Whether there is a leader that was not seen last. As in etcd the same one after a time without any counts again.
fn changes_leader(seen: &mut Option<MemberId>, leader: Option<MemberId>) -> bool {
    let before = std::mem::replace(seen, leader);
    leader.is_some() && leader != before
}

#[cfg(test)]
mod tests {
    use super::*;

    // A leader that was lost and found again was not counted.
    #[test]
    fn a_leader_that_comes_back_is_a_change() {
        let (a, b) = (Some(MemberId(1)), Some(MemberId(2)));
        let mut seen = None;
        let statuses = [None, a, a, None, a, b, b, None];
        let changes = statuses.into_iter().filter(|leader| changes_leader(&mut seen, *leader)).count();
        assert_eq!(changes, 3);
    }
}
