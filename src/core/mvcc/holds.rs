//! Hashes of the history hold the removal of compacted rows, and the removal has its turn between two of them.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// Slices that a compaction has before the next reader's hash may hold it again: as many as need about a second at the
/// default pace.
const TURN_SLICES: usize = 128;

/// Who holds the removal, and who waits. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Holds(Arc<Inner>);

#[derive(Default)]
struct Inner {
    counts: Mutex<Counts>,
    turn_ended: Condvar,
}

#[derive(Default)]
struct Counts {
    /// Hashes that readers asked for, being computed.
    readers: usize,
    /// Hashes of compactions, not computed yet. Each compaction has one, so that they cannot hold it again and again.
    compactions: usize,
    /// Compactions that a reader's hash has held, until their turns end.
    turns: usize,
}

/// Holds the removal until it is dropped.
pub(super) struct Hold {
    holds: Holds,
    for_reader: bool,
}

/// Keeps new hashes of readers waiting until it is dropped, also where the compaction is given up.
pub(super) struct Turn {
    holds: Holds,
    slices_left: usize,
}

impl Holds {
    /// Holds the removal for a reader; waits while a compaction has its turn. For a thread that may block.
    pub(super) fn for_reader(&self) -> Hold {
        let mut counts = self.0.counts.lock();
        while counts.turns > 0 {
            self.0.turn_ended.wait(&mut counts);
        }
        counts.readers += 1;
        Hold { holds: self.clone(), for_reader: true }
    }

    /// Holds the removal for the hash of a compaction.
    pub(super) fn for_compaction(&self) -> Hold {
        self.0.counts.lock().compactions += 1;
        Hold { holds: self.clone(), for_reader: false }
    }

    /// Whether a slice of a compaction may remove rows now. One that a reader holds gets a turn.
    pub(super) fn admit_slice(&self, turn: &mut Option<Turn>) -> bool {
        {
            let mut counts = self.0.counts.lock();
            if counts.readers > 0 && turn.is_none() {
                counts.turns += 1;
                *turn = Some(Turn { holds: self.clone(), slices_left: TURN_SLICES });
            }
            if counts.readers > 0 || counts.compactions > 0 {
                return false;
            }
        }
        if let Some(running) = turn {
            running.slices_left -= 1;
            if running.slices_left == 0 {
                *turn = None;
            }
        }
        true
    }

    /// Whether [`for_reader`](Self::for_reader) would not wait.
    #[cfg(test)]
    pub(super) fn admit_readers(&self) -> bool {
        self.0.counts.lock().turns == 0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut counts = self.holds.0.counts.lock();
        let count = if self.for_reader { &mut counts.readers } else { &mut counts.compactions };
        *count -= 1;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.holds.0.counts.lock().turns -= 1;
        self.holds.0.turn_ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_one_after_the_other_leave_a_compaction_its_turn() {
        let holds = Holds::default();
        let mut turn = None;
        let (first, second) = (holds.for_reader(), holds.for_reader());
        assert!(!holds.admit_slice(&mut turn));
        drop(first);
        assert!(!holds.admit_slice(&mut turn));
        drop(second);
        for _ in 0..TURN_SLICES {
            assert!(!holds.admit_readers());
            assert!(holds.admit_slice(&mut turn));
        }
        assert!(holds.admit_readers());
        let _next = holds.for_reader();
        assert!(!holds.admit_slice(&mut turn), "held again, with a turn to come");
        assert!(!holds.admit_readers());
    }

    #[test]
    fn a_compaction_that_is_given_up_keeps_nobody_waiting() {
        let holds = Holds::default();
        let mut turn = None;
        let first = holds.for_reader();
        assert!(!holds.admit_slice(&mut turn));
        drop(first);
        let waiting = std::thread::spawn({
            let holds = holds.clone();
            move || drop(holds.for_reader())
        });
        drop(turn);
        waiting.join().unwrap();
        assert!(holds.admit_readers());
    }

    #[test]
    fn the_hash_of_a_compaction_keeps_no_reader_waiting() {
        let holds = Holds::default();
        let mut turn = None;
        let hash = holds.for_compaction();
        assert!(!holds.admit_slice(&mut turn));
        assert!(holds.admit_readers());
        drop(hash);
        assert!(holds.admit_slice(&mut turn));
    }
}
