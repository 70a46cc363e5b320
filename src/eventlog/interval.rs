use std::cmp::Ordering;

use bytes::Bytes;

use crate::types::{Key, KeyRange};

/// No node.
const NIL: u32 = u32::MAX;

/// Ranges that can tell which of them hold a key, in time logarithmic in their number plus the answers.
///
/// A treap ordered by start key, each node knowing the greatest end below it. Priorities come from a fixed
/// sequence, so that a run repeats.
#[derive(Debug)]
pub(super) struct IntervalTree {
    nodes: slab::Slab<Node>,
    root: u32,
    seed: u64,
}

#[derive(Debug)]
struct Node {
    start: Key,
    end: Option<Bytes>,
    value: u32,
    priority: u64,
    left: u32,
    right: u32,
    /// Greatest end in this subtree; none is "to the end of the keyspace".
    reach: Option<Bytes>,
}

impl Default for IntervalTree {
    fn default() -> Self {
        Self { nodes: slab::Slab::new(), root: NIL, seed: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl IntervalTree {
    /// Adds `range` under `value`. Values are distinct.
    pub fn insert(&mut self, range: &KeyRange, value: u32) {
        let (start, end) = bounds(range);
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        let node = Node {
            start: start.clone(),
            end: end.clone(),
            value,
            priority: self.seed,
            left: NIL,
            right: NIL,
            reach: end,
        };
        let added = self.nodes.insert(node) as u32;
        let (before, after) = self.split(self.root, &start, value);
        let left = self.merge(before, added);
        self.root = self.merge(left, after);
    }

    /// Takes out what was inserted with the same range and value.
    pub fn remove(&mut self, range: &KeyRange, value: u32) {
        let (start, _) = bounds(range);
        let (before, rest) = self.split(self.root, &start, value);
        let (gone, after) = self.split(rest, &start, value + 1);
        self.root = self.merge(before, after);
        if gone != NIL {
            self.nodes.remove(gone as usize);
        }
    }

    /// Visits the value of every range that holds `key`.
    pub fn stab(&self, key: &[u8], visit: &mut impl FnMut(u32)) {
        self.stab_below(self.root, key, visit);
    }

    fn stab_below(&self, at: u32, key: &[u8], visit: &mut impl FnMut(u32)) {
        let Some(node) = self.nodes.get(at as usize) else { return };
        if !ends_after(&node.reach, key) {
            return;
        }
        self.stab_below(node.left, key, visit);
        if node.start.as_ref() <= key {
            if ends_after(&node.end, key) {
                visit(node.value);
            }
            self.stab_below(node.right, key, visit);
        }
    }

    /// Nodes before (start, value) and the others.
    fn split(&mut self, at: u32, start: &[u8], value: u32) -> (u32, u32) {
        if at == NIL {
            return (NIL, NIL);
        }
        let node = &self.nodes[at as usize];
        let before = match node.start.as_ref().cmp(start) {
            Ordering::Less => true,
            Ordering::Equal => node.value < value,
            Ordering::Greater => false,
        };
        let (left, right) = (node.left, node.right);
        if before {
            let (inner, outer) = self.split(right, start, value);
            self.nodes[at as usize].right = inner;
            self.update(at);
            (at, outer)
        } else {
            let (outer, inner) = self.split(left, start, value);
            self.nodes[at as usize].left = inner;
            self.update(at);
            (outer, at)
        }
    }

    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NIL {
            return right;
        }
        if right == NIL {
            return left;
        }
        if self.nodes[left as usize].priority >= self.nodes[right as usize].priority {
            let inner = self.nodes[left as usize].right;
            let merged = self.merge(inner, right);
            self.nodes[left as usize].right = merged;
            self.update(left);
            left
        } else {
            let inner = self.nodes[right as usize].left;
            let merged = self.merge(left, inner);
            self.nodes[right as usize].left = merged;
            self.update(right);
            right
        }
    }

    fn update(&mut self, at: u32) {
        let node = &self.nodes[at as usize];
        let mut reach = node.end.clone();
        for child in [node.left, node.right] {
            if let Some(child) = self.nodes.get(child as usize) {
                reach = match (reach, &child.reach) {
                    (Some(ours), Some(theirs)) => Some(if *theirs > ours { theirs.clone() } else { ours }),
                    _ => None,
                };
            }
        }
        self.nodes[at as usize].reach = reach;
    }
}

fn ends_after(end: &Option<Bytes>, key: &[u8]) -> bool {
    end.as_ref().is_none_or(|end| key < end.as_ref())
}

fn bounds(range: &KeyRange) -> (Key, Option<Bytes>) {
    match range {
        KeyRange::One(key) => {
            let mut end = key.to_vec();
            end.push(0);
            (key.clone(), Some(end.into()))
        }
        KeyRange::HalfOpen { start, end } => (start.clone(), Some(end.clone())),
        KeyRange::From(start) => (start.clone(), None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_range() -> impl Strategy<Value = KeyRange> {
        let key = || "[a-d]{1,3}".prop_map(Bytes::from);
        prop_oneof![
            key().prop_map(KeyRange::One),
            key().prop_map(KeyRange::From),
            key().prop_map(KeyRange::prefix),
            (key(), key()).prop_map(|(start, end)| KeyRange::HalfOpen { start, end }),
        ]
    }

    proptest! {
        #[test]
        fn answers_are_those_of_a_scan(
            ranges in prop::collection::vec(any_range(), 0..40),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            keys in prop::collection::vec("[a-e]{0,4}", 1..20),
        ) {
            let mut tree = IntervalTree::default();
            let mut kept: Vec<(u32, KeyRange)> = ranges.into_iter().enumerate().map(|(i, r)| (i as u32, r)).collect();
            for (value, range) in &kept {
                tree.insert(range, *value);
            }
            for index in gone {
                if !kept.is_empty() {
                    let (value, range) = kept.remove(index.index(kept.len()));
                    tree.remove(&range, value);
                }
            }
            prop_assert_eq!(tree.nodes.len(), kept.len());
            for key in keys {
                let mut found = Vec::new();
                tree.stab(key.as_bytes(), &mut |value| found.push(value));
                found.sort_unstable();
                let expected: Vec<u32> =
                    kept.iter().filter(|(_, range)| range.contains(key.as_bytes())).map(|(value, _)| *value).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
