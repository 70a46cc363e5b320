use super::entry::Entry;
use super::node::{Child, Node, lower_bound};

/// Walks entries in order, see [`Tree::stamped_above`](super::Tree::stamped_above).
pub struct Iter<'t, E: Entry> {
    /// Inner nodes on the way down, each with the next child to visit.
    path: Vec<(&'t [Child<E>], usize)>,
    leaf: std::slice::Iter<'t, E>,
    above: i64,
}

impl<'t, E: Entry> Iter<'t, E> {
    pub(super) fn new(root: &'t Child<E>, probe: E::Probe<'_>, above: i64) -> Self {
        let mut iter = Self { path: Vec::new(), leaf: [].iter(), above };
        let mut node = &*root.node;
        loop {
            match node {
                Node::Leaf(entries) => {
                    iter.leaf = entries[lower_bound(entries, probe)..].iter();
                    return iter;
                }
                Node::Inner(inner) => {
                    let at = inner.child_of(probe);
                    iter.path.push((&inner.children, at + 1));
                    node = &inner.children[at].node;
                }
            }
        }
    }

    fn next_leaf(&mut self) -> bool {
        while let Some((children, at)) = self.path.last_mut() {
            let Some(child) = children.get(*at) else {
                self.path.pop();
                continue;
            };
            *at += 1;
            if child.stamp <= self.above && self.above != i64::MIN {
                continue;
            }
            match &*child.node {
                Node::Leaf(entries) => {
                    self.leaf = entries.iter();
                    return true;
                }
                Node::Inner(inner) => self.path.push((&inner.children, 0)),
            }
        }
        false
    }
}

impl<'t, E: Entry> Iterator for Iter<'t, E> {
    type Item = &'t E;

    fn next(&mut self) -> Option<&'t E> {
        loop {
            let Some(entry) = self.leaf.next() else {
                if self.next_leaf() {
                    continue;
                }
                return None;
            };
            if self.above == i64::MIN || entry.stamp() > self.above {
                return Some(entry);
            }
        }
    }
}
