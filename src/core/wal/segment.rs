use std::fmt;

/// Name of a segment file: its number in the sequence, and the index of the first entry written to it.
///
/// The very first segment begins at index 0, which is before the first entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentName {
    pub(super) seq: u64,
    pub(super) index: u64,
}

impl SegmentName {
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (seq, index) = name.strip_suffix(".wal")?.split_once('-')?;
        Some(Self { seq: hex(seq)?, index: hex(index)? })
    }
}

/// Exactly 16 lowercase hex digits: `from_str_radix` would also take a sign.
fn hex(text: &str) -> Option<u64> {
    let valid = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if valid { u64::from_str_radix(text, 16).ok() } else { None }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}.wal", self.seq, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        let name = SegmentName { seq: 10, index: 0xabcdef };
        assert_eq!(name.to_string(), "000000000000000a-0000000000abcdef.wal");
        assert_eq!(SegmentName::parse(&name.to_string()), Some(name));
        for wrong in
            ["0.tmp", "a-b.wal", "000000000000000A-0000000000abcdef.wal", "+00000000000000a-0000000000abcdef.wal"]
        {
            assert_eq!(SegmentName::parse(wrong), None, "{wrong}");
        }
    }
}
