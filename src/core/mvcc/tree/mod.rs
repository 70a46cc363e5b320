//! A copy-on-write B+ tree with counts.
//!
//! Cloning a [`Tree`] shares all nodes. A write copies the nodes on its path that a clone still shares and changes
//! the others in place, so a batch of writes between two clones pays for each node once. Every subtree knows how
//! many entries it holds (ranks and counts without a walk) and an upper bound of their stamps (skipping parts that
//! a read at an old revision cannot be interested in). `node.rs` holds the shape, `iter.rs` the walk.

mod iter;
mod node;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::sync::Arc;

pub(super) use iter::Iter;
use node::{Child, Inner, Node};

/// Something the tree can hold, ordered by its key.
pub(super) trait Entry: Clone {
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

/// The tree; cloning is one reference count.
pub(super) struct Tree<E: Entry> {
    root: Child<E>,
}

impl<E: Entry> Clone for Tree<E> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone() }
    }
}

impl<E: Entry> Default for Tree<E> {
    fn default() -> Self {
        Self { root: Child { node: Arc::new(Node::Leaf(Vec::new())), count: 0, stamp: i64::MIN } }
    }
}

impl<E: Entry> Tree<E> {
    pub(super) fn len(&self) -> usize {
        self.root.count
    }

    pub(super) fn get(&self, probe: E::Probe<'_>) -> Option<&E> {
        let mut node = &*self.root.node;
        loop {
            match node {
                Node::Leaf(entries) => {
                    return entries.binary_search_by(|entry| entry.order(probe)).ok().map(|at| &entries[at]);
                }
                Node::Inner(inner) => node = &inner.children[inner.child_of(probe)].node,
            }
        }
    }

    /// Entries strictly before `probe`.
    pub(super) fn rank(&self, probe: E::Probe<'_>) -> usize {
        let mut node = &*self.root.node;
        let mut before = 0;
        loop {
            match node {
                Node::Leaf(entries) => return before + node::lower_bound(entries, probe),
                Node::Inner(inner) => {
                    let at = inner.child_of(probe);
                    before += inner.children[..at].iter().map(|child| child.count).sum::<usize>();
                    node = &inner.children[at].node;
                }
            }
        }
    }

    /// The last entry strictly before `probe`.
    pub(super) fn before(&self, probe: E::Probe<'_>) -> Option<&E> {
        let mut node = &*self.root.node;
        let mut left: Option<&Node<E>> = None;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let at = node::lower_bound(entries, probe);
                    return if at > 0 { entries.get(at - 1) } else { left?.last() };
                }
                Node::Inner(inner) => {
                    let at = inner.child_of(probe);
                    if at > 0 {
                        left = Some(&inner.children[at - 1].node);
                    }
                    node = &inner.children[at].node;
                }
            }
        }
    }

    /// Entries from `probe` on, in order.
    pub(super) fn from(&self, probe: E::Probe<'_>) -> Iter<'_, E> {
        Iter::new(&self.root, probe, i64::MIN)
    }

    /// Entries from `probe` on whose stamp is above `stamp`, in order; whole subtrees below it are skipped.
    pub(super) fn stamped_above(&self, probe: E::Probe<'_>, stamp: i64) -> Iter<'_, E> {
        Iter::new(&self.root, probe, stamp)
    }

    /// Puts an entry in its place; returns the one it replaces.
    pub(super) fn insert(&mut self, entry: E, probe: E::Probe<'_>) -> Option<E> {
        self.insert_with(probe, |_, _| entry)
    }

    /// Puts in place of `probe` what `make` answers; returns the entry it replaces. `make` gets that entry or, if there
    /// is none, the one right before it, as long as that one is in the same node.
    pub(super) fn insert_with(
        &mut self,
        probe: E::Probe<'_>,
        make: impl FnOnce(Option<&E>, Option<&E>) -> E,
    ) -> Option<E> {
        let (replaced, split) = self.root.insert(probe, make);
        if let Some((separator, right)) = split {
            let left = self.root.clone();
            let (count, stamp) = (left.count + right.count, left.stamp.max(right.stamp));
            let inner = Inner { separators: vec![separator], children: vec![left, right] };
            self.root = Child { node: Arc::new(Node::Inner(inner)), count, stamp };
        }
        replaced
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, probe: E::Probe<'_>) -> Option<E> {
        // Looking first keeps a miss from copying the path.
        self.get(probe)?;
        let removed = self.root.remove(probe);
        loop {
            let only = match &*self.root.node {
                Node::Inner(inner) if inner.children.len() == 1 => inner.children[0].clone(),
                _ => return removed,
            };
            self.root = only;
        }
    }
}
