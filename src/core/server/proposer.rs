use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::authenticator::Authenticator;
use super::caller::Caller;
use super::error::Failure;
use super::limits::Limits;
use super::metrics::CoreMetrics;
use crate::api_error::ApiError;
use crate::core::apply::{
    Applied, PROPOSE_PAUSE, Proposable, ProposalDriver, ProposalEnd, ProposalOutcome, ProposalStep,
    SharedPendingRequests,
};
use crate::core::auth::{Identity, ROOT};
use crate::core::backend::Backend;
use crate::core::cluster::Member;
use crate::core::raft::{ChangeKind, Proposal, ProposeError, ProposedChange, RaftHandle};
use crate::pb::etcdserverpb::RequestHeader;
use crate::telemetry::{Counted, OperationKind};
use crate::types::{MemberId, Term};

/// Changes in memory that the state on disk does not have yet, in bytes; above it writes are refused until the disk
/// has caught up.
const PENDING_BYTES_MAX: u64 = 1 << 30;
/// The same for the end of a lease, which makes room rather than taking it.
const PENDING_BYTES_MAX_PRIORITY: u64 = PENDING_BYTES_MAX / 10 * 11;
/// The same for what other members send: above what this member's clients and leases can reach, so that those are told
/// at once before anybody waits.
pub(super) const PENDING_BYTES_MAX_PEERS: u64 = PENDING_BYTES_MAX / 10 * 12;
/// Requests that wait at once until a leader is known; more are refused.
const LEADERLESS_MAX: usize = 4096;
/// Pause before a membership change is proposed again: raft takes one at a time, and drops a second.
const PROPOSE_MEMBERS_PAUSE: Duration = Duration::from_millis(500);

/// What goes into the log.
enum Entry {
    Request(Bytes, OperationKind),
    /// Only if this member leads in the term.
    LeaderRequest(Bytes, OperationKind),
    Members(ProposedChange),
}

impl Entry {
    fn len(&self) -> usize {
        match self {
            Self::Request(bytes, _) | Self::LeaderRequest(bytes, _) => bytes.len(),
            Self::Members(change) => change.context.len(),
        }
    }

    /// Changes that the state on disk may lack when this is proposed.
    fn pending_bytes_max(&self) -> u64 {
        match self {
            Self::Request(_, OperationKind::LeaseRevoke) | Self::LeaderRequest(_, OperationKind::LeaseRevoke) => {
                PENDING_BYTES_MAX_PRIORITY
            }
            Self::Request(..) | Self::LeaderRequest(..) => PENDING_BYTES_MAX,
            Self::Members(_) => u64::MAX,
        }
    }

    /// Whether a second copy in the log does no harm, so that it can be proposed before the outcome of the first.
    fn is_repeated(&self) -> bool {
        matches!(self, Self::Members(change) if change.kind != ChangeKind::Update)
    }
}

/// Proposes requests and membership changes, and waits for their outcome.
///
/// Owns the ids of requests, the list of pending ones, and what holds proposals back: no leader, a leader transfer, a
/// disk that is too far behind.
pub struct Proposer {
    raft: RaftHandle,
    pending: Arc<SharedPendingRequests>,
    authenticator: Arc<Authenticator>,
    metrics: Arc<CoreMetrics>,
    max_request_bytes: usize,
    timeout: Duration,
    next_request: AtomicU64,
    /// Whether a leader transfer is in progress.
    transferring_leadership: watch::Sender<bool>,
    /// Places for requests that wait for a leader.
    leaderless: Semaphore,
    pending_bytes: PendingBytes,
}

