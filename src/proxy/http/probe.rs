use std::time::Duration;

use http::HeaderMap;
use tonic::{Code, Status};

use crate::client::{Head, Method, Pool, framed, unframed};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse, StatusRequest, StatusResponse};

/// etcd's proxy gives its own health check this long.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const RANGE: &str = "/etcdserverpb.KV/Range";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// Whether the cluster answers a linearizable read, and why not.
///
/// A member checks permissions only after it has confirmed its place in the cluster, so a refusal for want of
/// credentials says that the cluster is well.
pub(in crate::proxy) async fn linearizable_read(pool: &Pool) -> Result<(), String> {
    let request = RangeRequest { key: "health".into(), count_only: true, ..Default::default() };
    match ask::<RangeResponse>(pool, RANGE, &request).await {
        Ok(_) => Ok(()),
        Err(status) if matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied) => Ok(()),
        Err(status) => Err(status.message().to_owned()),
    }
}

/// The status of one of the members.
pub(super) async fn member_status(pool: &Pool) -> Result<StatusResponse, Status> {
    ask(pool, STATUS, &StatusRequest {}).await
}

async fn ask<A: prost::Message + Default + 'static>(
    pool: &Pool,
    path: &'static str,
    request: &impl prost::Message,
) -> Result<A, Status> {
    let head = Head::grpc(path, HeaderMap::new());
    let asked = async { unframed(pool.exchange(Method::of(path), &head, framed(request)).await).await };
    match tokio::time::timeout(PROBE_TIMEOUT, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
    }
}
