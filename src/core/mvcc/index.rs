//! The entries of the two trees: the live version of each key, and the versions it replaced.

use std::cmp::Ordering;
use std::sync::Arc;

use super::record::Record;
use crate::tree::{Entry, Keyed};
use crate::types::{RecordId, Revision};

impl Keyed for Record {
    fn key(&self) -> &[u8] {
        Record::key(self)
    }

    fn stamp(&self) -> i64 {
        self.modified().0
    }
}

/// A replaced version or a tombstone, kept until it is compacted. Its value is in the backend.
#[derive(Clone, Debug)]
pub(super) struct Past {
    /// Shared by the neighbouring versions of the same key.
    pub key: Arc<[u8]>,
    pub main: i64,
    pub sub: u32,
    pub tombstone: bool,
    /// Revision that replaced this version: it is what readers saw at `main..until`. [`TOMBSTONE`] for a tombstone,
    /// which no reader sees.
    pub until: i64,
}

/// The value of [`Past::until`] for a tombstone.
pub(super) const TOMBSTONE: i64 = i64::MIN;

/// A place in the order of past versions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot<'p> {
    pub key: &'p [u8],
    pub main: i64,
    pub sub: u32,
}

impl<'p> Spot<'p> {
    /// Before every version of `key`.
    pub(super) fn first(key: &'p [u8]) -> Self {
        Self { key, main: i64::MIN, sub: 0 }
    }

    /// After every version of `key` up to revision `main`.
    pub(super) fn after(key: &'p [u8], main: i64) -> Self {
        Self { key, main: main.saturating_add(1), sub: 0 }
    }
}

impl Past {
    pub(super) fn id(&self) -> RecordId {
        RecordId::new(Revision(self.main), i64::from(self.sub))
    }

    pub(super) fn spot(&self) -> Spot<'_> {
        Spot { key: &self.key, main: self.main, sub: self.sub }
    }

    /// Whether compaction at `at` removes this version. A tombstone at `at` itself stays: a watch may start there.
    pub(super) fn falls_at(&self, at: Revision) -> bool {
        if self.tombstone { self.main < at.0 } else { self.until <= at.0 }
    }
}

impl Entry for Past {
    type Probe<'p> = Spot<'p>;
    type Separator = (Arc<[u8]>, i64, u32);

    fn order(&self, probe: Spot<'_>) -> Ordering {
        self.spot().cmp(&probe)
    }

    fn order_separator(separator: &Self::Separator, probe: Spot<'_>) -> Ordering {
        Spot { key: &separator.0, main: separator.1, sub: separator.2 }.cmp(&probe)
    }

    fn separator(&self) -> Self::Separator {
        (Arc::clone(&self.key), self.main, self.sub)
    }

    fn stamp(&self) -> i64 {
        self.until
    }
}
