use std::sync::Arc;

use super::authenticator::{Authenticator, Tokens};
use super::corruption_check::CorruptionCheck;
use super::error::Failed;
use super::leader_transfer::LeaderTransfer;
use super::lease_clock::LeaseClock;
use super::lease_leader::MemberLeases;
use super::limits::Limits;
use super::long_answer::AnswerMemory;
use super::member_info::MemberInfo;
use super::metrics::CoreMetrics;
use super::password_threads::PasswordThreads;
use super::proposer::Proposer;
use super::published::Published;
use super::quota::SpaceQuota;
use super::read_index::ReadIndex;
use super::reconfigure::MembershipChanges;
use super::renewals::Renewals;
use crate::core::apply::{ApplyHandle, SharedPendingRequests};
use crate::core::backend::Backend;
use crate::core::mvcc::StoreReader;
use crate::core::peer::PeerTransport;
use crate::core::raft::RaftHandle;
use crate::types::{ClusterId, LogIndex, MemberId};

/// The parts of a running member. Only what starts a member or builds a service names this type; each service and each
/// task gets the parts that it needs.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) info: Arc<MemberInfo>,
    pub(super) published: Arc<Published>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) reads: Arc<ReadIndex>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) passwords: PasswordThreads,
    pub(super) quota: Arc<SpaceQuota>,
    pub(super) changes: Arc<MembershipChanges>,
    pub(super) transfer: Arc<LeaderTransfer>,
    pub(super) corruption: Arc<CorruptionCheck>,
    pub(super) clock: Arc<LeaseClock>,
    pub(super) leases: Arc<MemberLeases>,
    pub(super) renewals: Renewals,
    pub(super) answers: Arc<AnswerMemory>,
    pub(super) metrics: Arc<CoreMetrics>,
    pub(super) raft: RaftHandle,
    pub(super) apply: ApplyHandle,
    pub(super) store: StoreReader,
    pub(super) backend: Backend,
    pub(super) peers: PeerTransport,
    pub(super) limits: Limits,
}

/// What the parts are made of.
pub(super) struct Foundation {
    pub(super) member: MemberId,
    pub(super) cluster: ClusterId,
    pub(super) limits: Limits,
    pub(super) raft: RaftHandle,
    pub(super) apply: ApplyHandle,
    pub(super) store: StoreReader,
    pub(super) backend: Backend,
    pub(super) peers: PeerTransport,
    pub(super) pending: Arc<SharedPendingRequests>,
    pub(super) published: Arc<Published>,
    pub(super) clock: Arc<LeaseClock>,
    pub(super) renewals: Renewals,
    pub(super) auth: AuthParts,
    pub(super) metrics: CoreMetrics,
    pub(super) failed: Failed,
}

/// What is needed to know clients.
pub(super) struct AuthParts {
    pub(super) tokens: Tokens,
    pub(super) passwords: PasswordThreads,
    /// `--client-cert-auth`.
    pub(super) certificates: bool,
    /// End of the log when the member started.
    pub(super) started_at: LogIndex,
}

impl Parts {
    pub(super) fn new(foundation: Foundation) -> Self {
        let Foundation { member, limits, raft, apply, store, backend, peers, published, clock, .. } = foundation;
        let metrics = Arc::new(foundation.metrics);
        let info = Arc::new(MemberInfo::new(member, foundation.cluster, raft.clone(), store.clone()));
        let unconfirmed = metrics.server.slow_read_indexes.clone();
        let reads = Arc::new(ReadIndex::new(raft.clone(), apply.clone(), limits.request_timeout, unconfirmed));
        let AuthParts { tokens, passwords, certificates, started_at } = foundation.auth;
        let authenticator =
            Authenticator::new(published.clone(), reads.clone(), apply.clone(), tokens, certificates, started_at);
        let authenticator = Arc::new(authenticator);
        let proposer = Arc::new(Proposer::new(
            member,
            raft.clone(),
            foundation.pending,
            authenticator.clone(),
            metrics.clone(),
            backend.clone(),
            &limits,
        ));
        let quota = Arc::new(SpaceQuota {
            member,
            backend: backend.clone(),
            quota_bytes: limits.quota_bytes,
            published: published.clone(),
            proposer: proposer.clone(),
        });
        let changes = MembershipChanges::new(
            member,
            raft.clone(),
            reads.clone(),
            published.clone(),
            peers.clone(),
            proposer.clone(),
            &limits,
        );
        let transfer = Arc::new(LeaderTransfer {
            member,
            raft: raft.clone(),
            published: published.clone(),
            peers: peers.clone(),
            proposer: proposer.clone(),
            election_timeout: limits.election_timeout,
        });
        let corruption = Arc::new(CorruptionCheck {
            info: info.clone(),
            raft: raft.clone(),
            store: store.clone(),
            backend: backend.clone(),
            apply: apply.clone(),
            peers: peers.clone(),
            published: published.clone(),
            reads: reads.clone(),
            proposer: proposer.clone(),
            transfer: transfer.clone(),
            metrics: metrics.clone(),
            failed: foundation.failed,
            timeout: limits.request_timeout,
        });
        let leases = Arc::new(MemberLeases {
            member,
            raft: raft.clone(),
            clock: clock.clone(),
            reads: reads.clone(),
            proposer: proposer.clone(),
            peers: peers.clone(),
            metrics: metrics.clone(),
        });
        Self {
            info,
            published,
            proposer,
            reads,
            authenticator,
            passwords,
            quota,
            changes: Arc::new(changes),
            transfer,
            corruption,
            clock,
            leases,
            renewals: foundation.renewals,
            answers: Arc::new(AnswerMemory::new(limits.answer_memory_bytes)),
            metrics,
            raft,
            apply,
            store,
            backend,
            peers,
            limits,
        }
    }
}
