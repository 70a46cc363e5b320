use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::debug;

use super::caller::Caller;
use super::error::Failure;
use super::limits::Limits;
use super::metrics::CoreMetrics;
use crate::api_error::ApiError;
use crate::core::apply::{Applied, Proposable, ProposalOutcome, SharedPendingRequests};
use crate::core::cluster::Member;
use crate::core::raft::{ChangeKind, Proposal, ProposeError, ProposedChange, RaftHandle};
use crate::telemetry::Counted;
use crate::types::{MemberId, Term};

/// Changes in memory that the state on disk does not have yet, in bytes; above it writes are refused until the disk
/// has caught up.
const PENDING_BYTES_MAX: u64 = 1 << 30;
/// Requests that wait at once until a leader is known; more are refused.
const LEADERLESS_MAX: usize = 4096;
/// Pause before a request that was not proposed is proposed again in the same term; another leader ends it.
const PROPOSE_PAUSE: Duration = Duration::from_millis(50);
/// Pause before a membership change is proposed again: raft takes one at a time, and drops a second.
const PROPOSE_MEMBERS_PAUSE: Duration = Duration::from_millis(500);

/// The way into the log: proposes requests and membership changes, and waits for their outcome.
///
/// Owns the ids of requests, the list of pending ones, and what holds proposals back: no leader, a leader transfer, a
/// disk that is too far behind.
pub struct Proposer {
    raft: RaftHandle,
    pending: Arc<SharedPendingRequests>,
    metrics: Arc<CoreMetrics>,
    max_request_bytes: usize,
    timeout: Duration,
    next_request: AtomicU64,
    /// Whether a leader transfer is in progress.
    transferring_leadership: watch::Sender<bool>,
    /// Places for requests that wait for a leader.
    leaderless: Semaphore,
    /// Bytes of changes that are not in the state on disk yet.
    pending_bytes: AtomicU64,
}

impl Proposer {
    /// `pending` is the list that apply resolves.
    pub(super) fn new(
        member: MemberId,
        raft: RaftHandle,
        pending: Arc<SharedPendingRequests>,
        metrics: Arc<CoreMetrics>,
        limits: &Limits,
    ) -> Self {
        Self {
            raft,
            pending,
            metrics,
            max_request_bytes: limits.max_request_bytes,
            timeout: limits.request_timeout,
            next_request: AtomicU64::new(first_request_id(member)),
            transferring_leadership: watch::Sender::new(false),
            leaderless: Semaphore::new(LEADERLESS_MAX),
            pending_bytes: AtomicU64::new(0),
        }
    }

