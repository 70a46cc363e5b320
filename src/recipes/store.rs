use std::future::Future;

use futures::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status};

use crate::pb::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse, RangeRequest, RangeResponse,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchResponse,
};

/// What the recipes need of a key-value store.
///
/// Each call means exactly what the RPC of the same name means, its errors included; the recipes turn an error into
/// what etcd's recipes answer. Dropping a call's future ends the waiting only.
pub trait RecipeStore: Clone + Send + Sync + 'static {
    /// The answers of one watch: what a stream with this single watcher carries, the created answer included or not.
    type Watch: Stream<Item = Result<WatchResponse, Status>> + Send + Unpin + 'static;

    /// The same store, used on behalf of the caller of a request with this metadata and these extensions.
    #[must_use]
    fn for_caller(&self, metadata: &MetadataMap, extensions: &Extensions) -> Self;

    /// `KV.Range`.
    fn range(&self, request: RangeRequest) -> impl Future<Output = Result<RangeResponse, Status>> + Send;

    /// `KV.Txn`.
    fn txn(&self, request: TxnRequest) -> impl Future<Output = Result<TxnResponse, Status>> + Send;

    /// `KV.DeleteRange`.
    fn delete_range(
        &self,
        request: DeleteRangeRequest,
    ) -> impl Future<Output = Result<DeleteRangeResponse, Status>> + Send;

    /// `Lease.LeaseGrant`.
    fn lease_grant(
        &self,
        request: LeaseGrantRequest,
    ) -> impl Future<Output = Result<LeaseGrantResponse, Status>> + Send;

    /// One watch of its own. Dropping the stream cancels it.
    fn watch(&self, request: WatchCreateRequest) -> impl Future<Output = Result<Self::Watch, Status>> + Send;
}
