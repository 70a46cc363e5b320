use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use tonic::{Request, Response, Status};

use super::error::RecipeError;
use super::observe;
use super::queue::{Queue, delete, lease_or_own, put, within_deadline};
use super::store::RecipeStore;
use crate::pb::etcdserverpb::{Compare, RequestOp, ResponseHeader, TxnRequest};
use crate::pb::v3electionpb::election_server::Election;
use crate::pb::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};
use crate::shutdown::Tasks;

/// `v3electionpb.Election`: a queue per name, its first leads, and the value of its key is what it proclaims.
#[derive(Clone)]
pub struct ElectionService<S> {
    store: S,
    tasks: Tasks,
}

impl<S: RecipeStore> ElectionService<S> {
    /// Serves elections kept in `store`. Clean-up after callers that disconnected runs on `tasks`.
    pub fn new(store: S, tasks: Tasks) -> Self {
        Self { store, tasks }
    }

    async fn win(&self, store: S, request: CampaignRequest) -> Result<CampaignResponse, RecipeError> {
        let lease = lease_or_own(&store, request.lease).await?;
        let queue = Queue::new(store.clone(), &request.name, self.tasks.clone());
        let mut joined = queue.join(lease, request.value.clone()).await?;
        let place = &mut joined.place;
        if joined.existing.is_some_and(|kv| kv.value != request.value) {
            let proclaimed = proclaim(&store, &place.key, place.create_revision, lease, request.value).await;
            if proclaimed.is_err() {
                // As in etcd, which resigns: else who was refused would lead with the value of the campaign before.
                place.leave_when_dropped();
            }
            proclaimed?;
        }
        place.wait_for_turn(RecipeError::NotLeader).await?;
        let leader = LeaderKey { name: request.name, key: place.key.clone(), rev: place.create_revision, lease };
        Ok(CampaignResponse { header: Some(joined.header), leader: Some(leader) })
    }
}

#[tonic::async_trait]
impl<S: RecipeStore> Election for ElectionService<S> {
    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let store = self.store.for_caller(&metadata, &extensions);
        let answer = within_deadline(&metadata, self.win(store, request)).await?;
        Ok(Response::new(answer))
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let store = self.store.for_caller(&metadata, &extensions);
        let leader = request.leader.ok_or(RecipeError::MissingLeader)?;
        let lease = lease_or_own(&store, leader.lease).await?;
        let header = proclaim(&store, &leader.key, leader.rev, lease, request.value).await?;
        Ok(Response::new(ProclaimResponse { header: Some(header) }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let queue = Queue::new(self.store.for_caller(&metadata, &extensions), &request.name, self.tasks.clone());
        let answer = queue.store.range(queue.first_range()).await.map_err(RecipeError::from)?;
        let kv = answer.kvs.into_iter().next().ok_or(RecipeError::NoLeader)?;
        Ok(Response::new(LeaderResponse { header: answer.header, kv: Some(kv) }))
    }

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let queue = Queue::new(self.store.for_caller(&metadata, &extensions), &request.name, self.tasks.clone());
        Ok(Response::new(Box::pin(observe::leaders(queue, &self.tasks))))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let store = self.store.for_caller(&metadata, &extensions);
        let leader = request.leader.ok_or(RecipeError::MissingLeader)?;
        // Nothing to resign from is fine.
        let (_, header) = if_created_at(&store, &leader.key, leader.rev, delete(leader.key.clone())).await?;
        Ok(Response::new(ResignResponse { header: Some(header) }))
    }
}

async fn proclaim<S: RecipeStore>(
    store: &S,
    key: &Bytes,
    create_revision: i64,
    lease: i64,
    value: Bytes,
) -> Result<ResponseHeader, RecipeError> {
    match if_created_at(store, key, create_revision, put(key.clone(), value, lease)).await? {
        (true, header) => Ok(header),
        (false, _) => Err(RecipeError::NotLeader),
    }
}

/// Runs `op` if `key` is still the one created at that revision; returns whether it was.
async fn if_created_at<S: RecipeStore>(
    store: &S,
    key: &Bytes,
    create_revision: i64,
    op: RequestOp,
) -> Result<(bool, ResponseHeader), RecipeError> {
    let request = TxnRequest {
        compare: vec![Compare::created_at(key.clone(), create_revision)],
        success: vec![op],
        failure: Vec::new(),
    };
    let answer = store.txn(request).await?;
    Ok((answer.succeeded, answer.header.unwrap_or_default()))
}
