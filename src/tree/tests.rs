use std::cmp::Ordering;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::node::{self, Node};
use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Item {
    key: u16,
    stamp: i64,
}

impl Entry for Item {
    type Probe<'p> = u16;
    type Separator = u16;

    fn order(&self, probe: u16) -> Ordering {
        self.key.cmp(&probe)
    }
    fn order_separator(separator: &u16, probe: u16) -> Ordering {
        separator.cmp(&probe)
    }
    fn separator(&self) -> u16 {
        self.key
    }
    fn stamp(&self) -> i64 {
        self.stamp
    }
}

type Model = BTreeMap<u16, i64>;

fn agree(tree: &Tree<Item>, model: &Model, probe: u16, above: i64) {
    assert_eq!(tree.len(), model.len());
    assert_eq!(tree.get(probe).map(|item| item.stamp), model.get(&probe).copied());
    assert_eq!(tree.rank(probe), model.range(..probe).count());
    assert_eq!(tree.before(probe).map(|item| item.key), model.range(..probe).next_back().map(|(&key, _)| key));
    let walked: Vec<_> = tree.from(probe).map(|item| (item.key, item.stamp)).collect();
    assert_eq!(walked, model.range(probe..).map(|(&key, &stamp)| (key, stamp)).collect::<Vec<_>>());
    let stamped: Vec<_> = tree.stamped_above(probe, above).map(|item| item.key).collect();
    let expected: Vec<_> = model.range(probe..).filter(|&(_, &stamp)| stamp > above).map(|(&key, _)| key).collect();
    assert_eq!(stamped, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Narrow and wide key spaces, so that trees grow to several levels and shrink to nothing again.
    #[test]
    fn behaves_like_a_btreemap_and_clones_stay_as_they_were(
        space in prop_oneof![Just(40u16), Just(3000)],
        ops in prop::collection::vec((any::<u16>(), 0..10u8, any::<u16>()), 1..1500),
    ) {
        let (mut tree, mut model) = (Tree::default(), Model::new());
        let mut clones = Vec::new();
        let mut shrinking = false;
        for (step, (key, kind, probe)) in ops.into_iter().enumerate() {
            let (key, stamp) = (key % space, step as i64);
            shrinking ^= step % 500 == 499;
            if (kind < 7) != shrinking {
                prop_assert_eq!(tree.insert(Item { key, stamp }, key).map(|item| item.stamp), model.insert(key, stamp));
            } else {
                let key = model.range(key..).next().map_or(key, |(&key, _)| key);
                prop_assert_eq!(tree.remove(key).map(|item| item.stamp), model.remove(&key));
            }
            if step % 97 == 0 {
                agree(&tree, &model, probe % space, stamp / 2);
                clones.push((tree.clone(), model.clone()));
            }
        }
        clones.push((tree, model));
        for (tree, model) in clones {
            agree(&tree, &model, 0, -1);
        }
    }
}

#[test]
fn keys_in_order_fill_their_nodes() {
    let mut tree = Tree::default();
    for key in 0..10_000 {
        tree.insert(Item { key, stamp: 0 }, key);
    }
    fn leaves(node: &Node<Item>) -> usize {
        match node {
            Node::Leaf(_) => 1,
            Node::Inner(inner) => inner.children.iter().map(|child| leaves(&child.node)).sum(),
        }
    }
    assert!(leaves(&tree.root.node) <= 10_000 / node::WIDTH + 1);
    for key in 0..10_000 {
        assert!(tree.remove(key).is_some());
    }
    assert!(tree.is_empty() && matches!(&*tree.root.node, Node::Leaf(_)));
}

/// Cause: the inner node in the middle was left with an empty leaf, in which the entry before those behind it was looked for.
#[test]
fn what_is_before_is_found_across_what_was_removed() {
    let mut tree = Tree::default();
    let below_one = (node::WIDTH * node::WIDTH) as u16;
    for key in 0..3 * below_one {
        tree.insert(Item { key, stamp: 0 }, key);
    }
    for key in below_one..2 * below_one {
        assert!(tree.remove(key).is_some());
    }
    assert_eq!(tree.before(2 * below_one).map(|item| item.key), Some(below_one - 1));
    assert_eq!(tree.from(below_one).next().map(|item| item.key), Some(2 * below_one));
    assert_eq!(tree.rank(2 * below_one), usize::from(below_one));
}
