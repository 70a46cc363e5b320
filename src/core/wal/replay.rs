use std::collections::VecDeque;

use super::record::{
    CRC, ENTRY, HardState, METADATA, RawRecord, SNAPSHOT, STATE, WalEntry, WalMetadata, WalSnapshot, decode_entry,
    decode_metadata, decode_snapshot, decode_state,
};
use crate::types::{LogIndex, LogPosition, Term};

/// Gathers what the records amount to, in the order in which they were written.
#[derive(Debug, Default)]
pub(super) struct Replay {
    from: LogPosition,
    keep: Keep,
    pub(super) metadata: Option<WalMetadata>,
    pub(super) hard_state: HardState,
    /// Contiguous, right behind `base`.
    pub(super) entries: VecDeque<WalEntry>,
    /// Position before the first entry held; none before anything is known.
    pub(super) base: Option<LogPosition>,
    /// Bytes of the entries held.
    held_bytes: u64,
    pub(super) snapshots: Vec<WalSnapshot>,
    /// Runs of equal terms: first index, term. Ends at `last`.
    terms: Vec<(u64, u64)>,
    last: u64,
    /// Entries may begin right behind this index without those before.
    first: u64,
    /// Checksum so far; none before the first record.
    pub(super) crc: Option<u32>,
    /// Records since the segment's beginning: checksum, then metadata, then anything.
    head: Head,
}

/// How much of the log in front of the position read from is wanted, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Entries.
    pub entries: u64,
    /// Bytes of them.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Head {
    #[default]
    Checksum,
    Metadata,
    Complete,
}

/// Whether a record is what was written.
pub(super) enum Verdict {
    Good,
    /// The checksum differs, as after a torn write.
    Mismatch,
    /// The checksum is right, or says nothing, and the record does not fit the log.
    Wrong(String),
}

impl Replay {
    /// Begins with a segment whose name says that its first entry is `first`.
    pub(super) fn new(from: LogPosition, keep: Keep, first: u64) -> Self {
        let base = (first == 0).then(LogPosition::default);
        Self { from, keep, base, first: first.saturating_sub(1), ..Self::default() }
    }

    pub(super) fn start_segment(&mut self) {
        self.head = Head::Checksum;
    }

    pub(super) fn head_is_complete(&self) -> bool {
        self.head == Head::Complete
    }

    pub(super) fn record(&mut self, record: RawRecord<'_>) -> Verdict {
        match self.head {
            Head::Checksum if record.kind != CRC => {
                return Verdict::Wrong("the segment does not begin with its checksum".into());
            }
            Head::Metadata if record.kind != METADATA => {
                return Verdict::Wrong("the segment does not continue with its metadata".into());
            }
            _ => {}
        }
        if !self.matches(record) {
            return Verdict::Mismatch;
        }
        if record.kind != CRC
            && let Err(what) = self.content(record)
        {
            return Verdict::Wrong(what);
        }
        self.crc = Some(record.crc);
        self.head = match self.head {
            Head::Checksum => Head::Metadata,
            Head::Metadata | Head::Complete => Head::Complete,
        };
        Verdict::Good
    }

    /// Whether a record has the checksum that is next.
    pub(super) fn matches(&self, record: RawRecord<'_>) -> bool {
        // The first one states what it goes on from.
        record.follows(self.crc.unwrap_or(if record.kind == CRC { record.crc } else { 0 }))
    }

    fn content(&mut self, record: RawRecord<'_>) -> Result<(), String> {
        // The type is outside the checksum, so that each kind of record is held to all that it must have.
        if record.data.is_empty() {
            return Err(format!("record of type {} has no data", record.kind));
        }
        match record.kind {
            METADATA => {
                let metadata = decode_metadata(record.data)?;
                match self.metadata {
                    Some(known) if known != metadata => {
                        return Err(format!("metadata names another log: {metadata:?} after {known:?}"));
                    }
                    _ => self.metadata = Some(metadata),
                }
            }
            ENTRY => self.entry(decode_entry(record.data)?)?,
            STATE => {
                let state = decode_state(record.data)?;
                if state.term < self.hard_state.term {
                    return Err(format!("state goes back from term {} to {}", self.hard_state.term, state.term));
                }
                self.hard_state = state;
            }
            SNAPSHOT => {
                let snapshot = decode_snapshot(record.data)?;
                if snapshot.index.0 > 0 {
                    self.mark(&snapshot)?;
                    self.snapshots.push(snapshot);
                }
            }
            other => return Err(format!("record has unknown type {other}")),
        }
        Ok(())
    }

