//! Many clients through the proxy. `WATERSHED_SCALE_LEASES` is the number of leases, 10,000 unless given.

use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::stream::{self, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest, PutRequest, WatchCreateRequest,
};
use watershed::types::KeyRange;

use crate::harness::{Answers, Deployment, Scrape, Target, Watching, client, metric, run, until};

const RANGES: usize = 100;
const PER_RANGE: usize = 10;
/// Writes to the two ranges that have watchers who do not read: more than their streams may buffer.
const LOUD_WRITES: usize = 500;
const QUIET_WRITES: usize = 10;

struct Watcher {
    range: usize,
    watching: Watching,
    /// Keeps a connection of its own where sharing one would let a silent stream fill it for others.
    _client: Client,
}

impl Watcher {
    async fn start(client: Client, range: usize) -> Self {
        let (key, range_end) = KeyRange::prefix(format!("fleet/{range:02}/").into()).to_wire();
        let request = WatchCreateRequest { key, range_end, ..Default::default() };
        let (watching, created) = Watching::create(&client, request).await;
        assert!(!created.canceled, "{created:?}");
        Self { range, watching, _client: client }
    }

    /// Reads until it has seen as many events as there are; each once, in order, only its own.
    async fn read(mut self) -> usize {
        let expected = if self.range < 2 { LOUD_WRITES } else { QUIET_WRITES };
        let prefix = format!("fleet/{:02}/", self.range);
        let (mut seen, mut last) = (0, 0);
        while seen < expected {
            let answer = self.watching.next().await;
            assert!(!answer.canceled, "{answer:?}");
            for event in answer.events {
                let kv = event.kv.expect("kv");
                assert!(kv.key.starts_with(prefix.as_bytes()), "{:?} in range {}", kv.key, self.range);
                assert!(kv.mod_revision > last, "{} after {last}", kv.mod_revision);
                assert_eq!(kv.key, format!("{prefix}{seen}"), "no gap, no duplicate");
                last = kv.mod_revision;
                seen += 1;
            }
        }
        seen
    }
}

#[test]
fn a_thousand_watchers_cost_the_member_a_handful() {
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        // Twenty connections for those who read, and one each for the ten who do not.
        let shared: Vec<Client> = (0..20).map(|_| client(&deployment.endpoint)).collect();
        let starts = (0..RANGES * PER_RANGE).map(|number| {
            let (range, turn) = (number / PER_RANGE, number % PER_RANGE);
            let silent = range < 2 && turn < 5;
            let client = if silent { client(&deployment.endpoint) } else { shared[number % shared.len()].clone() };
            async move { (silent, Watcher::start(client, range).await) }
        });
        let watchers: Vec<_> = stream::iter(starts).buffer_unordered(64).collect().await;
        let (silent, readers): (Vec<_>, Vec<_>) = watchers.into_iter().partition(|(silent, _)| *silent);
        assert_eq!((silent.len(), readers.len()), (10, 990));
        let upstream = metric(&deployment.member, "etcd_debugging_mvcc_watcher_total").await.expect("metric");
        println!("{} watchers cost the member {upstream}", RANGES * PER_RANGE);
        assert!(upstream <= 5.0, "{upstream} upstream watches");

        // Every key once, in the order of its number within its range; the ranges side by side.
        let writes = (0..RANGES).map(|range| {
            let mut kv = deployment.client.kv();
            async move {
                let (count, size) = if range < 2 { (LOUD_WRITES, 4096) } else { (QUIET_WRITES, 64) };
                for number in 0..count {
                    let key = format!("fleet/{range:02}/{number}").into();
                    let value = vec![b'x'; size].into();
                    kv.put(PutRequest { key, value, ..Default::default() }).await.expect("put");
                }
            }
        });
        let reading = join_all(readers.into_iter().map(|(_, watcher)| watcher.read()));
        let ((), seen) = tokio::join!(stream::iter(writes).buffer_unordered(16).collect::<()>(), reading);
        assert_eq!(seen.iter().sum::<usize>(), 10 * LOUD_WRITES + 980 * QUIET_WRITES);

        // Those who did not read were not cut off, and missed nothing.
        let late = join_all(silent.into_iter().map(|(_, watcher)| watcher.read())).await;
        assert_eq!(late, vec![LOUD_WRITES; 10]);
        let upstream = metric(&deployment.member, "etcd_debugging_mvcc_watcher_total").await.expect("metric");
        assert!(upstream <= 15.0, "late readers may have catch-up watches of their own, but {upstream}?");
    });
}

