//! Operations that fail: each one of a life, in several ways. The member stops, asks the disk for nothing more, and
//! the next start finds what was acknowledged, also when power is lost behind it. Only a defragmentation or a preparation
//! that cannot write its file leaves the member as it was: its life goes on.

use watershed::core::backend::{Change, ChangeSet, Table};

use crate::disk::{EIO, ENOSPC, Effect, Fault, Op, SimDisk};
use crate::explore::{Bounds, Effort, Explorer, Seen};
use crate::model::{at, hard_state};
use crate::workload::{CLOSED, CLOSING, Lived, SEGMENT_BYTES, live};

const STEPS: usize = 25;
const EFFORT: Effort = Effort { tries: 1, nested_one_in: 30 };

/// Operations of a life that end it when they fail: all but those of files being closed.
fn operations(seed: u64) -> Vec<u64> {
    let disk = SimDisk::new(SEGMENT_BYTES);
    disk.record();
    let lived = live(&disk, seed, STEPS, None);
    assert_eq!(lived.result, Ok(()), "seed {seed}");
    let ops = disk.recorded();
    let (mut number, mut closing, mut fatal) = (0, false, Vec::new());
    for op in ops {
        match op {
            Op::Note(kind, _) if kind == CLOSING => closing = true,
            Op::Note(kind, _) if kind == CLOSED => closing = false,
            Op::Note(..) => {}
            _ => {
                if !closing {
                    fatal.push(number);
                }
                number += 1;
            }
        }
    }
    fatal
}

fn check(seed: u64, fault: Fault) -> Result<Seen, String> {
    let disk = SimDisk::new(SEGMENT_BYTES);
    disk.record();
    disk.fail(fault);
    let Lived { history, result, refused, files } = live(&disk, seed, STEPS, None);
    let (error, goes_on) = match (result, refused) {
        (Err(error), _) => (error, false),
        (Ok(()), Some(refused)) => (refused, true),
        (Ok(()), None) => {
            // A state that was replaced or discarded is closed; what becomes of its file is of no account.
            let failed = disk.failed().ok_or("nothing failed")?;
            return match failed.file().is_some_and(|file| !disk.image().is_named(file)) {
                true => Ok(Seen::default()),
                false => Err(format!("the failure was told to nobody: {failed}")),
            };
        }
    };
    let said = std::io::Error::from_raw_os_error(fault.code).to_string();
    if !error.contains(&said) || !error.contains("/data") {
        return Err(format!("the error says neither what nor where: {error}"));
    }
    let mut bounds = Bounds::default();
    disk.recorded().iter().for_each(|op| bounds.note(op));
    let mut explorer = Explorer {
        history: &history,
        effort: EFFORT,
        lie: None,
        random: fastrand::Rng::with_seed(seed),
        seen: Seen::default(),
    };
    explorer.restart(&disk.image(), bounds)?;
    explorer.leave(&disk.image(), bounds, 1)?;
    let Some((mut wal, backend)) = files else { return Ok(explorer.seen) };
    if goes_on {
        explorer.seen.went_on += 1;
        return Ok(explorer.seen);
    }
    if fault.after.is_multiple_of(2) {
        // Closing the files is what a member that stops does last.
        drop((wal, backend));
        explorer.restart(&disk.image(), bounds)?;
        explorer.leave(&disk.image(), bounds, 1)?;
        return Ok(explorer.seen);
    }
    disk.freeze();
    let appended = wal.append(&[], Some(&hard_state(1, 99, 1))).and_then(|()| wal.sync());
    backend.submit(ChangeSet { position: at(99, 99), changes: vec![Change::put(Table::Lease, "late", "")] });
    let answers =
        [appended.err().map(|error| error.to_string()), backend.checkpoint().err().map(|error| error.to_string())];
    match answers.iter().flatten().any(|answer| answer.contains("closed after an earlier failure")) {
        true => Ok(explorer.seen),
        false => Err(format!("what failed goes on: {answers:?} after {error}")),
    }
}

/// Runs a life with each of its operations failing once.
fn sweep(seed: u64, code: i32, effect: Effect, lasts: bool) -> Seen {
    let mut seen = Seen::default();
    for after in operations(seed) {
        match check(seed, Fault { after, code, effect, lasts }) {
            Ok(more) => seen += more,
            Err(what) => unreachable!("seed {seed}, operation {after}, {effect:?}, for good: {lasts}: {what}"),
        }
        seen.places += 1;
    }
    seen
}

#[test]
fn input_and_output_errors_stop_the_member_and_the_next_start_is_consistent() {
    let mut seen = sweep(1, EIO, Effect::Nothing, false);
    seen += sweep(2, EIO, Effect::Some, false);
    seen += sweep(3, EIO, Effect::Some, true);
    seen += sweep(6, EIO, Effect::Nothing, true);
    println!("{seen:?}");
    assert!(seen.places > 1000 && seen.went_on > 0, "{seen:?}");
}

#[test]
fn a_full_disk_stops_the_member_and_the_next_start_is_consistent() {
    let mut seen = sweep(4, ENOSPC, Effect::Nothing, true);
    seen += sweep(5, ENOSPC, Effect::Some, false);
    seen += sweep(7, ENOSPC, Effect::Nothing, false);
    println!("{seen:?}");
    assert!(seen.places > 1000 && seen.went_on > 0, "{seen:?}");
}
