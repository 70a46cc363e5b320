//! Entries that are appended to the log, for `benches/hot_paths.py`.

use super::*;

const ENTRIES: u64 = 1000;
/// Entries of one write.
const GROUP: usize = 8;

#[inline(never)]
fn counted(wal: &mut Wal<FsDisk>, groups: &[(Vec<WalEntry>, HardState)]) {
    for (entries, hard_state) in groups {
        wal.append(entries, Some(hard_state)).unwrap();
        wal.write().unwrap();
    }
}

#[test]
fn put_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut wal = Wal::create(FsDisk::unsynced(), &folder.path().join("wal"), METADATA).unwrap();
    let entries: Vec<_> = (1..=ENTRIES).map(|index| entry(index, 1, 300)).collect();
    let groups: Vec<_> = entries.chunks(GROUP).map(|group| (group.to_vec(), state(1, group[0].index.0 - 1))).collect();
    counted(&mut wal, &groups);
    assert_eq!(wal.last_index(), LogIndex(ENTRIES));
}