/// Keeps these leases alive once each over a few streams; answers with how long it took.
async fn keep_all(clients: &[Client], leases: &[i64]) -> Duration {
    let begun = Instant::now();
    let share = leases.len().div_ceil(clients.len());
    join_all(leases.chunks(share).zip(clients).map(|(leases, client)| async move {
        let (requests, receiver) = mpsc::channel(256);
        let mut lease = client.lease();
        let mut answers = Answers::new(async move { lease.lease_keep_alive(ReceiverStream::new(receiver)).await });
        let send = async {
            for &id in leases {
                requests.send(LeaseKeepAliveRequest { id }).await.expect("the stream is open");
            }
        };
        let receive = async {
            for &id in leases {
                let answer = answers.message().await.expect("no error").expect("goes on");
                assert_eq!((answer.id, answer.ttl), (id, 300), "in order, with the TTL of the cluster");
            }
        };
        tokio::join!(send, receive);
    }))
    .await;
    begun.elapsed()
}

/// Resident memory of a process.
fn memory_kb(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn many_leases_are_kept_through_the_proxy() {
    let count: usize =
        std::env::var("WATERSHED_SCALE_LEASES").map_or(10_000, |count| count.parse().expect("a number of leases"));
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        let mut lease = deployment.client.lease();
        let silent = lease.lease_grant(LeaseGrantRequest { ttl: 5, id: 0 }).await.expect("grant").into_inner().id;
        let put = PutRequest { key: "silent".into(), lease: silent, ..Default::default() };
        let granted = Instant::now();
        deployment.put_with(put).await;
        let grants = (0..count).map(|_| {
            let mut lease = deployment.client.lease();
            async move { lease.lease_grant(LeaseGrantRequest { ttl: 300, id: 0 }).await.expect("grant").into_inner().id }
        });
        let gone = until("the silent one ends", async || {
            (deployment.get("silent").await.count == 0).then(|| granted.elapsed())
        });
        let (leases, gone) = tokio::join!(stream::iter(grants).buffer_unordered(64).collect::<Vec<i64>>(), gone);
        println!("the silent client's lease of 5 s ended after {gone:?}");
        let request = LeaseTimeToLiveRequest { id: silent, keys: false };
        let left = lease.lease_time_to_live(request).await.expect("answer").into_inner().ttl;
        assert_eq!(left, -1);

        let through: Vec<Client> = (0..8).map(|_| client(&deployment.endpoint)).collect();
        let front = deployment.front.as_ref().expect("a proxy").id();
        let before = memory_kb(front);
        keep_all(&through, &leases).await;
        let grown = memory_kb(front).saturating_sub(before);
        println!("{count} leases cost the proxy {grown} kB, {} B each", grown * 1024 / count as u64);
        assert!(grown < 40_000 + count as u64, "{grown} kB for {count} leases");
        let streams = Scrape::of(&deployment.member, "/metrics").await;
        let streams = streams.sum("grpc_server_started_total", "\"LeaseKeepAlive\"");
        assert!(streams == 1.0, "{streams} upstream streams: those of all serving threads share one");

        let direct: Vec<Client> = (0..8).map(|_| client(&deployment.member)).collect();
        let mut ratios = Vec::new();
        for _ in 0..5 {
            let alone = keep_all(&direct, &leases).await;
            let proxied = keep_all(&through, &leases).await;
            println!("{count} keep-alives: {alone:?} at the member, {proxied:?} through the proxy");
            ratios.push(alone.as_secs_f64() / proxied.as_secs_f64());
        }
        ratios.sort_by(f64::total_cmp);
        println!("median rate through the proxy: {:.2} of the member alone", ratios[2]);
        // A debug build with the clients on the same cores says little about speed; the benchmarks do.
        assert!(ratios[2] > 0.1, "{ratios:?}");
    });
}
