use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::Stream;
use tonic::{Request, Response, Status};

use super::authenticator::{Authenticator, ReadPermit};
use super::caller::Caller;
use super::error::Failure;
use super::lease_clock::LeaseClock;
use super::limits::Limits;
use super::long_answer::{AnswerMemory, LongAnswer, Room, attached, gathered, on_thread};
use super::member_info::MemberInfo;
use super::metrics::CoreMetrics;
use super::proposer::Proposer;
use super::published::Published;
use super::quota::SpaceQuota;
use super::read_index::ReadIndex;
use crate::api_error::ApiError;
use crate::core::apply::{
    ApplyHandle, CompactionInForce, check_range_permission, check_txn_permission, describe_range, describe_txn,
    put_cost, txn_cost,
};
use crate::core::auth::{AuthState, Identity};
use crate::core::mvcc::{
    Extent, MvccError, OperationCounts, RangeStream, StoreReader, check_delete_range, check_put, check_range,
    check_range_stream, check_txn, is_read_only, is_serializable,
};
use crate::pb::encoded::kv_server::Kv;
use crate::pb::encoded::{DeleteRangeResponse, PutResponse, RangeResponse, RangeStreamResponse, TxnResponse};
use crate::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    request_op,
};
use crate::pb::selection::has_own_order;
use crate::telemetry::OperationKind;
use crate::types::Revision;

/// The KV service.
pub(super) struct KvService {
    pub(super) info: Arc<MemberInfo>,
    pub(super) published: Arc<Published>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) reads: Arc<ReadIndex>,
    pub(super) quota: Arc<SpaceQuota>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) leases: Arc<LeaseClock>,
    pub(super) store: StoreReader,
    pub(super) apply: ApplyHandle,
    pub(super) answers: Arc<AnswerMemory>,
    pub(super) metrics: Arc<CoreMetrics>,
    pub(super) limits: Limits,
}

impl KvService {
    /// Answers a range, all of it at once: for locks and elections.
    pub(super) async fn read(&self, caller: &Caller, request: &RangeRequest) -> Result<RangeResponse, Failure> {
        check_range(request)?;
        let timed = self.metrics.read(caller, OperationKind::Range, || describe_range(request));
        if !request.serializable {
            self.reads.linearizable().await?;
        }
        let permit = self.may_range(caller, request).await?;
        let began = Instant::now();
        let answer = self.store.snapshot().range(request);
        self.metrics.mvcc.ranges.inc();
        self.metrics.range_took(answer.is_ok(), began.elapsed());
        let mut answer = answer?;
        self.authenticator.confirm(permit)?;
        self.info.complete(&mut answer.header);
        timed.succeed();
        Ok(answer)
    }

    /// Answers a range, in slices if it is long.
    async fn ranged(&self, caller: &Caller, request: RangeRequest) -> Result<Response<RangeResponse>, Status> {
        check_range(&request).map_err(Failure::from)?;
        let timed = self.metrics.read(caller, OperationKind::Range, || describe_range(&request));
        if !request.serializable {
            self.reads.linearizable().await?;
        }
        let permit = self.may_range(caller, &request).await?;
        let began = Instant::now();
        let answer = self.found(&request).await;
        self.metrics.mvcc.ranges.inc();
        self.metrics.range_took(answer.is_ok(), began.elapsed());
        let answer = answer?;
        self.authenticator.confirm(permit)?;
        timed.succeed();
        Ok(answer)
    }

    async fn may_range(&self, caller: &Caller, request: &RangeRequest) -> Result<ReadPermit, Failure> {
        self.authenticator.may_read(caller, |auth, who| check_range_permission(auth, who, request)).await
    }

    async fn may_read_txn(&self, caller: &Caller, request: &TxnRequest) -> Result<ReadPermit, Failure> {
        let check =
            |auth: &AuthState, who: &Identity| check_txn_permission(auth, who, &self.leases.store.read(), request);
        self.authenticator.may_read(caller, check).await
    }

    /// Refuses a write that the caller may not do before room for its long answer is taken from others. The permission
    /// that counts is the one when it is applied.
    async fn may_write(&self, caller: &Caller, request: &TxnRequest) -> Result<(), Failure> {
        match self.may_read_txn(caller, request).await {
            Ok(_) => Ok(()),
            Err(_) => {
                // It may have got the permission a moment ago, from another member.
                self.reads.linearizable().await?;
                self.may_read_txn(caller, request).await.map(drop)
            }
        }
    }

    async fn found(&self, request: &RangeRequest) -> Result<Response<RangeResponse>, Status> {
        let snapshot = self.store.snapshot();
        let extent = snapshot.extent(request);
        if extent.is_small() {
            let mut answer = snapshot.range(request).map_err(Failure::from)?;
            self.info.complete(&mut answer.header);
            return gathered(&self.store, answer, snapshot.replaced_bytes(), None);
        }
        drop(snapshot);
        if has_own_order(request) || request.count_only {
            let room = self.answers.list(extent).await?;
            let walk = self.answers.walk(extent).await?;
            let (info, store, request) = (self.info.clone(), self.store.clone(), request.clone());
            let answer = on_thread(move || {
                let _walk = walk;
                let snapshot = store.snapshot();
                let mut answer = snapshot.range(&request).map_err(Failure::from)?;
                info.complete(&mut answer.header);
                gathered(&store, answer, snapshot.replaced_bytes(), Some(room))
            });
            return answer.await;
        }
        let room = self.answers.range().await?;
        let mut range = self.store.long_range(request).map_err(Failure::from)?;
        while !range.measure().map_err(Failure::from)? {
            tokio::task::yield_now().await;
        }
        Ok(attached(LongAnswer::range(&self.info, range, room)?))
    }

