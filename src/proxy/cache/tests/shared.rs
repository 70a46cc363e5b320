use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::{Instant, sleep};

use super::super::budget::{COMPARISONS_MAX, CacheBudget};
use super::super::metrics::CacheMetrics;
use super::super::service::RangeCache;
use super::cluster::{Fault, SimCluster};
use super::simulation::{ask, cache_within, unread_answer};
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

/// So many keys of this prefix, with 1 KiB each.
fn kilobytes(prefix: &str, keys: usize) -> Vec<(Bytes, Option<Bytes>)> {
    (0..keys).map(|number| (format!("{prefix}{number}").into(), Some(vec![b'v'; 1024].into()))).collect()
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
    cluster.write(&kilobytes("b/", 100));
    let changes = |state, reason| metrics.changes.with_label_values(&[state, reason]).get();
    read_until(&small, "a/0", |answered| answered).await;
    read_until(&large, "b/0", |_| changes("over_budget", "larger_than_budget") > 0).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(changes("cold", "evicted"), 0, "the other one was dropped");
    tasks.stop();
}

/// Cause: a tenant whose keys took nearly all of the memory evicted those of the others each time it was read.
#[tokio::test(start_paused = true)]
async fn a_tenant_within_its_share_is_not_evicted_for_another() {
    let (cluster, tasks) = (SimCluster::new(1, Fault::None), Tasks::new());
    let metrics = CacheMetrics::register(&Metrics::new());
    let budget = CacheBudget::new(64 * 1024, &metrics);
    let cache = |prefix| cache_within(&cluster, prefix, &budget, &metrics, &tasks);
    let (small, large) = (cache("a/"), cache("b/"));
    // Each fits alone, both together do not.
    cluster.write(&kilobytes("a/", 20));
    cluster.write(&kilobytes("b/", 50));
    let changes = |state, reason| metrics.changes.with_label_values(&[state, reason]).get();
    read_until(&small, "a/0", |answered| answered).await;
    read_until(&large, "b/0", |_| changes("over_budget", "larger_than_budget") > 0).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(changes("cold", "evicted"), 0, "the other one was dropped");
    tasks.stop();
}

/// Cause: what clients had asked for and did not take stayed in memory when it was replaced, and counted nowhere: one more copy of a
/// prefix each time all of it was written anew.
#[tokio::test(start_paused = true)]
async fn what_unread_answers_keep_is_bounded() {
    let (cluster, tasks) = (SimCluster::new(1, Fault::None), Tasks::new());
    let metrics = CacheMetrics::register(&Metrics::new());
    let budget = CacheBudget::new(1024 * 1024, &metrics);
    let cache = cache_within(&cluster, "a/", &budget, &metrics, &tasks);
    let (seen, passed) = (Seen::default(), metrics.passed.with_label_values(&["memory"]));
    let all = RangeRequest { key: "a/".into(), range_end: "a0".into(), ..Default::default() };
    cluster.write(&kilobytes("a/", 200));
    read_until(&cache, "a/0", |answered| answered).await;
    let begun = Instant::now();
    let unread = loop {
        assert!(begun.elapsed() < Duration::from_secs(60), "not answered");
        if let Some(answer) = unread_answer(&cache, &seen, &all, false, HeaderMap::new()).await {
            break answer;
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(passed.get(), 0);
    cluster.write(&kilobytes("a/", 200));
    let begun = Instant::now();
    while passed.get() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "still answered");
        ask(&cache, &seen, &all, false).await;
        sleep(Duration::from_millis(100)).await;
    }
    read_until(&cache, "a/0", |answered| answered).await;
    drop(unread);
    let begun = Instant::now();
    while ask(&cache, &seen, &all, false).await.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not answered any more");
        sleep(Duration::from_millis(100)).await;
    }
    tasks.stop();
}

/// Cause: when a member stopped, all replicas that followed it were compared with the cluster at once, each by a read of all of its keys.
#[tokio::test(start_paused = true)]
async fn few_replicas_are_compared_with_the_cluster_at_a_time() {
    let (cluster, tasks) = (SimCluster::new(1, Fault::None), Tasks::new());
    let metrics = CacheMetrics::register(&Metrics::new());
    let budget = CacheBudget::new(1024 * 1024, &metrics);
    cluster.write(&kilobytes("a/", 1));
    // They are loaded behind their last change.
    cluster.write(&kilobytes("b/", 1));
    let caches: Vec<_> = (0..32).map(|_| cache_within(&cluster, "a/", &budget, &metrics, &tasks)).collect();
    for cache in &caches {
        read_until(cache, "a/0", |answered| answered).await;
    }
    let ended = || metrics.changes.with_label_values(&["behind", "stream_ended"]).get();
    let before = ended();
    // Nothing is lost, and all streams end.
    cluster.restore(cluster.revision());
    let begun = Instant::now();
    while ended() < before + caches.len() as u64 / 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "streams go on");
        sleep(Duration::from_millis(1)).await;
    }
    for cache in &caches {
        read_until(cache, "a/0", |answered| answered).await;
    }
    let most = cluster.compared_at_once();
    assert!((1..=COMPARISONS_MAX).contains(&most), "{most}");
    tasks.stop();
}
