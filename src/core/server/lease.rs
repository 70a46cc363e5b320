use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use prost::Message;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::authenticator::{Authenticator, ReadPermit};
use super::caller::Caller;
use super::error::Failure;
use super::lease_leader::{KEYS_AT_ONCE, MemberLeases, Renewal, TIME_TO_LIVE, ask};
use super::long_answer::{AnswerMemory, gathered, on_thread};
use super::member_info::MemberInfo;
use super::proposer::Proposer;
use super::published::Published;
use super::quota::SpaceQuota;
use super::renewals::Renewals;
use crate::api_error::ApiError;
use crate::core::apply::{GrantedLease, LEASE_COST_BYTES, check_lease_writes};
use crate::core::auth::{Access, AuthError, AuthState, Identity};
use crate::core::lease::RenewError;
use crate::core::mvcc::{Extent, StoreReader};
use crate::pb::etcdserverpb::lease_server::Lease;
use crate::pb::etcdserverpb::*;
use crate::types::LeaseId;

/// Keep-alives of one stream that are renewed together, at most.
const RENEWED_AT_ONCE: usize = 256;
/// Leases that are listed and sorted on the serving thread; more of them on a thread of their own.
const LEASES_AT_ONCE: usize = 4096;
/// An answer of the leader up to this length is read on the serving thread, a longer one on a thread of its own.
const LEASE_ANSWER_BYTES: usize = 64 * 1024;
/// How long a renewal waits for the revocation of a lease that has run out.
const REVOKE_WAIT: Duration = Duration::from_secs(7);

/// The Lease service.
#[derive(Clone)]
pub(super) struct LeaseService {
    parts: Arc<LeaseParts>,
}

/// What the Lease service works with.
pub(super) struct LeaseParts {
    pub(super) info: Arc<MemberInfo>,
    pub(super) published: Arc<Published>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) quota: Arc<SpaceQuota>,
    pub(super) leases: Arc<MemberLeases>,
    pub(super) renewals: Renewals,
    pub(super) store: StoreReader,
    pub(super) answers: Arc<AnswerMemory>,
    pub(super) timeout: Duration,
}

