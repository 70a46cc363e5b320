use std::sync::Arc;

use super::core::Core;
use crate::config::IntegrityChecks;
use crate::pb::etcdserverpb::AlarmType;
use crate::shutdown::Tasks;
use crate::telemetry::{Metrics, raise_to};
use crate::types::{API_VERSION, MemberId};

/// Fills the gauges that are cheaper to read when somebody asks than to keep current.
pub fn refresh_gauges(registry: &Metrics, core: Arc<Core>, integrity: IntegrityChecks) {
    let server = &core.metrics.server;
    server.id.with_label_values(&[&core.member.to_string()]).set(1);
    server.version.with_label_values(&[API_VERSION]).set(1);
    server.quota_backend_bytes.set(core.limits.quota_bytes);
    server.build.with_label_values(&[env!("CARGO_PKG_VERSION"), env!("WATERSHED_RUSTC")]).set(1);
    for (name, stage, enabled) in integrity.features() {
        server.features.with_label_values(&[name, stage]).set(i64::from(enabled));
    }
    registry.before_render(move || {
        let (server, mvcc) = (&core.metrics.server, &core.metrics.mvcc);
        let status = *core.raft.status().borrow();
        server.has_leader.set(i64::from(status.leader.is_some()));
        server.is_leader.set(i64::from(status.is_leader));
        let cluster = core.published.cluster.load();
        server.is_learner.set(i64::from(core.is_learner()));
        if let Some(version) = cluster.version() {
            // Only one version counts.
            server.cluster_version.reset();
            let short = version.rsplit_once('.').map_or(version, |(short, _)| short);
            server.cluster_version.with_label_values(&[short]).set(1);
        }
        server.alarms.reset();
        for alarm in core.published.alarms.load().list(AlarmType::None) {
            let kind = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |kind| kind.as_str_name());
            server.alarms.with_label_values(&[&MemberId(alarm.member_id).to_string(), kind]).set(1);
        }
        raise_to(&server.heartbeat_send_failures, core.raft.late_heartbeats());
        raise_to(&server.read_indexes_failed, core.raft.lost_reads());
        server.proposals_committed.set(core.raft.committed().0 as i64);
        server.proposals_applied.set(core.raft.applied().0 as i64);
        let state = core.store.snapshot();
        mvcc.db_total_size.set(core.backend.size_bytes() as i64);
        mvcc.db_total_size_in_use.set(core.backend.size_in_use_bytes() as i64);
        mvcc.open_reads.set(core.backend.open_reads());
        mvcc.current_revision.set(state.revision().0);
        mvcc.compact_revision.set(state.compacted().0);
        mvcc.keys.set(state.len() as i64);
    });
}

/// Counts leaders as they come, however rarely somebody looks.
pub(super) async fn count_leaders(core: Arc<Core>, tasks: Tasks) {
    let stop = tasks.stop_signal();
    let mut status = core.raft.status();
    let mut seen = None;
    loop {
        let leader = status.borrow_and_update().leader;
        if leader.is_some() && leader != seen {
            seen = leader;
            core.metrics.server.leader_changes.inc();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
        }
    }
}
