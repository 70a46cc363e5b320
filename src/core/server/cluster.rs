use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tonic::{Request, Response, Status};

use super::core::Core;
use super::error::Failure;
use crate::api_error::ApiError;
use crate::config::check_peer_urls;
use crate::core::cluster::Member;
use crate::core::peer::CallError;
use crate::pb::encoded::ResponseHeader;
use crate::pb::etcdserverpb::cluster_server::Cluster;
use crate::pb::etcdserverpb::*;
use crate::types::{MemberId, Revision};

/// Method under which a follower asks the leader to promote a learner.
pub(super) const PROMOTE_CALL: &str = "promote";
/// Pause before the leader is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The Cluster service: who belongs to the cluster.
#[derive(Clone)]
pub struct ClusterService {
    core: Arc<Core>,
}

impl ClusterService {
    /// Builds the service.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Membership has no revision of its own: etcd leaves the field at 0.
    fn header(&self) -> Option<ResponseHeader> {
        Some(self.core.header(Revision(0)))
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        if request.get_ref().linearizable {
            self.core.linearizable().await?;
        }
        let members = self.core.published.cluster.load().members().map(Member::to_api).collect();
        Ok(Response::new(MemberListResponse { header: self.header(), members }))
    }

    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        let MemberAddRequest { peer_ur_ls, is_learner } = request.into_inner();
        let mut urls = checked(&peer_ur_ls)?;
        urls.sort();
        let (member, members) = self.core.add_member(urls, is_learner).await?;
        Ok(Response::new(MemberAddResponse {
            header: self.header(),
            member: Some(member.to_api()),
            members: to_api(&members),
        }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let members = self.core.remove_member(MemberId(request.get_ref().id)).await?;
        Ok(Response::new(MemberRemoveResponse { header: self.header(), members: to_api(&members) }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        // etcd checks nothing here, and its members stop at a URL they cannot read.
        let urls = checked(&peer_ur_ls)?;
        let members = self.core.update_member(MemberId(id), urls).await?;
        Ok(Response::new(MemberUpdateResponse { header: self.header(), members: to_api(&members) }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let members = promote_anywhere(&self.core, MemberId(request.get_ref().id)).await?;
        Ok(Response::new(MemberPromoteResponse { header: self.header(), members }))
    }
}

/// Promotes on the leader, wherever that is.
async fn promote_anywhere(core: &Core, id: MemberId) -> Result<Vec<crate::pb::etcdserverpb::Member>, Status> {
    let deadline = tokio::time::Instant::now() + core.limits.request_timeout;
    while tokio::time::Instant::now() < deadline {
        let promoted = core.promote_member(id).await;
        core.metrics.promoted(&promoted);
        match promoted {
            Err(Failure::Api(ApiError::NotLeader)) => {}
            outcome => return Ok(to_api(&outcome?)),
        }
        let leader = core.raft.status().borrow().leader.filter(|leader| *leader != core.member);
        if let Some(leader) = leader {
            let request = MemberPromoteRequest { id: id.0 }.encode_to_vec();
            match core.peers.call(leader, PROMOTE_CALL, Bytes::from(request)).await {
                Ok(answer) => {
                    let answer = MemberPromoteResponse::decode(answer);
                    return Ok(answer.map_err(|_| Status::internal("the leader's answer is unreadable"))?.members);
                }
                // It leads no more, or not yet: the next look finds another, or the same one ready.
                Err(CallError::Failed(failure)) if failure.text == ApiError::NotLeader.text() => {}
                Err(CallError::Failed(failure)) => return Err(Status::new(failure.code, failure.text)),
                // Promoting twice is refused as such, so asking again is safe.
                Err(error) => tracing::debug!(%error, %leader, "leader not reached for a promotion"),
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    Err(ApiError::Timeout.into())
}

/// Answers a follower that was asked to promote.
pub(super) async fn promote_here(core: &Core, request: &[u8]) -> Result<Bytes, Failure> {
    let request = MemberPromoteRequest::decode(request).map_err(|error| Failure::Other(error.to_string()))?;
    let promoted = core.promote_member(MemberId(request.id)).await;
    core.metrics.promoted(&promoted);
    let members = to_api(&promoted?);
    Ok(MemberPromoteResponse { header: None, members }.encode_to_vec().into())
}

fn checked(urls: &[String]) -> Result<Vec<String>, Status> {
    check_peer_urls(urls).map_err(|error| {
        tracing::warn!(%error, "membership change with wrong peer URLs");
        ApiError::BadMemberUrls.into()
    })
}

fn to_api(members: &[Member]) -> Vec<crate::pb::etcdserverpb::Member> {
    members.iter().map(Member::to_api).collect()
}
