use std::pin::Pin;

use futures::Stream;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use super::ownership::{nobodys_lease, with};
use super::view::{View, clean};
use crate::pb::etcdserverpb::lease_server::Lease;
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use crate::proxy::limits::Limit;

impl View {
    /// Grants a lease that belongs to the namespace. Grants at the same time may together exceed a limit. A lease that cannot be marked is given back: without a marker
    /// nobody could ever see it again.
    async fn grant(
        self,
        metadata: MetadataMap,
        request: LeaseGrantRequest,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let mut counted = None;
        if let Some(max) = self.limits.leases_max() {
            let count = *counted.insert(self.ownership.count(&metadata).await?);
            self.limits.note_leases(count);
            if count >= max {
                return Err(self.limits.refuse(Limit::Leases, max, None));
            }
        }
        let before_grant = Instant::now();
        let answer = self.lease.clone().lease_grant(with(&metadata, request)).await?;
        let id = answer.get_ref().id;
        if let Err(status) = self.ownership.mark(answer.get_ref(), before_grant, &metadata).await {
            let revoke = with(&metadata, LeaseRevokeRequest { id });
            if let Err(status) = self.lease.clone().lease_revoke(revoke).await {
                debug!(lease = format!("{id:x}"), %status, "lease without an owner stays until it expires");
            }
            return Err(status);
        }
        if let Some(before) = counted {
            self.limits.note_leases(before + 1);
        }
        Ok(answer)
    }

    /// Runs the grant to its end even when the client leaves: half of it would leak a lease.
    pub(super) async fn grant_to_the_end(
        &self,
        metadata: MetadataMap,
        request: LeaseGrantRequest,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let granting = self.tasks.spawn(self.clone().grant(metadata, request));
        granting.await.unwrap_or_else(|_| Err(Status::internal("lease grant broke off")))
    }
}

#[tonic::async_trait]
impl Lease for View {
    /// Never made: keep-alive streams go to the keep-alive broadcast.
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let (metadata, _, message) = clean(request).into_parts();
        self.grant_to_the_end(metadata, message).await
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let mut request = clean(request);
        let id = request.get_ref().id;
        if !self.ownership.look(id, request.metadata()).await?.own {
            request.get_mut().id = nobodys_lease();
        }
        self.ownership.forget(id);
        let answer = self.lease.clone().lease_revoke(request).await;
        // A request at the same time may have found the lease before it was revoked.
        self.ownership.forget(id);
        answer
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let mut request = clean(request);
        let id = request.get_ref().id;
        if !self.ownership.look(id, request.metadata()).await?.own {
            request.get_mut().id = nobodys_lease();
        }
        let mut answer = self.lease.clone().lease_time_to_live(request).await?;
        answer.get_mut().id = id;
        self.namespace.strip_prefix_in_time_to_live(answer.get_mut());
        Ok(answer)
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let request = clean(request);
        let own = self.ownership.all(request.metadata()).await?;
        let mut answer = self.lease.clone().lease_leases(request).await?;
        answer.get_mut().leases.retain(|lease| own.contains(&lease.id));
        Ok(answer)
    }

    async fn lease_keep_alive(
        &self,
        _: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        Err(Status::internal("keep-alive streams go to the keep-alive broadcast"))
    }
}