impl LeaseService {
    pub(super) fn new(parts: LeaseParts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    /// Grants a lease.
    pub(super) async fn grant(
        &self,
        caller: &Caller,
        mut request: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Failure> {
        self.parts.quota.check(LEASE_COST_BYTES).await?;
        if request.id == 0 {
            // Chosen before it is proposed: applying an entry must not involve chance.
            request.id = fastrand::i64(1..=i64::MAX);
        }
        // Here and not when it is applied: the minimum follows from this member's election timeout, and the leader whose
        // clock counts may have a shorter one.
        request.ttl = self.parts.leases.clock.store.read().ttl_to_propose(request.ttl);
        self.parts.authenticator.require_user(caller).await?;
        let GrantedLease { id, ttl, revision } = self.parts.proposer.propose(caller, request).await?;
        Ok(LeaseGrantResponse { header: Some(self.parts.info.header(revision)), id: id.0, ttl, error: String::new() })
    }
}

impl LeaseParts {
    /// Permission to list all leases: to read all their keys.
    async fn may_read_leases(self: &Arc<Self>, caller: &Caller) -> Result<ReadPermit, Status> {
        let check = |parts: &Self, auth: &AuthState, who: &Identity| {
            parts.leases.clock.visit_keys(|key| auth.check(who, Access::Read, key, b""))
        };
        self.may_read_many(caller, check).await
    }

    /// Permission to read the keys of one lease, by what this member knows of it.
    async fn may_read_keys(self: &Arc<Self>, caller: &Caller, id: LeaseId) -> Result<ReadPermit, Status> {
        let check = move |parts: &Self, auth: &AuthState, who: &Identity| {
            let leases = parts.leases.clock.store.read();
            leases.keys(id).try_for_each(|key| auth.check(who, Access::Read, key, b""))
        };
        self.may_read_many(caller, check).await
    }

    /// Permission to read many keys: an admin has it, for others `check` looks at all of them, on a thread of its own.
    async fn may_read_many(
        self: &Arc<Self>,
        caller: &Caller,
        check: impl FnOnce(&Self, &AuthState, &Identity) -> Result<(), AuthError> + Send + 'static,
    ) -> Result<ReadPermit, Status> {
        let mut is_limited = false;
        let look = |auth: &AuthState, who: &Identity| -> Result<(), AuthError> {
            auth.check_known(who)?;
            is_limited = auth.check_admin(who).is_err();
            Ok(())
        };
        let permit = self.authenticator.may_read(caller, look).await?;
        if !is_limited {
            return Ok(permit);
        }
        let (parts, caller) = (self.clone(), caller.clone());
        on_thread(move || {
            // Waits for nothing, as a rule: the caller has just been identified.
            let permit = parts.authenticator.may_read(&caller, |auth, who| check(&parts, auth, who));
            Ok(Handle::current().block_on(permit)?)
        })
        .await
    }

    /// Cuts `ids` before the first lease that the caller may not renew: all keys of a lease must be its to write.
    async fn keep_renewable(&self, caller: &Caller, ids: &mut Vec<LeaseId>) -> Result<(), Failure> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut allowed = 0;
        let check = |auth: &AuthState, who: &Identity| {
            auth.check_known(who)?;
            let leases = self.leases.clock.store.read();
            ids.iter().try_for_each(|&id| {
                check_lease_writes(auth, who, &leases, id)?;
                allowed += 1;
                Ok(())
            })
        };
        let permit = self.authenticator.may_read(caller, check).await;
        if permit.is_err() {
            ids.truncate(allowed);
        }
        permit.map(drop)
    }
}

#[tonic::async_trait]
impl Lease for LeaseService {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let (caller, request) = Caller::split(request);
        Ok(Response::new(self.grant(&caller, request).await?))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let (caller, request) = Caller::split(request);
        self.parts.authenticator.require_user(&caller).await?;
        let revision = self.parts.proposer.propose(&caller, request).await?;
        Ok(Response::new(LeaseRevokeResponse { header: Some(self.parts.info.header(revision)) }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (parts, caller) = (self.parts.clone(), Caller::of(&request));
        // What came in while the last ones were renewed is renewed together.
        let waiting = request.into_inner().ready_chunks(RENEWED_AT_ONCE);
        Ok(Response::new(Box::pin(
            waiting.then(move |requests| keep_alive(parts.clone(), caller.clone(), requests)).flatten(),
        )))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let parts = &self.parts;
        let deadline = Instant::now() + parts.timeout;
        let (caller, request) = Caller::split(request);
        parts.authenticator.require_user(&caller).await?;
        let id = LeaseId(request.id);
        // As far as this member knows: the leader may know of more keys, or of fewer.
        let keys = if request.keys { parts.leases.clock.store.read().key_count(id) } else { 0 };
        let mut room = None;
        if keys > KEYS_AT_ONCE {
            // The leader works only for callers who may see the outcome. What this member does not know to be detached
            // must not refuse them.
            if parts.may_read_keys(&caller, id).await.is_err() {
                parts.leases.reads.linearizable().await?;
                let _permit = parts.may_read_keys(&caller, id).await?;
            }
            room = Some(parts.answers.list(Extent { keys, ..Extent::default() }).await?);
        }
        let body = request.encode_to_vec();
        let answer = ask(parts.leases.as_ref(), TIME_TO_LIVE, body.into(), deadline).await?;
        let long = answer.len() > LEASE_ANSWER_BYTES;
        let decode = move || {
            LeaseTimeToLiveResponse::decode(answer)
                .map_err(|error| Status::internal(format!("unreadable answer of the leader: {error}")))
        };
        let mut answer = if long { on_thread(decode).await? } else { decode()? };
        if request.keys {
            // Those that the leader names: this member may not have applied all of them.
            let keys = Arc::new(std::mem::take(&mut answer.keys));
            let named = keys.clone();
            let permit = if long {
                let check = move |_: &LeaseParts, auth: &AuthState, who: &Identity| {
                    named.iter().try_for_each(|key| auth.check(who, Access::Read, key, b""))
                };
                parts.may_read_many(&caller, check).await?
            } else {
                let check = move |auth: &AuthState, who: &Identity| match auth.check_admin(who) {
                    Ok(()) => Ok(()),
                    Err(_) => named.iter().try_for_each(|key| auth.check(who, Access::Read, key, b"")),
                };
                parts.authenticator.may_read(&caller, check).await?
            };
            parts.authenticator.confirm(permit)?;
            answer.keys = Arc::unwrap_or_clone(keys);
        }
        drop(room);
        answer.header = Some(parts.info.header_now());
        Ok(Response::new(answer))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let parts = self.parts.clone();
        let permit = parts.may_read_leases(&Caller::of(&request)).await?;
        let count = parts.leases.clock.count();
        let (long, since) = (count > LEASES_AT_ONCE, parts.store.snapshot().replaced_bytes());
        let room =
            if long { Some(parts.answers.list(Extent { keys: count, ..Extent::default() }).await?) } else { None };
        let list = move || {
            let ids = parts.leases.clock.by_remaining_time();
            let leases = ids.into_iter().map(|id| LeaseStatus { id: id.0 }).collect();
            parts.authenticator.confirm(permit)?;
            let answer = LeaseLeasesResponse { header: Some(parts.info.header_now()), leases };
            gathered(&parts.store, answer, since, room)
        };
        if long { on_thread(list).await } else { list() }
    }
}

/// Answers keep-alives of one stream, in their order. They need no log entry: only the leader's deadlines count.
async fn keep_alive(
    parts: Arc<LeaseParts>,
    caller: Caller,
    requests: Vec<Result<LeaseKeepAliveRequest, Status>>,
) -> impl Stream<Item = Result<LeaseKeepAliveResponse, Status>> {
    let mut ids = Vec::with_capacity(requests.len());
    let mut broken = None;
    for request in requests {
        match request {
            Ok(request) => ids.push(LeaseId(request.id)),
            Err(status) => broken = broken.or(Some(status)),
        }
    }
    if let Err(failure) = parts.keep_renewable(&caller, &mut ids).await {
        // Those before it are renewed; then the stream ends.
        broken = Some(failure.into());
    }
    // Filled first: its revision is never newer than a renewal.
    let header = parts.info.header_now();
    let renewed: Vec<Result<(LeaseId, Renewal), Status>> = match renew(&parts, &ids).await {
        Ok(renewals) => ids.into_iter().zip(renewals).map(Ok).collect(),
        Err(status) => vec![Err(status)],
    };
    let renewed = renewed.into_iter().chain(broken.into_iter().map(Err));
    futures::stream::iter(renewed).and_then(move |(id, renewal)| {
        let parts = parts.clone();
        async move {
            let ttl = match renewal {
                Renewal::Renewed(ttl) => ttl,
                Renewal::Gone => 0,
                Renewal::RunOut => {
                    let gone = tokio::time::timeout(REVOKE_WAIT, parts.leases.clock.gone(id));
                    gone.await.map_err(|_| Status::from(ApiError::Timeout))?;
                    0
                }
            };
            Ok(LeaseKeepAliveResponse { header: Some(header), id: id.0, ttl })
        }
    })
}

async fn renew(parts: &LeaseParts, ids: &[LeaseId]) -> Result<Vec<Renewal>, Status> {
    // The stream may have begun before the alarm was raised.
    parts.published.may_serve()?;
    if ids.is_empty() {
        // The stream broke, as it does whenever a client disconnects: nothing to renew.
        return Ok(Vec::new());
    }
    match renew_alone(&parts.leases, ids) {
        Some(renewals) => Ok(renewals),
        None => parts.renewals.renew(ids, Instant::now() + parts.timeout).await,
    }
}

/// Renews without a confirmation if this member is the only voter, unless a checkpoint must be cleared.
fn renew_alone(leases: &MemberLeases, ids: &[LeaseId]) -> Option<Vec<Renewal>> {
    if !leases.raft.reads_are_local() {
        return None;
    }
    let term = (*leases.clock.leading().borrow())?;
    let renewed = leases.clock.renew(ids, term).ok()?.into_iter().map(|renewed| match renewed {
        Ok(renewed) if renewed.clear_checkpoint => None,
        Ok(renewed) => Some(Renewal::Renewed(renewed.ttl)),
        Err(RenewError::NotFound(_)) => Some(Renewal::Gone),
        Err(RenewError::Expired(_)) => Some(Renewal::RunOut),
        Err(RenewError::NotPrimary) => None,
    });
    let renewals: Vec<Renewal> = renewed.collect::<Option<_>>()?;
    let count = renewals.iter().filter(|renewal| matches!(renewal, Renewal::Renewed(_))).count();
    leases.metrics.lease.renewed.inc_by(count as u64);
    Some(renewals)
}
