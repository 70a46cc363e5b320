use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use prost::Message;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::core::Core;
use super::kv::KvService;
use super::lease;
use super::watch::WatchService;
use crate::pb::encoded::WireEncode;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse, RangeRequest, RangeResponse,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchResponse,
};
use crate::recipes::RecipeStore;

/// The member's own store, for locks and elections that run inside it.
#[derive(Clone)]
pub struct CoreRecipeStore {
    core: Arc<Core>,
    kv: KvService,
    watch: WatchService,
}

impl CoreRecipeStore {
    /// A store whose watches live on the serving thread of `watch`.
    pub fn new(core: Arc<Core>, watch: WatchService) -> Self {
        Self { kv: KvService::new(core.clone()), core, watch }
    }
}

/// Answers of the hot services hold encoded parts; a recipe looks into them.
fn plain<P: Message + Default>(encoded: &impl WireEncode) -> Result<P, Status> {
    let mut wire = Vec::with_capacity(encoded.wire_len());
    encoded.write(&mut wire);
    P::decode(wire.as_slice()).map_err(|error| Status::internal(error.to_string()))
}

impl RecipeStore for CoreRecipeStore {
    type Watch = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    fn with_metadata(&self, _metadata: &MetadataMap) -> Self {
        // Without users every caller has the same rights.
        self.clone()
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        plain(&self.kv.read(&request).await?)
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        plain(&self.kv.transact(request).await?)
    }

    async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        plain(&self.kv.delete(request).await?)
    }

    async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Status> {
        Ok(lease::grant(&self.core, request).await?)
    }

    async fn watch(&self, request: WatchCreateRequest) -> Result<Self::Watch, Status> {
        let answers = self.watch.single(request);
        Ok(Box::pin(answers.map(|answer| plain(&answer?))))
    }
}
