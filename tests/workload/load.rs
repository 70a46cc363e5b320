use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use watershed::client::Client;
use watershed::shutdown::Tasks;

use super::Recorder;
use super::lease::LeaseHolder;
use super::traffic::{Traffic, compact};
use super::watcher::Watcher;
use crate::checkers::{History, Outcome, RangeQuery, Request, WatchRecord};
use crate::harness::{Cluster, soon, until};

/// Revisions that a compaction keeps.
const KEPT_REVISIONS: i64 = 500;

/// What to load a cluster with.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Clients that talk to one member only, for each member.
    pub per_member: usize,
    /// Clients over all members.
    pub over_all: usize,
    /// Requests per second of all of these together, when the cluster can take them.
    pub requests_per_second: u32,
    /// Lease holders.
    pub leases: usize,
    /// Time between compactions; none for no compactions.
    pub compact_every: Option<Duration>,
    /// How long a request may take before its outcome is unknown.
    pub limit: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            per_member: 2,
            over_all: 3,
            requests_per_second: 300,
            leases: 2,
            compact_every: Some(Duration::from_millis(700)),
            limit: Duration::from_millis(1000),
        }
    }
}

/// The clients at work.
pub struct Load {
    recorder: Arc<Recorder>,
    tasks: Tasks,
    watchers: Tasks,
    stop: CancellationToken,
    goal: watch::Sender<Option<i64>>,
    members: Vec<Client>,
}

impl Load {
    /// Starts the clients on the running members of a fresh cluster.
    pub fn start(cluster: &Cluster, seed: u64, plan: &Plan) -> Self {
        let mut random = Rng::with_seed(seed);
        let running = cluster.running();
        let load = Self {
            recorder: Arc::new(Recorder::new(plan.limit)),
            tasks: Tasks::new(),
            watchers: Tasks::new(),
            stop: CancellationToken::new(),
            goal: watch::Sender::new(None),
            members: running.iter().map(|&number| cluster.client_of(&[number])).collect(),
        };
        let clients = plan.per_member * running.len() + plan.over_all;
        let pace = Duration::from_secs(1) * clients as u32 / plan.requests_per_second;
        let traffic = |member: u32, client: Client, random: &mut Rng| {
            let (recorder, stop) = (Arc::clone(&load.recorder), load.stop.clone());
            load.tasks.spawn(Traffic { recorder, client, member, random: random.fork(), pace, stop }.run());
        };
        for &number in &running {
            for _ in 0..plan.per_member {
                traffic(number as u32, cluster.client_of(&[number]), &mut random);
            }
        }
        for _ in 0..plan.over_all {
            traffic(u32::MAX, cluster.client(), &mut random);
        }
        for number in 0..plan.leases {
            let member = running[number % running.len()];
            load.tasks.spawn(
                LeaseHolder {
                    recorder: Arc::clone(&load.recorder),
                    client: cluster.client(),
                    member: member as u32,
                    random: random.fork(),
                    stop: load.stop.clone(),
                }
                .run(),
            );
        }
        if let Some(every) = plan.compact_every {
            let (recorder, stop) = (Arc::clone(&load.recorder), load.stop.clone());
            load.tasks.spawn(compact(recorder, cluster.client(), every, KEPT_REVISIONS, stop));
        }
        for (number, wanted) in watches().into_iter().enumerate() {
            load.watchers.spawn(
                Watcher {
                    recorder: Arc::clone(&load.recorder),
                    members: load.members.clone(),
                    member: number % running.len(),
                    wanted,
                    random: random.fork(),
                    goal: load.goal.subscribe(),
                }
                .run(),
            );
        }
        load
    }

    /// Starts more clients, which talk to this endpoint only, each at this pace.
    pub fn also(&self, client: &Client, count: usize, pace: Duration, random: &mut Rng) {
        for _ in 0..count {
            let (recorder, stop) = (Arc::clone(&self.recorder), self.stop.clone());
            let traffic =
                Traffic { recorder, client: client.clone(), member: u32::MAX, random: random.fork(), pace, stop };
            self.tasks.spawn(traffic.run());
        }
    }

    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Waits until this many further writes were answered.
    pub async fn writes(&self, count: u64) {
        let goal = self.recorder.answered_writes() + count;
        until("writes are answered", async || (self.recorder.answered_writes() >= goal).then_some(())).await;
    }

    /// Stops the load of a healthy cluster, waits until every watcher has seen everything, and answers with the
    /// history. A watcher that stays silent fails the test.
    pub async fn finish(self, cluster: &Cluster) -> History {
        self.stop.cancel();
        soon("the end of the load", self.tasks.finish(Duration::MAX / 4)).await;
        let id = self.recorder.client();
        let client = cluster.client();
        // A write that every watch wants, so that each has something to wait for.
        let last = until("the last write", async || {
            let put = |key: &str| Request::Put {
                key: key.to_owned(),
                value: self.recorder.value(),
                lease: 0,
                prev_kv: false,
            };
            let request =
                Request::Txn { compares: Vec::new(), success: vec![put("k00"), put("k01")], failure: Vec::new() };
            match self.recorder.send(id, u32::MAX, &client, request).await {
                Outcome::Done { revision, .. } => Some(revision),
                _ => None,
            }
        })
        .await;
        for &number in &cluster.running() {
            let all = RangeQuery { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
            until("a last read", async || {
                let request = Request::Range(all.clone());
                let outcome = self.recorder.send(id, number as u32, &cluster.member(number), request).await;
                matches!(outcome, Outcome::Done { .. }).then_some(())
            })
            .await;
        }
        self.goal.send_replace(Some(last));
        soon("every watch has seen everything", self.watchers.finish(Duration::MAX / 4)).await;
        self.recorder.history()
    }

    /// The history so far, for a run that failed.
    pub fn history(&self) -> History {
        self.recorder.history()
    }
}

/// Watches of every kind.
fn watches() -> Vec<WatchRecord> {
    let all = WatchRecord {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision: 2,
        prev_kv: true,
        ..Default::default()
    };
    vec![
        all.clone(),
        WatchRecord { start_revision: 0, prev_kv: false, ..all.clone() },
        WatchRecord { fragment: true, ..all.clone() },
        WatchRecord { key: "k".into(), range_end: "l".into(), no_delete: true, ..all.clone() },
        WatchRecord { key: "k0".into(), range_end: "k1".into(), no_put: true, ..all.clone() },
        WatchRecord { key: "k00".into(), range_end: String::new(), ..all },
    ]
}
