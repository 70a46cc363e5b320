//! Deterministic simulation of whole clusters: the production state machines (consensus, log, state, apply, leases,
//! watches) under one clock in one thread, on disks and a network with random faults. The same seed gives the same
//! run, event for event.
//!
//! `cluster.rs` is the cluster and its faults, `process.rs` one member: the drivers of the program, on what
//! `surroundings.rs` has for them, `model.rs` what the log means,
//! `truth.rs` what the cluster has agreed on. A failure names its seed:
//! `WATERSHED_SIM_SEED=<seed> cargo test --test sim replay` runs it again, `WATERSHED_SIM_TRACE=1` prints everything.

#[path = "../checkers/mod.rs"]
#[allow(dead_code, unused_imports)]
mod checkers;

mod client;
mod cluster;
mod context;
#[path = "../disk/mod.rs"]
mod disk;
mod history;
mod model;
// Release builds have no faults to plant.
#[cfg(debug_assertions)]
mod mutations;
mod network;
mod process;
mod recover;
mod scripts;
mod surroundings;
mod truth;
mod watcher;

use context::{Counts, SECOND, Settings};

/// What a seed stands for.
fn settings(seed: u64) -> Settings {
    let mut random = fastrand::Rng::with_seed(!seed);
    let members = [1, 1, 3, 3, 3, 5][random.usize(..6)];
    Settings {
        seed,
        members,
        clients: random.usize(1..=4),
        watchers: random.usize(1..=3),
        faulty: random.u64(30..150) * SECOND,
        healthy: random.u8(..4) > 0,
        mutation: None,
        recorded: false,
    }
}

/// Runs seeds on two threads; every simulation has its thread for itself. A failure does not end the others.
fn campaign(seeds: std::ops::Range<u64>) -> (Counts, Vec<u64>) {
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let totals = parking_lot::Mutex::new((Counts::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = std::panic::catch_unwind(|| cluster::run(&settings(seed)));
                    let mut totals = totals.lock();
                    match outcome {
                        Ok(summary) => totals.0 += summary.counts,
                        Err(_) => totals.1.push(seed),
                    }
                }
            });
        }
    });
    totals.into_inner()
}

/// A number from the environment, for the long run of CI and for runs by hand.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn clusters_keep_their_promises() {
    let first = number("WATERSHED_SIM_FIRST", 1);
    let simulations = number("WATERSHED_SIM_COUNT", 100);
    let begun = std::time::Instant::now();
    let (counts, failed) = campaign(first..first + simulations);
    println!("{counts}, in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(
        failed.is_empty(),
        "promises broken; run `WATERSHED_SIM_SEED=<seed> cargo test --test sim replay`: {failed:?}"
    );
}

/// What clients saw of a part of the simulations, held against the API's promises by checkers without any inside knowledge.
#[test]
fn histories_stand_before_the_checkers() {
    let mut checked = checkers::Checked::default();
    let histories = number("WATERSHED_SIM_HISTORIES", 20);
    for seed in 1..=histories {
        let settings = Settings { recorded: true, healthy: true, ..settings(seed) };
        let history = cluster::recorded(&settings);
        match checkers::check_all(&history) {
            Ok(counts) => checked += counts,
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
    println!("{histories} histories: {checked:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..6 {
        assert_eq!(cluster::run(&settings(seed)), cluster::run(&settings(seed)), "seed {seed}");
    }
}

/// Runs one seed again: the one a failure has named.
#[test]
fn replay() {
    let Ok(seed) = std::env::var("WATERSHED_SIM_SEED") else { return };
    let seed = seed.parse().expect("a number");
    println!("{}", cluster::run(&settings(seed)).counts);
}
