use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status};

use super::caller::Caller;
use super::kv::KvService;
use super::lease::LeaseService;
use super::watch::WatchService;
use crate::pb::encoded::WireEncode;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse, RangeRequest, RangeResponse,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchResponse,
};
use crate::recipes::RecipeStore;

/// The member's own store, for locks and elections that run inside it.
#[derive(Clone)]
pub(super) struct CoreRecipeStore {
    kv: Arc<KvService>,
    lease: LeaseService,
    watch: WatchService,
    caller: Caller,
}

impl CoreRecipeStore {
    /// A store whose watches live on the serving thread of `watch`, as the member itself sees it.
    pub(super) fn new(kv: Arc<KvService>, lease: LeaseService, watch: WatchService) -> Self {
        Self { kv, lease, watch, caller: Caller::Member }
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

    fn for_caller(&self, metadata: &MetadataMap, extensions: &Extensions) -> Self {
        Self { caller: Caller::from_parts(metadata, extensions), ..self.clone() }
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        plain(&self.kv.read(&self.caller, &request).await?)
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        plain(&self.kv.transact(&self.caller, request).await?)
    }

    async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        plain(&self.kv.delete(&self.caller, request).await?)
    }

    async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Status> {
        Ok(self.lease.grant(&self.caller, request).await?)
    }

    async fn watch(&self, request: WatchCreateRequest) -> Result<Self::Watch, Status> {
        let answers = self.watch.single(&self.caller, request);
        Ok(Box::pin(answers.map(|answer| plain(&answer?))))
    }
}
