//! Lease requests that only the leader can answer, from whichever member they came to.
//!
//! [`ask`] sends a request to the leader, which may be this member, and to the next one if it changes before the
//! deadline. [`answer`] is the leader's side, for its own clients and for the calls of other members.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;
use prost::Message;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::error::Failure;
use super::lease_clock::{CHECKPOINTS_MAX, LeaseClock, checkpoint_request};
use super::metrics::CoreMetrics;
use super::proposer::Proposer;
use super::read_index::ReadIndex;
use crate::api_error::ApiError;
use crate::core::lease::{LeaseStore, RenewError, Renewed};
use crate::core::peer::{CallError, PeerTransport};
use crate::core::raft::{ProposeError, RaftHandle, RaftStatus};
use crate::pb::etcdserverpb::{
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use crate::types::{LeaseId, MemberId, Term};

/// Renews leases: length-delimited `LeaseKeepAliveRequest`s, answered in order.
pub const RENEW: &str = "lease.renew";
/// Asks what is left of a lease.
pub(super) const TIME_TO_LIVE: &str = "lease.ttl";

/// Leases renewed by one call.
pub(super) const RENEWALS_MAX: usize = 4096;
/// In an answer to [`RENEW`]: expired, and not revoked yet. The asking member waits for the revocation.
const RUN_OUT: i64 = -1;
/// Keys of a lease that are listed on the thread that answers; more of them on a thread of their own.
pub(super) const KEYS_AT_ONCE: usize = 4096;
/// Pause before a leader that could not answer is asked again.
const RETRY: Duration = Duration::from_millis(50);

/// The result of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease has so many seconds from now on.
    Renewed(i64),
    /// No such lease.
    Gone,
    /// Expired; its revocation is proposed.
    RunOut,
}

/// What the lease requests need from the server.
pub trait LeaderAccess: Send + Sync + 'static {
    /// This member.
    fn member(&self) -> MemberId;
    /// Who leads.
    fn status(&self) -> watch::Receiver<RaftStatus>;
    /// Leases and deadlines.
    fn clock(&self) -> &LeaseClock;
    /// A lease was renewed here.
    fn renewed(&self);
    /// Completes once a quorum has confirmed the leader after the call, and what it had committed is applied here.
    fn confirm(&self) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Clears checkpoints in the log, as the leader of `term`; completes when that is applied.
    fn clear_checkpoints(&self, leases: &[LeaseId], term: Term) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Asks another member.
    fn call(
        &self,
        to: MemberId,
        method: &'static str,
        body: Bytes,
    ) -> impl Future<Output = Result<Bytes, CallError>> + Send;
}

/// Answers and forwards the lease requests of one member.
pub(super) struct MemberLeases {
    pub(super) member: MemberId,
    pub(super) raft: RaftHandle,
    pub(super) clock: Arc<LeaseClock>,
    pub(super) reads: Arc<ReadIndex>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) peers: PeerTransport,
    pub(super) metrics: Arc<CoreMetrics>,
}

impl LeaderAccess for MemberLeases {
    fn member(&self) -> MemberId {
        self.member
    }

    fn status(&self) -> watch::Receiver<RaftStatus> {
        self.raft.status()
    }

    fn clock(&self) -> &LeaseClock {
        &self.clock
    }

    fn renewed(&self) {
        self.metrics.lease.renewed.inc();
    }

    async fn confirm(&self) -> Result<(), Failure> {
        // The same leader may answer a moment later: as a timeout this is asked again, see `may_pass`.
        let confirmed = self.reads.linearizable().await;
        Ok(confirmed.map_err(|error| if error == ApiError::TooManyRequests { ApiError::Timeout } else { error })?)
    }

    async fn clear_checkpoints(&self, leases: &[LeaseId], term: Term) -> Result<(), Failure> {
        for part in leases.chunks(CHECKPOINTS_MAX) {
            self.proposer.propose_as_leader(checkpoint_request(part.iter().map(|&lease| (lease, 0))), term).await?;
        }
        Ok(())
    }

    async fn call(&self, to: MemberId, method: &'static str, body: Bytes) -> Result<Bytes, CallError> {
        self.peers.call(to, method, body).await
    }
}

