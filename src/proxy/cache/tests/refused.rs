use std::time::Duration;

use http::HeaderMap;
use tokio::time::{Instant, sleep};

use super::super::service::GROUPS_MAX;
use super::cluster::{Fault, SimCluster};
use super::simulation::{ask, ask_with, cache_of, key};
use crate::client::Seen;
use crate::pb::etcdserverpb::RangeRequest;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// Cause: what a refused caller had asked for kept its place among the groups until it was idle, for ten minutes: as many tokens
/// that nobody had issued kept all other callers out of the cache.
#[tokio::test(start_paused = true)]
async fn refused_callers_keep_nobody_out_of_the_cache() {
    let (cluster, tasks, seen) = (SimCluster::new(1, Fault::None), Tasks::new(), Seen::default());
    let (cache, _) = cache_of(&cluster, &Metrics::new(), &tasks);
    cluster.write(&[(key(0), Some("v".into()))]);
    let request = RangeRequest { key: key(0), ..Default::default() };
    for number in 0..GROUPS_MAX {
        let mut headers = HeaderMap::new();
        headers.insert("token", format!("junk-{number}").parse().unwrap());
        assert!(ask_with(&cache, &seen, &request, false, headers).await.is_none());
    }
    let begun = Instant::now();
    while ask(&cache, &seen, &request, false).await.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody else is served");
        sleep(Duration::from_millis(100)).await;
    }
    tasks.stop();
}
