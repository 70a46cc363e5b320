use slab::Slab;

use super::{Cursor, CursorState};

/// In place of a neighbour: there is none.
const NONE: u32 = u32::MAX;

/// Neighbours of a cursor in the unsynced queue of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Links {
    before: u32,
    after: u32,
}

impl Links {
    /// Of a cursor that is in no queue.
    pub const NONE: Self = Self { before: NONE, after: NONE };
}

/// The unsynced cursors of one stream, in the order in which they are served.
///
/// The links are in the cursors, so that any of them leaves without a look at the others: a client may close a stream with
/// a hundred thousand unsynced watchers, which all leave one after the other.
#[derive(Debug)]
pub(super) struct UnsyncedQueue {
    first: u32,
    last: u32,
}

impl Default for UnsyncedQueue {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

impl UnsyncedQueue {
    pub fn is_empty(&self) -> bool {
        self.first == NONE
    }

    /// Adds a cursor that is in no queue, behind all others.
    pub fn push_back(&mut self, cursors: &mut Slab<Cursor>, key: u32) {
        let before = std::mem::replace(&mut self.last, key);
        match before {
            NONE => self.first = key,
            before => links(cursors, before).after = key,
        }
        cursors[key as usize].state = CursorState::Unsynced(Links { before, after: NONE });
    }

    /// Takes the first cursor out.
    pub fn pop_front(&mut self, cursors: &mut Slab<Cursor>) -> Option<u32> {
        let first = self.first;
        (first != NONE).then(|| {
            self.remove(cursors, first);
            first
        })
    }

    /// Takes a cursor of this queue out; its state is set by whoever puts it elsewhere.
    pub fn remove(&mut self, cursors: &mut Slab<Cursor>, key: u32) {
        let Links { before, after } = *links(cursors, key);
        match before {
            NONE => self.first = after,
            before => links(cursors, before).after = after,
        }
        match after {
            NONE => self.last = before,
            after => links(cursors, after).before = before,
        }
    }
}

fn links(cursors: &mut Slab<Cursor>, key: u32) -> &mut Links {
    #[cfg(test)]
    VISITS.set(VISITS.get() + 1);
    match &mut cursors[key as usize].state {
        CursorState::Unsynced(links) => links,
        state => unreachable!("a cursor in an unsynced queue is {state:?}"),
    }
}

#[cfg(test)]
thread_local! {
    /// Cursors looked at by the queues of this thread.
    pub(in crate::eventlog) static VISITS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}
