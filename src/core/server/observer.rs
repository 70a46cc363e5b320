use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tracing::warn;

use super::authenticator::Authenticator;
use super::error::Failed;
use super::lease_clock::LeaseClock;
use super::metrics::CoreMetrics;
use super::proposer::{PENDING_BYTES_MAX_PEERS, Proposer};
use super::published::Published;
use super::quota::SpaceQuota;
use crate::core::alarm::AlarmStore;
use crate::core::apply::{AppliedRequest, Applier, ApplyObserver, LeaseFact, describe_request};
use crate::core::auth::{AuthFact, AuthState};
use crate::core::backend::Backend;
use crate::core::cluster::{ClusterStore, Member};
use crate::core::mvcc::{OperationCounts, RevisionEvents};
use crate::core::peer::{Peer, PeerTransport};
use crate::core::raft::{MembersDecision, RaftHandle};
use crate::core::watch::CoreWatch;
use crate::shutdown::Tasks;
use crate::telemetry::unix_seconds;
use crate::types::{LogIndex, MemberId};

/// Passes what apply did on to watchers, deadlines and readers.
pub(super) struct MemberObserver {
    pub(super) member: MemberId,
    pub(super) raft: RaftHandle,
    pub(super) backend: Backend,
    pub(super) peers: PeerTransport,
    pub(super) published: Arc<Published>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) leases: Arc<LeaseClock>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) quota: Arc<SpaceQuota>,
    pub(super) metrics: Arc<CoreMetrics>,
    pub(super) watch: CoreWatch,
    pub(super) failed: Failed,
    pub(super) tasks: Tasks,
    /// Where alarms are raised.
    pub(super) runtime: Handle,
}

/// Connects to these members, this one left out.
pub(super) fn follow_members<'a>(
    peers: &PeerTransport,
    published: &Published,
    members: impl Iterator<Item = &'a Member>,
) {
    let members = members.map(|member| Peer { id: member.member_id(), urls: member.peer_urls.clone() }).collect();
    peers.set_peers(members, published.cluster().removed().clone());
}

impl ApplyObserver for MemberObserver {
    fn applied_request(&mut self, applied: &AppliedRequest, took: Duration) {
        let metrics = &self.metrics;
        metrics.server.apply_duration.observe(applied.operation.kind().row(applied.success), took);
        metrics.warn_if_slow(None, took, "", || describe_request(applied.id, &applied.operation));
    }

    fn operations(&mut self, counts: &OperationCounts) {
        self.metrics.count_operations(counts);
    }

    fn events(&mut self, events: Vec<RevisionEvents>) {
        self.watch.append(events);
    }

    fn leases(&mut self, facts: &[LeaseFact]) {
        let counters = &self.metrics.lease;
        for fact in facts {
            match fact {
                LeaseFact::Granted(lease) => {
                    counters.granted.inc();
                    counters.ttl.observe(lease.granted_ttl as f64);
                }
                // Asked for by a client, or expired.
                LeaseFact::Revoked(_) => counters.revoked.inc(),
                LeaseFact::Checkpointed { .. } => {}
            }
        }
        self.leases.apply_facts(facts);
    }

    fn members_decided(&mut self, decisions: Vec<MembersDecision>) {
        self.raft.members_decided(decisions);
    }

    fn records(&mut self, cluster: &ClusterStore, alarms: &AlarmStore) {
        self.published.update(cluster, alarms);
        follow_members(&self.peers, &self.published, cluster.members());
        if cluster.is_removed(self.member) {
            self.published.removed().cancel();
        }
    }

    fn auth(&mut self, state: &Arc<AuthState>, facts: Vec<AuthFact>) {
        self.authenticator.applied(state, facts);
    }

    fn installing(&mut self, applier: &Applier) {
        self.authenticator.installing(applier.auth().state());
    }

    fn installed(&mut self, applier: &Applier) {
        self.watch.jump();
        self.leases.replace(applier.leases());
        self.records(applier.cluster(), applier.alarms());
    }

    fn applied(&mut self, index: LogIndex) {
        let pending = self.backend.pending_bytes() as u64;
        self.proposer.set_pending_bytes(pending);
        // Taken back by `wal_compaction`, too: apply may have nothing more to do.
        self.raft.set_state_disk_late(pending > PENDING_BYTES_MAX_PEERS);
        self.raft.set_applied(index);
    }

    fn over_quota(&mut self) {
        let quota = self.quota.clone();
        let _entered = self.runtime.enter();
        self.tasks.spawn(async move {
            if let Err(error) = quota.raise_alarm().await {
                warn!(%error, "NOSPACE alarm not raised");
            }
        });
    }

    fn compaction_slice(&mut self, took: Duration) {
        self.metrics.mvcc.compaction_pause.observe(took.as_secs_f64() * 1e3);
    }

    fn compacted(&mut self, records: usize, took: Duration) {
        let mvcc = &self.metrics.mvcc;
        mvcc.compacted_keys.inc_by(records as u64);
        mvcc.compaction_total.observe(took.as_secs_f64() * 1e3);
        mvcc.compaction_last.set(unix_seconds());
    }

    fn failed(&mut self, reason: String) {
        (self.failed)(reason);
    }
}
