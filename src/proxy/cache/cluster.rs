use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::Status;

use crate::client::{framed, unframed};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse};
use crate::proxy::Identity;
use crate::proxy::watch::{Members, Upstream};

const RANGE: &str = "/etcdserverpb.KV/Range";

/// The cluster as the cache sees it.
pub(super) trait Cluster: Upstream {
    /// Reads a range.
    fn range(&self, identity: &Identity, request: RangeRequest) -> BoxFuture<'static, Result<RangeResponse, Status>>;
}

impl Cluster for Members {
    fn range(&self, identity: &Identity, request: RangeRequest) -> BoxFuture<'static, Result<RangeResponse, Status>> {
        let (members, identity) = (self.clone(), identity.clone());
        async move { unframed(members.exchange(&identity, RANGE, framed(&request)).await).await }.boxed()
    }
}
