//! Answers from the range cache, for `benches/hot_paths.py`.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::cluster::{Fault, SimCluster};
use super::simulation::{ask, cache_of, key};
use crate::client::Seen;
use crate::pb::etcdserverpb::RangeRequest;
use crate::proxy::RangeCache;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

const RANGES: u64 = 1000;
const KEYS: u64 = 30;

fn request(number: u64) -> RangeRequest {
    RangeRequest { key: key(number % KEYS), serializable: true, ..Default::default() }
}

async fn read(cache: &RangeCache, seen: &Seen, requests: &[RangeRequest]) -> usize {
    let mut answered = 0;
    for request in requests {
        answered += ask(cache, seen, request, false).await.map_or(0, |answer| answer.kvs.len());
    }
    answered
}

#[inline(never)]
fn counted(runtime: &Runtime, cache: &RangeCache, seen: &Seen, requests: &[RangeRequest]) -> usize {
    runtime.block_on(read(cache, seen, requests))
}

#[test]
fn proxy_cached_range() {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (cluster, tasks, seen) = (SimCluster::new(1, Fault::None), Tasks::new(), Seen::default());
    let cache = runtime.block_on(async {
        let (cache, _) = cache_of(&cluster, &Metrics::new(), &tasks);
        cluster.write(&(0..KEYS).map(|number| (key(number), Some(vec![b'v'; 256].into()))).collect::<Vec<_>>());
        // The first one has the range loaded.
        while ask(&cache, &seen, &request(0), false).await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        read(&cache, &seen, &[request(0)]).await;
        cache
    });
    let requests: Vec<_> = (0..RANGES).map(request).collect();
    assert_eq!(counted(&runtime, &cache, &seen, &requests), RANGES as usize);
    tasks.stop();
}
