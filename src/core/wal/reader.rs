use std::collections::HashSet;
use std::io;

use super::disk::WalFile;
use super::record::{CRC, RawRecord, frame_lengths, read_varint};

/// Largest record that is read, so that a hostile length cannot ask for more memory than this. Far above any request
/// size limit; appending a larger one is refused.
pub(super) const RECORD_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Bytes fetched from the file at a time.
const WINDOW_BYTES: usize = 1024 * 1024;
/// What the unused end of a segment is compared with: a start looks at all of its 64 MB.
static ZEROS: [u8; 4096] = [0; 4096];
/// The unit a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;
/// Bytes that hold all fields of a record but its data.
const FIELDS_BYTES: usize = 32;
/// How often each byte may be read when it is looked for records without a length that leads to them.
const CHAIN_ROUNDS: u64 = 16;

/// Reads the frames of one segment front to back.
pub(super) struct SegmentReader<'a, F> {
    file: &'a F,
    pub(super) size: u64,
    window: Vec<u8>,
    window_at: u64,
}

/// What lies at an offset.
pub(super) enum Frame<'a> {
    /// A record; its checksum is not checked yet. The next one begins at `next`.
    Record { record: RawRecord<'a>, next: u64 },
    /// The end of the file, or a length of zero as in reserved space.
    End,
    /// Something else, described by the text.
    Bad { what: &'static str },
}

impl<'a, F: WalFile> SegmentReader<'a, F> {
    pub(super) fn new(file: &'a F) -> io::Result<Self> {
        Ok(Self { file, size: file.size()?, window: Vec::new(), window_at: 0 })
    }

    /// The bytes at an offset, or as many as the file has.
    fn bytes(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let available = self.size.saturating_sub(offset);
        let len = len.min(usize::try_from(available).unwrap_or(usize::MAX));
        let end = self.window_at + self.window.len() as u64;
        if offset < self.window_at || offset + len as u64 > end {
            let want = len.max(WINDOW_BYTES).min(usize::try_from(available).unwrap_or(usize::MAX));
            self.window.resize(want, 0);
            let read = self.file.read_at(offset, &mut self.window)?;
            self.window.truncate(read);
            self.window_at = offset;
        }
        let start = (offset - self.window_at) as usize;
        Ok(&self.window[start..self.window.len().min(start + len)])
    }

    pub(super) fn frame(&mut self, offset: u64) -> io::Result<Frame<'_>> {
        let head = self.bytes(offset, 8)?;
        if head.is_empty() {
            return Ok(Frame::End);
        }
        let Ok(head) = <[u8; 8]>::try_from(head) else {
            return Ok(Frame::Bad { what: "the file ends within a length" });
        };
        let head = u64::from_le_bytes(head);
        if head == 0 {
            return Ok(Frame::End);
        }
        let Some((record, pad)) = frame_lengths(head) else {
            return Ok(Frame::Bad { what: "not a length" });
        };
        if record > RECORD_BYTES_MAX {
            return Ok(Frame::Bad { what: "length beyond the limit" });
        }
        let next = offset + 8 + record + pad;
        if next > self.size {
            return Ok(Frame::Bad { what: "the file ends within the record" });
        }
        let bytes = self.bytes(offset + 8, (record + pad) as usize)?;
        let Some((bytes, padding)) = bytes.split_at_checked(record as usize) else {
            return Ok(Frame::Bad { what: "the file ends within the record" });
        };
        match RawRecord::parse(bytes) {
            // Padding is the only part that no checksum covers.
            Some(record) if padding.iter().all(|&byte| byte == 0) => Ok(Frame::Record { record, next }),
            _ => Ok(Frame::Bad { what: "not a record" }),
        }
    }

    /// Whether the frame at `offset` lacks a sector, as after a power loss: it runs past the end of the file, or the
    /// part of it within some sector is all zeroes.
    pub(super) fn lacks_sector(&mut self, offset: u64) -> io::Result<bool> {
        let head = self.bytes(offset, 8)?;
        let Ok(head) = <[u8; 8]>::try_from(head) else { return Ok(true) };
        let Some((record, pad)) = frame_lengths(u64::from_le_bytes(head)) else { return Ok(false) };
        let end = offset + 8 + record + pad;
        if record > RECORD_BYTES_MAX || end > self.size {
            return Ok(end > self.size);
        }
        let mut at = offset + 8;
        while at < end {
            let chunk_end = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
            let chunk = self.bytes(at, (chunk_end - at) as usize)?;
            // The last few bytes may be nothing but padding.
            let only_padding = at + pad >= end;
            if !only_padding && chunk.iter().all(|&byte| byte == 0) {
                return Ok(true);
            }
            at = chunk_end;
        }
        Ok(false)
    }

    /// The record behind the length at `offset` and where the next one begins, by its own fields and whatever the length says;
    /// none unless something in the outline of a record begins there, and none where a disk may have lost the length alone.
    pub(super) fn record_by_fields(&mut self, offset: u64) -> io::Result<Option<(RawRecord<'_>, u64)>> {
        let head = self.bytes(offset, 8 + FIELDS_BYTES)?;
        let Some((length, fields)) = head.split_first_chunk::<8>() else { return Ok(None) };
        let is_lost = *length == [0; 8] && (offset + 8).is_multiple_of(SECTOR_BYTES);
        let Some((_, record)) = record_fields(fields).filter(|(_, record)| !is_lost && *record <= RECORD_BYTES_MAX)
        else {
            return Ok(None);
        };
        let next = (offset + 8 + record).next_multiple_of(8);
        if self.outline(next)?.is_none() {
            return Ok(None);
        }
        let bytes = self.bytes(offset + 8, record as usize)?;
        Ok(RawRecord::parse(bytes).map(|record| (record, next)))
    }

    /// Type of the record that begins here, judged by its outline alone: all lengths fit, in the order in which we and
    /// etcd write the fields. Looks at a few bytes however long the record claims to be.
    fn outline(&mut self, offset: u64) -> io::Result<Option<u64>> {
        let size = self.size;
        let bytes = self.bytes(offset, 8 + FIELDS_BYTES)?;
        Ok(outline(bytes).filter(|(_, frame)| frame.checked_add(offset).is_some_and(|end| end <= size)).map(|it| it.0))
    }

    /// Where the frame at `offset` ends by its length, if that is one.
    fn end_by_length(&mut self, offset: u64) -> io::Result<Option<u64>> {
        let Ok(length) = <[u8; 8]>::try_from(self.bytes(offset, 8)?) else { return Ok(None) };
        let lengths = frame_lengths(u64::from_le_bytes(length)).filter(|(record, _)| *record <= RECORD_BYTES_MAX);
        Ok(lengths.map(|(record, pad)| offset + 8 + record + pad))
    }

    /// What is found behind a bad record that begins at `offset`.
    ///
    /// Whatever has the form of a record may be part of a client's value, so the bytes of a record are not searched while its
    /// length is known.
    pub(super) fn rest(&mut self, offset: u64) -> io::Result<Rest> {
        let mut rest = Rest { used_until: self.used_until(offset)?, group_at: None, record_at: None };
        let mut unknown_from = self.follow_lengths(offset, &mut rest)?;
        let end = self.end_by_length(offset)?;
        let fields = record_fields(self.bytes(offset + 8, FIELDS_BYTES)?);
        if let (Some(end), Some((_, record))) = (end, fields)
            && end != (offset + 8 + record).next_multiple_of(8)
        {
            // One of the two is damaged, perhaps the length.
            unknown_from = offset + 8;
        }
        if rest.group_at.is_none() {
            self.search(unknown_from, &mut rest)?;
        }
        Ok(rest)
    }

    /// End of the last byte from `offset` on that is not zero.
    fn used_until(&mut self, offset: u64) -> io::Result<u64> {
        let (mut at, mut used_until) = (offset, offset);
        while at < self.size {
            let block = self.bytes(at, ZEROS.len())?;
            if block.is_empty() {
                break;
            }
            let len = block.len() as u64;
            if *block != ZEROS[..block.len()]
                && let Some(last) = block.iter().rposition(|&byte| byte != 0)
            {
                used_until = at + last as u64 + 1;
            }
            at += len;
        }
        Ok(used_until)
    }

    /// Goes from length to length, the bad record's first. A torn write leaves each of them whole or zero, so that nothing
    /// read here is within a record. Answers where the first length is missing.
    fn follow_lengths(&mut self, offset: u64, rest: &mut Rest) -> io::Result<u64> {
        let mut at = offset;
        while at < rest.used_until {
            let Some(end) = self.end_by_length(at)? else { return Ok(at + 8) };
            if at > offset
                && let Some(kind) = self.outline(at)?
            {
                rest.record_at.get_or_insert(at);
                if kind == CRC {
                    rest.group_at = Some(at);
                    return Ok(end);
                }
            }
            at = end;
        }
        Ok(at)
    }

    /// Looks for records where no length tells where they begin. A group counts only if it leads to the end of what is used.
    fn search(&mut self, from: u64, rest: &mut Rest) -> io::Result<()> {
        let bytes_left = rest.used_until.saturating_sub(from).saturating_mul(CHAIN_ROUNDS);
        let mut known = Chains { used_until: rest.used_until, broken: HashSet::new(), bytes_left };
        let mut at = from;
        while at < rest.used_until {
            if self.bytes(at, ZEROS.len())? == ZEROS {
                at += ZEROS.len() as u64;
                continue;
            }
            if self.outline(at)?.is_some() {
                rest.record_at.get_or_insert(at);
                if let Some(group_at) = self.chain(at, &mut known)? {
                    rest.group_at = group_at;
                    return Ok(());
                }
            }
            at += 8;
        }
        Ok(())
    }

    /// Whether the records from `start` on lead to the end of what is used, each with the checksum that follows from the one
    /// before it; then where the first group with a record among them begins, if there is any.
    fn chain(&mut self, start: u64, known: &mut Chains) -> io::Result<Option<Option<u64>>> {
        let (mut at, mut sum) = (start, None);
        let (mut crc_at, mut group_at) = (None, None);
        while at < known.used_until {
            // A chain that goes on as one that broke before breaks, too.
            if known.broken.contains(&at) || known.bytes_left == 0 {
                return Ok(None);
            }
            let Frame::Record { record, next } = self.frame(at)? else { return Ok(None) };
            known.bytes_left = known.bytes_left.saturating_sub(next - at);
            if sum.is_some_and(|sum| !record.follows(sum)) {
                return Ok(None);
            }
            known.broken.insert(at);
            match record.kind {
                CRC => crc_at = crc_at.or(Some(at)),
                _ => group_at = group_at.or(crc_at),
            }
            (sum, at) = (Some(record.crc), next);
        }
        Ok(Some(group_at))
    }
}

