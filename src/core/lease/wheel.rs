//! A hierarchical timer wheel over a slab.
//!
//! Level `n` has 64 slots of `64^n` ticks. An item lies on the level of the highest base-64 digit in which its tick
//! differs from the cursor, so the lowest occupied level holds the nearest item, and an item moves down at most once
//! per level on its way. Scheduling and removing are O(1); advancing over empty time costs nothing.

use slab::Slab;

/// Milliseconds of a tick: how late an item may come due.
pub(super) const TICK_MS: u64 = 100;
/// 64^8 ticks are 890,000 years.
const LEVELS: usize = 8;
const SLOTS: usize = 64;
/// List of the items whose time has come.
const DUE: u16 = (LEVELS * SLOTS) as u16;
const NONE: u32 = u32::MAX;

/// Identifies an item until it is removed.
pub(super) type Handle = u32;

struct Node<T> {
    item: T,
    due_ms: u64,
    next: u32,
    previous: u32,
    list: u16,
}

#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

/// Items that come due at points of time, counted in milliseconds from a zero of the caller's choice.
pub(super) struct Wheel<T> {
    nodes: Slab<Node<T>>,
    lists: Vec<List>,
    occupied: [u64; LEVELS],
    /// Everything up to this tick lies in the list of due items.
    cursor: u64,
}

impl<T> Default for Wheel<T> {
    fn default() -> Self {
        let lists = vec![List { first: NONE, last: NONE }; DUE as usize + 1];
        Self { nodes: Slab::new(), lists, occupied: [0; LEVELS], cursor: 0 }
    }
}

impl<T> Wheel<T> {
    pub(super) fn insert(&mut self, item: T, due_ms: u64) -> Handle {
        let node = Node { item, due_ms, next: NONE, previous: NONE, list: DUE };
        let handle = self.nodes.insert(node) as Handle;
        self.link(handle);
        handle
    }

    pub(super) fn remove(&mut self, handle: Handle) -> T {
        self.unlink(handle);
        self.nodes.remove(handle as usize).item
    }

    pub(super) fn reschedule(&mut self, handle: Handle, due_ms: u64) {
        self.unlink(handle);
        self.node(handle).due_ms = due_ms;
        self.link(handle);
    }

    pub(super) fn get(&self, handle: Handle) -> (&T, u64) {
        let node = &self.nodes[handle as usize];
        (&node.item, node.due_ms)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> &mut T {
        &mut self.node(handle).item
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Handle, &T, u64)> {
        self.nodes.iter().map(|(at, node)| (at as Handle, &node.item, node.due_ms))
    }

    /// One past the highest handle in use, for walks in portions.
    pub(super) fn handles_end(&self) -> Handle {
        self.nodes.capacity() as Handle
    }

    pub(super) fn find(&self, handle: Handle) -> Option<(&T, u64)> {
        self.nodes.get(handle as usize).map(|node| (&node.item, node.due_ms))
    }

    /// Sets the clock back to zero and all items to new times.
    pub(super) fn restart(&mut self, due_ms: impl Fn(&mut T) -> u64) {
        self.lists.fill(List { first: NONE, last: NONE });
        self.occupied = [0; LEVELS];
        self.cursor = 0;
        let handles: Vec<Handle> = self.nodes.iter().map(|(at, _)| at as Handle).collect();
        for handle in handles {
            let node = self.node(handle);
            node.due_ms = due_ms(&mut node.item);
            self.link(handle);
        }
    }

    /// The item that has been due for the longest time, if any is at `now_ms`. It stays until it is rescheduled or
    /// removed.
    pub(super) fn due(&mut self, now_ms: u64) -> Option<Handle> {
        self.advance(now_ms / TICK_MS);
        let first = self.lists[DUE as usize].first;
        (first != NONE).then_some(first)
    }

    fn advance(&mut self, to: u64) {
        while let Some((level, slot, tick)) = self.nearest() {
            if tick > to {
                break;
            }
            self.cursor = tick;
            let list = level * SLOTS + slot;
            let mut handle = std::mem::replace(&mut self.lists[list], List { first: NONE, last: NONE }).first;
            self.occupied[level] &= !(1 << slot);
            while handle != NONE {
                let next = self.nodes[handle as usize].next;
                self.link(handle);
                handle = next;
            }
        }
        // Nothing starts between: what is left keeps its level.
        self.cursor = self.cursor.max(to);
    }

    /// Level, slot and first tick of the nearest occupied slot.
    fn nearest(&self) -> Option<(usize, usize, u64)> {
        let level = self.occupied.iter().position(|&slots| slots != 0)?;
        // On its level every item lies ahead of the cursor, so the lowest slot is the nearest.
        let slot = self.occupied[level].trailing_zeros() as usize;
        let below = 6 * (level + 1);
        let tick = (self.cursor >> below << below) | ((slot as u64) << (6 * level));
        Some((level, slot, tick))
    }

    fn link(&mut self, handle: Handle) {
        let tick = self.nodes[handle as usize].due_ms.div_ceil(TICK_MS).min((1 << (6 * LEVELS)) - 1);
        let list = if tick <= self.cursor {
            DUE
        } else {
            let level = (63 - (tick ^ self.cursor).leading_zeros() as usize) / 6;
            let slot = (tick >> (6 * level)) as usize % SLOTS;
            self.occupied[level] |= 1 << slot;
            (level * SLOTS + slot) as u16
        };
        let last = std::mem::replace(&mut self.lists[list as usize].last, handle);
        if last == NONE {
            self.lists[list as usize].first = handle;
        } else {
            self.node(last).next = handle;
        }
        let node = self.node(handle);
        (node.list, node.previous, node.next) = (list, last, NONE);
    }

    fn unlink(&mut self, handle: Handle) {
        let Node { next, previous, list, .. } = self.nodes[handle as usize];
        if previous == NONE {
            self.lists[list as usize].first = next;
        } else {
            self.node(previous).next = next;
        }
        if next == NONE {
            self.lists[list as usize].last = previous;
        } else {
            self.node(next).previous = previous;
        }
        if list != DUE && self.lists[list as usize].first == NONE {
            self.occupied[list as usize / SLOTS] &= !(1 << (list as usize % SLOTS));
        }
    }

    fn node(&mut self, handle: Handle) -> &mut Node<T> {
        &mut self.nodes[handle as usize]
    }
}
