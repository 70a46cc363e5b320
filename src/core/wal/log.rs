use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::disk::{WalDisk, WalFile};
use super::error::WalError;
use super::prepare::Preparing;
use super::reader::RECORD_BYTES_MAX;
use super::record::{Encoder, HardState, WalEntry, WalMetadata, WalSnapshot};
use super::recover::{Recovered, marks, scan};
use super::replay::Keep;
use super::segment::SegmentName;
use crate::types::{LogIndex, LogPosition};

/// Encoded bytes after which they are handed to the system before the group is complete.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Bytes written at a time when the last group is written once more.
const REWRITE_BYTES: usize = 1024 * 1024;
/// Name of the next segment while it is prepared.
const PREPARED: &str = "1.tmp";
/// Most bytes that a record needs beside its data.
const RECORD_OVERHEAD_BYTES: u64 = 128;
/// The next segment is prepared from this part of the present one on: logs that stay small do without.
const PREPARE_FROM: u64 = 16;
/// Zeroes of the next segment for each byte of the log: it is complete when this one is half full.
const ZEROES_PER_BYTE: u64 = 2;
/// The same while the present segment has no zeroes, and ends as soon as the next is complete.
const ZEROES_PER_BYTE_SOON: u64 = 8;

/// An open log. One owner, on a thread that may wait for the disk.
///
/// After any error every call fails: what reached the disk then is for the next start to find out.
#[derive(Debug)]
pub struct Wal<D: WalDisk> {
    disk: D,
    dir: PathBuf,
    metadata: WalMetadata,
    segments: VecDeque<SegmentName>,
    tail: D::File,
    /// Whether zeroes were written to the tail before its records.
    tail_is_zeroed: bool,
    next: Next<D::File>,
    /// Where the buffer goes in the tail.
    offset: u64,
    encoder: Encoder,
    buffer: Vec<u8>,
    /// Whether anything was appended since the last sync.
    group_open: bool,
    hard_state: Option<HardState>,
    last: u64,
    written_bytes: u64,
    poisoned: Option<String>,
}

impl<D: WalDisk> Wal<D> {
    /// Makes a new log in a folder that does not exist yet.
    ///
    /// The folder gets its name once its contents are durable, so that a crash leaves no half-made log.
    ///
    /// # Errors
    /// The folder exists, or the disk refuses.
    pub fn create(disk: D, dir: &Path, metadata: WalMetadata) -> Result<Self, WalError> {
        if disk.exists(dir).map_err(|error| WalError::io("look for", dir, error))? {
            return Err(WalError::Exists { dir: dir.into() });
        }
        let mut made_as = dir.as_os_str().to_os_string();
        made_as.push(".tmp");
        let made_as = PathBuf::from(made_as);
        disk.remove(&made_as).map_err(|error| WalError::io("remove", &made_as, error))?;
        disk.create_dir(&made_as).map_err(|error| WalError::io("create folder", &made_as, error))?;
        let name = SegmentName { seq: 0, index: 0 };
        let path = made_as.join(name.to_string());
        let mut tail =
            disk.create(&path, disk.segment_bytes()).map_err(|error| WalError::io("create", &path, error))?;
        let (mut encoder, mut buffer) = (Encoder::default(), Vec::with_capacity(64 * 1024));
        encoder.crc_record(&mut buffer);
        encoder.metadata(&mut buffer, &metadata);
        encoder.snapshot(&mut buffer, None);
        tail.write_at(0, &buffer).map_err(|error| WalError::io("write", &path, error))?;
        tail.sync_data().map_err(|error| WalError::io("sync", &path, error))?;
        disk.sync_dir(&made_as).map_err(|error| WalError::io("sync", &made_as, error))?;
        disk.rename(&made_as, dir).map_err(|error| WalError::io("rename", dir, error))?;
        sync_parent(&disk, dir)?;
        let offset = buffer.len() as u64;
        buffer.clear();
        Ok(Self {
            disk,
            dir: dir.into(),
            metadata,
            segments: [name].into(),
            tail,
            tail_is_zeroed: false,
            next: Next::None,
            offset,
            encoder,
            buffer,
            group_open: false,
            hard_state: None,
            last: 0,
            written_bytes: 0,
            poisoned: None,
        })
    }

