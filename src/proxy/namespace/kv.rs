use std::collections::HashMap;
use std::pin::Pin;

use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::ownership::nobodys_lease;
use super::rewrite::{changes, leases_of};
use super::room::{settle, txn_put_at};
use super::view::{View, clean};
use crate::api_error::ApiError;
use crate::pb::etcdserverpb::kv_server::Kv;
use crate::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};

#[tonic::async_trait]
impl Kv for View {
    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let mut request = clean(request);
        self.namespace.add_prefix_to_range_request(request.get_mut());
        let mut answer = self.kv.clone().range(request).await?;
        self.namespace.strip_prefix_in_range(answer.get_mut());
        Ok(answer)
    }

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        let mut request = clean(request);
        self.namespace.add_prefix_to_range_request(request.get_mut());
        let namespace = self.namespace.clone();
        let answer = self.kv.clone().range_stream(request).await?;
        Ok(answer.map(|chunks| -> Self::RangeStreamStream {
            Box::pin(chunks.map(move |chunk| {
                let mut chunk = chunk?;
                if let Some(range) = &mut chunk.range_response {
                    namespace.strip_prefix_in_range(range);
                }
                Ok(chunk)
            }))
        }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let mut request = clean(request);
        let lease = request.get_ref().lease;
        if lease != 0 && !self.ownership.is_own(lease, request.metadata()).await? {
            request.get_mut().lease = nobodys_lease();
        }
        // Last: what is taken counts for a while where the request is not sent.
        let growth = self.room_for_put(request.get_ref(), request.metadata()).await?;
        self.namespace.add_prefix_to_put(request.get_mut());
        let answer = self.kv.clone().put(request).await;
        settle(growth, &answer, |answer| Some(answer.header.as_ref()?.revision));
        let mut answer = answer?;
        self.namespace.strip_prefix_in_put(answer.get_mut());
        Ok(answer)
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let mut request = clean(request);
        self.namespace.add_prefix_to_delete(request.get_mut());
        let mut answer = self.kv.clone().delete_range(request).await?;
        self.namespace.strip_prefix_in_delete(answer.get_mut());
        Ok(answer)
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        if self.rights.read_only && changes(request.get_ref()) {
            return Err(ApiError::PermissionDenied.into());
        }
        let mut request = clean(request);
        let mut replaced = HashMap::new();
        leases_of(request.get_ref(), &mut |lease| {
            replaced.insert(lease, lease);
        });
        replaced.remove(&0);
        let own = self.ownership.own_of(replaced.keys().copied(), request.metadata()).await?;
        for (_, replacement) in replaced.iter_mut().filter(|(lease, _)| !own.contains(*lease)) {
            *replacement = nobodys_lease();
        }
        let growth = self.room_for_txn(request.get_ref(), request.metadata()).await?;
        self.namespace.add_prefix_to_txn(request.get_mut(), &|lease| replaced.get(&lease).copied().unwrap_or(lease));
        let answer = self.kv.clone().txn(request).await;
        settle(growth, &answer, txn_put_at);
        let mut answer = answer?;
        self.namespace.strip_prefix_in_txn(answer.get_mut());
        Ok(answer)
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        if !self.rights.admin && !self.rights.compact {
            return Err(ApiError::PermissionDenied.into());
        }
        self.kv.clone().compact(clean(request)).await
    }
}
