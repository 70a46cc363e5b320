//! One consistent state, and reading it at a revision.

use std::iter::Peekable;

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::MvccError;
use super::hash_cache::HashCache;
use super::holds::Holds;
use super::index::{Past, Spot};
use super::pins::Pins;
use super::record::Record;
use crate::core::backend::Backend;
use crate::tree::{Iter, Tree};
use crate::types::{Key, KeyRange, RecordId, Revision};

/// Everything a reader needs; cloning shares both trees.
#[derive(Clone)]
pub(super) struct State {
    /// Where the values of the versions in `past` are.
    pub backend: Backend,
    /// The newest version of every key that exists.
    pub live: Tree<Record>,
    /// Replaced versions and tombstones that are not compacted.
    pub past: Tree<Past>,
    pub revision: Revision,
    /// -1 before the first compaction.
    pub compacted: Revision,
    /// Rows without content, oldest first: a restore with `--bump-revision` leaves one, so that the revision it chose is
    /// the newest. They name no key, and the only thing that sees them is the hash.
    pub bumps: Vec<RecordId>,
    /// Bytes of live versions replaced since the start; see `pins.rs`.
    pub replaced_bytes: u64,
}

impl State {
    pub(super) fn empty(backend: Backend) -> Self {
        Self {
            backend,
            live: Tree::default(),
            past: Tree::default(),
            revision: Revision(1),
            compacted: Revision(-1),
            bumps: Vec::new(),
            replaced_bytes: 0,
        }
    }
}

/// What the writer shares with all readers.
pub(super) struct Shared {
    pub published: ArcSwap<State>,
    /// Of hashes being computed; compaction removes nothing meanwhile.
    pub holds: Holds,
    pub hashes: HashCache,
    pub pins: Pins,
}

/// A state with the means to load what it does not hold itself.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub state: &'a State,
    pub shared: &'a Shared,
}

/// A version found by a read.
#[derive(Clone, Copy)]
pub(super) enum Found<'a> {
    Live(&'a Record),
    Past(&'a Past),
}

impl<'a> Found<'a> {
    pub(super) fn key(self) -> &'a [u8] {
        match self {
            Self::Live(record) => record.key(),
            Self::Past(past) => &past.key,
        }
    }

    /// Revision that wrote it.
    fn written(self) -> i64 {
        match self {
            Self::Live(record) => record.modified().0,
            Self::Past(past) => past.main,
        }
    }
}

impl<'a> View<'a> {
    /// The revision a request reads at; 0 and below mean the newest.
    pub(super) fn at(self, asked: i64) -> Result<Revision, MvccError> {
        let State { revision: current, compacted, .. } = *self.state;
        match Revision(asked) {
            asked if asked > current => Err(MvccError::Future { asked, current }),
            asked if asked.0 <= 0 => Ok(current),
            asked if asked < compacted => Err(MvccError::Compacted { asked, compacted }),
            asked => Ok(asked),
        }
    }

