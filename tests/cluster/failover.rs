//! Calls through the proxy while a member hangs, while all members restart one after the other, and while the leader
//! moves: which of them fail, and whether a watch misses anything.
//!
//! `WATERSHED_FAILOVER_SECONDS=60` makes each disturbance that long and prints a table instead of asserting (with
//! `--nocapture`): calls then fail after 2 s, as those of most clients do. `WATERSHED_TEST_PROXY` and
//! `WATERSHED_TEST_SERVER` put other programs in place of ours, to compare.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use watershed::client::Client;
use watershed::pb::etcdserverpb::{MoveLeaderRequest, RangeRequest, WatchCreateRequest};

use super::story::{on_three, put, try_put};
use crate::harness::{Cluster, PATIENCE, Proxy, Watching, client, until};

/// Between two calls of one caller.
const PACE: Duration = Duration::from_millis(10);
/// After so long a disturbance should not be noticed any more.
const NOTICED: Duration = Duration::from_secs(5);
const CALLERS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Put,
    Get,
    SerializableGet,
}

struct Call {
    kind: Kind,
    began: Instant,
    took: Duration,
    failed: Option<Status>,
}

/// Callers at work, and a watch on all they write.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<Call>>>,
    callers: JoinSet<BTreeMap<String, i64>>,
    watch: Watching,
    client: Client,
}

impl Load {
    /// Starts callers whose calls fail after `patience`.
    async fn start(proxy: &Proxy, patience: Duration) -> Self {
        let watched = client(&proxy.endpoint);
        let create = WatchCreateRequest { key: "w/".into(), range_end: "w0".into(), ..Default::default() };
        let (watch, _) = Watching::create(&watched, create).await;
        let (stop, calls, mut callers) = (Arc::new(AtomicBool::new(false)), Arc::default(), JoinSet::new());
        for kind in [Kind::Put, Kind::Get, Kind::SerializableGet] {
            for number in 0..CALLERS {
                let (client, stop) = (client(&proxy.endpoint), stop.clone());
                let calls: Arc<Mutex<Vec<Call>>> = Arc::clone(&calls);
                callers.spawn(async move {
                    let mut acknowledged = BTreeMap::new();
                    for count in 0.. {
                        if stop.load(Ordering::SeqCst) {
                            break;
                        }
                        let (key, began) = (format!("w/{number}"), Instant::now());
                        let value = count.to_string();
                        let call = async {
                            if kind == Kind::Put {
                                return try_put(&client, &key, &value).await;
                            }
                            let serializable = kind == Kind::SerializableGet;
                            let range = RangeRequest { key: key.clone().into(), serializable, ..Default::default() };
                            client.kv().range(range).await.map(|_| 0)
                        };
                        let outcome = match timeout(patience, call).await {
                            Ok(outcome) => outcome,
                            Err(_) => Err(Status::deadline_exceeded("the caller's patience")),
                        };
                        if let (Kind::Put, Ok(revision)) = (kind, &outcome) {
                            acknowledged.insert(format!("{key}={value}"), *revision);
                        }
                        let took = began.elapsed();
                        calls.lock().push(Call { kind, began, took, failed: outcome.err() });
                        sleep(PACE).await;
                    }
                    acknowledged
                });
            }
        }
        Self { stop, calls, callers, watch, client: watched }
    }