    /// Runs a transaction, all of its answer at once: for locks and elections.
    pub(super) async fn transact(&self, caller: &Caller, request: TxnRequest) -> Result<TxnResponse, Failure> {
        check_txn(&request, self.limits.max_txn_ops)?;
        let mut answer = if is_read_only(&request) {
            if !is_serializable(&request) {
                self.reads.linearizable().await?;
            }
            let timed = self.metrics.read(caller, OperationKind::ReadonlyTxn, || describe_txn(&request));
            let permit = self.may_read_txn(caller, &request).await?;
            let answer = read_only(&self.store, &self.metrics, &request)?;
            self.authenticator.confirm(permit)?;
            timed.succeed();
            answer
        } else {
            self.proposer.propose(caller, request).await?.read().map_err(after_apply)?
        };
        self.info.complete(&mut answer.header);
        Ok(answer)
    }

    /// Runs a transaction; one that only reads needs no log entry. A long answer is gathered on a thread of its own.
    async fn transacted(&self, caller: &Caller, request: TxnRequest) -> Result<Response<TxnResponse>, Status> {
        check_txn(&request, self.limits.max_txn_ops).map_err(Failure::from)?;
        match is_read_only(&request) {
            true => self.transacted_reads(caller, request).await,
            false => self.transacted_writes(caller, request).await,
        }
    }

    async fn transacted_reads(&self, caller: &Caller, request: TxnRequest) -> Result<Response<TxnResponse>, Status> {
        let request = Arc::new(request);
        let timed = self.metrics.read(caller, OperationKind::ReadonlyTxn, || describe_txn(&request));
        if !is_serializable(&request) {
            self.reads.linearizable().await?;
        }
        let permit = self.may_read_txn(caller, &request).await?;
        let (since, extent) = self.txn_extent(&request);
        let room = self.txn_room(extent).await?;
        let finish =
            move |info: &MemberInfo, store: &StoreReader, metrics: &CoreMetrics, request: &TxnRequest, room| {
                let mut answer = read_only(store, metrics, request)?;
                info.complete(&mut answer.header);
                gathered(store, answer, since, room)
            };
        let answer = if room.is_none() {
            finish(&self.info, &self.store, &self.metrics, &request, room)
        } else {
            let (info, store, metrics) = (self.info.clone(), self.store.clone(), self.metrics.clone());
            let request = request.clone();
            let walk = self.answers.walk(extent).await?;
            let answer = on_thread(move || {
                let _walk = walk;
                finish(&info, &store, &metrics, &request, room)
            });
            answer.await
        };
        let answer = answer?;
        self.authenticator.confirm(permit)?;
        timed.succeed();
        Ok(answer)
    }

    async fn transacted_writes(&self, caller: &Caller, request: TxnRequest) -> Result<Response<TxnResponse>, Status> {
        let (since, extent) = self.txn_extent(&request);
        if !extent.is_small() {
            self.may_write(caller, &request).await?;
        }
        // Before anything is written: a refusal means that nothing was done.
        let room = self.txn_room(extent).await?;
        let answer = self.proposer.propose(caller, request).await?;
        let at_once = room.is_none() && answer.is_whole();
        let finish = move |info: &MemberInfo, store: &StoreReader| {
            let mut answer = answer.read().map_err(after_apply)?;
            info.complete(&mut answer.header);
            gathered(store, answer, since, room)
        };
        if at_once {
            return finish(&self.info, &self.store);
        }
        let (info, store) = (self.info.clone(), self.store.clone());
        on_thread(move || finish(&info, &store)).await
    }

    /// The count of replaced bytes before a transaction, and its extent.
    fn txn_extent(&self, request: &TxnRequest) -> (u64, Extent) {
        let snapshot = self.store.snapshot();
        (snapshot.replaced_bytes(), snapshot.txn_extent(request))
    }

    /// Room for the answer of a transaction, unless that is small.
    async fn txn_room(&self, extent: Extent) -> Result<Option<Room>, Status> {
        if extent.is_small() { Ok(None) } else { Ok(Some(self.answers.list(extent).await?)) }
    }

