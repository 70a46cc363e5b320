use std::cmp::Ordering;
use std::sync::Arc;

/// Something the tree can hold, ordered by its key.
pub trait Entry: Clone {
    /// A place in the order, as a search names it.
    type Probe<'p>: Copy;
    /// A place in the order, as an inner node keeps it.
    type Separator: Clone;

    /// Where this entry lies as seen from `probe`.
    fn order(&self, probe: Self::Probe<'_>) -> Ordering;
    /// Where a separator lies as seen from `probe`.
    fn order_separator(separator: &Self::Separator, probe: Self::Probe<'_>) -> Ordering;
    /// A separator that equals this entry.
    fn separator(&self) -> Self::Separator;
    /// A number whose upper bound is kept per subtree.
    fn stamp(&self) -> i64;
}

/// An entry ordered by the bytes of its key.
pub trait Keyed: Clone {
    /// What it is ordered by.
    fn key(&self) -> &[u8];
    /// As [`Entry::stamp`].
    fn stamp(&self) -> i64;
}

impl<T: Keyed> Entry for T {
    type Probe<'p> = &'p [u8];
    type Separator = Arc<[u8]>;

    fn order(&self, probe: &[u8]) -> Ordering {
        self.key().cmp(probe)
    }

    fn order_separator(separator: &Arc<[u8]>, probe: &[u8]) -> Ordering {
        separator.as_ref().cmp(probe)
    }

    fn separator(&self) -> Arc<[u8]> {
        // A copy: sharing the entry would keep a replaced value alive for as long as the separator stands.
        self.key().into()
    }

    fn stamp(&self) -> i64 {
        Keyed::stamp(self)
    }
}
