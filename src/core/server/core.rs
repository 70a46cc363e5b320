use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use prost::Message;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::error::Failure;
use super::lease_clock::LeaseClock;
use super::long_answer::AnswerMemory;
use super::member::Failed;
use super::metrics::CoreMetrics;
use super::renewals::Renewals;
use crate::api_error::ApiError;
use crate::core::alarm::AlarmStore;
use crate::core::apply::{Applied, ApplyHandle, Proposable, ProposalOutcome, SharedPendingRequests};
use crate::core::backend::Backend;
use crate::core::cluster::{ClusterStore, Member};
use crate::core::mvcc::{Snapshot, StoreReader};
use crate::core::peer::{Peer, PeerTransport};
use crate::core::raft::{Proposal, ProposeError, RaftHandle};
use crate::pb::encoded::ResponseHeader;
use crate::pb::etcdserverpb::AlarmType;
use crate::types::{ClusterId, LogIndex, MemberId, Revision, Term};

/// Changes in memory that the state on disk does not have yet, in bytes; above it writes are refused until the disk
/// has caught up.
const PENDING_BYTES_MAX: u64 = 1 << 30;
/// Requests that wait at once until a leader is known; more are refused.
pub(super) const LEADERLESS_MAX: usize = 4096;
/// Pause before a request that went nowhere is proposed again in the same term; another leader ends it.
const PROPOSE_PAUSE: Duration = Duration::from_millis(50);
/// How long a reader that waits for its index sleeps between looks, at most; apply wakes it earlier.
const APPLIED_RECHECK: Duration = Duration::from_millis(50);

/// Limits of one member.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest encoded proposal.
    pub max_request_bytes: usize,
    /// Longest list of a transaction.
    pub max_txn_ops: usize,
    /// Memory that answers in flight may take.
    pub answer_memory_bytes: u64,
    /// Bytes the state may take; negative for no limit.
    pub quota_bytes: i64,
    /// How long a proposal may take.
    pub request_timeout: Duration,
    /// Silence after which a member stands for election.
    pub election_timeout: Duration,
    /// Shortest lease, in seconds.
    pub lease_ttl_min: i64,
    /// Learners the cluster may have.
    pub max_learners: usize,
    /// Whether membership changes that could cost the quorum are refused.
    pub strict_reconfig_check: bool,
}

/// Extra bytes a request message may have over `max_request_bytes`.
const REQUEST_OVERHEAD_BYTES: usize = 512 * 1024;

impl Limits {
    /// Largest message the gRPC server takes.
    pub fn max_message_bytes(&self) -> usize {
        self.max_request_bytes + REQUEST_OVERHEAD_BYTES
    }
}

/// State rooms that apply changes and everybody reads.
#[derive(Debug, Default)]
pub struct Published {
    /// Raised alarms.
    pub alarms: ArcSwap<AlarmStore>,
    /// Members and cluster version.
    pub cluster: ArcSwap<ClusterStore>,
    /// Whether a CORRUPT alarm names this member: it serves no clients then.
    pub corrupt: watch::Sender<bool>,
}

impl Published {
    /// Shows members and alarms to everybody.
    pub(super) fn update(&self, member: MemberId, cluster: &ClusterStore, alarms: &AlarmStore) {
        self.cluster.store(Arc::new(cluster.clone()));
        self.alarms.store(Arc::new(alarms.clone()));
        let corrupt = alarms.names(AlarmType::Corrupt, member);
        self.corrupt.send_if_modified(|known| std::mem::replace(known, corrupt) != corrupt);
    }

    /// Whether clients may have data from `member`, which is this one.
    ///
    /// # Errors
    /// "Corrupt cluster" while a CORRUPT alarm names it.
    pub(super) fn may_serve(&self, member: MemberId) -> Result<(), ApiError> {
        if self.alarms.load().names(AlarmType::Corrupt, member) { Err(ApiError::Corrupt) } else { Ok(()) }
    }
}

/// What every service of a member works with. Shared by all serving threads.
pub struct Core {
    /// This member.
    pub member: MemberId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Limits.
    pub limits: Limits,
    /// Consensus.
    pub raft: RaftHandle,
    /// The key-value store.
    pub store: StoreReader,
    /// Alarms and members.
    pub published: Arc<Published>,
    /// Leases and their deadlines.
    pub leases: Arc<LeaseClock>,
    /// Keep-alives of all streams.
    pub renewals: Renewals,
    /// Ends the process when this member's state can no longer be trusted.
    pub failed: Failed,
    /// Whether leadership is being handed over.
    pub transferring_leadership: watch::Sender<bool>,
    /// State on disk, for maintenance calls.
    pub backend: Backend,
    /// Apply's side of compactions.
    pub apply: ApplyHandle,
    /// The other members.
    pub peers: PeerTransport,
    /// Room for long answers.
    pub answers: AnswerMemory,
    /// Counters.
    pub metrics: CoreMetrics,
    /// Requests under way.
    pub pending: Arc<SharedPendingRequests>,
    /// Cancelled once this member is none any more.
    pub removed: CancellationToken,
    /// One membership change at a time.
    pub reconfiguring: Semaphore,
    /// Places for requests that wait for a leader.
    pub leaderless: Semaphore,
    /// Source of request ids.
    pub next_request: AtomicU64,
    /// Bytes of changes that are not in the state on disk yet; apply keeps it current.
    pub pending_bytes: AtomicU64,
}

