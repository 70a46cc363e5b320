use super::record::{
    CRC, ENTRY, HardState, METADATA, RawRecord, SNAPSHOT, STATE, WalEntry, WalMetadata, WalSnapshot, decode_entry,
    decode_metadata, decode_snapshot, decode_state,
};
use crate::types::{LogIndex, LogPosition, Term};

/// Gathers what the records amount to, in the order in which they were written.
#[derive(Debug, Default)]
pub(super) struct Replay {
    from: LogPosition,
    pub(super) metadata: Option<WalMetadata>,
    pub(super) hard_state: HardState,
    /// Entries behind `from`, contiguous.
    pub(super) entries: Vec<WalEntry>,
    pub(super) snapshots: Vec<WalSnapshot>,
    /// Runs of equal terms: first index, term. Ends at `last`.
    terms: Vec<(u64, u64)>,
    last: u64,
    /// Entries may begin right behind this index without those before.
    base: u64,
    /// Set when entries behind `from` are missing because a snapshot stood for them.
    skipped_to: Option<u64>,
    /// Checksum so far; none before the first record.
    pub(super) crc: Option<u32>,
    /// Records since the segment's beginning: checksum, then metadata, then anything.
    head: Head,
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
    pub(super) fn new(from: LogPosition, first: u64) -> Self {
        Self { from, base: first.saturating_sub(1), ..Self::default() }
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
        if record.kind == CRC {
            // Data would be outside every checksum.
            if !record.data.is_empty() || self.crc.is_some_and(|crc| crc != record.crc) {
                return Verdict::Mismatch;
            }
            self.crc = Some(record.crc);
        } else {
            let crc = crc32c::crc32c_append(self.crc.unwrap_or(0), record.data);
            if crc != record.crc {
                return Verdict::Mismatch;
            }
            if let Err(what) = self.content(record) {
                return Verdict::Wrong(what);
            }
            self.crc = Some(crc);
        }
        self.head = match self.head {
            Head::Checksum => Head::Metadata,
            Head::Metadata | Head::Complete => Head::Complete,
        };
        Verdict::Good
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
                self.base = self.base.max(snapshot.index.0);
                if snapshot.index.0 > 0 {
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
        // Behind a snapshot the entries before it need not be there.
        if index > self.last + 1 {
            self.terms.clear();
        }
        while self.terms.pop_if(|(first, _)| *first >= index).is_some() {}
        if self.terms.last().is_none_or(|(_, last)| *last != term) {
            self.terms.push((index, term));
        }
        self.last = index;
        let Some(offset) = index.checked_sub(self.from.index.0 + 1) else {
            self.entries.clear();
            return Ok(());
        };
        match usize::try_from(offset) {
            Ok(offset) if offset <= self.entries.len() => {
                self.entries.truncate(offset);
                self.entries.push(entry);
            }
            _ => self.skipped_to = Some(index),
        }
        Ok(())
    }

    /// Last index of the log, counting what a snapshot stands for.
    pub(super) fn last(&self) -> u64 {
        self.last.max(self.base)
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        if index > self.last {
            return None;
        }
        self.terms.iter().rev().find(|(first, _)| *first <= index).map(|(_, term)| *term)
    }

    /// Whether the log leads to the position reading was to begin at; the words say why not.
    pub(super) fn check_position(&self) -> Result<(), String> {
        let from = self.from;
        if let Some(index) = self.skipped_to {
            return Err(format!("entries between it and {index} were replaced by a snapshot"));
        }
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
