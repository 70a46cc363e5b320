use tonic::{Request, Response, Status};

use super::error::RecipeError;
use super::queue::{Queue, lease_or_own, within_deadline};
use super::store::RecipeStore;
use crate::pb::etcdserverpb::DeleteRangeRequest;
use crate::pb::v3lockpb::lock_server::Lock;
use crate::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use crate::shutdown::Tasks;

/// `v3lockpb.Lock`: a queue per name, its first owns the lock.
#[derive(Clone)]
pub struct LockService<S> {
    store: S,
    tasks: Tasks,
}

impl<S: RecipeStore> LockService<S> {
    /// Serves locks kept in `store`. Clean-up after callers that disconnected runs on `tasks`.
    pub fn new(store: S, tasks: Tasks) -> Self {
        Self { store, tasks }
    }

    async fn acquire(&self, store: S, request: LockRequest) -> Result<LockResponse, RecipeError> {
        let lease = lease_or_own(&store, request.lease).await?;
        let queue = Queue::new(store, &request.name, self.tasks.clone());
        let mut joined = queue.join(lease, Default::default()).await?;
        let header = joined.place.wait_for_turn(RecipeError::SessionExpired).await?.unwrap_or(joined.header);
        Ok(LockResponse { header: Some(header), key: joined.place.key.clone() })
    }
}

#[tonic::async_trait]
impl<S: RecipeStore> Lock for LockService<S> {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let store = self.store.for_caller(&metadata, &extensions);
        let answer = within_deadline(&metadata, self.acquire(store, request)).await?;
        Ok(Response::new(answer))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let store = self.store.for_caller(&metadata, &extensions);
        let delete = DeleteRangeRequest { key: request.key, ..Default::default() };
        let answer = store.delete_range(delete).await.map_err(RecipeError::from)?;
        Ok(Response::new(UnlockResponse { header: answer.header }))
    }
}
