mod crash;
mod damage;
#[path = "../../../tests/disk/mod.rs"]
mod disk;
mod format;
mod hot_path;
mod prepared;
mod values;

use bytes::Bytes;
use std::path::Path;

use self::disk::{EIO, Effect, Fault, Kept, SimDisk};
use super::disk::{WalDisk, WalFile};
use super::*;
use crate::types::{ClusterId, LogIndex, LogPosition, MemberId, Term};

const METADATA: WalMetadata = WalMetadata { member: MemberId(0x8e9e), cluster: ClusterId(0xcdf8) };

fn dir() -> &'static Path {
    Path::new("/member/wal")
}

fn entry(index: u64, term: u64, bytes: usize) -> WalEntry {
    let data: Vec<u8> = (0..bytes).map(|byte| (byte as u64 * 7 + index * 13 + 1) as u8 | 1).collect();
    WalEntry { kind: WalEntryKind::Normal, term: Term(term), index: LogIndex(index), data: Bytes::from(data) }
}

fn state(term: u64, commit: u64) -> HardState {
    HardState { term: Term(term), vote: Some(MemberId(1)), commit: LogIndex(commit) }
}

fn at(index: u64, term: u64) -> LogPosition {
    LogPosition { index: LogIndex(index), term: Term(term) }
}

fn reopen(disk: &SimDisk, from: LogPosition) -> Result<(Wal<SimDisk>, Recovered), WalError> {
    Wal::open(disk.clone(), dir(), from)
}

/// Files in the log's folder.
fn names(disk: &SimDisk) -> Vec<String> {
    disk.list(dir()).unwrap()
}

/// The bytes of a file in the log's folder.
fn read(disk: &SimDisk, name: &str) -> Vec<u8> {
    let file = disk.open(&dir().join(name)).unwrap();
    let mut bytes = vec![0; file.size().unwrap() as usize];
    assert_eq!(file.read_at(0, &mut bytes).unwrap(), bytes.len());
    bytes
}

/// Replaces the bytes of a file in the log's folder.
fn write(disk: &SimDisk, name: &str, bytes: &[u8]) {
    let mut file = disk.open(&dir().join(name)).unwrap();
    file.truncate(0).unwrap();
    file.write_at(0, bytes).unwrap();
    file.sync_data().unwrap();
}

/// From now on only this many operations succeed; the ones that fail do nothing, or a part of what they are to do.
fn fail_after(disk: &SimDisk, operations: u64) {
    let effect = if operations.is_multiple_of(2) { Effect::Nothing } else { Effect::Some };
    disk.fail(Fault { after: operations, code: EIO, effect, lasts: true });
}

/// What may be left after a power loss now.
fn after_power_loss(disk: &SimDisk, random: &mut fastrand::Rng) -> SimDisk {
    let left = disk.copy();
    left.lose_power(Kept::ALL[random.usize(..Kept::ALL.len())], random);
    left
}

#[test]
fn what_was_synced_is_read_back() {
    let disk = SimDisk::new(4096);
    let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
    let entries: Vec<_> = (1..=50).map(|index| entry(index, 1 + index / 20, index as usize * 9)).collect();
    for group in entries.chunks(7) {
        wal.append(group, Some(&state(3, group[0].index.0))).unwrap();
        wal.sync().unwrap();
    }
    drop(wal);
    let (wal, recovered) = reopen(&disk, LogPosition::default()).unwrap();
    assert_eq!(recovered.metadata, METADATA);
    assert_eq!(recovered.entries, entries);
    assert_eq!(recovered.hard_state, state(3, 50));
    assert_eq!(recovered.base, LogPosition::default());
    assert_eq!(recovered.cut, None);
    assert_eq!(wal.last_index(), LogIndex(50));
    assert!(names(&disk).len() >= 3, "several segments: {:?}", names(&disk));
    drop(wal);
    let (_, recovered) = reopen(&disk, at(45, 3)).unwrap();
    assert_eq!(recovered.entries, entries[45..]);
}