impl Core {
    /// Replicates a request and returns its outcome once this member has applied it.
    ///
    /// It is proposed again when it went nowhere or was lost with a leader, and is never done twice: see
    /// [`PendingRequests`](crate::core::apply::PendingRequests). Dropping the future before the request is proposed takes it back;
    /// later it ends the waiting only, and the entry may still commit. Nothing is proposed while no leader is known.
    ///
    /// # Errors
    /// [`ApiError::NoLeader`] and [`ApiError::LeaderChanged`] when it could not be proposed in time: the request was
    /// not executed and never will be.
    pub async fn propose<R: Proposable>(&self, request: R) -> Result<R::Answer, Failure> {
        let timed = self.metrics.proposal(R::KIND);
        let deadline = Instant::now() + self.limits.request_timeout;
        let (id, bytes) = self.entry(request);
        loop {
            let term = self.term_with_leader(deadline).await?;
            let proposal = Proposal { request: id, term, bytes: bytes.clone() };
            if let Some(answer) = self.attempt(proposal, deadline, RaftHandle::propose, R::answer).await? {
                timed.succeed();
                return Ok(answer);
            }
            self.after_loss(term, deadline).await?;
        }
    }

    /// Like [`propose`](Self::propose), for what only the leader of `term` may decide; see
    /// [`RaftHandle::propose_as_leader`].
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] when that leadership is over.
    pub async fn propose_as_leader<R: Proposable>(&self, request: R, term: Term) -> Result<R::Answer, Failure> {
        let timed = self.metrics.proposal(R::KIND);
        let deadline = Instant::now() + self.limits.request_timeout;
        let (request, bytes) = self.entry(request);
        let proposal = Proposal { request, term, bytes };
        let answer = self.attempt(proposal, deadline, RaftHandle::propose_as_leader, R::answer).await?;
        let answer = answer.ok_or(ProposeError::NotLeader)?;
        timed.succeed();
        Ok(answer)
    }

    /// A log entry for `request`, and its new id.
    pub(super) fn entry(&self, request: impl Proposable) -> (u64, Bytes) {
        let id = self.next_request_id();
        (id, request.into_entry(id).encode_to_vec().into())
    }

    /// The term to propose for, once its leader is known. Requests wait here and not with consensus, which could not
    /// tell whose client has given up: an election takes longer than many clients wait, and their writes would be done
    /// after it.
    pub(super) async fn term_with_leader(&self, deadline: Instant) -> Result<Term, ApiError> {
        if *self.transferring_leadership.borrow() {
            // The guard ends this soon, by itself.
            let _ = self
                .transferring_leadership
                .subscribe()
                .wait_for(|transferring_leadership| !transferring_leadership)
                .await;
        }
        if let Some(term) = self.raft.term_with_leader() {
            return Ok(term);
        }
        let mut status = self.raft.status();
        let _place = self.leaderless.try_acquire().map_err(|_| ApiError::TooManyRequests)?;
        let _pending = PendingCount::new(&self.metrics);
        match timeout_at(deadline, status.wait_for(|status| status.leader.is_some())).await {
            Ok(Ok(status)) => Ok(status.term),
            Ok(Err(_)) => Err(ApiError::Stopped),
            Err(_) => {
                self.metrics.server.proposals_failed.inc();
                Err(ApiError::NoLeader)
            }
        }
    }

    /// Completes when a proposal for `term` that went nowhere can be tried again.
    pub(super) async fn after_loss(&self, term: Term, deadline: Instant) -> Result<(), ApiError> {
        let pause = deadline.min(Instant::now() + PROPOSE_PAUSE);
        let _ = timeout_at(pause, self.raft.status().wait_for(|status| status.term > term)).await;
        if Instant::now() < deadline {
            return Ok(());
        }
        self.metrics.server.proposals_failed.inc();
        Err(ApiError::LeaderChanged)
    }

    /// Proposes a request for `term`; answers with nothing when it is not in the log and never will be.
    async fn attempt<T>(
        &self,
        proposal: Proposal,
        deadline: Instant,
        propose: impl FnOnce(&RaftHandle, Proposal) -> Result<(), ProposeError>,
        answer: fn(Applied) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        if proposal.bytes.len() > self.limits.max_request_bytes {
            return Err(ApiError::RequestTooLarge.into());
        }
        if self.pending_bytes.load(Ordering::Relaxed) > PENDING_BYTES_MAX {
            return Err(ApiError::TooManyRequests.into());
        }
        let (_guard, outcome) = PendingRequest::new(self, proposal.request, proposal.term);
        let result = match propose(&self.raft, proposal) {
            Ok(()) => match timeout_at(deadline, outcome).await {
                Ok(Ok(outcome)) => known(outcome, answer),
                Ok(Err(_)) => Err(ApiError::Stopped.into()),
                Err(_) => known(ProposalOutcome::Unknown, answer),
            },
            Err(error) => Err(error.into()),
        };
        if matches!(result, Err(Failure::Api(_) | Failure::Propose(_))) {
            self.metrics.server.proposals_failed.inc();
        }
        result
    }

    /// Makes proposals wait until the guard is dropped: while leadership changes hands, consensus drops them, and
    /// their clients would wait for their timeout.
    pub(super) fn hold_proposals(&self) -> HeldProposals<'_> {
        self.transferring_leadership.send_replace(true);
        HeldProposals(&self.transferring_leadership)
    }

    /// An id that no other proposal of the cluster has.
    pub fn next_request_id(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    /// Completes when the published state is at least as new as every write acknowledged before the call.
    pub async fn linearizable(&self) -> Result<(), Failure> {
        if self.raft.reads_are_local() {
            // The only voter acknowledges a write after publishing it.
            return Ok(());
        }
        let deadline = Instant::now() + self.limits.request_timeout;
        let asked = timeout_at(deadline, self.raft.read_index()).await;
        let Ok(Some(index)) = asked else {
            self.metrics.server.slow_read_indexes.inc();
            return Err(ApiError::Timeout.into());
        };
        self.wait_applied(index, deadline).await
    }

    async fn wait_applied(&self, index: LogIndex, deadline: Instant) -> Result<(), Failure> {
        let mut progress = self.apply.progress();
        while self.raft.applied() < index {
            if Instant::now() >= deadline {
                return Err(ApiError::Timeout.into());
            }
            let _ = tokio::time::timeout(APPLIED_RECHECK, progress.changed()).await;
        }
        Ok(())
    }

    /// Connects to these members, this one left out.
    pub fn follow_members<'a>(&self, members: impl Iterator<Item = &'a Member>) {
        let peers = members.map(|member| Peer { id: member.member_id(), urls: member.peer_urls.clone() }).collect();
        let removed = self.published.cluster.load().removed().clone();
        self.peers.set_peers(peers, removed);
    }

    /// Whether this member follows without a vote.
    pub fn is_learner(&self) -> bool {
        self.published.cluster.load().member(self.member).is_some_and(|member| member.is_learner)
    }

    /// The newest published state.
    pub fn snapshot(&self) -> Snapshot {
        self.store.snapshot()
    }

    /// A header that says who answers.
    pub fn header(&self, revision: Revision) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster.0,
            member_id: self.member.0,
            revision: revision.0,
            raft_term: self.raft.term().0,
        }
    }

    /// A header at the newest revision.
    pub fn header_now(&self) -> ResponseHeader {
        self.header(self.store.snapshot().revision())
    }

    /// Adds who answers to a header that holds only the revision.
    pub fn complete(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.header(Revision(revision)));
    }
}