/// Sends a request to the leader until one answers or `deadline` is over.
///
/// # Errors
/// Those of the leader that are final, unchanged; no leader, or no answer, in time.
pub(super) async fn ask<A: LeaderAccess>(
    access: &A,
    method: &'static str,
    body: Bytes,
    deadline: Instant,
) -> Result<Bytes, Failure> {
    let mut status = access.status();
    let mut leading = access.clock().leading();
    loop {
        let leader = status.borrow_and_update().leader;
        leading.mark_unchanged();
        let attempt = async {
            match leader {
                None => std::future::pending().await,
                Some(leader) if leader == access.member() => answer(access, method, body.clone()).await,
                Some(leader) => Ok(access.call(leader, method, body.clone()).await?),
            }
        };
        tokio::select! {
            answered = attempt => match answered {
                Err(failure) if may_pass(&failure) => tracing::debug!(method, %failure, "leader asked again"),
                answered => return answered,
            },
            // A leader that was deposed is never confirmed again: the request goes to the next one.
            changed = status.wait_for(|status| status.leader != leader) => match changed {
                Ok(_) => continue,
                Err(_) => return Err(ApiError::Stopped.into()),
            },
            () = sleep_until(deadline) => return Err(late(leader)),
        }
        tokio::select! {
            _ = status.changed() => {}
            _ = leading.changed() => {}
            () = sleep(RETRY) => {}
            () = sleep_until(deadline) => return Err(late(leader)),
        }
    }
}

fn late(leader: Option<MemberId>) -> Failure {
    match leader {
        None => ApiError::NoLeader.into(),
        Some(_) => ApiError::Timeout.into(),
    }
}

/// Whether another leader, or the same one a moment later, may answer.
fn may_pass(failure: &Failure) -> bool {
    match failure {
        Failure::Propose(ProposeError::Stopped) => false,
        Failure::Propose(_) => true,
        Failure::Api(error) => *error != ApiError::Stopped && error.code() == tonic::Code::Unavailable,
        Failure::Peer(CallError::Failed(failure)) => failure.code == tonic::Code::Unavailable,
        Failure::Peer(CallError::Stopped) => false,
        Failure::Peer(_) => true,
        _ => false,
    }
}

/// Answers as the leader.
///
/// # Errors
/// "Leader changed" when this member does not lead, or has not begun to.
pub async fn answer<A: LeaderAccess>(access: &A, method: &str, body: Bytes) -> Result<Bytes, Failure> {
    match method {
        RENEW => renew(access, body).await,
        TIME_TO_LIVE => time_to_live(access, body).await,
        _ => Err(Failure::Other(format!("no lease method {method}"))),
    }
}

/// The term this member leads in, confirmed by a quorum after this call began.
///
/// The term can only grow: if it is the same after the confirmation as before it, no other leader had begun when the
/// request came in.
async fn confirmed_term<A: LeaderAccess>(access: &A) -> Result<Term, Failure> {
    let term = (*access.clock().leading().borrow()).ok_or(ApiError::LeaderChanged)?;
    access.confirm().await?;
    let status = *access.status().borrow();
    if !status.is_leader || status.term != term {
        return Err(ApiError::LeaderChanged.into());
    }
    Ok(term)
}

async fn renew<A: LeaderAccess>(access: &A, body: Bytes) -> Result<Bytes, Failure> {
    let ids = read_renewals(body)?;
    let term = confirmed_term(access).await?;
    let renewed = access.clock().renew(&ids, term).map_err(|_| ApiError::LeaderChanged)?;
    let outdated: Vec<LeaseId> =
        ids.iter().zip(&renewed).filter(|(_, renewed)| clears(renewed)).map(|(&id, _)| id).collect();
    if !outdated.is_empty() {
        access.clear_checkpoints(&outdated, term).await?;
    }
    let mut answer = BytesMut::new();
    for (id, renewed) in ids.iter().zip(renewed) {
        let ttl = match renewed {
            Ok(renewed) => {
                access.renewed();
                renewed.ttl
            }
            Err(RenewError::NotFound(_)) => 0,
            Err(RenewError::Expired(_)) => RUN_OUT,
            Err(RenewError::NotPrimary) => return Err(ApiError::LeaderChanged.into()),
        };
        let one = LeaseKeepAliveResponse { header: None, id: id.0, ttl };
        one.encode_length_delimited(&mut answer).expect("a buffer grows");
    }
    Ok(answer.freeze())
}