    /// An entry either follows the log or replaces its end from that index on.
    fn entry(&mut self, entry: WalEntry) -> Result<(), String> {
        let (index, term) = (entry.index.0, entry.term.0);
        if index == 0 || term == 0 {
            return Err(format!("entry has index {index} and term {term}"));
        }
        if index <= self.hard_state.commit.0 && index <= self.last {
            return Err(format!("entry {index} replaces one that is committed"));
        }
        let next = self.last().checked_add(1).ok_or("the log has no index left")?;
        if index > next {
            return Err(format!("entry {index} follows the end of the log at {}", self.last()));
        }
        if let Some(before) = self.term_at(index - 1)
            && term < before
        {
            return Err(format!("entry {index} goes back from term {before} to {term}"));
        }
        // Right behind the beginning of the part that is read, entries before need not be there.
        if index > self.last + 1 {
            self.terms.clear();
        }
        while self.terms.pop_if(|(first, _)| *first >= index).is_some() {}
        if self.terms.last().is_none_or(|(_, last)| *last != term) {
            self.terms.push((index, term));
        }
        self.last = index;
        self.hold(entry);
        Ok(())
    }

    /// Adds an entry to those held, and drops those that are no longer wanted.
    fn hold(&mut self, entry: WalEntry) {
        while self.entries.back().is_some_and(|last| last.index >= entry.index) {
            self.held_bytes -= self.entries.pop_back().map_or(0, |entry| entry.data.len() as u64);
        }
        let end = self.entries.back().map(|last| last.index).or(self.base.map(|base| base.index));
        if end.is_none_or(|end| end.0 + 1 != entry.index.0) {
            // Nothing is known of what is in front of it, so that it can only be what others follow.
            self.base = Some(LogPosition { index: entry.index, term: entry.term });
            return;
        }
        self.held_bytes += entry.data.len() as u64;
        self.entries.push_back(entry);
        while let Some(oldest) = self.entries.front()
            && oldest.index <= self.from.index
            && (self.held_bytes > self.keep.bytes || self.from.index.0 - oldest.index.0 >= self.keep.entries)
        {
            self.base = Some(LogPosition { index: oldest.index, term: oldest.term });
            self.held_bytes -= oldest.data.len() as u64;
            self.entries.pop_front();
        }
    }

    /// A snapshot of the leader's that the log does not lead to stands for all that was there.
    fn mark(&mut self, snapshot: &WalSnapshot) -> Result<(), String> {
        let (index, term) = (snapshot.index.0, snapshot.term.0);
        let known = self.term_at(index);
        if index <= self.last() && known.is_none_or(|known| known == term) {
            return Ok(());
        }
        if index <= self.hard_state.commit.0 && index <= self.last {
            return Err(format!("snapshot at {index} of term {term} replaces an entry that is committed"));
        }
        self.entries.clear();
        self.held_bytes = 0;
        self.base = Some(LogPosition { index: snapshot.index, term: snapshot.term });
        self.terms = vec![(index, term)];
        (self.last, self.first) = (index, index);
        Ok(())
    }

    /// Last index of the log, counting what a snapshot stands for.
    pub(super) fn last(&self) -> u64 {
        self.last.max(self.first)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        if index > self.last {
            return None;
        }
        self.terms.iter().rev().find(|(first, _)| *first <= index).map(|(_, term)| *term)
    }

    /// Whether the log leads to the position reading was to begin at; the error says why not.
    pub(super) fn check_position(&self) -> Result<(), String> {
        let from = self.from;
        if from.index == LogIndex(0) {
            return Ok(());
        }
        let marked = self.snapshots.iter().rev().find(|snapshot| snapshot.index == from.index);
        let known = self.term_at(from.index.0).map(Term).or(marked.map(|snapshot| snapshot.term));
        match known {
            Some(term) if term == from.term => Ok(()),
            Some(term) => Err(format!("its entry there has term {term}")),
            None if self.last < from.index.0 => Err(format!("it ends at index {}", self.last)),
            None => Err("it has no entry there".into()),
        }
    }
}