    /// Deletes, and gathers the answer at once: for locks and elections, and for short answers.
    pub(super) async fn delete(
        &self,
        caller: &Caller,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Failure> {
        check_delete_range(&request)?;
        let mut answer = self.proposer.propose(caller, request).await?;
        self.info.complete(&mut answer.header);
        Ok(answer)
    }

    async fn deleted(
        &self,
        caller: &Caller,
        request: DeleteRangeRequest,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        check_delete_range(&request).map_err(Failure::from)?;
        let (extent, since) = {
            let snapshot = self.store.snapshot();
            (snapshot.delete_extent(&request), snapshot.replaced_bytes())
        };
        if extent.is_small() {
            return gathered(&self.store, self.delete(caller, request).await?, since, None);
        }
        let op = RequestOp { request: Some(request_op::Request::RequestDeleteRange(request.clone())) };
        self.may_write(caller, &TxnRequest { success: vec![op], ..TxnRequest::default() }).await?;
        let room = self.answers.list(extent).await?;
        let answer = self.delete(caller, request).await?;
        let store = self.store.clone();
        on_thread(move || gathered(&store, answer, since, Some(room))).await
    }

    async fn write(&self, caller: &Caller, request: PutRequest) -> Result<PutResponse, Failure> {
        // Before the request is looked at, as in etcd.
        self.quota.check(put_cost(&request)).await?;
        check_put(&request)?;
        let mut answer = self.proposer.propose(caller, request).await?;
        self.info.complete(&mut answer.header);
        Ok(answer)
    }

    async fn compacted(&self, caller: &Caller, request: CompactionRequest) -> Result<CompactionResponse, Failure> {
        self.authenticator.require_admin(caller).await?;
        let wait = request.physical;
        let mut progress = self.apply.compaction();
        let CompactionInForce { revision, at } = self.proposer.propose(caller, request).await?;
        if wait {
            // Ends early only when the member stops.
            let _ = progress.wait_for(|finished| *finished >= at).await;
        }
        Ok(CompactionResponse { header: Some(self.info.header(revision)) })
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let (caller, request) = Caller::split(request);
        if !request.serializable && self.published.is_learner() {
            return Err(ApiError::NotSupportedForLearner.into());
        }
        self.ranged(&caller, request).await
    }

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        let (caller, request) = Caller::split(request);
        check_range_stream(&request).map_err(Failure::from)?;
        if !request.serializable {
            self.reads.linearizable().await?;
        }
        let permit = self.may_range(&caller, &request).await?;
        let chunk_bytes = self.limits.max_request_bytes;
        // A sorted answer is gathered in addition to the chunks; a count at an old revision looks at as much.
        let extent = self.store.snapshot().extent(&request);
        let gathers = has_own_order(&request) || !extent.has_few_looks();
        let list = if gathers { Some(self.answers.list(extent).await?) } else { None };
        let rooms = (self.answers.stream(chunk_bytes).await?, list);
        let stream = self.store.range_stream(&request, chunk_bytes).map_err(Failure::from)?;
        self.metrics.mvcc.ranges.inc();
        let authenticator = self.authenticator.clone();
        let confirm = move || authenticator.confirm(permit).map_err(Status::from);
        Ok(Response::new(Box::pin(chunks(self.info.clone(), stream, (rooms, confirm), gathers))))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let (caller, request) = Caller::split(request);
        Ok(Response::new(self.write(&caller, request).await?))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let (caller, request) = Caller::split(request);
        self.deleted(&caller, request).await
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let (caller, request) = Caller::split(request);
        self.quota.check(txn_cost(&request)).await?;
        self.transacted(&caller, request).await
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let (caller, request) = Caller::split(request);
        Ok(Response::new(self.compacted(&caller, request).await?))
    }
}

/// Answers a transaction that only reads.
fn read_only(store: &StoreReader, metrics: &CoreMetrics, request: &TxnRequest) -> Result<TxnResponse, Failure> {
    let answer = store.snapshot().read_only_txn(request)?;
    metrics.count_operations(&OperationCounts::reads(request.compare.len() + answer.responses.len()));
    Ok(answer)
}

/// What a failure to read the answer of an applied transaction means. "Compacted" would say that nothing was done.
fn after_apply(error: MvccError) -> Failure {
    match error {
        MvccError::Compacted { .. } => ApiError::Timeout.into(),
        error => error.into(),
    }
}

/// Chunks are read as the client takes them; the last one gets the full header. `held.0` is held until the end, and
/// `held.1` says before each chunk, and at the end, whether the client may still read.
fn chunks<R: Send + 'static, C: Fn() -> Result<(), Status> + Send + 'static>(
    info: Arc<MemberInfo>,
    stream: RangeStream,
    held: (R, C),
    gathers: bool,
) -> impl Stream<Item = Result<RangeStreamResponse, Status>> {
    futures::stream::try_unfold((info, stream, held, gathers), |(info, mut stream, held, gathers)| async move {
        let next = move || {
            let chunk = stream.next_chunk().map_err(|error| Status::from(Failure::from(error)))?;
            Ok((chunk, stream))
        };
        let (chunk, stream) = if gathers { on_thread(next).await? } else { next()? };
        held.1()?;
        let Some(mut chunk) = chunk else { return Ok(None) };
        if let Some(header) = &chunk.header {
            chunk.header = Some(info.header(Revision(header.revision)));
        }
        let answer = RangeStreamResponse { range_response: Some(chunk) };
        Ok(Some((answer, (info, stream, held, false))))
    })
}
