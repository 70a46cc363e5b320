use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::Status;

use crate::client::{Pool, framed, unframed};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse};
use crate::proxy::Identity;
use crate::proxy::watch::{Members, Upstream};

const RANGE: &str = "/etcdserverpb.KV/Range";

/// The cluster as the cache sees it.
pub(super) trait Cluster: Upstream {
    /// Reads a range.
    fn range(&self, identity: &Identity, request: RangeRequest) -> BoxFuture<'static, Result<RangeResponse, Status>>;

    /// The same cluster by the connections of a serving thread; none where these do not carry the same credentials.
    fn on_worker(&self, pool: &Pool) -> Option<Arc<dyn Upstream>>;
}

impl Cluster for Members {
    fn range(&self, identity: &Identity, request: RangeRequest) -> BoxFuture<'static, Result<RangeResponse, Status>> {
        let (members, identity) = (self.clone(), identity.clone());
        async move { unframed(members.exchange(&identity, RANGE, framed(&request)).await).await }.boxed()
    }

    fn on_worker(&self, pool: &Pool) -> Option<Arc<dyn Upstream>> {
        let own = match &self.own {
            Some(own) => Some(own.try_through(pool)?),
            None => None,
        };
        Some(Arc::new(Self { pool: pool.clone(), own }))
    }
}