    /// Replicates a request and returns its answer once this member has applied it.
    ///
    /// It is proposed again when it was not taken or was lost with a leader, and is never done twice: see
    /// [`PendingRequests`](crate::core::apply::PendingRequests). Dropping the future before the request is proposed
    /// takes it back; later it ends the waiting only, and the entry may still commit. Nothing is proposed while no
    /// leader is known.
    ///
    /// # Errors
    /// [`ApiError::NoLeader`] and [`ApiError::LeaderChanged`] when it could not be proposed in time: the request was
    /// not executed and never will be.
    pub async fn propose<R: Proposable>(&self, caller: &Caller, request: R) -> Result<R::Answer, Failure> {
        let timed = self.metrics.proposal(R::KIND);
        let deadline = Instant::now() + self.timeout;
        let (id, bytes) = self.entry(request);
        debug!(remote = %caller, request = id, operation = R::KIND.label(), bytes = bytes.len(), "proposing");
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
    /// [`ProposeError::NotLeader`] when this member does not lead in `term` any more.
    pub(super) async fn propose_as_leader<R: Proposable>(&self, request: R, term: Term) -> Result<R::Answer, Failure> {
        let timed = self.metrics.proposal(R::KIND);
        let deadline = Instant::now() + self.timeout;
        let (request, bytes) = self.entry(request);
        let proposal = Proposal { request, term, bytes };
        let answer = self.attempt(proposal, deadline, RaftHandle::propose_as_leader, R::answer).await?;
        let answer = answer.ok_or(ProposeError::NotLeader)?;
        timed.succeed();
        Ok(answer)
    }

    /// Proposes as the leader of `term`, and does not wait for the outcome.
    ///
    /// # Errors
    /// The request was not taken.
    pub(super) fn send_as_leader(&self, request: impl Proposable, term: Term) -> Result<(), ProposeError> {
        let (request, bytes) = self.entry(request);
        self.raft.propose_as_leader(Proposal { request, term, bytes })
    }

    /// Replicates a membership change and returns the members there are once this member has applied it.
    ///
    /// It is proposed again until apply decides: raft drops a change while another one is in progress. Ids of members
    /// are never used twice, so that a second copy in the log is refused; an update has no such mark, and is proposed
    /// once in a term.
    ///
    /// # Errors
    /// As [`propose`](Self::propose), and what apply refuses.
    pub(super) async fn propose_members(
        &self,
        kind: ChangeKind,
        member: MemberId,
        context: Vec<u8>,
    ) -> Result<Vec<Member>, Failure> {
        if context.len() > self.max_request_bytes {
            return Err(ApiError::RequestTooLarge.into());
        }
        let request = self.next_id();
        let change = ProposedChange { request, kind, member, context: context.into() };
        let deadline = Instant::now() + self.timeout;
        loop {
            let term = self.term_with_leader(deadline).await?;
            let (_guard, mut outcome) = self.register(request, term);
            self.raft.propose_members(change.clone(), term)?;
            let outcome = loop {
                let again = sleep(PROPOSE_MEMBERS_PAUSE);
                tokio::select! {
                    outcome = &mut outcome => break outcome,
                    () = sleep_until(deadline) => return Err(ApiError::Timeout.into()),
                    // Refused for now: the first copy may still make it.
                    () = again, if kind != ChangeKind::Update => drop(self.raft.propose_members(change.clone(), term)),
                }
            };
            match known(outcome.map_err(|_| ApiError::Stopped)?, Applied::members)? {
                Some(members) => return Ok(members),
                None => self.after_loss(term, deadline).await?,
            }
        }
    }

    /// The term to propose for, once its leader is known. Requests wait here and not in raft, which could not tell whose
    /// client has given up: an election takes longer than many clients wait, and their writes would be done after it.
    async fn term_with_leader(&self, deadline: Instant) -> Result<Term, ApiError> {
        if *self.transferring_leadership.borrow() {
            // The guard ends this soon, by itself.
            let _ = self.transferring_leadership.subscribe().wait_for(|transferring| !transferring).await;
        }
        if let Some(term) = self.raft.term_with_leader() {
            return Ok(term);
        }
        let mut status = self.raft.status();
        let _place = self.leaderless.try_acquire().map_err(|_| ApiError::TooManyRequests)?;
        let _pending = Counted::new(self.metrics.server.proposals_pending.clone());
        match timeout_at(deadline, status.wait_for(|status| status.leader.is_some())).await {
            Ok(Ok(status)) => Ok(status.term),
            Ok(Err(_)) => Err(ApiError::Stopped),
            Err(_) => {
                self.metrics.server.proposals_failed.inc();
                Err(ApiError::NoLeader)
            }
        }
    }

    /// Completes when a proposal for `term` that was not taken can be tried again.
    async fn after_loss(&self, term: Term, deadline: Instant) -> Result<(), ApiError> {
        let pause = deadline.min(Instant::now() + PROPOSE_PAUSE);
        let _ = timeout_at(pause, self.raft.status().wait_for(|status| status.term > term)).await;
        if Instant::now() < deadline {
            return Ok(());
        }
        self.metrics.server.proposals_failed.inc();
        Err(ApiError::LeaderChanged)
    }

    /// Proposes a request once; answers with nothing when it is not in the log and never will be.
    async fn attempt<T>(
        &self,
        proposal: Proposal,
        deadline: Instant,
        propose: impl FnOnce(&RaftHandle, Proposal) -> Result<(), ProposeError>,
        answer: fn(Applied) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        if proposal.bytes.len() > self.max_request_bytes {
            return Err(ApiError::RequestTooLarge.into());
        }
        if self.pending_bytes.load(Ordering::Relaxed) > PENDING_BYTES_MAX {
            return Err(ApiError::TooManyRequests.into());
        }
        let (_guard, outcome) = self.register(proposal.request, proposal.term);
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

    fn register(&self, id: u64, term: Term) -> (PendingRequest<'_>, oneshot::Receiver<ProposalOutcome>) {
        let counted = Counted::new(self.metrics.server.proposals_pending.clone());
        (PendingRequest { pending: &self.pending, id, _counted: counted }, self.pending.register(id, term))
    }

    /// Makes proposals wait until the guard is dropped: during a leader transfer raft drops them, and their clients
    /// would wait for their timeout.
    pub(super) fn hold(&self) -> HeldProposals<'_> {
        self.transferring_leadership.send_replace(true);
        HeldProposals(&self.transferring_leadership)
    }

    /// Tells how many bytes of changes the state on disk does not have yet.
    pub(super) fn set_pending_bytes(&self, bytes: u64) {
        self.pending_bytes.store(bytes, Ordering::Relaxed);
    }

    /// A log entry for `request`, and its new id.
    fn entry(&self, request: impl Proposable) -> (u64, Bytes) {
        let id = self.next_id();
        (id, request.into_entry(id).encode_to_vec().into())
    }

    /// An id that no other proposal of the cluster has.
    fn next_id(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }
}

/// Lets proposals pass again when it is dropped.
pub(super) struct HeldProposals<'a>(&'a watch::Sender<bool>);

impl Drop for HeldProposals<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// Takes a request off the list of pending ones when its future ends, however it ends.
struct PendingRequest<'a> {
    pending: &'a SharedPendingRequests,
    id: u64,
    _counted: Counted,
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        self.pending.forget(self.id);
    }
}

/// What an outcome means for whoever asked; nothing when the request can be proposed again. An answer that does not
/// fit belongs to another member's request with the same id, and says nothing about this one.
fn known<T>(outcome: ProposalOutcome, answer: fn(Applied) -> Option<T>) -> Result<Option<T>, Failure> {
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

/// Ids of requests differ between members and between runs of one member.
fn first_request_id(member: MemberId) -> u64 {
    (member.0 & 0xffff) << 48 | fastrand::u64(0..1 << 40) << 8
}
