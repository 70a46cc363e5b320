use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use prost::Message;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::core::Core;
use super::error::Failure;
use super::lease_leader::{Renewal, TIME_TO_LIVE, ask};
use super::long_answer::{gathered, on_thread};
use super::quota;
use crate::api_error::ApiError;
use crate::core::apply::{GrantedLease, LEASE_COST_BYTES};
use crate::core::lease::RenewError;
use crate::core::mvcc::Extent;
use crate::pb::etcdserverpb::lease_server::Lease;
use crate::pb::etcdserverpb::*;
use crate::types::LeaseId;

/// Keep-alives of one stream that are renewed together, at most.
const RENEWED_AT_ONCE: usize = 256;
/// Leases that are listed and sorted where they are asked for; more of them on a thread of their own.
const LEASES_AT_ONCE: usize = 4096;
/// How long a renewal waits for the revocation of a lease that has run out.
const REVOKE_WAIT: Duration = Duration::from_secs(7);

/// The Lease service.
#[derive(Clone)]
pub struct LeaseService {
    core: Arc<Core>,
}

impl LeaseService {
    /// Builds the service.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl Lease for LeaseService {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        Ok(Response::new(grant(&self.core, request.into_inner()).await?))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let revision = self.core.propose(request.into_inner()).await?;
        Ok(Response::new(LeaseRevokeResponse { header: Some(self.core.header(revision)) }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let core = self.core.clone();
        // Whatever came in while the last ones were renewed is renewed at once.
        let waiting = request.into_inner().ready_chunks(RENEWED_AT_ONCE);
        Ok(Response::new(Box::pin(waiting.then(move |requests| keep_alive(core.clone(), requests)).flatten())))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let core = &self.core;
        let deadline = Instant::now() + core.limits.request_timeout;
        let answer = ask(core.as_ref(), TIME_TO_LIVE, request.get_ref().encode_to_vec().into(), deadline).await?;
        let mut answer = LeaseTimeToLiveResponse::decode(answer)
            .map_err(|error| Status::internal(format!("unreadable answer of the leader: {error}")))?;
        answer.header = Some(core.header_now());
        Ok(Response::new(answer))
    }

    async fn lease_leases(&self, _: Request<LeaseLeasesRequest>) -> Result<Response<LeaseLeasesResponse>, Status> {
        let core = self.core.clone();
        let count = core.leases.count();
        let (long, since) = (count > LEASES_AT_ONCE, core.snapshot().replaced_bytes());
        let room = if long { Some(core.answers.list(Extent { keys: count, loads: false }).await?) } else { None };
        let list = move || {
            let leases = core.leases.by_remaining_time().into_iter().map(|id| LeaseStatus { id: id.0 }).collect();
            let answer = LeaseLeasesResponse { header: Some(core.header_now()), leases };
            gathered(&core, answer, since, room)
        };
        if long { on_thread(list).await } else { list() }
    }
}

/// Makes a lease.
pub(super) async fn grant(core: &Core, mut request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Failure> {
    quota::check(core, LEASE_COST_BYTES).await?;
    if request.id == 0 {
        // Chosen before the log sees it: applying an entry involves no chance.
        request.id = fastrand::i64(1..=i64::MAX);
    }
    let GrantedLease { id, ttl, revision } = core.propose(request).await?;
    Ok(LeaseGrantResponse { header: Some(core.header(revision)), id: id.0, ttl, error: String::new() })
}

/// Answers keep-alives of one stream, in their order. They need no log entry: only the leader's deadlines count.
async fn keep_alive(
    core: Arc<Core>,
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
    // Filled first: its revision is never newer than a renewal.
    let header = core.header_now();
    let renewed: Vec<Result<(LeaseId, Renewal), Status>> = match renew(&core, &ids).await {
        Ok(renewals) => ids.into_iter().zip(renewals).map(Ok).collect(),
        Err(status) => vec![Err(status)],
    };
    let renewed = renewed.into_iter().chain(broken.into_iter().map(Err));
    futures::stream::iter(renewed).and_then(move |(id, renewal)| {
        let core = core.clone();
        async move {
            let ttl = match renewal {
                Renewal::Renewed(ttl) => ttl,
                Renewal::Gone => 0,
                Renewal::RunOut => {
                    wait_for_revocation(&core, id).await?;
                    0
                }
            };
            Ok(LeaseKeepAliveResponse { header: Some(header), id: id.0, ttl })
        }
    })
}

async fn renew(core: &Core, ids: &[LeaseId]) -> Result<Vec<Renewal>, Status> {
    // The stream may be older than the alarm.
    core.published.may_serve(core.member)?;
    if ids.is_empty() {
        // The stream broke, as it does whenever a client goes away: nobody is to be asked.
        return Ok(Vec::new());
    }
    match renew_alone(core, ids) {
        Some(renewals) => Ok(renewals),
        None => core.renewals.renew(ids, Instant::now() + core.limits.request_timeout).await,
    }
}

/// The only voter needs no confirmation and nobody to ask, unless a checkpoint must be cleared.
fn renew_alone(core: &Core, ids: &[LeaseId]) -> Option<Vec<Renewal>> {
    if !core.raft.reads_are_local() {
        return None;
    }
    let term = (*core.leases.leading().borrow())?;
    let renewed = core.leases.renew(ids, term).ok()?.into_iter().map(|renewed| match renewed {
        Ok(renewed) if renewed.clear_checkpoint => None,
        Ok(renewed) => Some(Renewal::Renewed(renewed.ttl)),
        Err(RenewError::NotFound(_)) => Some(Renewal::Gone),
        Err(RenewError::Expired(_)) => Some(Renewal::RunOut),
        Err(RenewError::NotPrimary) => None,
    });
    let renewals: Vec<Renewal> = renewed.collect::<Option<_>>()?;
    let count = renewals.iter().filter(|renewal| matches!(renewal, Renewal::Renewed(_))).count();
    core.metrics.lease.renewed.inc_by(count as u64);
    Some(renewals)
}

/// A lease that has run out is not renewed any more, but is gone only once its revocation is applied.
async fn wait_for_revocation(core: &Core, id: LeaseId) -> Result<(), Failure> {
    let mut revocations = core.leases.revocations();
    let gone = async {
        while core.leases.store.read().exists(id) {
            if revocations.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(REVOKE_WAIT, gone).await.map_err(|_| ApiError::Timeout.into())
}
