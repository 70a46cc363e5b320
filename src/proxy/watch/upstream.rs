use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;

use crate::client::{Carried, Channel, Head, Method, Pool, framed, unframed};
use crate::pb::encoded::ResponseHeader;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{
    RangeRequest, RangeResponse, StatusRequest, StatusResponse, WatchRequest, WatchResponse,
};
use crate::proxy::Identity;
use crate::types::{KeyRange, MemberId, Revision};

const RANGE: &str = "/etcdserverpb.KV/Range";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// One watch stream to some member.
pub(in crate::proxy) struct UpstreamStream {
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
pub(in crate::proxy) trait Upstream: Send + Sync + 'static {
    /// A watch stream of this identity.
    fn open_watch(&self, identity: &Identity) -> BoxFuture<'static, Result<UpstreamStream, Status>>;

    /// The header of a linearizable read of one key at a revision (0: the newest), which costs a member next to
    /// nothing. Its revision is at or after every write acknowledged before the call, and `at` is refused if it is below
    /// any compaction acknowledged before.
    fn read_index(
        &self,
        identity: &Identity,
        key: Bytes,
        at: Revision,
    ) -> BoxFuture<'static, Result<ResponseHeader, Status>>;

    /// The version of some member, and which.
    fn version(&self, identity: &Identity) -> BoxFuture<'static, Result<(MemberId, String), Status>>;
}

/// The upstream watches of the range cache, whose replicas are kept current by them. Broadcasts of ranges inside read them too.
pub(in crate::proxy) trait ReplicaWatches: std::fmt::Debug + Send + Sync {
    /// What such a watch of this identity receives from now on of a range, as the cluster has the keys; none where no watch that is
    /// live covers it.
    fn subscribe(&self, identity: &Identity, range: &KeyRange) -> Option<Subscription>;
}

/// A part of the watch of a replica.
pub(in crate::proxy) struct Subscription {
    /// The member of the watch. The revision is the position: events up to it do not come, all later ones do.
    pub header: ResponseHeader,
    /// What the watch receives, without its confirmation. It ends when the replica is not kept current any more.
    pub stream: UpstreamStream,
}

impl Subscription {
    /// Whether it goes on.
    pub fn is_open(&self) -> bool {
        !self.stream.requests.is_closed()
    }
}

/// The members of the cluster.
#[derive(Clone)]
pub(in crate::proxy) struct Members {
    /// For requests with the credentials of clients.
    pub pool: Pool,
    /// For those of the proxy's own user.
    pub own: Option<Channel>,
}

impl Members {
    /// Sends one framed message with the credentials of this identity.
    pub async fn exchange(&self, identity: &Identity, path: &'static str, payload: Bytes) -> http::Response<Body> {
        let head = Head::grpc(path, identity.metadata());
        match self.channel_of(identity) {
            Some(own) => own.exchange(Method::of(path), &head, payload).await,
            None => self.pool.exchange(Method::of(path), &head, payload).await,
        }
    }

    fn channel_of(&self, identity: &Identity) -> Option<&Channel> {
        self.own.as_ref().filter(|_| identity.is_proxy())
    }
}

/// An answer of a stream of the proxy's own user. One that refuses its token is a lost stream: the next one has another.
fn renewed(own: &Channel, carried: &Carried, answer: Result<WatchResponse, Status>) -> Result<WatchResponse, Status> {
    let refused = match &answer {
        Ok(answer) => answer.canceled && own.refused_watch(carried, &answer.cancel_reason),
        Err(status) => own.refused(carried, status.message()),
    };
    if refused { Err(Status::unavailable("the proxy's token is no longer accepted")) } else { answer }
}

impl Upstream for Members {
    fn open_watch(&self, identity: &Identity) -> BoxFuture<'static, Result<UpstreamStream, Status>> {
        let (members, identity) = (self.clone(), identity.clone());
        async move {
            let metadata = identity.metadata();
            let Some(own) = members.channel_of(&identity).cloned() else {
                let stream = members.pool.open_watch(&metadata).await?;
                return Ok(UpstreamStream { requests: stream.requests, answers: stream.answers.boxed() });
            };
            let (stream, carried) = own.open_watch(&metadata).await?;
            let answers = stream.answers.map(move |answer| renewed(&own, &carried, answer)).boxed();
            Ok(UpstreamStream { requests: stream.requests, answers })
        }
        .boxed()
    }

    fn read_index(
        &self,
        identity: &Identity,
        key: Bytes,
        at: Revision,
    ) -> BoxFuture<'static, Result<ResponseHeader, Status>> {
        let (members, identity) = (self.clone(), identity.clone());
        async move {
            let request = RangeRequest { key, revision: at.0, limit: 1, count_only: true, ..Default::default() };
            let answer = members.exchange(&identity, RANGE, framed(&request)).await;
            let answer: RangeResponse = unframed(answer).await?;
            answer.header.ok_or_else(|| Status::internal("answer without a header"))
        }
        .boxed()
    }

    fn version(&self, identity: &Identity) -> BoxFuture<'static, Result<(MemberId, String), Status>> {
        let (members, identity) = (self.clone(), identity.clone());
        async move {
            let answer = members.exchange(&identity, STATUS, framed(&StatusRequest {})).await;
            let answer: StatusResponse = unframed(answer).await?;
            Ok((MemberId(answer.header.unwrap_or_default().member_id), answer.version))
        }
        .boxed()
    }
}
