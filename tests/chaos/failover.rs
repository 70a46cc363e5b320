//! How long writes wait when the leader is killed.

use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use watershed::pb::etcdserverpb::PutRequest;

use super::stage::{is_long, setting};
use crate::harness::{Cluster, soon};

/// Time between two attempts to write at each surviving member.
const ATTEMPTS_EVERY: Duration = Duration::from_millis(20);

/// Kills the leader; answers with the time until a write was acknowledged that was sent afterwards.
async fn first_write_without_leader(cluster: &mut Cluster, kill: usize) -> Duration {
    let leader = cluster.leader().await;
    let survivors: Vec<usize> = cluster.running().into_iter().filter(|&number| number != leader).collect();
    // Connections must exist before, as those of clients at work do.
    let clients: Vec<_> = survivors.iter().map(|&number| cluster.member(number)).collect();
    let put = |number: usize| {
        let mut kv = clients[number].kv();
        let request = PutRequest { key: "failover".into(), value: kill.to_string().into(), ..Default::default() };
        async move { kv.put(request).await.is_ok() }
    };
    assert!(put(0).await && put(1).await, "a healthy cluster");
    cluster.kill(leader);
    let killed = Instant::now();
    let first = async {
        let mut attempts = FuturesUnordered::new();
        let mut next = tokio::time::interval(ATTEMPTS_EVERY);
        loop {
            tokio::select! {
                _ = next.tick() => attempts.extend((0..2).map(put)),
                Some(acknowledged) = attempts.next() => if acknowledged { return killed.elapsed() },
            }
        }
    };
    let time = soon("a write", first).await;
    cluster.restart(leader).await;
    time
}

/// The median and the 99th percentile are of the clock, so nothing is asserted here but that writes go on; the figures
/// of a long run are in docs/reliability.md.
#[test]
fn writes_go_on_after_a_leader_is_killed() {
    let kills = setting("WATERSHED_CHAOS_KILLS").unwrap_or(if is_long() { 100 } else { 3 }) as usize;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let mut cluster = Cluster::start(3, &[]).await;
        let mut times = Vec::new();
        for kill in 0..kills {
            times.push(first_write_without_leader(&mut cluster, kill).await);
        }
        times.sort_unstable();
        let at = |part: f64| times[((times.len() as f64 * part).ceil() as usize).clamp(1, times.len()) - 1];
        println!(
            "leader killed {kills} times; first acknowledged write after p50 {:?}, p99 {:?}, at most {:?}",
            at(0.5),
            at(0.99),
            at(1.0)
        );
    });
}
