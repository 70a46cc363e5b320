use std::sync::Arc;

use super::entry::Entry;
use super::iter::Iter;
use super::node::{self, Child, Inner, Node};

/// Entries in their order. Cloning is one reference count.
pub struct Tree<E: Entry> {
    pub(super) root: Child<E>,
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
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.root.count
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.root.count == 0
    }

    /// The entry at `probe`.
    pub fn get(&self, probe: E::Probe<'_>) -> Option<&E> {
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
    pub fn rank(&self, probe: E::Probe<'_>) -> usize {
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
    pub fn before(&self, probe: E::Probe<'_>) -> Option<&E> {
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
    pub fn from(&self, probe: E::Probe<'_>) -> Iter<'_, E> {
        Iter::new(&self.root, probe, i64::MIN)
    }

    /// Entries from `probe` on whose stamp is above `stamp`, in order; whole subtrees below it are skipped.
    pub fn stamped_above(&self, probe: E::Probe<'_>, stamp: i64) -> Iter<'_, E> {
        Iter::new(&self.root, probe, stamp)
    }

    /// Puts an entry in its place; returns the one it replaces.
    pub fn insert(&mut self, entry: E, probe: E::Probe<'_>) -> Option<E> {
        self.insert_with(probe, |_, _| entry)
    }

    /// Puts in place of `probe` what `make` answers; returns the entry it replaces. `make` gets that entry or, if there
    /// is none, the one right before it, as long as that one is in the same node.
    pub fn insert_with(&mut self, probe: E::Probe<'_>, make: impl FnOnce(Option<&E>, Option<&E>) -> E) -> Option<E> {
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
    pub fn remove(&mut self, probe: E::Probe<'_>) -> Option<E> {
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
