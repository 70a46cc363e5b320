use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tracing::warn;

use super::core::Core;
use super::member::Failed;
use super::quota;
use crate::core::alarm::AlarmStore;
use crate::core::apply::{AppliedRequest, Applier, ApplyObserver, LeaseFact, describe_request};
use crate::core::cluster::ClusterStore;
use crate::core::mvcc::{OperationCounts, RevisionEvents};
use crate::core::raft::MembersDecision;
use crate::core::watch::CoreWatch;
use crate::shutdown::Tasks;
use crate::telemetry::unix_seconds;
use crate::types::LogIndex;

/// Passes what apply did on to watchers, deadlines and readers.
pub(super) struct MemberObserver {
    core: Arc<Core>,
    watch: CoreWatch,
    failed: Failed,
    tasks: Tasks,
    runtime: Handle,
}

impl MemberObserver {
    /// Must be called on the runtime that follow-up work runs on.
    pub(super) fn new(core: Arc<Core>, watch: CoreWatch, failed: Failed, tasks: Tasks) -> Self {
        Self { core, watch, failed, tasks, runtime: Handle::current() }
    }
}

impl ApplyObserver for MemberObserver {
    fn applied_request(&mut self, applied: &AppliedRequest, took: Duration) {
        let metrics = &self.core.metrics;
        metrics.server.apply_duration.observe(applied.operation.kind().row(applied.success), took);
        metrics.warn_if_slow(took, "", || describe_request(applied.id, &applied.operation));
    }

    fn operations(&mut self, counts: &OperationCounts) {
        self.core.metrics.count_operations(counts);
    }

    fn events(&mut self, events: Vec<RevisionEvents>) {
        self.watch.append(events);
    }

    fn leases(&mut self, facts: &[LeaseFact]) {
        let counters = &self.core.metrics.lease;
        for fact in facts {
            match fact {
                LeaseFact::Granted(lease) => {
                    counters.granted.inc();
                    counters.ttl.observe(lease.granted_ttl as f64);
                }
                // Whoever asked for it: a client or the clock.
                LeaseFact::Revoked(_) => counters.revoked.inc(),
                LeaseFact::Checkpointed { .. } => {}
            }
        }
        self.core.leases.apply_facts(facts);
    }

    fn members_decided(&mut self, decisions: Vec<MembersDecision>) {
        self.core.raft.members_decided(decisions);
    }

    fn records(&mut self, cluster: &ClusterStore, alarms: &AlarmStore) {
        self.core.published.update(self.core.member, cluster, alarms);
        self.core.follow_members(cluster.members());
        if cluster.is_removed(self.core.member) {
            self.core.removed.cancel();
        }
    }

    fn installed(&mut self, applier: &Applier) {
        self.watch.jump();
        self.core.leases.replace(applier.leases());
        self.records(applier.cluster(), applier.alarms());
    }

    fn applied(&mut self, index: LogIndex) {
        let pending = self.core.backend.pending_bytes() as u64;
        self.core.pending_bytes.store(pending, std::sync::atomic::Ordering::Relaxed);
        self.core.raft.set_applied(index);
    }

    fn over_quota(&mut self) {
        let core = self.core.clone();
        let _entered = self.runtime.enter();
        self.tasks.spawn(async move {
            if let Err(error) = quota::raise_alarm(&core).await {
                warn!(%error, "NOSPACE alarm not raised");
            }
        });
    }

    fn compaction_slice(&mut self, took: Duration) {
        self.core.metrics.mvcc.compaction_pause.observe(took.as_secs_f64() * 1e3);
    }

    fn compacted(&mut self, records: usize, took: Duration) {
        let mvcc = &self.core.metrics.mvcc;
        mvcc.compacted_keys.inc_by(records as u64);
        mvcc.compaction_total.observe(took.as_secs_f64() * 1e3);
        mvcc.compaction_last.set(unix_seconds());
    }

    fn failed(&mut self, reason: String) {
        (self.failed)(reason);
    }
}
