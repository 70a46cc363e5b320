use std::collections::VecDeque;

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState as RaftHardState, Snapshot, SnapshotMetadata};
use raft::util::entry_approximate_size;
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::core::wal::{HardState, WalEntry, WalEntryKind};
use crate::pb::walpb;
use crate::types::{LogIndex, LogPosition, MemberId, Term};

/// Bytes of entries that are kept in memory for members that are behind.
const KEPT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The same while a member has not confirmed them: it would need a state otherwise.
const UNCONFIRMED_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The part of the log that is in memory: everything after the last compaction.
///
/// The library reads it; [`RaftNode`](super::RaftNode) appends to it before the same entries go to the WAL.
#[derive(Debug)]
pub struct LogTail {
    /// Position right before the first entry held.
    base: (u64, u64),
    entries: VecDeque<Entry>,
    /// Bytes of all entries up to and with each one held, counted from some earlier entry.
    totals: VecDeque<u64>,
    /// The same for `base`.
    base_total: u64,
    hard_state: RaftHardState,
    conf_state: ConfState,
    /// The newest state on disk: what a member that is too far behind can be sent.
    saved: Option<SnapshotMetadata>,
}

impl LogTail {
    /// Starts from recovered state; `entries` follow `base` without a gap.
    pub fn new(
        base: LogPosition,
        entries: Vec<WalEntry>,
        hard_state: &HardState,
        conf_state: &walpb::ConfState,
    ) -> Self {
        let mut state = RaftHardState::default();
        state.set_term(hard_state.term.0);
        state.set_vote(hard_state.vote.map_or(0, |member| member.0));
        // A commit index may have been lost with an unsynced tail, and never counts more than what is there.
        let last = base.index.0 + entries.len() as u64;
        state.set_commit(hard_state.commit.0.clamp(base.index.0, last));
        let mut log = Self {
            base: (base.index.0, base.term.0),
            entries: VecDeque::new(),
            totals: VecDeque::new(),
            base_total: 0,
            hard_state: state,
            conf_state: conf_state_to_raft(conf_state),
            saved: None,
        };
        log.extend(entries.into_iter().map(to_raft));
        log
    }

    /// Position of the last entry, or the base when there is none.
    pub fn last(&self) -> (LogIndex, Term) {
        let (index, term) = self.entries.back().map_or(self.base, |entry| (entry.index, entry.term));
        (LogIndex(index), Term(term))
    }

    /// Entries held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no entry is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Last index before the first entry held.
    pub(super) fn base(&self) -> LogIndex {
        LogIndex(self.base.0)
    }

    /// Forgets entries up to `index`, which state on disk covers.
    pub fn compact(&mut self, index: LogIndex) {
        while let Some(first) = self.entries.front() {
            if first.index > index.0 {
                break;
            }
            self.base = (first.index, first.term);
            self.entries.pop_front();
            self.base_total = self.totals.pop_front().unwrap_or(self.base_total);
        }
    }

    /// Bytes of all entries, counted like [`bytes_upto`](Self::bytes_upto).
    pub(super) fn bytes(&self) -> u64 {
        self.totals.back().copied().unwrap_or(self.base_total)
    }

    /// Bytes of the entries up to and with `index`; only the difference of two such numbers means anything. None when
    /// `index` is before the base.
    pub(super) fn bytes_upto(&self, index: u64) -> Option<u64> {
        match index.checked_sub(self.base.0)? {
            0 => Some(self.base_total),
            _ => Some(self.totals.get(self.position(index)).copied().unwrap_or(self.bytes())),
        }
    }

    /// Up to where entries have to be forgotten to keep no more bytes than there is room for, when every member has
    /// confirmed what is up to `confirmed`.
    pub(super) fn over_bytes(&self, confirmed: LogIndex) -> LogIndex {
        self.over_kept_bytes().min(self.index_before_last(UNCONFIRMED_BYTES_MAX).max(confirmed))
    }

    /// The same whoever has confirmed what.
    pub(super) fn over_kept_bytes(&self) -> LogIndex {
        self.index_before_last(KEPT_BYTES_MAX)
    }

    /// The first index behind which there are no more than so many bytes of entries.
    fn index_before_last(&self, bytes: u64) -> LogIndex {
        let total = self.bytes().saturating_sub(bytes);
        if self.base_total >= total {
            return self.base();
        }
        LogIndex(self.base.0 + 1 + self.totals.partition_point(|upto| *upto < total) as u64)
    }

    fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            self.totals.push_back(self.bytes() + entry_approximate_size(&entry) as u64);
            self.entries.push_back(entry);
        }
    }

    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        // Entries of a deposed leader are replaced from the first that differs.
        while self.entries.back().is_some_and(|last| last.index >= first.index) {
            self.entries.pop_back();
            self.totals.pop_back();
        }
        self.extend(entries.iter().cloned());
    }

    /// State up to `position` is on disk, with these members.
    pub(super) fn set_saved(&mut self, position: LogPosition, conf_state: &walpb::ConfState) {
        let mut metadata = SnapshotMetadata::default();
        (metadata.index, metadata.term) = (position.index.0, position.term.0);
        metadata.set_conf_state(conf_state_to_raft(conf_state));
        self.saved = Some(metadata);
    }

    /// The state on disk at start is at `applied`, with the members the log was opened with.
    pub(super) fn saved_at(&mut self, applied: LogIndex) {
        if applied.0 > 0
            && let Some(term) = self.term_at(applied)
        {
            let conf_state = conf_state_from_raft(&self.conf_state);
            self.set_saved(LogPosition { index: applied, term }, &conf_state);
        }
    }

    /// Replaces the whole log by a snapshot from the leader.
    pub(super) fn install(&mut self, metadata: &SnapshotMetadata) {
        self.base = (metadata.index, metadata.term);
        self.base_total = self.bytes();
        self.entries.clear();
        self.totals.clear();
        self.conf_state = metadata.get_conf_state().clone();
        self.saved = Some(metadata.clone());
    }

    /// Term of the entry at `index`, if that is known.
    pub(super) fn term_at(&self, index: LogIndex) -> Option<Term> {
        Storage::term(self, index.0).ok().map(Term)
    }

    /// The commit index of the newest hard state.
    pub(super) fn commit(&self) -> LogIndex {
        LogIndex(self.hard_state.commit)
    }

    /// Whether one of the entries after `after`, up to `upto`, is a membership change.
    pub(super) fn changes_members(&self, after: LogIndex, upto: LogIndex) -> bool {
        let skip = self.position(after.0.max(self.base.0) + 1);
        let entries = self.entries.iter().skip(skip).take_while(|entry| entry.index <= upto.0);
        entries.map(Entry::get_entry_type).any(|kind| kind != EntryType::EntryNormal)
    }

    pub(super) fn set_hard_state(&mut self, state: &RaftHardState) {
        self.hard_state = state.clone();
    }

    pub(super) fn set_conf_state(&mut self, state: ConfState) {
        self.conf_state = state;
    }

    fn position(&self, index: u64) -> usize {
        (index - self.base.0 - 1) as usize
    }
}

impl Storage for LogTail {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last().0.0 + 1 {
            return Err(StorageError::Unavailable.into());
        }
        // As many as the library would keep: it asks for a whole tail, and takes one message of it.
        let max_size = max_size.into().unwrap_or(raft::NO_LIMIT);
        let mut size = 0u64;
        let within =
            self.entries.range(self.position(low)..self.position(high)).enumerate().take_while(|(at, entry)| {
                size = size.saturating_add(u64::from(entry.compute_size()));
                *at == 0 || size <= max_size
            });
        Ok(within.map(|(_, entry)| entry.clone()).collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index < self.base.0 {
            return Err(StorageError::Compacted.into());
        }
        self.entries.get(self.position(index)).map(|entry| entry.term).ok_or(StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().0.0)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        match &self.saved {
            Some(metadata) if metadata.index >= self.base.0.max(request_index) => {
                let mut snapshot = Snapshot::default();
                snapshot.set_metadata(metadata.clone());
                Ok(snapshot)
            }
            _ => Err(StorageError::SnapshotTemporarilyUnavailable.into()),
        }
    }
}

pub(super) fn to_raft(entry: WalEntry) -> Entry {
    let mut out = Entry::default();
    out.set_entry_type(match entry.kind {
        WalEntryKind::Normal => EntryType::EntryNormal,
        WalEntryKind::ConfChange => EntryType::EntryConfChange,
        WalEntryKind::ConfChangeV2 => EntryType::EntryConfChangeV2,
    });
    out.term = entry.term.0;
    out.index = entry.index.0;
    out.data = entry.data;
    out
}

pub(super) fn from_raft(entry: &Entry) -> WalEntry {
    WalEntry {
        kind: match entry.get_entry_type() {
            EntryType::EntryNormal => WalEntryKind::Normal,
            EntryType::EntryConfChange => WalEntryKind::ConfChange,
            EntryType::EntryConfChangeV2 => WalEntryKind::ConfChangeV2,
        },
        term: Term(entry.term),
        index: LogIndex(entry.index),
        data: entry.data.clone(),
    }
}

pub(super) fn hard_state_from_raft(state: &RaftHardState) -> HardState {
    HardState {
        term: Term(state.term),
        vote: (state.vote != 0).then_some(MemberId(state.vote)),
        commit: LogIndex(state.commit),
    }
}

pub(super) fn conf_state_from_raft(state: &ConfState) -> walpb::ConfState {
    walpb::ConfState {
        voters: state.voters.clone(),
        learners: state.learners.clone(),
        voters_outgoing: state.voters_outgoing.clone(),
        learners_next: state.learners_next.clone(),
        auto_leave: Some(state.auto_leave),
    }
}

pub(super) fn conf_state_to_raft(state: &walpb::ConfState) -> ConfState {
    let mut out = ConfState::default();
    out.set_voters(state.voters.clone());
    out.set_learners(state.learners.clone());
    out.set_voters_outgoing(state.voters_outgoing.clone());
    out.set_learners_next(state.learners_next.clone());
    out.auto_leave = state.auto_leave.unwrap_or(false);
    out
}
