use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::Stream;
use tonic::{Request, Response, Status};

use super::core::Core;
use super::error::Failure;
use super::long_answer::{LongAnswer, Room, attached, gathered, on_thread};
use super::quota;
use crate::api_error::ApiError;
use crate::core::apply::{CompactionInForce, describe_range, describe_txn, put_cost, txn_cost};
use crate::core::mvcc::{
    MvccError, OperationCounts, RangeStream, check_delete_range, check_put, check_range, check_range_stream, check_txn,
    has_own_order, is_read_only, is_serializable,
};
use crate::pb::encoded::kv_server::Kv;
use crate::pb::encoded::{DeleteRangeResponse, PutResponse, RangeResponse, RangeStreamResponse, TxnResponse};
use crate::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest,
};
use crate::telemetry::OperationKind;
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

    /// Answers a range, all of it at once: for the member's own use.
    pub async fn read(&self, request: &RangeRequest) -> Result<RangeResponse, Failure> {
        check_range(request)?;
        let metrics = &self.core.metrics;
        let timed = metrics.read(OperationKind::Range, || describe_range(request));
        if !request.serializable {
            self.core.linearizable().await?;
        }
        let began = Instant::now();
        let answer = self.core.snapshot().range(request);
        metrics.mvcc.ranges.inc();
        metrics.range_took(answer.is_ok(), began.elapsed());
        let mut answer = answer?;
        self.core.complete(&mut answer.header);
        timed.succeed();
        Ok(answer)
    }

    /// Answers a range, in slices if it is long.
    async fn ranged(&self, request: RangeRequest) -> Result<Response<RangeResponse>, Status> {
        check_range(&request).map_err(Failure::from)?;
        let metrics = &self.core.metrics;
        let timed = metrics.read(OperationKind::Range, || describe_range(&request));
        if !request.serializable {
            self.core.linearizable().await?;
        }
        let began = Instant::now();
        let answer = self.found(&request).await;
        metrics.mvcc.ranges.inc();
        metrics.range_took(answer.is_ok(), began.elapsed());
        if answer.is_ok() {
            timed.succeed();
        }
        answer
    }

    async fn found(&self, request: &RangeRequest) -> Result<Response<RangeResponse>, Status> {
        let core = &self.core;
        let snapshot = core.snapshot();
        let extent = snapshot.extent(request);
        if extent.is_small() {
            let mut answer = snapshot.range(request).map_err(Failure::from)?;
            core.complete(&mut answer.header);
            return gathered(core, answer, snapshot.replaced_bytes(), None);
        }
        drop(snapshot);
        if has_own_order(request) {
            let room = core.answers.list(extent).await?;
            let (core, request) = (core.clone(), request.clone());
            let answer = on_thread(move || {
                let snapshot = core.snapshot();
                let mut answer = snapshot.range(&request).map_err(Failure::from)?;
                core.complete(&mut answer.header);
                gathered(&core, answer, snapshot.replaced_bytes(), Some(room))
            });
            return answer.await;
        }
        let room = core.answers.range().await?;
        let mut range = core.store.long_range(request).map_err(Failure::from)?;
        while !range.measure().map_err(Failure::from)? {
            tokio::task::yield_now().await;
        }
        Ok(attached(LongAnswer::range(core, range, room)?))
    }

    /// Runs a transaction, for the member's own use.
    pub async fn transact(&self, request: TxnRequest) -> Result<TxnResponse, Failure> {
        check_txn(&request, self.core.limits.max_txn_ops)?;
        let mut answer = if is_read_only(&request) {
            if !is_serializable(&request) {
                self.core.linearizable().await?;
            }
            let timed = self.core.metrics.read(OperationKind::ReadonlyTxn, || describe_txn(&request));
            let answer = read_only(&self.core, &request)?;
            timed.succeed();
            answer
        } else {
            self.core.propose(request).await?.read().map_err(after_apply)?
        };
        self.core.complete(&mut answer.header);
        Ok(answer)
    }

    /// Runs a transaction; one that only reads needs no log entry. A long answer is gathered on a thread of its own.
    async fn transacted(&self, request: TxnRequest) -> Result<Response<TxnResponse>, Status> {
        check_txn(&request, self.core.limits.max_txn_ops).map_err(Failure::from)?;
        if is_read_only(&request) {
            self.transacted_reads(request).await
        } else {
            self.transacted_writes(request).await
        }
    }

    async fn transacted_reads(&self, request: TxnRequest) -> Result<Response<TxnResponse>, Status> {
        let request = Arc::new(request);
        let timed = self.core.metrics.read(OperationKind::ReadonlyTxn, || describe_txn(&request));
        if !is_serializable(&request) {
            self.core.linearizable().await?;
        }
        let (since, room) = self.txn_room(&request).await?;
        let (at_once, core, request) = (room.is_none(), self.core.clone(), request.clone());
        let finish = move || {
            let mut answer = read_only(&core, &request)?;
            core.complete(&mut answer.header);
            gathered(&core, answer, since, room)
        };
        let answer = if at_once { finish() } else { on_thread(finish).await };
        if answer.is_ok() {
            timed.succeed();
        }
        answer
    }

    async fn transacted_writes(&self, request: TxnRequest) -> Result<Response<TxnResponse>, Status> {
        // Before anything is written: a refusal means that nothing was done.
        let (since, room) = self.txn_room(&request).await?;
        let answer = self.core.propose(request).await?;
        let (at_once, core) = (room.is_none() && answer.is_whole(), self.core.clone());
        let finish = move || {
            let mut answer = answer.read().map_err(after_apply)?;
            core.complete(&mut answer.header);
            gathered(&core, answer, since, room)
        };
        if at_once { finish() } else { on_thread(finish).await }
    }

    /// The count of replaced bytes before a transaction, and room for its answer unless that is small.
    async fn txn_room(&self, request: &TxnRequest) -> Result<(u64, Option<Room>), Status> {
        let (extent, since) = {
            let snapshot = self.core.snapshot();
            (snapshot.txn_extent(request), snapshot.replaced_bytes())
        };
        let room = if extent.is_small() { None } else { Some(self.core.answers.list(extent).await?) };
        Ok((since, room))
    }

    /// Deletes.
    pub async fn delete(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Failure> {
        check_delete_range(&request)?;
        let mut answer = self.core.propose(request).await?;
        self.core.complete(&mut answer.header);
        Ok(answer)
    }

    async fn deleted(&self, request: DeleteRangeRequest) -> Result<Response<DeleteRangeResponse>, Status> {
        let core = &self.core;
        check_delete_range(&request).map_err(Failure::from)?;
        let (extent, since) = {
            let snapshot = core.snapshot();
            (snapshot.delete_extent(&request), snapshot.replaced_bytes())
        };
        if extent.is_small() {
            return gathered(core, self.delete(request).await?, since, None);
        }
        let room = core.answers.list(extent).await?;
        let answer = self.delete(request).await?;
        let core = core.clone();
        on_thread(move || gathered(&core, answer, since, Some(room))).await
    }

    async fn write(&self, request: PutRequest) -> Result<PutResponse, Failure> {
        // Before the request is looked at, as in etcd.
        quota::check(&self.core, put_cost(&request)).await?;
        check_put(&request)?;
        let mut answer = self.core.propose(request).await?;
        self.core.complete(&mut answer.header);
        Ok(answer)
    }

    async fn forget(&self, request: CompactionRequest) -> Result<CompactionResponse, Failure> {
        let wait = request.physical;
        let mut progress = self.core.apply.compaction();
        let CompactionInForce { revision, at } = self.core.propose(request).await?;
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
        let request = request.into_inner();
        if !request.serializable && self.core.is_learner() {
            return Err(ApiError::NotSupportedForLearner.into());
        }
        self.ranged(request).await
    }

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        let request = request.into_inner();
        check_range_stream(&request).map_err(Failure::from)?;
        if !request.serializable {
            self.core.linearizable().await?;
        }
        let chunk_bytes = self.core.limits.max_request_bytes;
        let answers = &self.core.answers;
        // An own order is gathered beside the chunks.
        let gathers = has_own_order(&request).then(|| self.core.snapshot().extent(&request));
        let list = match gathers {
            Some(extent) => Some(answers.list(extent).await?),
            None => None,
        };
        let rooms = (answers.stream(chunk_bytes).await?, list);
        let stream = self.core.store.range_stream(&request, chunk_bytes).map_err(Failure::from)?;
        self.core.metrics.mvcc.ranges.inc();
        Ok(Response::new(Box::pin(chunks(self.core.clone(), stream, rooms, gathers.is_some()))))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Ok(Response::new(self.write(request.into_inner()).await?))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        self.deleted(request.into_inner()).await
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        quota::check(&self.core, txn_cost(&request)).await?;
        self.transacted(request).await
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        Ok(Response::new(self.forget(request.into_inner()).await?))
    }
}

