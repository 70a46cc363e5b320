use std::path::{Path, PathBuf};

use super::disk::{WalDisk, WalFile};
use super::error::WalError;
use super::reader::{Frame, SegmentReader};
use super::record::{CRC, HardState, WalEntry, WalMetadata, WalSnapshot};
use super::replay::{Keep, Replay, Verdict};
use super::segment::SegmentName;
use crate::types::{LogIndex, LogPosition, Term};

/// What a log holds.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Whose log it is.
    pub metadata: WalMetadata,
    /// The last hard state; its commit index may be behind the position read from, since commit alone is not synced.
    pub hard_state: HardState,
    /// Position right before the first of `entries`; at or before the position read from.
    pub base: LogPosition,
    /// Entries behind `base`, without a gap.
    pub entries: Vec<WalEntry>,
    /// Snapshot marks in the segments read, oldest first; the mark that begins every log is left out.
    pub snapshots: Vec<WalSnapshot>,
    /// What was cut off the end.
    pub cut: Option<TornTail>,
}

/// An unfinished write at the end of the log. It was never reported as durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub path: PathBuf,
    /// Where it was cut.
    pub offset: u64,
    /// Bytes up to the last one that was not zero.
    pub bytes: u64,
    /// What was found there.
    pub what: String,
}

/// The segments of a log that are needed, and what they hold.
pub(super) struct Scanned<F> {
    /// All segments of the folder, oldest first.
    pub(super) segments: Vec<SegmentName>,
    pub(super) tail: F,
    /// End of the last good record in the tail.
    pub(super) end: u64,
    /// Where the last group in the tail begins. All before it had been synced when it was written.
    pub(super) group_at: u64,
    pub(super) crc: u32,
    pub(super) last: u64,
    pub(super) recovered: Recovered,
}

/// Lists the segments of a folder, oldest first. Other files are none of the log's.
pub(super) fn segments<D: WalDisk>(disk: &D, dir: &Path) -> Result<Vec<SegmentName>, WalError> {
    let names = disk.list(dir).map_err(|error| WalError::io("list", dir, error))?;
    let mut segments: Vec<_> = names.iter().filter_map(|name| SegmentName::parse(name)).collect();
    segments.sort();
    Ok(segments)
}

/// Reads the log from `from` on, and up to `keep` of what is in front of it.
pub(super) fn scan<D: WalDisk>(
    disk: &D,
    dir: &Path,
    from: LogPosition,
    keep: Keep,
) -> Result<Scanned<D::File>, WalError> {
    let segments = segments(disk, dir)?;
    let missing = || WalError::Missing { dir: dir.into(), index: from.index.0 };
    let needed = segments.iter().rposition(|name| name.index <= from.index.0).ok_or_else(missing)?;
    let wanted = from.index.0.saturating_sub(keep.entries);
    let wanted = segments.iter().rposition(|name| name.index <= wanted).unwrap_or(0);
    let room = usize::try_from(keep.bytes.div_ceil(disk.segment_bytes().max(1))).unwrap_or(usize::MAX);
    let first = wanted.max(needed.saturating_sub(room)).min(needed);
    let mut replay = Replay::new(from, keep, segments[first].index);
    let (tail, path, Good { group_at, end, cut }) =
        read_all(disk, dir, &segments[first..], &mut replay)?.ok_or_else(missing)?;
    let (Some(metadata), Some(crc), true) = (replay.metadata, replay.crc, replay.head_is_complete()) else {
        return Err(WalError::Corrupt { path, offset: end, what: "the segment has no complete head".into() });
    };
    let newest = replay.snapshots.iter().max_by_key(|mark| mark.index);
    if let Some(mark) = newest.filter(|mark| mark.index > from.index) {
        let mark = LogPosition { index: mark.index, term: mark.term };
        return Err(WalError::Superseded { dir: dir.into(), from, mark });
    }
    replay.check_position().map_err(|what| WalError::Unrelated { dir: dir.into(), from, what })?;
    let last = replay.last();
    let base = replay.base.ok_or_else(missing)?;
    let Replay { hard_state, entries, snapshots, .. } = replay;
    let recovered = Recovered { metadata, hard_state, base, entries: entries.into(), snapshots, cut };
    Ok(Scanned { segments, tail, end, group_at, crc, last, recovered })
}

