use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::core::Core;
use super::error::Failure;
use super::lease_clock::checkpoint_request;
use super::quota;
use crate::api_error::ApiError;
use crate::core::apply::{Applied, LEASE_COST_BYTES};
use crate::core::lease::RenewError;
use crate::pb::etcdserverpb::lease_server::Lease;
use crate::pb::etcdserverpb::*;
use crate::types::{LeaseId, Term};

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
        let request = InternalRaftRequest { lease_revoke: Some(request.into_inner()), ..Default::default() };
        let Applied::LeaseRevoke { revision } = self.core.propose(request).await? else {
            return Err(mismatch().into());
        };
        self.core.metrics.lease.revoked.inc();
        Ok(Response::new(LeaseRevokeResponse { header: Some(self.core.header(revision)) }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let state = (self.core.clone(), request.into_inner());
        let answers = futures::stream::try_unfold(state, |(core, mut requests)| async move {
            let Some(request) = requests.message().await? else { return Ok(None) };
            let answer = renew(&core, LeaseId(request.id)).await?;
            Ok(Some((answer, (core, requests))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let request = request.into_inner();
        self.core.linearizable().await?;
        let id = LeaseId(request.id);
        let mut answer = LeaseTimeToLiveResponse {
            header: Some(self.core.header_now()),
            id: request.id,
            ttl: -1,
            ..Default::default()
        };
        let term = leading(&self.core)?;
        let store = self.core.leases.store.read();
        if let Some(lease) = store.get(id) {
            answer.granted_ttl = lease.granted_ttl;
            let left = self.core.leases.remaining(id, term).map_err(|_| ApiError::LeaderChanged)?;
            answer.ttl = left.map_or(0, |left| left.as_secs() as i64);
            if request.keys {
                answer.keys = store.keys(id).map(Bytes::copy_from_slice).collect();
            }
        }
        drop(store);
        Ok(Response::new(answer))
    }

    async fn lease_leases(&self, _: Request<LeaseLeasesRequest>) -> Result<Response<LeaseLeasesResponse>, Status> {
        let leases = self.core.leases.by_remaining_time().into_iter().map(|id| LeaseStatus { id: id.0 }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: Some(self.core.header_now()), leases }))
    }
}

/// Makes a lease.
pub(super) async fn grant(core: &Core, mut request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Failure> {
    quota::check(core, LEASE_COST_BYTES).await?;
    if request.id == 0 {
        // Chosen before the log sees it: applying an entry involves no chance.
        request.id = fastrand::i64(1..=i64::MAX);
    }
    let request = InternalRaftRequest { lease_grant: Some(request), ..Default::default() };
    let Applied::LeaseGrant { id, ttl, revision } = core.propose(request).await? else { return Err(mismatch()) };
    core.metrics.lease.granted.inc();
    core.metrics.lease.ttl.observe(ttl as f64);
    Ok(LeaseGrantResponse { header: Some(core.header(revision)), id: id.0, ttl, error: String::new() })
}

/// One keep-alive. Needs no log entry: only the leader's deadlines count.
async fn renew(core: &Core, id: LeaseId) -> Result<LeaseKeepAliveResponse, Status> {
    // Filled first: its revision is never newer than the renewal.
    let header = Some(core.header_now());
    let term = leading(core)?;
    core.linearizable().await?;
    let renewed = core.leases.renew(&[id], term).map_err(|_| ApiError::LeaderChanged)?.remove(0);
    let ttl = match renewed {
        Ok(renewed) => {
            if renewed.clear_checkpoint {
                core.propose_as_leader(checkpoint_request([(id, 0)]), term).await?;
            }
            core.metrics.lease.renewed.inc();
            renewed.ttl
        }
        Err(RenewError::NotFound(_)) => 0,
        Err(RenewError::Expired(_)) => {
            wait_for_revocation(core, id).await?;
            0
        }
        Err(RenewError::NotPrimary) => return Err(ApiError::NoLeader.into()),
    };
    Ok(LeaseKeepAliveResponse { header, id: id.0, ttl })
}

/// The term this member leads in; only the leader knows deadlines.
fn leading(core: &Core) -> Result<Term, ApiError> {
    (*core.leases.leading().borrow()).ok_or(ApiError::NoLeader)
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

fn mismatch() -> Failure {
    Failure::Other("the outcome does not belong to the request".to_owned())
}
