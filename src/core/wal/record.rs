use bytes::Bytes;
use prost::Message;

use crate::pb::walpb;
use crate::types::{ClusterId, LogIndex, MemberId, Term};

/// Whose log this is; written at the head of every segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalMetadata {
    /// The member that writes the log.
    pub member: MemberId,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
}

/// What an entry is to raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalEntryKind {
    /// A request.
    Normal,
    /// A membership change of the first kind.
    ConfChange,
    /// A membership change of the second kind.
    ConfChangeV2,
}

/// An entry of the raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalEntry {
    /// What it is.
    pub kind: WalEntryKind,
    /// Term in which it was proposed.
    pub term: Term,
    /// Its position in the log.
    pub index: LogIndex,
    /// What raft carries: an encoded request, or an encoded membership change.
    pub data: Bytes,
}

/// What raft must not forget beside the entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Current term.
    pub term: Term,
    /// Who got the vote in it.
    pub vote: Option<MemberId>,
    /// Highest index known to be committed.
    pub commit: LogIndex,
}

/// Marks that the state up to `index` is held elsewhere; entries may follow without those before.
#[derive(Clone, Debug, PartialEq)]
pub struct WalSnapshot {
    /// Last index the state contains.
    pub index: LogIndex,
    /// Term of the entry there.
    pub term: Term,
    /// Members of the raft group at that index.
    pub conf_state: walpb::ConfState,
}

/// Types of records, as in etcd.
pub(super) const METADATA: u64 = 1;
pub(super) const ENTRY: u64 = 2;
pub(super) const STATE: u64 = 3;
pub(super) const CRC: u64 = 4;
pub(super) const SNAPSHOT: u64 = 5;

/// Largest head of an entry: four tags, four varints.
const ENTRY_HEAD_MAX: usize = 4 + 4 * 10;

/// Appends frames to a buffer, chaining the checksum over their data.
///
/// The buffer is the caller's and is used again for every group: nothing is allocated per record.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    pub(super) crc: u32,
}

impl Encoder {
    /// Writes a record whose data is given in two parts.
    fn record(&mut self, out: &mut Vec<u8>, kind: u64, head: &[u8], tail: &[u8]) {
        self.crc = crc32c::crc32c_append(crc32c::crc32c_append(self.crc, head), tail);
        let start = out.len();
        out.extend_from_slice(&[0; 8]);
        out.push(0x08);
        varint(out, kind);
        out.push(0x10);
        varint(out, u64::from(self.crc));
        let data_len = head.len() + tail.len();
        if data_len > 0 {
            out.push(0x1a);
            varint(out, data_len as u64);
            out.extend_from_slice(head);
            out.extend_from_slice(tail);
        }
        let record_len = out.len() - start - 8;
        let pad = record_len.wrapping_neg() & 7;
        let mut length = record_len as u64;
        if pad != 0 {
            length |= (0x80 | pad as u64) << 56;
            out.resize(out.len() + pad, 0);
        }
        out[start..start + 8].copy_from_slice(&length.to_le_bytes());
    }

    /// States the checksum so far: at the head of a segment, and where a group of writes begins.
    pub(super) fn crc_record(&mut self, out: &mut Vec<u8>) {
        self.record(out, CRC, &[], &[]);
    }

    pub(super) fn metadata(&mut self, out: &mut Vec<u8>, metadata: &WalMetadata) {
        let mut data = Vec::with_capacity(22);
        field(&mut data, 0x08, metadata.member.0);
        field(&mut data, 0x10, metadata.cluster.0);
        self.record(out, METADATA, &data, &[]);
    }

    pub(super) fn entry(&mut self, out: &mut Vec<u8>, entry: &WalEntry) {
        let mut head = SmallMessage::<ENTRY_HEAD_MAX>::new();
        let kind = match entry.kind {
            WalEntryKind::Normal => walpb::EntryType::EntryNormal,
            WalEntryKind::ConfChange => walpb::EntryType::EntryConfChange,
            WalEntryKind::ConfChangeV2 => walpb::EntryType::EntryConfChangeV2,
        };
        head.field(0x08, kind as u64);
        head.field(0x10, entry.term.0);
        head.field(0x18, entry.index.0);
        if !entry.data.is_empty() {
            head.field(0x22, entry.data.len() as u64);
        }
        self.record(out, ENTRY, head.bytes(), &entry.data);
    }

