//! What the member of these tests is told to store, and what may be found after a crash.

use std::collections::BTreeMap;

use bytes::Bytes;
use watershed::core::backend::{Change, Table};
use watershed::core::wal::{HardState, WalEntry, WalEntryKind};
use watershed::types::{LogIndex, LogPosition, MemberId, RecordId, Revision, Term};

pub fn at(index: u64, term: u64) -> LogPosition {
    LogPosition { index: LogIndex(index), term: Term(term) }
}

/// The entry of an index in a term: there is only one.
pub fn entry(index: u64, term: u64) -> WalEntry {
    let bytes = (index * 37 + term * 11) % 700;
    let data: Vec<u8> = (0..bytes).map(|byte| (byte * 7 + index * 13 + term) as u8 | 1).collect();
    WalEntry { kind: WalEntryKind::Normal, term: Term(term), index: LogIndex(index), data: data.into() }
}

pub fn hard_state(vote: u64, term: u64, commit: u64) -> HardState {
    let vote = (vote != 0).then_some(MemberId(vote));
    HardState { term: Term(term), vote, commit: LogIndex(commit) }
}

/// What applying an entry changes: a record, the end of an older one, a row that is written again and again.
pub fn changes(index: u64, term: u64) -> Vec<Change> {
    let record = |index: u64| Bytes::copy_from_slice(&RecordId::new(Revision(index as i64), 0).to_bytes());
    let value = format!("entry {index} of term {term} {}", "x".repeat((index * 29 % 400) as usize));
    let mut changes = vec![
        Change::put(Table::Key, record(index), value),
        Change::put(Table::Lease, vec![(index % 5) as u8; 8], format!("{index} {term}")),
    ];
    if index.is_multiple_of(3) && index > 9 {
        changes.push(Change::delete(Table::Key, record(index - 9)));
    }
    changes
}

pub type Rows = BTreeMap<Bytes, Bytes>;

/// The state after the entries up to some index: records and leases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub records: Rows,
    pub leases: Rows,
}

impl State {
    pub fn apply(&mut self, index: u64, term: u64) {
        for Change { table, key, value } in changes(index, term) {
            let rows = if table == Table::Key { &mut self.records } else { &mut self.leases };
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
    }
}

/// One content that the log had: what stands for its beginning, entries behind that, term and vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogVersion {
    pub base: LogPosition,
    /// Term of each entry behind the base.
    pub terms: Vec<u64>,
    pub term: u64,
    pub vote: u64,
}

impl LogVersion {
    pub fn last(&self) -> u64 {
        self.base.index.0 + self.terms.len() as u64
    }

    pub fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.base.index.0 {
            return Some(self.base.term.0);
        }
        let place = index.checked_sub(self.base.index.0 + 1)?;
        self.terms.get(place as usize).copied()
    }

    /// Adds an entry, in place of those from its index on.
    pub fn push(&mut self, index: u64, term: u64) {
        self.terms.truncate((index - self.base.index.0 - 1) as usize);
        self.terms.push(term);
    }
}

/// All that one life of a member had written, in the order in which it was.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub versions: Vec<LogVersion>,
    /// Term of each committed entry; the first one is of index 1.
    pub committed: Vec<u64>,
    /// State after each committed entry, and before the first.
    pub states: Vec<State>,
}

impl History {
    pub fn commit(&mut self, term: u64) {
        self.committed.push(term);
        let mut state = self.states.last().cloned().unwrap_or_default();
        // The first entry makes the cluster; these tests give it no rows.
        if self.committed.len() > 1 {
            state.apply(self.committed.len() as u64, term);
        }
        self.states.push(state);
    }

    pub fn commit_index(&self) -> u64 {
        self.committed.len() as u64
    }

    pub fn position(&self, index: u64) -> LogPosition {
        match index.checked_sub(1) {
            None => LogPosition::default(),
            Some(place) => at(index, self.committed[place as usize]),
        }
    }

    pub fn newest(&self) -> &LogVersion {
        self.versions.last().expect("a life begins with a version")
    }
}