/// Lets proposals pass again when it is dropped.
pub(super) struct HeldProposals<'a>(&'a watch::Sender<bool>);

impl Drop for HeldProposals<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// What an outcome means for whoever asked; nothing when the request can be proposed again. An answer that does not
/// fit belongs to another member's request with the same id, so that it says nothing about this one.
pub(super) fn known<T>(outcome: ProposalOutcome, answer: fn(Applied) -> Option<T>) -> Result<Option<T>, Failure> {
    let fitting = match outcome {
        ProposalOutcome::Applied(outcome) => answer(outcome?),
        ProposalOutcome::Lost => return Ok(None),
        ProposalOutcome::Unknown => None,
    };
    match fitting {
        Some(answer) => Ok(Some(answer)),
        // Never DeadlineExceeded, which is etcd's answer while there is no leader: the official client sends such a
        // request again, and it would be applied twice.
        None => Err(ApiError::Timeout.into()),
    }
}

/// Counts a request as pending until it is dropped.
struct PendingCount<'a>(&'a CoreMetrics);

impl<'a> PendingCount<'a> {
    fn new(metrics: &'a CoreMetrics) -> Self {
        metrics.server.proposals_pending.inc();
        Self(metrics)
    }
}

impl Drop for PendingCount<'_> {
    fn drop(&mut self) {
        self.0.server.proposals_pending.dec();
    }
}

/// Takes a request off the list of waiters when its future ends, however it ends.
pub(super) struct PendingRequest<'a> {
    core: &'a Core,
    id: u64,
    _pending: PendingCount<'a>,
}

impl<'a> PendingRequest<'a> {
    pub(super) fn new(core: &'a Core, id: u64, term: Term) -> (Self, oneshot::Receiver<ProposalOutcome>) {
        (Self { core, id, _pending: PendingCount::new(&core.metrics) }, core.pending.register(id, term))
    }
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        self.core.pending.forget(self.id);
    }
}