    /// Opens a log and reads what lies behind `from`, the position of the stored state.
    ///
    /// An unfinished write at the end is cut off and reported; the cut is durable when this returns.
    ///
    /// # Errors
    /// Corruption, with file and offset; a log that does not lead to `from`, or that goes on from a later state; a
    /// second opening; the disk refuses.
    pub fn open(disk: D, dir: &Path, from: LogPosition) -> Result<(Self, Recovered), WalError> {
        Self::open_keeping(disk, dir, from, Keep::default())
    }

    /// As [`open`](Self::open), and reads some of what lies in front of `from`, too: for members that are behind.
    ///
    /// # Errors
    /// The same.
    pub fn open_keeping(disk: D, dir: &Path, from: LogPosition, keep: Keep) -> Result<(Self, Recovered), WalError> {
        disk.sync_dir(dir).map_err(|error| WalError::io("sync", dir, error))?;
        let mut scanned = scan(&disk, dir, from, keep)?;
        let path = dir.join(scanned.segments.last().map(ToString::to_string).unwrap_or_default());
        if scanned.recovered.cut.is_some() {
            // Whatever is left of the write must not mix with later records.
            scanned.tail.truncate(scanned.end).map_err(|error| WalError::io("truncate", &path, error))?;
        }
        rewrite(&mut scanned.tail, scanned.group_at, scanned.end)
            .map_err(|error| WalError::io("write", &path, error))?;
        scanned.tail.reserve(disk.segment_bytes()).map_err(|error| WalError::io("reserve room in", &path, error))?;
        scanned.tail.sync_data().map_err(|error| WalError::io("sync", &path, error))?;
        let wal = Self {
            disk,
            dir: dir.into(),
            metadata: scanned.recovered.metadata,
            segments: scanned.segments.into(),
            tail: scanned.tail,
            tail_is_zeroed: false,
            next: Next::None,
            offset: scanned.end,
            encoder: Encoder { crc: scanned.crc },
            buffer: Vec::with_capacity(64 * 1024),
            group_open: false,
            hard_state: Some(scanned.recovered.hard_state).filter(|state| *state != HardState::default()),
            last: scanned.last,
            written_bytes: 0,
            poisoned: None,
        };
        Ok((wal, scanned.recovered))
    }

    /// The snapshot marks of a log that is not open, oldest first: the states that it may go on from.
    ///
    /// Reads all of it and changes nothing; what is read is durable when this returns.
    ///
    /// # Errors
    /// Corruption, with file and offset; another process has the log open; the disk refuses.
    pub fn snapshots(disk: &D, dir: &Path) -> Result<Vec<WalSnapshot>, WalError> {
        disk.sync_dir(dir).map_err(|error| WalError::io("sync", dir, error))?;
        marks(disk, dir)
    }

    /// Index of the last entry appended, or of a later snapshot mark.
    pub fn last_index(&self) -> LogIndex {
        LogIndex(self.last)
    }

    /// Adds entries, then the hard state, to the open group. Nothing is safe before [`sync`](Self::sync).
    ///
    /// An entry whose index the log has already replaces it and all later ones.
    ///
    /// # Errors
    /// Entries that leave a gap; the disk refuses. Any error closes the log.
    pub fn append(&mut self, entries: &[WalEntry], hard_state: Option<&HardState>) -> Result<(), WalError> {
        self.guarded(|wal| wal.append_group(entries, hard_state))
    }

    /// Bytes handed to the system since the log was opened.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Hands everything appended to the system, so that [`sync`](Self::sync) has that behind it.
    ///
    /// # Errors
    /// The disk refuses; the log is closed then.
    pub fn write(&mut self) -> Result<(), WalError> {
        self.guarded(Self::write_buffer)
    }