#[test]
fn a_rewritten_index_replaces_the_end_of_the_log() {
    let disk = SimDisk::new(1 << 20);
    let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
    wal.append(&[entry(1, 1, 5), entry(2, 1, 5), entry(3, 1, 5)], None).unwrap();
    wal.append(&[entry(2, 2, 9)], None).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (_, recovered) = reopen(&disk, LogPosition::default()).unwrap();
    assert_eq!(recovered.entries, [entry(1, 1, 5), entry(2, 2, 9)]);
    assert!(matches!(reopen(&disk, at(2, 1)), Err(WalError::Unrelated { .. })), "term 2 is there");
    assert!(matches!(reopen(&disk, at(3, 1)), Err(WalError::Unrelated { .. })), "the log ends before");
}

#[test]
fn entries_that_leave_a_gap_are_refused() {
    let disk = SimDisk::new(1 << 20);
    let mut wal = Wal::create(disk, dir(), METADATA).unwrap();
    assert!(matches!(wal.append(&[entry(2, 1, 5)], None), Err(WalError::OutOfOrder { index: 2, last: 0, .. })));
    assert!(matches!(wal.append(&[entry(1, 1, 5)], None), Err(WalError::Poisoned { .. })));
}

#[test]
fn entries_continue_behind_a_snapshot_mark() {
    let disk = SimDisk::new(1 << 20);
    let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
    wal.append(&[entry(1, 1, 5)], Some(&state(1, 1))).unwrap();
    let conf_state = crate::pb::walpb::ConfState { voters: vec![1, 2, 3], ..Default::default() };
    let mark = WalSnapshot { index: LogIndex(100), term: Term(4), conf_state };
    wal.mark_snapshot(&mark).unwrap();
    wal.append(&[entry(101, 4, 5)], None).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (wal, recovered) = reopen(&disk, at(100, 4)).unwrap();
    assert_eq!(recovered.entries, [entry(101, 4, 5)]);
    assert_eq!(recovered.snapshots, [mark]);
    drop(wal);
    let refused = reopen(&disk, at(1, 1));
    assert!(matches!(refused, Err(WalError::Superseded { mark, .. }) if mark == at(100, 4)), "2 to 100 are nowhere");
    assert_eq!(Wal::snapshots(&disk, dir()).unwrap().len(), 1);
}

fn mark(index: u64, term: u64) -> WalSnapshot {
    WalSnapshot { index: LogIndex(index), term: Term(term), conf_state: Default::default() }
}

/// A member that was far behind takes over the leader's state: its log ends, and goes on much later.
#[test]
fn a_log_with_a_jump_is_read_across_segments_and_after_a_release() {
    for segment_bytes in [1 << 20, 700, 250] {
        for (last, jump) in [(7, 100), (7, 8), (30, 20)] {
            let disk = SimDisk::new(segment_bytes);
            let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
            for index in 1..=last {
                wal.append(&[entry(index, 1, 60)], Some(&state(1, index.min(5)))).unwrap();
                wal.sync().unwrap();
            }
            wal.mark_snapshot(&mark(jump, 3)).unwrap();
            let check = |from, count: u64| {
                let (wal, recovered) = reopen(&disk, from).unwrap();
                assert_eq!(recovered.base, from);
                let expected: Vec<_> = (from.index.0 + 1..=jump + count).map(|index| entry(index, 3, 60)).collect();
                assert_eq!(recovered.entries, expected, "{segment_bytes} {last} {jump} {count}");
                assert!(wal.last_index().0 >= jump + count);
                assert!(matches!(reopen(&disk, at(5, 1)), Err(WalError::Superseded { .. } | WalError::Missing { .. })));
            };
            check(at(jump, 3), 0);
            for count in 1..=40 {
                wal.append(&[entry(jump + count, 3, 60)], Some(&state(3, jump + count - 1))).unwrap();
                wal.sync().unwrap();
                if count == 4 {
                    wal.release(LogIndex(jump), 1).unwrap();
                }
                if matches!(count, 1 | 3 | 4 | 5 | 39) {
                    check(at(jump, 3), count);
                    check(at(jump + count, 3), count);
                }
            }
            wal.mark_snapshot(&mark(jump + 20, 3)).unwrap();
            wal.release(LogIndex(jump + 20), 1).unwrap();
            check(at(jump + 20, 3), 40);
            check(at(jump + 33, 3), 40);
        }
    }
}