    pub(super) fn state(&mut self, out: &mut Vec<u8>, state: &HardState) {
        let mut data = SmallMessage::<33>::new();
        data.field(0x08, state.term.0);
        data.field(0x10, state.vote.map_or(0, |member| member.0));
        data.field(0x18, state.commit.0);
        self.record(out, STATE, data.bytes(), &[]);
    }

    /// `conf_state` is left out of the mark that begins a new log.
    pub(super) fn snapshot(&mut self, out: &mut Vec<u8>, snapshot: Option<&WalSnapshot>) {
        let message = walpb::Snapshot {
            index: Some(snapshot.map_or(0, |snapshot| snapshot.index.0)),
            term: Some(snapshot.map_or(0, |snapshot| snapshot.term.0)),
            conf_state: snapshot.map(|snapshot| snapshot.conf_state.clone()),
        };
        self.record(out, SNAPSHOT, &message.encode_to_vec(), &[]);
    }
}

/// A few protobuf fields on the stack.
struct SmallMessage<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> SmallMessage<N> {
    fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    fn field(&mut self, tag: u8, mut value: u64) {
        self.push(tag);
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn field(out: &mut Vec<u8>, tag: u8, value: u64) {
    out.push(tag);
    varint(out, value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Length of a frame's record and of the padding behind it.
///
/// The top byte of the length field is 0x80 | padding when there is any.
pub(super) fn frame_lengths(field: u64) -> Option<(u64, u64)> {
    let top = field >> 56;
    let record = field & ((1 << 56) - 1);
    let pad = record.wrapping_neg() & 7;
    let expected = if pad == 0 { 0 } else { 0x80 | pad };
    // Nothing but the one way of writing it is ours or etcd's.
    (top == expected && record != 0).then_some((record, pad))
}

/// A record as it lies in its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawRecord<'a> {
    pub(super) kind: u64,
    pub(super) crc: u32,
    pub(super) data: &'a [u8],
}

impl<'a> RawRecord<'a> {
    /// Reads the fields in any order, as protobuf allows; unknown ones are refused: there are none.
    pub(super) fn parse(mut bytes: &'a [u8]) -> Option<Self> {
        let mut record = Self { kind: 0, crc: 0, data: &[] };
        while let Some((&tag, rest)) = bytes.split_first() {
            bytes = rest;
            let number = read_varint(&mut bytes)?;
            match tag {
                0x08 => record.kind = number,
                0x10 => record.crc = u32::try_from(number).ok()?,
                0x1a => {
                    let length = usize::try_from(number).ok()?;
                    record.data = bytes.get(..length)?;
                    bytes = &bytes[length..];
                }
                _ => return None,
            }
        }
        Some(record)
    }
}

impl RawRecord<'_> {
    /// Whether this is what comes next with this checksum of everything before.
    pub(super) fn follows(&self, sum: u32) -> bool {
        match self.kind {
            // Data would be outside every checksum.
            CRC => self.data.is_empty() && self.crc == sum,
            _ => self.crc == crc32c::crc32c_append(sum, self.data),
        }
    }
}

pub(super) fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return (shift < 63 || byte <= 1).then_some(value);
        }
    }
    None
}

/// Reads an entry's data; the error describes what is wrong.
pub(super) fn decode_entry(data: &[u8]) -> Result<WalEntry, String> {
    let entry = walpb::Entry::decode(data).map_err(|error| format!("entry: {error}"))?;
    let (Some(term), Some(index)) = (entry.term, entry.index) else {
        return Err("entry lacks its term or index".into());
    };
    // etcd leaves the type of a request out.
    let kind = match entry.r#type.unwrap_or(0) {
        0 => WalEntryKind::Normal,
        1 => WalEntryKind::ConfChange,
        2 => WalEntryKind::ConfChangeV2,
        other => return Err(format!("entry has unknown type {other}")),
    };
    // The second kind is empty when it ends a change.
    if kind == WalEntryKind::ConfChange && entry.data.is_none() {
        return Err("membership change has no data".into());
    }
    Ok(WalEntry { kind, term: Term(term), index: LogIndex(index), data: entry.data.unwrap_or_default() })
}

