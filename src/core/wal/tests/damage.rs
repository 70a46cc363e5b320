//! Every damage to a log ends in a prefix of it or in a refusal that names file and offset.

use super::*;

/// A log of several segments, groups and record kinds; the entries, and how many of them are older than the last group.
fn sample(segment_bytes: u64) -> (SimDisk, Vec<WalEntry>, usize) {
    let disk = SimDisk::new(segment_bytes);
    let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
    let entries: Vec<_> = (1..=36).map(|index| entry(index, 1 + index / 10, 10 + index as usize * 5)).collect();
    for group in entries.chunks(4) {
        wal.append(group, Some(&state(5, group[0].index.0))).unwrap();
        wal.sync().unwrap();
    }
    (disk, entries, 32)
}

pub(super) fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

/// Opens a damaged copy; a prefix has to begin with all synced groups but the last.
pub(super) fn check_damaged(
    disk: &SimDisk,
    name: &str,
    bytes: Vec<u8>,
    entries: &[WalEntry],
    settled: usize,
    what: &str,
) -> bool {
    let damaged = disk.copy();
    write(&damaged, name, &bytes);
    match reopen(&damaged, LogPosition::default()) {
        Ok((mut wal, recovered)) => {
            let count = recovered.entries.len();
            assert_eq!(recovered.entries, entries[..count], "{what}: not a prefix");
            assert!(count >= settled, "{what}: lost {} settled entries silently", settled - count);
            assert!(count == entries.len() || recovered.cut.is_some(), "{what}: a cut goes unreported");
            // What is appended to the cut log is read back.
            let next = entry(count as u64 + 1, 9, 30);
            wal.append(std::slice::from_ref(&next), None).unwrap();
            wal.sync().unwrap();
            drop(wal);
            let (_, again) = reopen(&damaged, LogPosition::default()).unwrap();
            assert_eq!(again.cut, None, "{what}");
            assert_eq!(again.entries.last(), Some(&next), "{what}");
            true
        }
        Err(WalError::Corrupt { path, .. }) => {
            assert_eq!(path.parent(), Some(dir()), "{what}");
            false
        }
        Err(other) => unreachable!("{what}: {other}"),
    }
}

#[test]
fn every_truncation_of_the_last_record_is_cut() {
    let (disk, entries, settled) = sample(1200);
    let name = names(&disk).pop().unwrap();
    let bytes = read(&disk, &name);
    let end = used(&bytes).next_multiple_of(8);
    for size in end - 120..end {
        let opened = check_damaged(&disk, &name, bytes[..size].to_vec(), &entries, settled, &format!("size {size}"));
        assert!(opened, "size {size}");
        // The same with the reserved space still behind it.
        let mut zeroed = bytes.clone();
        zeroed[size..].fill(0);
        let opened = check_damaged(&disk, &name, zeroed, &entries, settled, &format!("zeroes from {size}"));
        assert!(opened, "zeroes from {size}");
    }
}

#[test]
fn flipped_bytes_are_cut_at_the_end_and_refused_elsewhere() {
    let (disk, entries, settled) = sample(1200);
    let names = names(&disk);
    assert!(names.len() >= 3, "{names:?}");
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut opened, mut refused) = (0, 0);
    for (place, name) in names.iter().enumerate() {
        let bytes = read(&disk, name);
        for offset in 0..used(&bytes) {
            let mut flipped = bytes.clone();
            flipped[offset] ^= 1 << rng.u8(..8);
            let what = format!("{name} byte {offset}");
            match check_damaged(&disk, name, flipped, &entries, settled, &what) {
                true => opened += 1,
                false => refused += 1,
            }
            assert!(opened == 0 || place + 1 == names.len(), "{what}: only the end may be cut");
        }
    }
    assert!(opened > 20 && refused > 3000, "{opened} {refused}");
}

/// Where the records of a segment begin, and where the last one ends.
pub(super) fn frames(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![0];
    let mut at = 0;
    while let Some((record, pad)) =
        super::super::record::frame_lengths(u64::from_le_bytes(*bytes[at..].first_chunk().unwrap()))
    {
        at += (8 + record + pad) as usize;
        starts.push(at);
    }
    starts
}

