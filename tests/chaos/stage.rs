use std::time::{Duration, Instant};

use fastrand::Rng;
use parking_lot::Mutex;
use watershed::client::Client;

use crate::checkers::{Checked, History, MemberState, check_all, check_end_states};
use crate::harness::{Cluster, Process, Share};
use crate::workload::{Load, Plan};

/// How long one round may take.
const LIMIT: Duration = Duration::from_secs(360);

static TOTALS: Mutex<Totals> = Mutex::new(Totals { rounds: 0, faults: 0, checked: None });

#[derive(Clone, Copy, Debug)]
struct Totals {
    rounds: usize,
    faults: usize,
    checked: Option<Checked>,
}

/// A number from the environment.
pub fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Whether this is `just chaos` and not `cargo test`.
pub fn is_long() -> bool {
    setting("WATERSHED_CHAOS_ROUNDS").is_some()
}

/// A cluster under load, and the means to hurt it.
pub struct Stage {
    /// The members.
    pub cluster: Cluster,
    /// Everything random about the faults.
    pub random: Rng,
    name: &'static str,
    seed: u64,
    load: Option<Load>,
    paused: Vec<usize>,
    held: Vec<Process>,
    faults: Vec<String>,
    begun: Instant,
    done: bool,
}

/// Runs the rounds of a scenario on three members, each with a seed of its own.
pub fn run(name: &'static str, flags: &[&str], plan: &Plan, scenario: impl AsyncFn(&mut Stage)) {
    run_on(3, name, flags, plan, scenario);
}

/// As [`run`] on so many members.
pub fn run_on(size: usize, name: &'static str, flags: &[&str], plan: &Plan, scenario: impl AsyncFn(&mut Stage)) {
    let rounds = setting("WATERSHED_CHAOS_ROUNDS").unwrap_or(1);
    let first = setting("WATERSHED_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    for seed in first..first + rounds {
        println!("chaos {name}: seed {seed}");
        runtime.block_on(async {
            // Members under load need more of the machine than most.
            let _share = Share::of(2 * size).await;
            let cluster = Cluster::start(size, flags).await;
            let load = Load::start(&cluster, seed, plan);
            let mut stage = Stage {
                cluster,
                random: Rng::with_seed(seed),
                name,
                seed,
                load: Some(load),
                paused: Vec::new(),
                held: Vec::new(),
                faults: Vec::new(),
                begun: Instant::now(),
                done: false,
            };
            let round = async {
                stage.writes(50).await;
                scenario(&mut stage).await;
                stage.finish().await;
            };
            // The stage must outlive a round that takes too long, to tell of it.
            let ended = tokio::time::timeout(LIMIT, round).await;
            assert!(ended.is_ok(), "the round takes longer than {LIMIT:?}");
        });
    }
}

impl Stage {
    /// Notes a fault.
    pub fn fault(&mut self, what: impl Into<String>) {
        self.faults.push(format!("{:?} {}", self.begun.elapsed(), what.into()));
    }

    /// A time between two bounds.
    pub fn time(&mut self, milliseconds: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.u64(milliseconds))
    }

    /// Lets the fault last: for as long as a fault takes there is nothing else to wait for.
    pub async fn last(&mut self, milliseconds: std::ops::Range<u64>) {
        let time = self.time(milliseconds);
        tokio::time::sleep(time).await;
    }

    /// How often to repeat a fault within a round.
    pub fn times(&self) -> usize {
        let usual = if is_long() { 4 } else { 1 };
        setting("WATERSHED_CHAOS_TIMES").map_or(usual, |times| usize::try_from(times).expect("a few"))
    }

    /// Waits until so many further writes were answered: the cluster makes progress.
    pub async fn writes(&self, count: u64) {
        self.load.as_ref().expect("the load goes on").writes(count).await;
    }

    /// Starts more clients, which talk to this endpoint only.
    pub fn also(&mut self, client: &Client, count: usize) {
        let random = &mut self.random;
        self.load.as_ref().expect("the load goes on").also(client, count, Duration::from_millis(40), random);
    }

    /// Keeps what these clients talk to until the end.
    pub fn hold(&mut self, processes: impl IntoIterator<Item = Process>) {
        self.held.extend(processes);
    }

    /// What is written down.
    pub fn recorder(&self) -> &crate::workload::Recorder {
        self.load.as_ref().expect("the load goes on").recorder()
    }

    /// Kills a member.
    pub fn kill(&mut self, number: usize) {
        self.fault(format!("kill {number}"));
        self.cluster.kill(number);
    }

    /// Stops a member's process.
    pub fn pause(&mut self, number: usize) {
        self.fault(format!("pause {number}"));
        self.cluster.pause(number);
        self.paused.push(number);
    }

    /// Lets it go on.
    pub fn resume(&mut self, number: usize) {
        self.fault(format!("resume {number}"));
        self.cluster.resume(number);
        self.paused.retain(|&paused| paused != number);
    }

    /// A member that leads or does not, as chance has it.
    pub async fn any(&mut self) -> usize {
        let leader = self.cluster.leader().await;
        let others: Vec<usize> = self.cluster.running().into_iter().filter(|&number| number != leader).collect();
        if self.random.bool() { leader } else { self.random.choice(others).expect("a follower") }
    }

    /// Heals everything, requires progress, and checks all that was recorded.
    async fn finish(&mut self) {
        self.cluster.network.heal();
        for number in std::mem::take(&mut self.paused) {
            self.cluster.resume(number);
        }
        for number in self.cluster.running() {
            self.cluster.until_ready(number).await;
        }
        self.writes(50).await;
        let load = self.load.take().expect("the load goes on");
        let history = self.note(load.finish(&self.cluster).await);
        let path = self.cluster.path().join("history.json");
        history.save(&path).expect("saved");
        let checked = tokio::task::spawn_blocking(move || check_all(&history)).await.expect("checked");
        let checked = checked.unwrap_or_else(|violation| panic!("{violation}"));
        let states: Vec<MemberState> = self
            .cluster
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
        assert!(!self.faults.is_empty(), "nothing was done to the cluster");
        self.done = true;
        let mut totals = TOTALS.lock();
        totals.rounds += 1;
        totals.faults += self.faults.len();
        let mut sum = totals.checked.unwrap_or_default();
        sum += checked;
        totals.checked = Some(sum);
        let [bytes, flips, resets] = self.cluster.network.counts();
        let (name, seed, faults) = (self.name, self.seed, self.faults.len());
        println!("chaos {name}: seed {seed}: {faults} faults, {checked:?}");
        println!("chaos {name}: {bytes} bytes between members, {flips} bits flipped, {resets} connections reset");
        println!("chaos so far: {} histories, {} faults, {sum:?}", totals.rounds, totals.faults);
    }

    fn note(&self, mut history: History) -> History {
        history.notes.insert("scenario".into(), self.name.into());
        history.notes.insert("seed".into(), self.seed.to_string());
        history.notes.insert("faults".into(), self.faults.join("; "));
        history
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (name, seed, after) = (self.name, self.seed, self.begun.elapsed());
        eprintln!("--- chaos {name} failed with WATERSHED_CHAOS_SEED={seed} after {after:?}: {:?}", self.faults);
        if let Some(load) = &self.load {
            let history = self.note(load.history());
            if let Err(error) = history.save(&self.cluster.path().join("history.json")) {
                eprintln!("the history is lost: {error}");
            }
        }
    }
}
