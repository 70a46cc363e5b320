//! Segments whose zeroes are written ahead.

use super::disk::{ENOSPC, Op};
use super::*;

const SEGMENT: u64 = 8192;

/// Appends an entry, and syncs it.
fn append(wal: &mut Wal<SimDisk>, index: u64) {
    wal.append(&[entry(index, 1, 100)], None).unwrap();
    wal.sync().unwrap();
}

fn segments(disk: &SimDisk) -> usize {
    names(disk).iter().filter(|name| name.ends_with(".wal")).count()
}

fn sizes(disk: &SimDisk) -> Vec<usize> {
    let mut names = names(disk);
    names.retain(|name| name.ends_with(".wal"));
    names.sort();
    names.iter().map(|name| read(disk, name).len()).collect()
}

#[test]
fn the_first_segment_ends_for_a_prepared_one_and_those_are_filled() {
    let disk = SimDisk::new(SEGMENT).preparing();
    let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
    let last = (1..).find(|index| {
        append(&mut wal, *index);
        segments(&disk) == 4
    });
    let last = last.unwrap();
    let sizes = sizes(&disk);
    assert!(sizes[0] < SEGMENT as usize / 2, "{sizes:?}");
    assert!(sizes[1..3].iter().all(|size| *size >= SEGMENT as usize), "{sizes:?}");
    drop(wal);
    let (mut wal, recovered) = reopen(&disk, LogPosition::default()).unwrap();
    assert_eq!(recovered.entries.len() as u64, last);
    append(&mut wal, last + 1);
}

#[test]
fn a_log_that_stays_small_prepares_nothing() {
    let disk = SimDisk::new(SEGMENT).preparing();
    let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
    append(&mut wal, 1);
    assert_eq!(names(&disk).len(), 1);
}

#[test]
fn a_disk_that_has_no_room_to_prepare_has_a_log_all_the_same() {
    let disk = SimDisk::new(SEGMENT).preparing();
    let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
    let (changes, mut index) = (disk.changes(), 0);
    disk.record();
    while !names(&disk).iter().any(|name| name == "1.tmp") {
        index += 1;
        append(&mut wal, index);
    }
    let ops = disk.recorded();
    let made = ops.iter().position(|op| matches!(op, Op::Make { name, .. } if name == "1.tmp")).unwrap() as u64;

    let disk = SimDisk::new(SEGMENT).preparing();
    let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
    assert_eq!(disk.changes(), changes);
    disk.fail(Fault { after: made, code: ENOSPC, effect: Effect::Nothing, lasts: false });
    for index in 1.. {
        append(&mut wal, index);
        if segments(&disk) == 2 {
            break;
        }
    }
    assert!(matches!(disk.failed(), Some(Op::Make { name, .. }) if name == "1.tmp"));
    assert!(sizes(&disk)[0] >= SEGMENT as usize, "the space that it has is used up");
}