/// The snapshot marks of a whole log, oldest first; changes nothing.
pub(super) fn marks<D: WalDisk>(disk: &D, dir: &Path) -> Result<Vec<WalSnapshot>, WalError> {
    let segments = segments(disk, dir)?;
    let Some(first) = segments.first() else { return Ok(Vec::new()) };
    // No entry is in front of nothing: none is held.
    let everything = LogPosition { index: LogIndex(u64::MAX), term: Term(0) };
    let mut replay = Replay::new(everything, Keep::default(), first.index);
    read_all(disk, dir, &segments, &mut replay)?;
    Ok(replay.snapshots)
}

/// The good part of a segment.
struct Good {
    /// Where its last group begins.
    group_at: u64,
    end: u64,
    /// What is to be cut off.
    cut: Option<TornTail>,
}

/// Replays neighbouring segments; answers with the last one.
fn read_all<D: WalDisk>(
    disk: &D,
    dir: &Path,
    segments: &[SegmentName],
    replay: &mut Replay,
) -> Result<Option<(D::File, PathBuf, Good)>, WalError> {
    for pair in segments.windows(2) {
        // Indexes may go back: a segment can begin where a new leader replaced the end of the log.
        if pair[1].seq != pair[0].seq.wrapping_add(1) {
            let what = format!("the segment before it is {}", pair[0]);
            return Err(WalError::Corrupt { path: dir.join(pair[1].to_string()), offset: 0, what });
        }
    }
    let mut tail = None;
    for (place, name) in segments.iter().enumerate() {
        let path = dir.join(name.to_string());
        let file = disk.open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => WalError::Locked { path: path.clone() },
            _ => WalError::io("open", &path, error),
        })?;
        // What is read below must stay: it may be in no more than the system's memory.
        file.sync_data().map_err(|error| WalError::io("sync", &path, error))?;
        let is_last = place + 1 == segments.len();
        let good = read_segment(&file, &path, is_last, replay)?;
        tail = Some((file, path, good));
    }
    Ok(tail)
}

/// Replays one segment; answers where its good part ends.
fn read_segment<F: WalFile>(file: &F, path: &Path, is_last: bool, replay: &mut Replay) -> Result<Good, WalError> {
    let io = |error| WalError::io("read", path, error);
    let corrupt = |offset, what: String| WalError::Corrupt { path: path.into(), offset, what };
    let mut reader = SegmentReader::new(file).map_err(io)?;
    let (mut offset, mut group_at) = (0, 0);
    replay.start_segment();
    let bad = loop {
        match reader.frame(offset).map_err(io)? {
            Frame::Record { record, next } => match replay.record(record) {
                Verdict::Good => {
                    if record.kind == CRC {
                        group_at = offset;
                    }
                    offset = next;
                }
                Verdict::Mismatch => break "checksum mismatch",
                Verdict::Wrong(what) => return Err(corrupt(offset, what)),
            },
            // Lost records of an earlier segment show at the next one, which begins with the checksum up to there.
            Frame::End if !is_last => return Ok(Good { group_at, end: offset, cut: None }),
            Frame::End => break "no record",
            Frame::Bad { what } => break what,
        }
    };
    if !is_last {
        return Err(corrupt(offset, bad.into()));
    }
    let rest = reader.rest(offset).map_err(io)?;
    if rest.used_until == offset {
        return Ok(Good { group_at, end: offset, cut: None });
    }
    if let Some(later) = rest.group_at {
        return Err(corrupt(offset, format!("{bad}, though a group written after it had been synced is at {later}")));
    }
    let followed = |at| Err(corrupt(offset, format!("{bad}, and the record is followed by another at {at}")));
    // A length is written whole: where it says something else than the record that it belongs to, it was damaged.
    if let Some((record, next)) = reader.record_by_fields(offset).map_err(io)?
        && replay.matches(record)
    {
        return followed(next);
    }
    if let Some(record_at) = rest.record_at {
        let ends_here = matches!(reader.frame(offset).map_err(io)?, Frame::End);
        if !ends_here && !reader.lacks_sector(offset).map_err(io)? {
            return followed(record_at);
        }
    }
    let cut = TornTail { path: path.into(), offset, bytes: rest.used_until - offset, what: bad.into() };
    Ok(Good { group_at, end: offset, cut: Some(cut) })
}
