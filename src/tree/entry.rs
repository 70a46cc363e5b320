use std::cmp::Ordering;

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
