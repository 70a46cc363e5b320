//! A copy-on-write ordered map: a B+ tree with counts.
//!
//! Cloning a [`Tree`] shares all nodes. A write copies the nodes on its path that a clone still shares and changes
//! the others in place, so a batch of writes between two clones pays for each node once. Every subtree knows how
//! many entries it holds (ranks and counts without a walk) and an upper bound of their stamps (a read of what
//! changed after a revision skips the subtrees that did not). Readers hold a clone and never wait for the writer.
//!
//! `entry.rs` says what a tree can hold, `b_tree.rs` is the map, `node.rs` its nodes, `iter.rs` the walk. Its
//! users are `core::mvcc`, with two trees for each store, and the proxy's range cache.

mod b_tree;
mod entry;
mod iter;
mod node;
#[cfg(test)]
mod tests;

pub use b_tree::Tree;
pub use entry::{Entry, Keyed};
pub use iter::Iter;
