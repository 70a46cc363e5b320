use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tonic::{Request, Response, Status};

use super::authenticator::Authenticator;
use super::caller::Caller;
use super::error::Failure;
use super::member_info::MemberInfo;
use super::metrics::CoreMetrics;
use super::published::Published;
use super::read_index::ReadIndex;
use super::reconfigure::MembershipChanges;
use crate::api_error::ApiError;
use crate::config::check_peer_urls;
use crate::core::cluster::Member;
use crate::core::peer::{CallError, PeerTransport};
use crate::core::raft::RaftHandle;
use crate::pb::encoded::ResponseHeader;
use crate::pb::etcdserverpb::cluster_server::Cluster;
use crate::pb::etcdserverpb::*;
use crate::types::{MemberId, Revision};

/// Method under which a follower asks the leader to promote a learner.
pub(super) const PROMOTE_CALL: &str = "promote";
/// Pause before the leader is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The Cluster service: who belongs to the cluster.
pub(super) struct ClusterService {
    pub(super) info: Arc<MemberInfo>,
    pub(super) published: Arc<Published>,
    pub(super) reads: Arc<ReadIndex>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) changes: Arc<MembershipChanges>,
    pub(super) raft: RaftHandle,
    pub(super) peers: PeerTransport,
    pub(super) metrics: Arc<CoreMetrics>,
    pub(super) timeout: Duration,
}

impl ClusterService {
    /// Membership has no revision of its own: etcd leaves the field at 0.
    fn header(&self) -> Option<ResponseHeader> {
        Some(self.info.header(Revision(0)))
    }

    /// Promotes here if this member leads, else through a call to the leader.
    async fn promote_anywhere(
        &self,
        caller: &Caller,
        id: MemberId,
    ) -> Result<Vec<crate::pb::etcdserverpb::Member>, Status> {
        let deadline = tokio::time::Instant::now() + self.timeout;
        while tokio::time::Instant::now() < deadline {
            let promoted = self.changes.promote(caller, id).await;
            self.metrics.promoted(&promoted);
            match promoted {
                Err(Failure::Api(ApiError::NotLeader)) => {}
                outcome => return Ok(to_api(&outcome?)),
            }
            let leader = self.raft.status().borrow().leader.filter(|leader| *leader != self.info.member());
            if let Some(leader) = leader {
                let request = MemberPromoteRequest { id: id.0 }.encode_to_vec();
                match self.peers.call(leader, PROMOTE_CALL, Bytes::from(request)).await {
                    Ok(answer) => {
                        let answer = MemberPromoteResponse::decode(answer);
                        return Ok(answer.map_err(|_| Status::internal("the leader's answer is unreadable"))?.members);
                    }
                    // It does not lead any more, or not yet: ask the leader of then.
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
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        if request.get_ref().linearizable {
            self.reads.linearizable().await?;
        }
        self.authenticator.require_user(&Caller::of(&request)).await?;
        let members = self.published.cluster().members().map(Member::to_api).collect();
        Ok(Response::new(MemberListResponse { header: self.header(), members }))
    }

    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        let (caller, MemberAddRequest { peer_ur_ls, is_learner }) = Caller::split(request);
        let mut urls = checked(&peer_ur_ls)?;
        urls.sort();
        self.authenticator.require_admin(&caller).await?;
        let (member, members) = self.changes.add(&caller, urls, is_learner).await?;
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
        let (caller, request) = Caller::split(request);
        self.authenticator.require_admin(&caller).await?;
        let members = self.changes.remove(&caller, MemberId(request.id)).await?;
        Ok(Response::new(MemberRemoveResponse { header: self.header(), members: to_api(&members) }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let (caller, MemberUpdateRequest { id, peer_ur_ls }) = Caller::split(request);
        // etcd checks nothing here, and its members stop at a URL they cannot read.
        let urls = checked(&peer_ur_ls)?;
        self.authenticator.require_admin(&caller).await?;
        let members = self.changes.update(&caller, MemberId(id), urls).await?;
        Ok(Response::new(MemberUpdateResponse { header: self.header(), members: to_api(&members) }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let (caller, request) = Caller::split(request);
        // The leader does not ask again: the call of a member has no user.
        self.authenticator.require_admin(&caller).await?;
        let members = self.promote_anywhere(&caller, MemberId(request.id)).await?;
        Ok(Response::new(MemberPromoteResponse { header: self.header(), members }))
    }
}

/// Answers a follower that was asked to promote.
pub(super) async fn promote_here(
    changes: &MembershipChanges,
    metrics: &CoreMetrics,
    request: &[u8],
) -> Result<Bytes, Failure> {
    let request = MemberPromoteRequest::decode(request).map_err(|error| Failure::Other(error.to_string()))?;
    let promoted = changes.promote(&Caller::Member, MemberId(request.id)).await;
    metrics.promoted(&promoted);
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
