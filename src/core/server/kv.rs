use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::Stream;
use tonic::{Request, Response, Status};

use super::core::Core;
use super::error::Failure;
use super::quota;
use crate::api_error::ApiError;
use crate::core::apply::{Applied, put_cost, txn_cost};
use crate::core::mvcc::{
    RangeStream, check_delete_range, check_put, check_range, check_range_stream, check_txn, is_read_only,
    is_serializable,
};
use crate::pb::encoded::kv_server::Kv;
use crate::pb::encoded::{DeleteRangeResponse, PutResponse, RangeResponse, RangeStreamResponse, TxnResponse};
use crate::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, InternalRaftRequest, PutRequest, RangeRequest,
    TxnRequest,
};
use crate::types::Revision;

/// The KV service.
#[derive(Clone)]
pub struct KvService {
    core: Arc<Core>,
}

impl KvService {
    /// Builds the service.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Answers a range.
    pub async fn read(&self, request: &RangeRequest) -> Result<RangeResponse, Failure> {
        check_range(request)?;
        if !request.serializable {
            self.core.linearizable().await?;
        }
        let began = Instant::now();
        let mut answer = self.core.snapshot().range(request)?;
        self.core.complete(&mut answer.header);
        self.core.metrics.mvcc.ranges.inc();
        self.core.metrics.range_took(began.elapsed());
        Ok(answer)
    }

    /// Runs a transaction; one that only reads needs no log entry.
    pub async fn transact(&self, request: TxnRequest) -> Result<TxnResponse, Failure> {
        check_txn(&request, self.core.limits.max_txn_ops)?;
        let mut answer = if is_read_only(&request) {
            if !is_serializable(&request) {
                self.core.linearizable().await?;
            }
            self.core.snapshot().read_only_txn(&request)?
        } else {
            let request = InternalRaftRequest { txn: Some(request), ..Default::default() };
            match self.core.propose(request).await? {
                Applied::Txn(answer) => answer,
                _ => return Err(Failure::mismatch()),
            }
        };
        self.core.complete(&mut answer.header);
        Ok(answer)
    }

    /// Deletes.
    pub async fn delete(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Failure> {
        check_delete_range(&request)?;
        let request = InternalRaftRequest { delete_range: Some(request), ..Default::default() };
        let Applied::DeleteRange(mut answer) = self.core.propose(request).await? else {
            return Err(Failure::mismatch());
        };
        self.core.complete(&mut answer.header);
        Ok(answer)
    }

    async fn write(&self, request: PutRequest) -> Result<PutResponse, Failure> {
        // Before the request is looked at, as in etcd.
        quota::check(&self.core, put_cost(&request)).await?;
        check_put(&request)?;
        let request = InternalRaftRequest { put: Some(request), ..Default::default() };
        let Applied::Put(mut answer) = self.core.propose(request).await? else { return Err(Failure::mismatch()) };
        self.core.complete(&mut answer.header);
        Ok(answer)
    }

    async fn forget(&self, request: CompactionRequest) -> Result<CompactionResponse, Failure> {
        let wait = request.physical;
        let mut progress = self.core.apply.compaction();
        let request = InternalRaftRequest { compaction: Some(request), ..Default::default() };
        let Applied::Compact { revision, at } = self.core.propose(request).await? else {
            return Err(Failure::mismatch());
        };
        if wait {
            // Ends early only when the member stops.
            let _ = progress.wait_for(|finished| *finished >= at).await;
        }
        Ok(CompactionResponse { header: Some(self.core.header(revision)) })
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let request = request.get_ref();
        if !request.serializable && self.core.is_learner() {
            return Err(ApiError::NotSupportedForLearner.into());
        }
        Ok(Response::new(self.read(request).await?))
    }

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        let request = request.into_inner();
        check_range_stream(&request).map_err(Failure::from)?;
        if !request.serializable {
            self.core.linearizable().await?;
        }
        let chunk_bytes = self.core.limits.max_request_bytes;
        let stream = self.core.store.range_stream(&request, chunk_bytes).map_err(Failure::from)?;
        self.core.metrics.mvcc.ranges.inc();
        Ok(Response::new(Box::pin(chunks(self.core.clone(), stream))))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Ok(Response::new(self.write(request.into_inner()).await?))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Ok(Response::new(self.delete(request.into_inner()).await?))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        quota::check(&self.core, txn_cost(&request)).await?;
        Ok(Response::new(self.transact(request).await?))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        Ok(Response::new(self.forget(request.into_inner()).await?))
    }
}

/// Chunks are read as the client takes them; the last one gets the full header.
fn chunks(core: Arc<Core>, stream: RangeStream) -> impl Stream<Item = Result<RangeStreamResponse, Status>> {
    futures::stream::try_unfold((core, stream), |(core, mut stream)| async move {
        let Some(mut chunk) = stream.next_chunk().map_err(Failure::from)? else { return Ok(None) };
        if let Some(header) = &chunk.header {
            chunk.header = Some(core.header(Revision(header.revision)));
        }
        Ok(Some((RangeStreamResponse { range_response: Some(chunk) }, (core, stream))))
    })
}