pub(super) fn decode_state(data: &[u8]) -> Result<HardState, String> {
    let state = walpb::HardState::decode(data).map_err(|error| format!("state: {error}"))?;
    let term = state.term.unwrap_or(0);
    // Anything beside the three fields is not a state: an entry reads much the same.
    if state.encoded_len() != data.len() || term == 0 {
        return Err("state has no term, or other fields".into());
    }
    let vote = state.vote.filter(|&vote| vote != 0).map(MemberId);
    Ok(HardState { term: Term(term), vote, commit: LogIndex(state.commit.unwrap_or(0)) })
}

pub(super) fn decode_snapshot(data: &[u8]) -> Result<WalSnapshot, String> {
    let snapshot = walpb::Snapshot::decode(data).map_err(|error| format!("snapshot: {error}"))?;
    let (Some(index), Some(term)) = (snapshot.index, snapshot.term) else {
        return Err("snapshot lacks a field".into());
    };
    Ok(WalSnapshot { index: LogIndex(index), term: Term(term), conf_state: snapshot.conf_state.unwrap_or_default() })
}

pub(super) fn decode_metadata(data: &[u8]) -> Result<WalMetadata, String> {
    let (mut bytes, mut member, mut cluster) = (data, 0, 0);
    while let Some((&tag, rest)) = bytes.split_first() {
        bytes = rest;
        let number = read_varint(&mut bytes).ok_or("metadata ends early")?;
        match tag {
            0x08 => member = number,
            0x10 => cluster = number,
            _ => return Err(format!("metadata has unknown field {tag:#x}")),
        }
    }
    Ok(WalMetadata { member: MemberId(member), cluster: ClusterId(cluster) })
}

/// A frame with a right checksum and any content, to follow these frames.
#[cfg(test)]
pub(super) fn test_frame(before: &[u8], kind: u64, data: &[u8]) -> Vec<u8> {
    let mut crc = 0;
    let mut at = 0;
    while at < before.len() {
        let length = u64::from_le_bytes(before[at..at + 8].try_into().expect("8 bytes"));
        let (record, pad) = frame_lengths(length).expect("a good frame");
        crc = RawRecord::parse(&before[at + 8..at + 8 + record as usize]).expect("a good record").crc;
        at += (8 + record + pad) as usize;
    }
    let mut out = Vec::new();
    Encoder { crc }.record(&mut out, kind, data, &[]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn varints_beyond_64_bits_are_refused() {
        assert_eq!(
            read_varint(&mut [0xff; 9].iter().copied().chain([1]).collect::<Vec<_>>().as_slice()),
            Some(u64::MAX)
        );
        assert_eq!(read_varint(&mut [0xff; 9].iter().copied().chain([2]).collect::<Vec<_>>().as_slice()), None);
        assert_eq!(read_varint(&mut [0xff; 11].as_slice()), None);
        assert_eq!(read_varint(&mut [0x80].as_slice()), None);
    }

    #[test]
    fn only_the_written_form_of_a_length_is_one() {
        assert_eq!(frame_lengths(16), Some((16, 0)));
        assert_eq!(frame_lengths(0x8300_0000_0000_0005), Some((5, 3)));
        for wrong in [0, 5, 1 << 63, 0x8400_0000_0000_0005, 0x0300_0000_0000_0005, u64::MAX] {
            assert_eq!(frame_lengths(wrong), None, "{wrong:#x}");
        }
    }

    #[test]
    fn an_entry_without_data_has_no_data_field() {
        let mut out = Vec::new();
        let entry = WalEntry { kind: WalEntryKind::Normal, term: Term(2), index: LogIndex(3), data: Bytes::new() };
        Encoder::default().entry(&mut out, &entry);
        assert!(hex(&out).ends_with("1a06080010021803"), "{}", hex(&out));
    }
}