/// The chains of records that were followed from one place after the other.
struct Chains {
    used_until: u64,
    /// Records that chains which broke have gone through.
    broken: HashSet<u64>,
    /// Bytes that may be read for further ones: a value can hold the beginnings of any number of long ones.
    bytes_left: u64,
}

/// Type and frame length of what begins these bytes.
fn outline(bytes: &[u8]) -> Option<(u64, u64)> {
    let (head, fields) = bytes.split_first_chunk::<8>()?;
    let (record, pad) = frame_lengths(u64::from_le_bytes(*head))?;
    let (kind, length) = record_fields(fields)?;
    (length == record).then_some((kind, 8 + record + pad))
}

/// Type and length of the record that begins these bytes, by its fields.
fn record_fields(mut bytes: &[u8]) -> Option<(u64, u64)> {
    let available = bytes.len();
    let field = |bytes: &mut &[u8], tag: u8| -> Option<u64> {
        *bytes = bytes.strip_prefix(&[tag])?;
        read_varint(bytes)
    };
    let kind = field(&mut bytes, 0x08).filter(|kind| (1..=5).contains(kind))?;
    field(&mut bytes, 0x10).filter(|crc| *crc <= u64::from(u32::MAX))?;
    let data = if kind == CRC { 0 } else { field(&mut bytes, 0x1a)? };
    let used = (available - bytes.len()) as u64;
    used.checked_add(data).map(|length| (kind, length))
}

/// What is found behind a bad record.
#[derive(Debug)]
pub(super) struct Rest {
    /// End of the last byte that is not zero.
    pub(super) used_until: u64,
    /// Where a later group of writes begins: all before it had reached the disk.
    pub(super) group_at: Option<u64>,
    /// Where something that reads like a record is.
    pub(super) record_at: Option<u64>,
}