    /// Makes everything appended durable: one write, one sync; then closes the segment if it is full.
    ///
    /// # Errors
    /// The disk refuses; the log is closed then.
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.guarded(Self::sync_group)
    }

    /// Notes durably that the state up to a position is held elsewhere; entries right behind it may follow.
    ///
    /// # Errors
    /// The disk refuses; the log is closed then.
    pub fn mark_snapshot(&mut self, snapshot: &WalSnapshot) -> Result<(), WalError> {
        self.guarded(|wal| {
            wal.open_group();
            wal.encoder.snapshot(&mut wal.buffer, Some(snapshot));
            wal.last = wal.last.max(snapshot.index.0);
            wal.sync_group()
        })
    }

    /// Deletes whole segments that hold nothing behind `upto`, but leaves `keep` segments at least.
    ///
    /// # Errors
    /// The disk refuses; the log is closed then.
    pub fn release(&mut self, upto: LogIndex, keep: usize) -> Result<(), WalError> {
        self.guarded(|wal| {
            let mut released = false;
            // The entry at `upto` itself stays: the next start compares its term.
            while wal.segments.len() > keep.max(1) && wal.segments[1].index <= upto.0 {
                let path = wal.dir.join(wal.segments[0].to_string());
                // Oldest first, so that a crash leaves the rest contiguous.
                wal.disk.remove(&path).map_err(|error| WalError::io("remove", &path, error))?;
                wal.segments.pop_front();
                released = true;
            }
            match released {
                true => wal.disk.sync_dir(&wal.dir).map_err(|error| WalError::io("sync", &wal.dir, error)),
                false => Ok(()),
            }
        })
    }

    fn guarded(&mut self, body: impl FnOnce(&mut Self) -> Result<(), WalError>) -> Result<(), WalError> {
        if let Some(first) = &self.poisoned {
            return Err(WalError::Poisoned { first: first.clone() });
        }
        let result = body(self);
        if let Err(error) = &result {
            self.poisoned = Some(error.to_string());
        }
        result
    }

    fn append_group(&mut self, entries: &[WalEntry], hard_state: Option<&HardState>) -> Result<(), WalError> {
        for entry in entries {
            let in_order = entry.index.0 != 0 && entry.index.0 <= self.last.saturating_add(1) && entry.term.0 != 0;
            let (index, term, bytes) = (entry.index.0, entry.term.0, entry.data.len());
            if !in_order {
                return Err(WalError::OutOfOrder { index, term, last: self.last });
            }
            if bytes as u64 + RECORD_OVERHEAD_BYTES > RECORD_BYTES_MAX {
                return Err(WalError::TooLarge { index, bytes });
            }
            self.open_group();
            self.encoder.entry(&mut self.buffer, entry);
            self.last = entry.index.0;
            if self.buffer.len() > BUFFER_BYTES {
                self.write_buffer()?;
            }
        }
        // Term 0 is the state of a member that has not begun; there is nothing to keep of it.
        if let Some(state) = hard_state.filter(|state| state.term.0 != 0) {
            self.open_group();
            self.encoder.state(&mut self.buffer, state);
            self.hard_state = Some(*state);
        }
        Ok(())
    }

    /// The first record of a group states the checksum so far.
    ///
    /// All before it had been synced, which is how a reader knows a torn group from a damaged one.
    fn open_group(&mut self) {
        if !self.group_open {
            self.encoder.crc_record(&mut self.buffer);
            self.group_open = true;
        }
    }

    fn sync_group(&mut self) -> Result<(), WalError> {
        if !self.group_open {
            return Ok(());
        }
        self.write_buffer()?;
        self.sync_tail()?;
        self.group_open = false;
        self.prepare_next();
        let is_next_better = !self.tail_is_zeroed && matches!(self.next, Next::Ready(_));
        if is_next_better || self.offset >= self.disk.segment_bytes() { self.cut() } else { Ok(()) }
    }

    /// Has the next segment made beside this one, at a pace that follows the log's.
    fn prepare_next(&mut self) {
        let size = self.disk.segment_bytes();
        let Some(ahead) = self.offset.checked_sub(size / PREPARE_FROM) else { return };
        if matches!(self.next, Next::None) {
            let preparing = self.disk.prepare(&self.dir.join(PREPARED), size);
            self.next = preparing.map_or(Next::Refused, Next::Preparing);
        }
        if let Next::Preparing(preparing) = &mut self.next {
            let pace = if self.tail_is_zeroed { ZEROES_PER_BYTE } else { ZEROES_PER_BYTE_SOON };
            preparing.allow(size.min((ahead + 1) * pace));
            match preparing.finished() {
                None => {}
                Some(Ok(file)) => self.next = Next::Ready(file),
                Some(Err(error)) => {
                    tracing::warn!(%error, dir = ?self.dir, "next log segment is not prepared ahead");
                    self.next = Next::Refused;
                }
            }
        }
    }

    fn write_buffer(&mut self) -> Result<(), WalError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.tail.write_at(self.offset, &self.buffer);
        written.map_err(|error| WalError::io("write", &self.tail_path(), error))?;
        self.offset += self.buffer.len() as u64;
        self.written_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        self.buffer.shrink_to(2 * BUFFER_BYTES);
        Ok(())
    }

    fn sync_tail(&self) -> Result<(), WalError> {
        self.tail.sync_data().map_err(|error| WalError::io("sync", &self.tail_path(), error))
    }

    fn tail_path(&self) -> PathBuf {
        self.dir.join(self.segments.back().map(ToString::to_string).unwrap_or_default())
    }

    /// Closes the full segment and begins the next.
    ///
    /// The new file is complete and durable before it gets its name, so that every named segment has its head.
    fn cut(&mut self) -> Result<(), WalError> {
        let old = self.tail_path();
        self.tail.truncate(self.offset).map_err(|error| WalError::io("truncate", &old, error))?;
        self.sync_tail()?;
        let seq = self.segments.back().map_or(0, |name| name.seq + 1);
        let name = SegmentName { seq, index: self.last + 1 };
        let path = self.dir.join(name.to_string());
        let (made_as, mut tail) = self.take_next()?;
        self.encoder.crc_record(&mut self.buffer);
        self.encoder.metadata(&mut self.buffer, &self.metadata);
        if let Some(state) = &self.hard_state {
            self.encoder.state(&mut self.buffer, state);
        }
        tail.write_at(0, &self.buffer).map_err(|error| WalError::io("write", &made_as, error))?;
        tail.sync_data().map_err(|error| WalError::io("sync", &made_as, error))?;
        self.disk.rename(&made_as, &path).map_err(|error| WalError::io("rename", &path, error))?;
        self.disk.sync_dir(&self.dir).map_err(|error| WalError::io("sync", &self.dir, error))?;
        self.offset = self.buffer.len() as u64;
        self.buffer.clear();
        self.tail = tail;
        self.segments.push_back(name);
        tracing::info!(segment = ?path, "began a log segment");
        Ok(())
    }

    /// The file for the next segment, and its name: the prepared one, or one that has its space reserved only.
    fn take_next(&mut self) -> Result<(PathBuf, D::File), WalError> {
        let prepared = match std::mem::replace(&mut self.next, Next::None) {
            Next::Ready(file) => Some(file),
            // For the one after that.
            Next::Preparing(preparing) => {
                self.next = Next::Preparing(preparing);
                None
            }
            Next::None | Next::Refused => None,
        };
        self.tail_is_zeroed = prepared.is_some();
        if let Some(file) = prepared {
            return Ok((self.dir.join(PREPARED), file));
        }
        let made_as = self.dir.join("0.tmp");
        let made = self.disk.create(&made_as, self.disk.segment_bytes());
        made.map_err(|error| WalError::io("create", &made_as, error)).map(|file| (made_as, file))
    }
}

/// The segment after the present one, as far as it is there.
#[derive(Debug)]
enum Next<F> {
    None,
    Preparing(Box<dyn Preparing<F>>),
    Ready(F),
    /// Not again before the present segment ends.
    Refused,
}

/// Writes what is there once more.
///
/// The process before may have ended because a sync failed. The system then shows what it was to write, calls it
/// clean, and never writes it: a sync alone would succeed without writing.
fn rewrite<F: WalFile>(tail: &mut F, mut from: u64, end: u64) -> std::io::Result<()> {
    let mut chunk = vec![0; REWRITE_BYTES.min(usize::try_from(end - from).unwrap_or(REWRITE_BYTES))];
    while from < end {
        let part = chunk.len().min(usize::try_from(end - from).unwrap_or(usize::MAX));
        let read = tail.read_at(from, &mut chunk[..part])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        tail.write_at(from, &chunk[..read])?;
        from += read as u64;
    }
    Ok(())
}

fn sync_parent<D: WalDisk>(disk: &D, dir: &Path) -> Result<(), WalError> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    disk.sync_dir(parent).map_err(|error| WalError::io("sync", parent, error))
}