#[test]
fn entries_in_front_of_the_position_are_kept_up_to_the_bounds() {
    let disk = SimDisk::new(600);
    let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
    for index in 1..=40 {
        wal.append(&[entry(index, 1 + index / 15, 60)], None).unwrap();
        wal.sync().unwrap();
    }
    let base = |keep: Keep, from: u64| {
        let from = at(from, 1 + from / 15);
        let (_, recovered) = Wal::open_keeping(disk.clone(), dir(), from, keep).unwrap();
        let first = recovered.base.index.0;
        assert_eq!(recovered.base.term.0, if first == 0 { 0 } else { 1 + first / 15 });
        let indexes: Vec<_> = recovered.entries.iter().map(|entry| entry.index.0).collect();
        assert_eq!(indexes, (first + 1..=40).collect::<Vec<_>>());
        first
    };
    let plenty = 1 << 20;
    assert_eq!(base(Keep { entries: 10, bytes: plenty }, 31), 21);
    assert_eq!(base(Keep { entries: 0, bytes: plenty }, 31), 31);
    assert_eq!(base(Keep { entries: 10, bytes: plenty }, 40), 30);
    assert_eq!(base(Keep { entries: 100, bytes: plenty }, 31), 0);
    assert_eq!(base(Keep { entries: 100, bytes: 60 * 6 }, 40), 34, "six entries fill the bytes");
    wal.release(LogIndex(25), 1).unwrap();
    let oldest = base(Keep { entries: 100, bytes: plenty }, 31);
    assert!((17..=25).contains(&oldest), "the first entry there is only what others follow: {oldest}");
}

#[test]
fn release_deletes_whole_segments_and_keeps_the_position() {
    let disk = SimDisk::new(512);
    let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
    for index in 1..=40 {
        wal.append(&[entry(index, 1, 60)], None).unwrap();
        wal.sync().unwrap();
    }
    let before = names(&disk).len();
    wal.release(LogIndex(20), 2).unwrap();
    let after = names(&disk).len();
    assert!(after < before, "{before} {after}");
    wal.release(LogIndex(40), 5).unwrap();
    assert_eq!(names(&disk).len(), 5, "{:?}", names(&disk));
    drop(wal);
    assert!(matches!(reopen(&disk, LogPosition::default()), Err(WalError::Missing { .. })));
    let (_, recovered) = reopen(&disk, at(39, 1)).unwrap();
    assert_eq!(recovered.entries, [entry(40, 1, 60)]);
}

#[test]
fn any_failed_call_closes_the_log() {
    for failing in 0..60 {
        let disk = SimDisk::new(600);
        let Ok(mut wal) = Wal::create(disk.clone(), dir(), METADATA) else { unreachable!("nothing fails yet") };
        fail_after(&disk, failing);
        let mut failed = false;
        for index in 1..=12 {
            let result = wal.append(&[entry(index, 1, 60)], None).and_then(|()| wal.sync());
            let result = result.and_then(|()| wal.release(LogIndex(index), 2));
            if failed {
                assert!(matches!(result, Err(WalError::Poisoned { .. })), "{failing} {result:?}");
            }
            if result.is_err() {
                failed = true;
                disk.heal();
            }
        }
        if failing < 40 {
            assert!(failed, "{failing}");
        }
    }
}

#[test]
fn a_second_log_in_the_same_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("member/wal");
    let wal = Wal::create(FsDisk::default(), &dir, METADATA).unwrap();
    assert!(matches!(Wal::create(FsDisk::default(), &dir, METADATA), Err(WalError::Exists { .. })));
    assert!(matches!(Wal::open(FsDisk::default(), &dir, LogPosition::default()), Err(WalError::Locked { .. })));
    drop(wal);
    Wal::open(FsDisk::default(), &dir, LogPosition::default()).unwrap();
}

#[test]
fn files_are_for_the_owner_only_and_reserved() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("member/wal");
    let _wal = Wal::create(FsDisk::default(), &dir, METADATA).unwrap();
    let file = std::fs::metadata(dir.join("0000000000000000-0000000000000000.wal")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert_eq!(file.len(), 64_000_000);
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
}