fn clears(renewed: &Result<Renewed, RenewError>) -> bool {
    renewed.is_ok_and(|renewed| renewed.clear_checkpoint)
}

async fn time_to_live<A: LeaderAccess>(access: &A, body: Bytes) -> Result<Bytes, Failure> {
    let request = LeaseTimeToLiveRequest::decode(body).map_err(unreadable)?;
    let term = confirmed_term(access).await?;
    let id = LeaseId(request.id);
    let mut answer = LeaseTimeToLiveResponse { id: request.id, ttl: -1, ..Default::default() };
    let key_count = {
        let store = access.clock().store.read();
        let Some(lease) = store.get(id) else { return Ok(answer.encode_to_vec().into()) };
        answer.granted_ttl = lease.granted_ttl;
        // Only the leader of this term knows the deadlines.
        let left = access.clock().remaining(id, term).map_err(|_| ApiError::LeaderChanged)?;
        answer.ttl = left.map_or(0, |left| i64::try_from(left.as_secs()).unwrap_or(i64::MAX));
        if request.keys { store.key_count(id) } else { 0 }
    };
    if key_count == 0 {
        return Ok(answer.encode_to_vec().into());
    }
    let store = access.clock().store.clone();
    let list = move || with_keys(answer, &store);
    if key_count <= KEYS_AT_ONCE {
        return Ok(list());
    }
    // Heartbeats go through the thread that calls of other members are answered on.
    Ok(tokio::task::spawn_blocking(list).await.map_err(|_| ApiError::Stopped)?)
}

/// Adds the keys of the lease, as long as it exists. Sorts and encodes after the store is released: apply waits for it.
fn with_keys(mut answer: LeaseTimeToLiveResponse, store: &RwLock<LeaseStore>) -> Bytes {
    let id = LeaseId(answer.id);
    {
        let store = store.read();
        if store.exists(id) {
            answer.keys = store.keys(id).map(Bytes::copy_from_slice).collect();
        } else {
            // Revoked meanwhile.
            answer = LeaseTimeToLiveResponse { id: id.0, ttl: -1, ..Default::default() };
        }
    }
    answer.keys.sort_unstable();
    answer.encode_to_vec().into()
}

/// The body of a call to [`RENEW`].
pub fn renewals_body(ids: impl IntoIterator<Item = LeaseId>) -> Bytes {
    let mut body = BytesMut::new();
    for id in ids {
        LeaseKeepAliveRequest { id: id.0 }.encode_length_delimited(&mut body).expect("a buffer grows");
    }
    body.freeze()
}

fn read_renewals(mut body: Bytes) -> Result<Vec<LeaseId>, Failure> {
    let mut ids = Vec::new();
    while !body.is_empty() {
        if ids.len() == RENEWALS_MAX {
            return Err(ApiError::RequestTooLarge.into());
        }
        ids.push(LeaseId(LeaseKeepAliveRequest::decode_length_delimited(&mut body).map_err(unreadable)?.id));
    }
    Ok(ids)
}

/// The outcomes in an answer to [`RENEW`], in the order of the request.
pub fn read_renewed(mut answer: Bytes) -> Result<Vec<Renewal>, Failure> {
    let mut renewals = Vec::new();
    while !answer.is_empty() {
        let one = LeaseKeepAliveResponse::decode_length_delimited(&mut answer).map_err(unreadable)?;
        renewals.push(match one.ttl {
            RUN_OUT => Renewal::RunOut,
            ttl if ttl > 0 => Renewal::Renewed(ttl),
            _ => Renewal::Gone,
        });
    }
    Ok(renewals)
}

fn unreadable(error: prost::DecodeError) -> Failure {
    Failure::Other(format!("unreadable message between members: {error}"))
}

#[cfg(test)]
mod tests;
