//! Values of clients that look like parts of a log. A torn write of one is cut like any other, and damage is still refused.

use super::super::record::Encoder;
use super::damage::{check_damaged, frames, used};
use super::*;

/// What a group begins with. The scan for later groups took it for one inside the torn record itself, and the member did
/// not start.
const CRC_RECORD: &[u8; 16] = b"\x08\0\0\0\0\0\0\0\x08\x04\x10\x80\x80\x80\x80\0";
const SECTOR: usize = 512;
const SETTLED: u64 = 12;

/// A whole group.
fn group() -> Vec<u8> {
    let (mut out, mut encoder) = (Vec::new(), Encoder { crc: 77 });
    encoder.crc_record(&mut out);
    encoder.entry(&mut out, &entry(13, 3, 20));
    encoder.state(&mut out, &state(3, 13));
    out
}

/// A value that holds `part` again and again, behind so many other bytes.
fn value(shift: usize, part: &[u8], times: usize) -> Bytes {
    [vec![7; shift], part.repeat(times), vec![7; 9]].concat().into()
}

/// A log whose last group holds these values, and where that one begins.
fn log_of(settled: impl Fn(u64) -> Bytes, last: &[Bytes]) -> (SimDisk, Vec<WalEntry>, usize) {
    let disk = SimDisk::new(1 << 16);
    let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
    let mut entries: Vec<WalEntry> =
        (1..=SETTLED).map(|index| WalEntry { data: settled(index), ..entry(index, 3, 0) }).collect();
    for group in entries.chunks(2) {
        wal.append(group, Some(&state(3, group[0].index.0))).unwrap();
        wal.sync().unwrap();
    }
    let begins = used(&read(&disk, &names(&disk)[0])).next_multiple_of(8);
    let group: Vec<_> =
        (SETTLED + 1..).zip(last).map(|(index, data)| WalEntry { data: data.clone(), ..entry(index, 3, 0) }).collect();
    wal.append(&group, Some(&state(3, SETTLED))).unwrap();
    wal.sync().unwrap();
    entries.extend(group);
    (disk, entries, begins)
}

/// The member starts, with all settled groups and the beginning of the last one, and goes on.
fn check_torn(disk: &SimDisk, entries: &[WalEntry], bytes: &[u8], what: &str) {
    let torn = disk.copy();
    write(&torn, &names(disk)[0], bytes);
    let (mut wal, recovered) = reopen(&torn, LogPosition::default()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let count = recovered.entries.len();
    assert!(count >= SETTLED as usize && recovered.entries == entries[..count], "{what}: {count} entries");
    let next = entry(count as u64 + 1, 9, 30);
    wal.append(std::slice::from_ref(&next), None).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (_, again) = reopen(&torn, LogPosition::default()).unwrap();
    assert_eq!((again.cut, again.entries.last()), (None, Some(&next)), "{what}");
}

/// Loses each sector of the last group, then everything from there on.
fn check_every_tear(last: &[Bytes], what: &str) {
    let (disk, entries, begins) = log_of(|index| entry(index, 3, 50).data, last);
    let bytes = read(&disk, &names(&disk)[0]);
    let end = used(&bytes);
    let mut start = begins;
    while start < end {
        let sector_end = ((start / SECTOR + 1) * SECTOR).min(end);
        let mut lost = bytes.clone();
        lost[start..sector_end].fill(0);
        check_torn(&disk, &entries, &lost, &format!("{what}, without the bytes from {start} on"));
        let mut lost = bytes.clone();
        lost[start..].fill(0);
        check_torn(&disk, &entries, &lost, &format!("{what}, with nothing from {start} on"));
        check_torn(&disk, &entries, &bytes[..start], &format!("{what}, ending at {start}"));
        start = sector_end;
    }
}

#[test]
fn a_torn_value_that_reads_like_a_group_is_cut() {
    for shift in 0..8 {
        check_every_tear(&[value(shift, CRC_RECORD, 100)], &format!("checksums behind {shift} bytes"));
        check_every_tear(&[value(shift, &group(), 20)], &format!("groups behind {shift} bytes"));
    }
}

#[test]
fn a_value_behind_the_torn_record_is_not_a_group_either() {
    for shift in 0..8 {
        let torn = entry(1, 1, 1500).data;
        check_every_tear(&[torn.clone(), value(shift, CRC_RECORD, 60)], &format!("checksums behind {shift} bytes"));
        check_every_tear(&[torn, value(shift, &group(), 12)], &format!("groups behind {shift} bytes"));
    }
}

#[test]
fn damage_in_front_of_such_values_is_refused() {
    let group = group();
    let settled = |index: u64| match index % 3 {
        0 => value(index as usize % 8, CRC_RECORD, 8),
        1 => value(index as usize % 8, &group, 2),
        _ => entry(index, 3, 130).data,
    };
    let (disk, entries, begins) = log_of(settled, &[settled(13), settled(14), settled(15)]);
    let name = &names(&disk)[0];
    let bytes = read(&disk, name);
    let mut random = fastrand::Rng::with_seed(3);
    let refused = |damaged: Vec<u8>, what: &str| {
        assert!(!check_damaged(&disk, name, damaged, &entries, SETTLED as usize, what), "{what} passed in silence");
    };
    for offset in 0..begins {
        let mut damaged = bytes.clone();
        damaged[offset] ^= 1 << random.u8(..8);
        refused(damaged, &format!("byte {offset}"));
    }
    for &start in frames(&bytes).iter().filter(|&&start| start < begins) {
        for bit in 0..64 {
            let mut damaged = bytes.clone();
            damaged[start + bit / 8] ^= 1 << (bit % 8);
            refused(damaged, &format!("bit {bit} of the length at {start}"));
        }
    }
    for sector in 1..begins / SECTOR {
        let mut damaged = bytes.clone();
        damaged[sector * SECTOR..(sector + 1) * SECTOR].fill(0);
        refused(damaged, &format!("sector {sector}"));
    }
}

#[test]
fn any_torn_group_is_cut_whatever_its_values_are() {
    let parts = [CRC_RECORD.to_vec(), group(), vec![0; 40], vec![0; 600]];
    for seed in 0..400 {
        let mut random = fastrand::Rng::with_seed(seed);
        let last: Vec<Bytes> = (0..random.usize(1..5))
            .map(|_| {
                let mut value = Vec::new();
                for _ in 0..random.usize(1..30) {
                    match random.usize(..6) {
                        part @ ..4 => value.extend_from_slice(&parts[part]),
                        _ => (0..random.usize(..60)).for_each(|_| value.push(random.u8(..))),
                    }
                }
                value.push(7);
                value.into()
            })
            .collect();
        let (disk, entries, begins) = log_of(|index| entry(index, 3, 50).data, &last);
        let mut bytes = read(&disk, &names(&disk)[0]);
        let end = used(&bytes);
        let mut start = begins;
        while start < end {
            let sector_end = ((start / SECTOR + 1) * SECTOR).min(end);
            if random.bool() {
                bytes[start..sector_end].fill(0);
            }
            start = sector_end;
        }
        check_torn(&disk, &entries, &bytes, &format!("seed {seed}"));
    }
}
