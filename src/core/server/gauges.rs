use std::sync::Arc;

use super::core::Core;
use crate::telemetry::Metrics;
use crate::types::API_VERSION;

/// Fills the gauges that are cheaper to read when somebody asks than to keep current.
pub fn refresh_gauges(registry: &Metrics, core: Arc<Core>) {
    let server = &core.metrics.server;
    server.id.with_label_values(&[&core.member.to_string()]).set(1);
    server.version.with_label_values(&[API_VERSION]).set(1);
    server.quota_backend_bytes.set(core.limits.quota_bytes);
    let leader = parking_lot::Mutex::new(None);
    registry.before_render(move || {
        let (server, mvcc) = (&core.metrics.server, &core.metrics.mvcc);
        let status = *core.raft.status().borrow();
        server.has_leader.set(i64::from(status.leader.is_some()));
        server.is_leader.set(i64::from(status.is_leader));
        let mut seen = leader.lock();
        if status.leader.is_some() && *seen != status.leader {
            *seen = status.leader;
            server.leader_changes.inc();
        }
        drop(seen);
        let cluster = core.published.cluster.load();
        let learner = cluster.member(core.member).is_some_and(|member| member.is_learner);
        server.is_learner.set(i64::from(learner));
        if let Some(version) = cluster.version() {
            let short = version.rsplit_once('.').map_or(version, |(short, _)| short);
            server.cluster_version.with_label_values(&[short]).set(1);
        }
        server.proposals_committed.set(core.raft.committed().0 as i64);
        server.proposals_applied.set(core.raft.applied().0 as i64);
        let state = core.store.snapshot();
        mvcc.db_total_size.set(core.backend.size_bytes() as i64);
        mvcc.db_total_size_in_use.set(core.backend.size_in_use_bytes() as i64);
        mvcc.current_revision.set(state.revision().0);
        mvcc.compact_revision.set(state.compacted().0);
        mvcc.keys.set(state.len() as i64);
    });
}
