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

    /// The record between the length at `offset` and the frame at `end`, whatever the length says; none where a disk may
    /// have lost the length alone.
    pub(super) fn record_before(&mut self, offset: u64, end: u64) -> io::Result<Option<RawRecord<'_>>> {
        let (start, room) = (offset + 8, end.saturating_sub(offset + 8));
        if start % SECTOR_BYTES == 0 || room > RECORD_BYTES_MAX {
            return Ok(None);
        }
        let bytes = self.bytes(start, room as usize)?;
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        // Zeroes at the end may be the record's own or padding.
        Ok((used.max(bytes.len().saturating_sub(7))..=bytes.len()).find_map(|len| RawRecord::parse(&bytes[..len])))
    }

    /// Type of the record that begins here, judged by its outline alone: all lengths fit, in the order in which we and
    /// etcd write the fields. Looks at a few bytes however long the record claims to be.
    fn outline(&mut self, offset: u64) -> io::Result<Option<u64>> {
        let size = self.size;
        let bytes = self.bytes(offset, 8 + 32)?;
        Ok(outline(bytes).filter(|(_, frame)| frame.checked_add(offset).is_some_and(|end| end <= size)).map(|it| it.0))
    }

    /// What is found behind a bad record that begins at `offset`.
    pub(super) fn rest(&mut self, offset: u64) -> io::Result<Rest> {
        let mut rest = Rest { used_until: offset, group_at: None, record_at: None };
        let mut at = offset;
        while at < self.size {
            if self.bytes(at, ZEROS.len())? == ZEROS {
                at += ZEROS.len() as u64;
                continue;
            }
            let word = self.bytes(at, 8)?;
            let used = word.iter().rposition(|&byte| byte != 0);
            if let Some(used) = used {
                rest.used_until = at + used as u64 + 1;
                if at > offset
                    && let Some(kind) = self.outline(at)?
                {
                    rest.record_at.get_or_insert(at);
                    if kind == CRC {
                        rest.group_at.get_or_insert(at);
                    }
                }
            }
            at += 8;
        }
        Ok(rest)
    }
}

/// Type and frame length of what begins these bytes.
fn outline(bytes: &[u8]) -> Option<(u64, u64)> {
    let (head, mut fields) = bytes.split_first_chunk::<8>()?;
    let (record, pad) = frame_lengths(u64::from_le_bytes(*head))?;
    let available = fields.len();
    let field = |fields: &mut &[u8], tag: u8| -> Option<u64> {
        *fields = fields.strip_prefix(&[tag])?;
        read_varint(fields)
    };
    let kind = field(&mut fields, 0x08).filter(|kind| (1..=5).contains(kind))?;
    field(&mut fields, 0x10).filter(|crc| *crc <= u64::from(u32::MAX))?;
    let data = if kind == CRC { 0 } else { field(&mut fields, 0x1a)? };
    let used = (available - fields.len()) as u64;
    (used.checked_add(data)? == record).then_some((kind, 8 + record + pad))
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
