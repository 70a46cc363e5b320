use std::time::Duration;

use tonic::Status;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
    RangeResponse,
};

use crate::checkers::{MemberState, check_end_states};
use crate::harness::{Answers, Cluster};

/// How long all of one test may take.
const LIMIT: Duration = Duration::from_secs(480);

/// Runs a test on a fresh cluster of three.
pub fn on_three(flags: &[&str], test: impl AsyncFnOnce(&mut Cluster)) {
    on(3, flags, test);
}

/// Runs a test on a fresh cluster of so many.
pub fn on(size: usize, flags: &[&str], test: impl AsyncFnOnce(&mut Cluster)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let mut cluster = Cluster::start(size, flags).await;
        tokio::time::timeout(LIMIT, test(&mut cluster)).await.expect("the test ends in time");
    });
}

/// Writes a key without a lease; answers with the revision.
pub async fn try_put(client: &Client, key: &str, value: &str) -> Result<i64, Status> {
    let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    Ok(client.kv().put(request).await?.into_inner().header.expect("header").revision)
}

/// Writes a key, which must succeed; answers with the revision.
pub async fn put(client: &Client, key: &str, value: &str) -> i64 {
    try_put(client, key, value).await.expect("put")
}

/// Reads a key from the state everybody agrees on.
pub async fn get(client: &Client, key: &str) -> RangeResponse {
    let request = RangeRequest { key: key.to_owned().into(), ..Default::default() };
    client.kv().range(request).await.expect("range").into_inner()
}

/// The value of a key, if it is there.
pub async fn value(client: &Client, key: &str) -> Option<String> {
    let answer = get(client, key).await;
    answer.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
}

/// Grants a lease; answers with its id.
pub async fn grant(client: &Client, ttl: i64) -> i64 {
    client.lease().lease_grant(LeaseGrantRequest { ttl, id: 0 }).await.expect("grant").into_inner().id
}

/// Seconds a lease has left; negative when it is gone.
pub async fn time_to_live(client: &Client, id: i64) -> i64 {
    let request = LeaseTimeToLiveRequest { id, keys: false };
    client.lease().lease_time_to_live(request).await.expect("time to live").into_inner().ttl
}

/// Keeps a lease alive once; answers with the seconds it has again.
pub async fn keep_alive(client: &Client, id: i64) -> i64 {
    let mut lease = client.lease();
    let requests = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
    let mut answers = Answers::new(async move { lease.lease_keep_alive(requests).await });
    answers.message().await.expect("kept alive").expect("an answer").ttl
}

/// Compacts.
pub async fn compact(client: &Client, revision: i64) {
    let request = CompactionRequest { revision, physical: false };
    client.kv().compact(request).await.expect("compaction");
}

/// Asserts that all running members hold the same; answers with their revision.
pub async fn assert_equal(cluster: &Cluster) -> i64 {
    let states: Vec<MemberState> = cluster
        .end_states()
        .await
        .into_iter()
        .map(|state| MemberState {
            member: state.member,
            revision: state.revision,
            compact_revision: state.compact_revision,
            hash: state.hash,
        })
        .collect();
    check_end_states(&states).unwrap_or_else(|violation| panic!("{violation}"));
    states[0].revision
}
