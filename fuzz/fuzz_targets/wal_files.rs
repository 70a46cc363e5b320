//! A segment of the log with any bytes: opening it ends in a log or in an error. A log that was opened takes an entry and has
//! it when it is opened again.
#![no_main]

#[path = "../../tests/disk/mod.rs"]
mod disk;

use std::path::Path;

use bytes::Bytes;
use disk::SimDisk;
use libfuzzer_sys::fuzz_target;
use watershed::core::wal::{Wal, WalDisk, WalEntry, WalEntryKind, WalFile, WalMetadata};
use watershed::types::{ClusterId, LogIndex, LogPosition, MemberId, Term};

const SEGMENT: &str = "0000000000000000-0000000000000000.wal";

fn dir() -> &'static Path {
    Path::new("/member/wal")
}

fuzz_target!(|data: &[u8]| {
    let Some((&place, data)) = data.split_first() else { return };
    let disk = SimDisk::new(4096);
    let metadata = WalMetadata { member: MemberId(1), cluster: ClusterId(2) };
    let mut wal = Wal::create(disk.clone(), dir(), metadata).expect("an empty disk");
    let entry = |index: u64, term: u64| WalEntry {
        kind: WalEntryKind::Normal,
        term: Term(term),
        index: LogIndex(index),
        data: Bytes::from(vec![index as u8; 40]),
    };
    for index in 1..=4 {
        wal.append(&[entry(index, 1)], None).expect("a disk that works");
        wal.sync().expect("a disk that works");
    }
    drop(wal);
    // The input takes the place of the file, or of a part of it.
    let mut file = disk.open(&dir().join(SEGMENT)).expect("it was made");
    if place == 0 {
        file.truncate(0).expect("a disk that works");
    }
    file.write_at(u64::from(place) * 2, data).expect("a disk that works");
    file.sync_data().expect("a disk that works");
    drop(file);
    let _ = Wal::snapshots(&disk, dir());
    let Ok((mut wal, recovered)) = Wal::open(disk.clone(), dir(), LogPosition::default()) else { return };
    let (last, term) = recovered.entries.last().map_or((0, 1), |entry| (entry.index.0, entry.term.0));
    assert!(recovered.entries.iter().zip(1..).all(|(entry, index)| entry.index.0 == index), "indexes without a gap");
    let next = entry(last + 1, term.max(recovered.hard_state.term.0));
    if wal.append(std::slice::from_ref(&next), None).is_err() {
        return;
    }
    wal.sync().expect("a disk that works");
    drop(wal);
    let (_, again) = Wal::open(disk, dir(), LogPosition::default()).expect("it was opened before");
    assert_eq!(again.entries[..recovered.entries.len()], recovered.entries);
    assert_eq!(again.entries.last(), Some(&next));
});
