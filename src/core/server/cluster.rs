use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::core::Core;
use crate::pb::etcdserverpb::cluster_server::Cluster;
use crate::pb::etcdserverpb::*;
use crate::types::Revision;

/// The Cluster service: membership can be read; changing it comes with clusters of several members.
#[derive(Clone)]
pub struct ClusterService {
    core: Arc<Core>,
}

impl ClusterService {
    /// Builds the service.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

fn absent<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("changing the membership is not supported by this version of watershed"))
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        if request.get_ref().linearizable {
            self.core.linearizable().await?;
        }
        let members = self.core.published.cluster.load().members().map(|member| member.to_api()).collect();
        // Membership has no revision of its own: etcd leaves the field at 0.
        Ok(Response::new(MemberListResponse { header: Some(self.core.header(Revision(0))), members }))
    }

    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        absent()
    }

    async fn member_remove(&self, _: Request<MemberRemoveRequest>) -> Result<Response<MemberRemoveResponse>, Status> {
        absent()
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        absent()
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        absent()
    }
}