    /// Ends the callers; returns their calls and how many acknowledged writes the watch has missed.
    async fn finish(mut self) -> (Vec<Call>, usize) {
        self.stop.store(true, Ordering::SeqCst);
        let mut acknowledged = BTreeMap::new();
        while let Some(one) = self.callers.join_next().await {
            acknowledged.extend(one.expect("a caller"));
        }
        let last = until("the last write", async || try_put(&self.client, "w/last", "").await.ok()).await;
        let mut seen = BTreeMap::new();
        let watching = async {
            let mut newest = 0;
            while newest < last {
                for event in self.watch.next().await.events {
                    let kv = event.kv.expect("a key");
                    assert!(kv.mod_revision > newest, "events in order, none twice");
                    newest = kv.mod_revision;
                    seen.insert(format!("{}={}", text(&kv.key), text(&kv.value)), newest);
                }
            }
        };
        // Another proxy's watch may be silent for ever.
        let _ = timeout(PATIENCE / 2, watching).await;
        let missed = acknowledged.iter().filter(|(write, revision)| seen.get(*write) != Some(*revision)).count();
        let calls = std::mem::take(&mut *self.calls.lock());
        (calls, missed)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How long a disturbance is, and whether it is measured.
fn seconds() -> (Duration, bool) {
    let given = std::env::var("WATERSHED_FAILOVER_SECONDS").ok().and_then(|text| text.parse().ok());
    (Duration::from_secs(given.unwrap_or(2)), given.is_some())
}

/// Runs callers through a proxy in front of three members beside a disturbance.
fn disturbed(what: &'static str, disturb: impl AsyncFn(&mut Cluster, Duration)) {
    on_three(&[], async |cluster: &mut Cluster| {
        let endpoints = [0, 1, 2].map(|number| cluster.endpoint(number).to_owned());
        let proxy = Proxy::start(&endpoints.each_ref().map(String::as_str)).await;
        let (length, measured) = seconds();
        let patience = if measured { Duration::from_secs(2) } else { PATIENCE };
        for number in 0..CALLERS {
            put(&proxy.client, &format!("w/{number}"), "first").await;
        }
        let load = Load::start(&proxy, patience).await;
        sleep(if measured { Duration::from_secs(3) } else { PACE * 10 }).await;
        let began = Instant::now();
        disturb(cluster, length).await;
        if measured {
            sleep(Duration::from_secs(3)).await;
        }
        let (calls, missed) = load.finish().await;
        report(what, &calls, began, missed);
        if !measured {
            accept(&calls, missed);
        }
    });
}

/// A read can be sent again, so none fails. Of a write that is lost with a member nobody knows whether it was executed,
/// so it ends with a status that says so.
fn accept(calls: &[Call], missed: usize) {
    for call in calls {
        let Some(status) = &call.failed else { continue };
        assert_eq!(call.kind, Kind::Put, "{status:?}");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    assert_eq!(missed, 0, "acknowledged writes that the watch has not seen");
}

fn report(what: &str, calls: &[Call], began: Instant, missed: usize) {
    println!("{what}: {missed} acknowledged writes missed by the watch");
    let phases = [
        ("before", Duration::MAX, Duration::ZERO),
        ("first 5 s", Duration::ZERO, NOTICED),
        ("after", NOTICED, Duration::MAX),
    ];
    for (phase, from, to) in phases {
        for kind in [Kind::Put, Kind::Get, Kind::SerializableGet] {
            let within = |call: &&Call| match call.began.checked_duration_since(began) {
                None => from == Duration::MAX,
                Some(since) => from <= since && since < to,
            };
            let of: Vec<_> = calls.iter().filter(|call| call.kind == kind).filter(within).collect();
            let mut took: Vec<_> = of.iter().map(|call| call.took).collect();
            took.sort_unstable();
            let p99 = took.get(took.len() * 99 / 100).copied().unwrap_or_default();
            let slowest = took.last().copied().unwrap_or_default();
            let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
            for status in of.iter().filter_map(|call| call.failed.as_ref()) {
                let text: String = status.message().chars().take(60).collect();
                *reasons.entry(format!("{:?} {text}", status.code())).or_default() += 1;
            }
            let failed: usize = reasons.values().sum();
            println!(
                "  {phase:9} {kind:16?} {failed:5} of {:6} failed, p99 {p99:?}, slowest {slowest:?} {reasons:?}",
                of.len()
            );
        }
    }
}

#[test]
fn a_member_hangs() {
    disturbed("one of three members stopped", async |cluster, length| {
        let leader = cluster.leader().await;
        let follower = (leader + 1) % 3;
        cluster.pause(follower);
        sleep(length).await;
        cluster.resume(follower);
    });
}

#[test]
fn the_leader_hangs() {
    disturbed("the leader stopped", async |cluster, length| {
        let leader = cluster.leader().await;
        cluster.pause(leader);
        sleep(length).await;
        cluster.resume(leader);
    });
}

#[test]
fn all_members_restart_one_after_the_other() {
    disturbed("all members restart one after the other", async |cluster, _| {
        for number in 0..3 {
            cluster.terminate(number).await;
            cluster.restart(number).await;
        }
    });
}

#[test]
fn the_leader_moves() {
    disturbed("the leader moves five times", async |cluster, _| {
        for _ in 0..5 {
            let leader = cluster.leader().await;
            let target_id = cluster.id((leader + 1) % 3).await;
            // A move that takes longer than an election timeout is given up, and one may take longer here.
            until("the new leader", async || {
                let _ = cluster.member(leader).maintenance().move_leader(MoveLeaderRequest { target_id }).await;
                (cluster.leader().await != leader).then_some(())
            })
            .await;
        }
    });
}

/// A member that has lost the others kept its share of the calls, which waited there until they failed.
#[test]
fn a_member_is_cut_off() {
    disturbed("one of three members cut off from the others", async |cluster, length| {
        let leader = cluster.leader().await;
        let cut = (leader + 1) % 3;
        for other in [leader, (leader + 2) % 3] {
            cluster.network.both(cut, other, |link| link.cut = true);
        }
        sleep(length).await;
        cluster.network.heal();
    });
}
