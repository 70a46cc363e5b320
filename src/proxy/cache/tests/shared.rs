use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::super::budget::CacheBudget;
use super::super::metrics::CacheMetrics;
use super::super::service::RangeCache;
use super::cluster::{Fault, SimCluster};
use super::simulation::{ask, cache_within};
use crate::client::Seen;
use crate::pb::etcdserverpb::RangeRequest;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// Whether the cache answers a read of this key.
async fn answers(cache: &RangeCache, key: &'static str) -> bool {
    let request = RangeRequest { key: key.into(), ..Default::default() };
    ask(cache, &Seen::default(), &request, false).await.is_some()
}

/// Reads the key until so much is true, on the clock of the cluster.
async fn read_until(cache: &RangeCache, key: &'static str, is_over: impl Fn(bool) -> bool) {
    let begun = Instant::now();
    while !is_over(answers(cache, key).await) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{key:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Cause: a range that is larger than the budget took the place of all others while it was loaded, and again each minute: one tenant
/// with many keys emptied the caches of the other tenants.
#[tokio::test(start_paused = true)]
async fn a_range_that_does_not_fit_takes_the_place_of_none() {
    let (cluster, tasks) = (SimCluster::new(1, Fault::None), Tasks::new());
    let metrics = CacheMetrics::register(&Metrics::new());
    let budget = CacheBudget::new(64 * 1024, &metrics);
    let cache = |prefix| cache_within(&cluster, prefix, &budget, &metrics, &tasks);
    let (small, large) = (cache("a/"), cache("b/"));
    cluster.write(&[("a/0".into(), Some("v".into()))]);
    let many = (0..100).map(|number| (Bytes::from(format!("b/{number}")), Some(Bytes::from(vec![b'v'; 1024]))));
    cluster.write(&many.collect::<Vec<_>>());
    let changes = |state, reason| metrics.changes.with_label_values(&[state, reason]).get();
    read_until(&small, "a/0", |answered| answered).await;
    read_until(&large, "b/0", |_| changes("over_budget", "larger_than_budget") > 0).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(changes("cold", "evicted"), 0, "the other one was dropped");
    tasks.stop();
}
