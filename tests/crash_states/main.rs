//! Power losses at every operation of a member's life, with log and state on one recorded disk, and again within the
//! starts that follow; and operations that fail (`faults.rs`).
//!
//! A life is recorded once (`workload.rs`), in one order for all files. `explore.rs` walks along the recording; at each
//! place it keeps some of what was not synced, starts the member as production does, and compares what is found with
//! what was acknowledged (`model.rs`). A failure names a seed; `CRASH_STATES_SEED=<seed>` runs that life alone, and
//! `CRASH_STATES_LIVES=46` looks at more than 250,000 states, as CI does.

#[path = "../disk/mod.rs"]
mod disk;
mod explore;
mod faults;
mod model;
mod omit;
mod workload;

use std::sync::atomic::{AtomicU64, Ordering};

use disk::{Lie, SimDisk};
use explore::{Effort, Explorer, Seen};
use omit::Omitted;
use parking_lot::Mutex;
use workload::{Lived, Mutation, SEGMENT_BYTES, interleave, live};

/// Lives that are looked at; `CRASH_STATES_LIVES` says how many instead, 46 in CI.
const LIVES: u64 = 8;
/// Steps of a life.
const STEPS: usize = 40;

/// Records a life and looks at everything that it may leave.
fn explore(seed: u64, wrong: Wrong, effort: Effort) -> (Seen, Result<(), String>) {
    let disk = SimDisk::new(SEGMENT_BYTES);
    let disk = if seed % 2 == 1 { disk.preparing() } else { disk };
    disk.record();
    let mutation = if let Wrong::Order(mutation) = wrong { Some(mutation) } else { None };
    let Lived { history, result, files, .. } = live(&disk, seed, STEPS, mutation);
    let ops = disk.recorded();
    disk.freeze();
    drop(files);
    if let Err(error) = result {
        return (Seen::default(), Err(format!("CRASH_STATES_SEED={seed}: the life ended: {error}")));
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut ops = interleave(ops, &mut random);
    if let Wrong::Sync(omitted) = wrong {
        ops = omitted.from(ops);
    }
    let lie = if let Wrong::Start(lie) = wrong { Some(lie) } else { None };
    let mut explorer = Explorer { history: &history, effort, lie, random, seen: Seen::default() };
    let walked = explorer.walk(&ops).map_err(|what| format!("CRASH_STATES_SEED={seed}: {what}"));
    (explorer.seen, walked)
}

/// What is wrong on purpose, so that these tests are seen to fail.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Nothing,
    /// The program does one thing too early, or claims too much.
    Order(Mutation),
    /// The disk answers a sync and does not do it.
    Sync(Omitted),
    /// So it does, while the member starts.
    Start(Lie),
}

#[test]
fn every_power_loss_leaves_what_was_acknowledged() {
    let effort = Effort { tries: 2, nested_one_in: 8 };
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let only = number("CRASH_STATES_SEED");
    let lives = number("CRASH_STATES_LIVES").unwrap_or(LIVES);
    let seeds = only.map_or(0..lives, |seed| seed..seed + 1);
    let (next, total) = (AtomicU64::new(seeds.start), Mutex::new(Seen::default()));
    let started = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let (seen, walked) = explore(seed, Wrong::Nothing, effort);
                    *total.lock() += seen;
                    if let Err(what) = walked {
                        unreachable!("{what}");
                    }
                }
            });
        }
    });
    let total = *total.lock();
    println!("{total:?} in {:?} on {threads} threads", started.elapsed());
    if only.is_none() {
        assert!(total.states >= 5_000 * lives && total.nested > 1_000 * lives, "{total:?}");
        assert!(total.cut_tails > 20 * lives && total.adopted > 5 * lives, "{total:?}");
        assert!(lives < 46 || total.states >= 250_000 && total.adopted > 500, "{total:?}");
    }
}

const QUICK: Effort = Effort { tries: 1, nested_one_in: 20 };

/// Looks at lives, from this seed on, until one shows what is wrong.
fn assert_noticed(wrong: Wrong, first: u64) {
    let found = (first..first + 100).find_map(|seed| explore(seed, wrong, QUICK).1.err());
    println!("{wrong:?}: {found:.400?}");
    assert!(found.is_some(), "{wrong:?}");
}

#[test]
fn what_is_done_in_the_wrong_order_is_noticed() {
    use Mutation::*;
    for mutation in [EarlyAck, InstallBeforeMark, MarkBeforePrepare, PositionAhead, EarlyRelease] {
        assert_noticed(Wrong::Order(mutation), 0);
    }
}

#[test]
fn a_sync_that_is_left_out_is_noticed() {
    Omitted::ALL.into_iter().for_each(|omitted| assert_noticed(Wrong::Sync(omitted), 0));
}

#[test]
fn a_sync_that_a_start_leaves_out_is_noticed() {
    // The last one shows in few lives.
    let lies = [(Lie::WalContents, 0), (Lie::WalNames, 0), (Lie::StateContents, 0), (Lie::StateNames, 12)];
    for (lie, first) in lies {
        assert_noticed(Wrong::Start(lie), first);
    }
}