#[test]
fn a_damaged_length_in_front_of_another_record_is_refused() {
    let (disk, entries, settled) = sample(1 << 16);
    let name = names(&disk).pop().unwrap();
    let bytes = read(&disk, &name);
    let frames = frames(&bytes);
    let (mut flips, mut sector_starts) = (0, 0);
    for &start in &frames[..frames.len() - 2] {
        if (start + 8) % 512 == 0 {
            sector_starts += 1; // A disk can lose such a length, and nothing else.
            continue;
        }
        for bit in 0..64 {
            let mut flipped = bytes.clone();
            flipped[start + bit / 8] ^= 1 << (bit % 8);
            let what = format!("bit {bit} of the length at {start}");
            assert!(!check_damaged(&disk, &name, flipped, &entries, settled, &what), "{what} passed in silence");
            flips += 1;
        }
    }
    assert!(flips > 40 * 64 && sector_starts < 3, "{flips} {sector_starts}");
}

#[test]
fn a_lost_sector_inside_synced_groups_is_refused() {
    let (disk, entries, settled) = sample(1 << 16);
    let name = names(&disk).pop().unwrap();
    let bytes = read(&disk, &name);
    let mut zeroed = bytes.clone();
    zeroed[512..1024].fill(0);
    assert!(used(&bytes) > 1100, "{}", used(&bytes));
    assert!(!check_damaged(&disk, &name, zeroed, &entries, settled, "sector"), "a later group proves it was synced");
}

#[test]
fn hostile_records_are_refused_without_their_memory() {
    let build = |kind: u64, data: &[u8], length: Option<u64>| {
        let disk = SimDisk::new(4096);
        let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
        wal.append(&[entry(1, 3, 20)], Some(&state(3, 1))).unwrap();
        wal.sync().unwrap();
        drop(wal);
        let name = names(&disk).pop().unwrap();
        let mut bytes = read(&disk, &name);
        let end = used(&bytes).next_multiple_of(8);
        let mut frame = super::super::record::test_frame(&bytes[..end], kind, data);
        if let Some(length) = length {
            frame[..8].copy_from_slice(&length.to_le_bytes());
        }
        bytes[end..end + frame.len()].copy_from_slice(&frame);
        write(&disk, &name, &bytes);
        reopen(&disk, LogPosition::default())
    };
    let entry_bytes = |term: u64, index: u64, kind: i32| {
        let message = crate::pb::walpb::Entry { r#type: Some(kind), term: Some(term), index: Some(index), data: None };
        prost::Message::encode_to_vec(&message)
    };
    assert_eq!(build(2, &entry_bytes(3, 2, 0), None).unwrap().1.entries.len(), 2, "a good one is read");
    for (data, words) in [
        (entry_bytes(3, 1 << 40, 0), "follows the end of the log"),
        (entry_bytes(3, u64::MAX, 0), "follows the end of the log"),
        (entry_bytes(2, 2, 0), "goes back from term 3 to 2"),
        (entry_bytes(0, 2, 0), "term 0"),
        (entry_bytes(3, 0, 0), "index 0"),
        (entry_bytes(3, 2, 7), "unknown type 7"),
        (vec![0xff; 9], "entry: "),
        (Vec::new(), "no data"),
        (entry_bytes(3, 1, 0), "replaces one that is committed"),
    ] {
        let error = build(2, &data, None).unwrap_err();
        assert!(
            matches!(&error, WalError::Corrupt { offset, what, .. } if *offset > 0 && what.contains(words)),
            "{error}"
        );
    }
    let error = build(9, &[1, 2, 3], None).unwrap_err().to_string();
    assert!(error.contains("unknown type 9"), "{error}");
    let error = build(3, &[0x08, 1, 0x10, 0, 0x18, 1], None).unwrap_err().to_string();
    assert!(error.contains("state goes back from term 3 to 1"), "{error}");
    for length in [1 << 63, u64::MAX, u64::MAX >> 8, 1 << 40] {
        // Nothing follows, so that it is an unfinished write; what matters is that nothing is allocated for it.
        let (_, recovered) = build(2, &entry_bytes(3, 2, 0), Some(length)).unwrap();
        assert_eq!(recovered.entries.len(), 1);
        assert!(recovered.cut.is_some());
    }
}
