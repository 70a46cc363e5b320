use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use http::HeaderMap;
use tokio::sync::mpsc;
use tonic::Status;

use crate::client::{Head, Method, Pool, framed, unframed};
use crate::pb::encoded::ResponseHeader;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{
    RangeRequest, RangeResponse, StatusRequest, StatusResponse, WatchRequest, WatchResponse,
};
use crate::types::{MemberId, Revision};

const RANGE: &str = "/etcdserverpb.KV/Range";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// One watch stream to some member.
pub(super) struct UpstreamStream {
    pub requests: mpsc::Sender<WatchRequest>,
    pub answers: BoxStream<'static, Result<WatchResponse, Status>>,
}

impl UpstreamStream {
    /// Sends one request.
    ///
    /// # Errors
    /// When the stream has ended.
    pub async fn send(&mut self, union: RequestUnion) -> Result<(), Status> {
        let request = WatchRequest { request_union: Some(union) };
        self.requests.send(request).await.map_err(|_| Status::unavailable("the watch stream is closed"))
    }

    /// The next answer. Dropping the future loses none.
    ///
    /// # Errors
    /// How the stream ended.
    pub async fn next(&mut self) -> Result<WatchResponse, Status> {
        let ended = || Err(Status::unavailable("the member ended the watch stream"));
        self.answers.next().await.unwrap_or_else(ended)
    }
}

/// The cluster as the hub sees it.
pub(super) trait Upstream: Send + Sync + 'static {
    /// A watch stream with this metadata.
    fn open_watch(&self, metadata: HeaderMap) -> BoxFuture<'static, Result<UpstreamStream, Status>>;

    /// The header of a linearizable read of one key at a revision (0: the newest), which costs a member next to
    /// nothing. Its revision is at or after every write acknowledged before the call, and `at` is refused if it is below
    /// any compaction acknowledged before.
    fn read_index(
        &self,
        metadata: HeaderMap,
        key: Bytes,
        at: Revision,
    ) -> BoxFuture<'static, Result<ResponseHeader, Status>>;

    /// The version of some member, and which.
    fn version(&self, metadata: HeaderMap) -> BoxFuture<'static, Result<(MemberId, String), Status>>;
}

impl Upstream for Pool {
    fn open_watch(&self, metadata: HeaderMap) -> BoxFuture<'static, Result<UpstreamStream, Status>> {
        let pool = self.clone();
        async move {
            let stream = Pool::open_watch(&pool, &metadata).await?;
            Ok(UpstreamStream { requests: stream.requests, answers: stream.answers.boxed() })
        }
        .boxed()
    }

    fn read_index(
        &self,
        metadata: HeaderMap,
        key: Bytes,
        at: Revision,
    ) -> BoxFuture<'static, Result<ResponseHeader, Status>> {
        let pool = self.clone();
        async move {
            let request = RangeRequest { key, revision: at.0, limit: 1, count_only: true, ..Default::default() };
            let head = Head::grpc(RANGE, metadata);
            let answer = pool.exchange(Method::of(RANGE), &head, framed(&request)).await;
            let answer: RangeResponse = unframed(answer).await?;
            answer.header.ok_or_else(|| Status::internal("answer without a header"))
        }
        .boxed()
    }

    fn version(&self, metadata: HeaderMap) -> BoxFuture<'static, Result<(MemberId, String), Status>> {
        let pool = self.clone();
        async move {
            let head = Head::grpc(STATUS, metadata);
            let answer = pool.exchange(Method::of(STATUS), &head, framed(&StatusRequest {})).await;
            let answer: StatusResponse = unframed(answer).await?;
            Ok((MemberId(answer.header.unwrap_or_default().member_id), answer.version))
        }
        .boxed()
    }
}