impl Proposer {
    /// `pending` is the list that apply resolves, `backend` the state that the disk may be behind.
    pub(super) fn new(
        member: MemberId,
        raft: RaftHandle,
        pending: Arc<SharedPendingRequests>,
        authenticator: Arc<Authenticator>,
        metrics: Arc<CoreMetrics>,
        backend: Backend,
        limits: &Limits,
    ) -> Self {
        Self {
            raft,
            pending,
            authenticator,
            metrics,
            max_request_bytes: limits.max_request_bytes,
            timeout: limits.request_timeout,
            next_request: AtomicU64::new(first_request_id(member)),
            transferring_leadership: watch::Sender::new(false),
            leaderless: Semaphore::new(LEADERLESS_MAX),
            pending_bytes: PendingBytes { backend, seen: AtomicU64::new(0) },
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
        let header = self.header(caller).await?;
        let (id, bytes) = self.entry(request, header);
        debug!(remote = %caller, request = id, operation = R::KIND.label(), bytes = bytes.len(), "proposing");
        let answer = self.drive(id, &Entry::Request(bytes, R::KIND), R::answer).await?;
        timed.succeed();
        Ok(answer)
    }

    /// Like [`propose`](Self::propose), for what only the leader of `term` may decide; see
    /// [`RaftHandle::propose_as_leader`].
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`] when this member does not lead in `term` any more.
    pub(super) async fn propose_as_leader<R: Proposable>(&self, request: R, term: Term) -> Result<R::Answer, Failure> {
        let timed = self.metrics.proposal(R::KIND);
        let deadline = Instant::now() + self.timeout;
        let (id, bytes) = self.entry(request, own_header());
        let outcome = self.attempt(id, &Entry::LeaderRequest(bytes, R::KIND), term, deadline).await?;
        let answer = match outcome {
            Some(ProposalOutcome::Lost) => return Err(ProposeError::NotLeader.into()),
            Some(ProposalOutcome::Applied(outcome)) => self.ended(ProposalEnd::Applied(outcome), R::answer)?,
            Some(ProposalOutcome::Unknown) | None => self.ended(ProposalEnd::Unknown, R::answer)?,
        };
        timed.succeed();
        Ok(answer)
    }

    /// Proposes as the leader of `term`, and does not wait for the outcome.
    ///
    /// # Errors
    /// The request was not taken.
    pub(super) fn send_as_leader(&self, request: impl Proposable, term: Term) -> Result<(), ProposeError> {
        let (request, bytes) = self.entry(request, own_header());
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
        let request = self.next_id();
        let change = ProposedChange { request, kind, member, context: context.into() };
        self.drive(request, &Entry::Members(change), Applied::members).await
    }

    /// Takes a request to its end, as [`ProposalDriver`] says.
    async fn drive<T>(&self, id: u64, entry: &Entry, answer: fn(Applied) -> Option<T>) -> Result<T, Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut proposal = ProposalDriver::default();
        loop {
            let end = match proposal.step() {
                ProposalStep::AwaitLeader => match self.term_with_leader(deadline).await? {
                    Some(term) => {
                        proposal.leader_known(term);
                        None
                    }
                    None => Some(proposal.deadline()),
                },
                ProposalStep::Propose(term) => match self.attempt(id, entry, term, deadline).await? {
                    Some(outcome) => proposal.outcome(outcome),
                    None => Some(proposal.deadline()),
                },
                ProposalStep::Pause(term) => {
                    let pause = deadline.min(Instant::now() + PROPOSE_PAUSE);
                    let _ = timeout_at(pause, self.raft.status().wait_for(|status| status.term > term)).await;
                    if Instant::now() < deadline {
                        proposal.pause_over();
                        None
                    } else {
                        Some(proposal.deadline())
                    }
                }
            };
            if let Some(end) = end {
                return self.ended(end, answer);
            }
        }
    }

    /// The term to propose for, once its leader is known; none at the deadline.
    async fn term_with_leader(&self, deadline: Instant) -> Result<Option<Term>, ApiError> {
        if *self.transferring_leadership.borrow() {
            // The guard ends this soon, by itself.
            let _ = self.transferring_leadership.subscribe().wait_for(|transferring| !transferring).await;
        }
        if let Some(term) = self.raft.term_with_leader() {
            return Ok(Some(term));
        }
        let mut status = self.raft.status();
        let _place = self.leaderless.try_acquire().map_err(|_| ApiError::TooManyRequests)?;
        let _pending = Counted::new(self.metrics.server.proposals_pending.clone());
        match timeout_at(deadline, status.wait_for(|status| status.leader.is_some())).await {
            Ok(Ok(status)) => Ok(Some(status.term)),
            Ok(Err(_)) => Err(ApiError::Stopped),
            Err(_) => Ok(None),
        }
    }

    /// Proposes an entry once and returns its outcome; none at the deadline.
    async fn attempt(
        &self,
        id: u64,
        entry: &Entry,
        term: Term,
        deadline: Instant,
    ) -> Result<Option<ProposalOutcome>, Failure> {
        if entry.len() > self.max_request_bytes {
            return Err(ApiError::RequestTooLarge.into());
        }
        if self.pending_bytes.exceed(entry.pending_bytes_max()) {
            return Err(ApiError::TooManyRequests.into());
        }
        let counted = Counted::new(self.metrics.server.proposals_pending.clone());
        let _pending = PendingRequest { pending: &self.pending, id, _counted: counted };
        let proposed = self.pending.propose(id, term, || self.send(id, entry, term));
        let mut outcome = proposed.inspect_err(|_| self.metrics.server.proposals_failed.inc())?;
        loop {
            let until =
                if entry.is_repeated() { deadline.min(Instant::now() + PROPOSE_MEMBERS_PAUSE) } else { deadline };
            match timeout_at(until, &mut outcome).await {
                Ok(Ok(outcome)) => return Ok(Some(outcome)),
                Ok(Err(_)) => {
                    self.metrics.server.proposals_failed.inc();
                    return Err(ApiError::Stopped.into());
                }
                // Refused for now: the first copy may still make it.
                Err(_) if until < deadline => drop(self.send(id, entry, term)),
                Err(_) => return Ok(None),
            }
        }
    }

    fn send(&self, request: u64, entry: &Entry, term: Term) -> Result<(), ProposeError> {
        match entry {
            Entry::Request(bytes, _) => self.raft.propose(Proposal { request, term, bytes: bytes.clone() }),
            Entry::LeaderRequest(bytes, _) => {
                self.raft.propose_as_leader(Proposal { request, term, bytes: bytes.clone() })
            }
            Entry::Members(change) => self.raft.propose_members(change.clone(), term),
        }
    }

    /// The answer or error for the caller at the end of a proposal.
    fn ended<T>(&self, end: ProposalEnd, answer: fn(Applied) -> Option<T>) -> Result<T, Failure> {
        let error = match end {
            ProposalEnd::Applied(outcome) => match answer(outcome?) {
                Some(answer) => return Ok(answer),
                // The answer to another member's request with the same id: the outcome of this one is unknown.
                None => ApiError::Timeout,
            },
            // Never DeadlineExceeded, which is etcd's answer while there is no leader: the official client sends such a
            // request again, and it would be applied twice.
            ProposalEnd::Unknown => ApiError::Timeout,
            ProposalEnd::NoLeader => ApiError::NoLeader,
            ProposalEnd::LeaderChanged => ApiError::LeaderChanged,
        };
        self.metrics.server.proposals_failed.inc();
        Err(error.into())
    }

    /// Makes proposals wait until the guard is dropped: during a leader transfer raft drops them, and their clients
    /// would wait for their timeout.
    pub(super) fn hold(&self) -> HeldProposals<'_> {
        self.transferring_leadership.send_replace(true);
        HeldProposals(&self.transferring_leadership)
    }

    /// Tells how many bytes of changes the state on disk does not have yet.
    pub(super) fn set_pending_bytes(&self, bytes: u64) {
        self.pending_bytes.seen.store(bytes, Ordering::Relaxed);
    }

    /// For the checks when the entry is applied; none while auth is off.
    async fn header(&self, caller: &Caller) -> Result<Option<RequestHeader>, ApiError> {
        if matches!(caller, Caller::Member) {
            return Ok(own_header());
        }
        let who = self.authenticator.identify(caller).await?;
        Ok(who.filter(Identity::is_known).map(|Identity { user, revision }| RequestHeader {
            id: 0,
            username: user.as_ref().to_owned(),
            auth_revision: revision,
        }))
    }

    /// A log entry for `request`, and its new id.
    fn entry(&self, request: impl Proposable, header: Option<RequestHeader>) -> (u64, Bytes) {
        let id = self.next_id();
        let mut entry = request.into_entry(id);
        entry.header = header;
        (id, entry.encode_to_vec().into())
    }

    /// An id that no other proposal of the cluster has.
    fn next_id(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }
}

/// Of the member's own requests: whether auth is on when they are applied, nobody knows.
fn own_header() -> Option<RequestHeader> {
    Some(RequestHeader { username: ROOT.to_owned(), ..RequestHeader::default() })
}

/// Bytes of changes that are not in the state on disk yet.
struct PendingBytes {
    backend: Backend,
    /// As of the last batch that was applied, or a later look.
    seen: AtomicU64,
}

impl PendingBytes {
    /// Whether there are more than `max`. Looks again while there were: with all writes refused nothing is applied that
    /// would tell that the disk has caught up.
    fn exceed(&self, max: u64) -> bool {
        if self.seen.load(Ordering::Relaxed) <= max {
            return false;
        }
        let now = self.backend.pending_bytes() as u64;
        self.seen.store(now, Ordering::Relaxed);
        now > max
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

/// Ids of requests differ between members and between runs of one member.
fn first_request_id(member: MemberId) -> u64 {
    (member.0 & 0xffff) << 48 | fastrand::u64(0..1 << 40) << 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backend::{Change, ChangeSet, Table};
    use crate::types::{LogIndex, LogPosition};

    // Only apply told how far behind the disk is. With all writes refused nothing is applied, so that a member without
    // others refused them for ever.
    #[test]
    fn writes_are_taken_again_once_the_disk_has_caught_up() {
        let backend = Backend::in_memory().unwrap();
        let changes = vec![Change::put(Table::Lease, b"k".to_vec(), vec![7; 1000])];
        backend.submit(ChangeSet { position: LogPosition { index: LogIndex(1), term: Term(1) }, changes });
        let pending = PendingBytes { backend: backend.clone(), seen: AtomicU64::new(backend.pending_bytes() as u64) };
        assert!(pending.exceed(999));
        assert!(!pending.exceed(1 << 20));
        backend.checkpoint().unwrap();
        assert!(!pending.exceed(999));
    }
}