/// Answers a transaction that only reads.
fn read_only(core: &Core, request: &TxnRequest) -> Result<TxnResponse, Failure> {
    let answer = core.snapshot().read_only_txn(request)?;
    core.metrics.count_operations(&OperationCounts::reads(request.compare.len() + answer.responses.len()));
    Ok(answer)
}

/// What a failure to read the answer of an applied transaction means. "Compacted" would say that nothing was done.
fn after_apply(error: MvccError) -> Failure {
    match error {
        MvccError::Compacted { .. } => ApiError::Timeout.into(),
        error => error.into(),
    }
}

/// Chunks are read as the client takes them; the last one gets the full header. `rooms` are held until the end.
fn chunks(
    core: Arc<Core>,
    stream: RangeStream,
    rooms: impl Send + 'static,
    gathers: bool,
) -> impl Stream<Item = Result<RangeStreamResponse, Status>> {
    futures::stream::try_unfold((core, stream, rooms, gathers), |(core, mut stream, rooms, gathers)| async move {
        let next = move || {
            let chunk = stream.next_chunk().map_err(|error| Status::from(Failure::from(error)))?;
            Ok((chunk, stream))
        };
        let (chunk, stream) = if gathers { on_thread(next).await? } else { next()? };
        let Some(mut chunk) = chunk else { return Ok(None) };
        if let Some(header) = &chunk.header {
            chunk.header = Some(core.header(Revision(header.revision)));
        }
        let answer = RangeStreamResponse { range_response: Some(chunk) };
        Ok(Some((answer, (core, stream, rooms, false))))
    })
}
