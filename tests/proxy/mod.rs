//! What the proxy promises in front of any etcd cluster, one case after the other, as `docs/conformance.md` lists them with
//! those of the other suites.
//!
//! Each test takes its members and its proxy from the harness: `tests/interop/proxy_upstreams.sh` runs them in front of stock
//! etcd 3.4, 3.5 and 3.7 (`WATERSHED_TEST_SERVER`), and with etcd's own proxy in place of ours (`WATERSHED_TEST_PROXY`).

mod drain;
mod errors;
mod gauges;
mod lanes;
mod leader;
mod members;
mod statuses;
mod tenants;
mod users;
mod watches;

use tonic::Status;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{PutRequest, RangeRequest, WatchCreateRequest};
use watershed::types::KeyRange;

use crate::harness::Cluster;

/// Puts a key; returns the revision.
async fn try_put(client: &Client, key: impl Into<String>) -> Result<i64, Status> {
    let request = PutRequest { key: key.into().into(), value: "v".into(), ..Default::default() };
    Ok(client.kv().put(request).await?.into_inner().header.expect("header").revision)
}

async fn put(client: &Client, key: impl Into<String>) -> i64 {
    try_put(client, key).await.expect("put")
}

fn get(key: &'static str) -> RangeRequest {
    RangeRequest { key: key.into(), ..Default::default() }
}

/// A watch of all keys below a prefix.
fn under(prefix: &str) -> WatchCreateRequest {
    let (key, range_end) = KeyRange::prefix(prefix.to_owned().into()).to_wire();
    WatchCreateRequest { key, range_end, ..Default::default() }
}

/// The endpoints of these members.
fn endpoints<'a>(cluster: &'a Cluster, numbers: &[usize]) -> Vec<&'a str> {
    numbers.iter().map(|&number| cluster.endpoint(number)).collect()
}