    /// The version of one key that was current at `at`.
    pub(super) fn one(self, key: &[u8], at: Revision) -> Option<Found<'a>> {
        let live = self.state.live.get(key);
        if let Some(record) = live
            && (at >= self.state.revision || record.modified() <= at)
        {
            return Some(Found::Live(record));
        }
        if at >= self.state.revision {
            return None;
        }
        let past = self.state.past.before(Spot::after(key, at.0))?;
        (past.key.as_ref() == key && past.until > at.0).then_some(Found::Past(past))
    }

    /// All versions of a range that were current at `at`, in key order.
    pub(super) fn walk(self, range: &'a KeyRange, at: Revision) -> Walk<'a> {
        if let KeyRange::One(key) = range {
            return Walk::One(self.one(key, at));
        }
        let (start, end) = bounds(range);
        if at >= self.state.revision {
            return Walk::Live { live: self.state.live.from(start), end };
        }
        Walk::Merged {
            live: self.state.live.from(start).peekable(),
            past: self.state.past.stamped_above(Spot::first(start), at.0).peekable(),
            at: at.0,
            end,
        }
    }

    /// The newest versions of a range that were written after `revision`, in key order.
    pub(super) fn walk_newer(self, range: &'a KeyRange, revision: i64) -> impl Iterator<Item = &'a Record> {
        let (start, end) = bounds(range);
        let covered = move |record: &&Record| match range {
            KeyRange::One(key) => record.key() == key.as_ref(),
            _ => below(record.key(), end),
        };
        self.state.live.stamped_above(start, revision).take_while(covered)
    }

    /// How many keys of a range existed at `at`. Walks only over what changed since.
    pub(super) fn count(self, range: &KeyRange, at: Revision) -> usize {
        if let KeyRange::One(key) = range {
            return usize::from(self.one(key, at).is_some());
        }
        let (start, end) = bounds(range);
        let live = &self.state.live;
        let now = end.map_or(live.len(), |end| live.rank(end)).saturating_sub(live.rank(start));
        if at >= self.state.revision {
            return now;
        }
        let newer = live.stamped_above(start, at.0).take_while(|record| below(record.key(), end)).count();
        let replaced = self.state.past.stamped_above(Spot::first(start), at.0);
        let replaced = replaced.take_while(|past| below(&past.key, end)).filter(|past| past.main <= at.0).count();
        now - newer + replaced
    }

    /// No walk over the range sees more versions than this. Two descents in each tree.
    pub(super) fn versions_at_most(self, range: &KeyRange, with_past: bool) -> usize {
        if let KeyRange::One(_) = range {
            return 1;
        }
        let (start, end) = bounds(range);
        let State { live, past, .. } = self.state;
        let mut versions = end.map_or(live.len(), |end| live.rank(end)).saturating_sub(live.rank(start));
        if with_past {
            let before_end = end.map_or(past.len(), |end| past.rank(Spot::first(end)));
            versions += before_end.saturating_sub(past.rank(Spot::first(start)));
        }
        versions
    }

    /// The encoded pair of a version.
    pub(super) fn load(self, found: Found<'_>) -> Result<Bytes, MvccError> {
        let past = match found {
            Found::Live(record) => return Ok(record.bytes()),
            Found::Past(past) => past,
        };
        if let Some(bytes) = self.state.backend.record(past.id())? {
            return Ok(bytes);
        }
        // A compaction after this state was published may have removed the row.
        let compacted = self.shared.published.load().compacted.max(self.state.compacted);
        if past.falls_at(compacted) {
            return Err(MvccError::Compacted { asked: Revision(past.main), compacted });
        }
        Err(MvccError::Corrupt { id: past.id(), problem: "missing" })
    }

    /// The pair as it was at `at`, if it existed and is not compacted.
    pub(super) fn pair_at(self, key: &[u8], at: Revision) -> Result<Option<Bytes>, MvccError> {
        if at < self.state.compacted {
            return Ok(None);
        }
        match self.one(key, at).map(|found| self.load(found)) {
            None | Some(Err(MvccError::Compacted { .. })) => Ok(None),
            Some(loaded) => loaded.map(Some),
        }
    }
}

/// First key that may be covered, and the first that is not.
fn bounds(range: &KeyRange) -> (&[u8], Option<&[u8]>) {
    match range {
        KeyRange::One(key) | KeyRange::From(key) => (key, None),
        KeyRange::HalfOpen { start, end } => (start, Some(end)),
    }
}

fn below(key: &[u8], end: Option<&[u8]>) -> bool {
    end.is_none_or(|end| key < end)
}

/// The rest of `range` after `key`.
pub(super) fn after(range: &KeyRange, key: &[u8]) -> KeyRange {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    let start = Key::from(next);
    match range {
        KeyRange::One(_) => KeyRange::HalfOpen { start: start.clone(), end: start },
        _ => starting_at(range, start),
    }
}

/// The rest of `range` from `start` on, which it covers.
pub(super) fn starting_at(range: &KeyRange, start: Key) -> KeyRange {
    match range {
        KeyRange::One(_) => KeyRange::One(start),
        KeyRange::From(_) => KeyRange::From(start),
        KeyRange::HalfOpen { end, .. } => KeyRange::HalfOpen { start, end: end.clone() },
    }
}

/// See [`View::walk`].
pub(super) enum Walk<'a> {
    One(Option<Found<'a>>),
    Live { live: Iter<'a, Record>, end: Option<&'a [u8]> },
    Merged { live: Peekable<Iter<'a, Record>>, past: Peekable<Iter<'a, Past>>, at: i64, end: Option<&'a [u8]> },
}

impl<'a> Iterator for Walk<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Found<'a>> {
        match self {
            Self::One(found) => found.take(),
            Self::Live { live, end } => live.next().filter(|record| below(record.key(), *end)).map(Found::Live),
            // Both sides together in the order of keys: neither runs ahead over what was written since, which a walk in slices
            // would repeat for each, nor over what lies behind the range.
            Self::Merged { live, past, at, end } => loop {
                let live_is_first = match (live.peek(), past.peek()) {
                    (Some(record), Some(past)) => record.key() < &past.key[..],
                    (Some(_), None) => true,
                    (None, Some(_)) => false,
                    (None, None) => return None,
                };
                let found = if live_is_first { live.next().map(Found::Live) } else { past.next().map(Found::Past) };
                let found = found.filter(|found| below(found.key(), *end))?;
                // A key is on one side only: what replaced a past version is newer than `at`.
                if found.written() <= *at {
                    return Some(found);
                }
            },
        }
    }
}
