//! The bytes themselves. A log with these bytes was read by etcd's own tools.

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn a_small_log_has_these_bytes() {
    let disk = SimDisk::new(4096);
    let mut wal = Wal::create(disk.clone(), dir(), METADATA).unwrap();
    let data = Bytes::from_static(b"hello");
    let hello = WalEntry { kind: WalEntryKind::Normal, term: Term(2), index: LogIndex(1), data };
    wal.append(&[hello], Some(&HardState { term: Term(2), vote: None, commit: LogIndex(0) })).unwrap();
    wal.sync().unwrap();
    let bytes = read(&disk, "0000000000000000-0000000000000000.wal");
    let expected = hex("
        0400000000000084 08041000 00000000
        1200000000000086 0801 1080a5f1f907 1a08 089e9d02 10f89b03 000000000000
        0e00000000000082 0805 108fced5bd09 1a04 0800 1000 0000
        0800000000000000 0804 108fced5bd09
        1700000000000081 0802 10b5dae2bc08 1a0d 0800 1002 1801 2205 68656c6c6f 00
        1000000000000000 0803 10dce0a3f70c 1a06 0802 1000 1800
    ");
    assert_eq!(bytes[..expected.len()], expected);
    assert!(bytes[expected.len()..].iter().all(|&byte| byte == 0));
}
