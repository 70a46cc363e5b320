use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::pair::Pair;
use crate::tree::Tree;
use crate::types::Revision;

/// How long a state is kept behind the one that followed it: clients that page through a prefix ask for the next page at once.
const KEPT_FOR: Duration = Duration::from_secs(10);
/// Memory of the kept states of one replica.
const KEPT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a state takes for each key that was changed after it, besides the pair: the nodes of the tree that are not shared
/// any more, and the entry itself.
pub(super) const CHANGE_BYTES: usize = 4 * 1024;

/// The states of a replica before the current one, for reads at their revisions. Decisions only.
#[derive(Default)]
pub(super) struct Past {
    /// In ascending order; the revisions of two of them have no overlap.
    states: VecDeque<PastState>,
    bytes: usize,
}

struct PastState {
    pairs: Tree<Pair>,
    /// The pairs were these from here to there, both included.
    from: Revision,
    to: Revision,
    /// When it was no longer the newest.
    kept_at: Instant,
    bytes: usize,
}

impl Past {
    /// Keeps the state of the revisions from `from` to `to`, of which changes with so many bytes have replaced parts.
    pub fn keep(&mut self, pairs: Tree<Pair>, (from, to): (Revision, Revision), bytes: usize, now: Instant) {
        self.expire(now);
        self.bytes += bytes;
        self.states.push_back(PastState { pairs, from, to, kept_at: now, bytes });
        while self.bytes > KEPT_BYTES_MAX {
            self.forget_oldest();
        }
    }

    /// The pairs at a revision; none unless they are kept.
    pub fn at(&self, revision: Revision) -> Option<&Tree<Pair>> {
        let after = self.states.partition_point(|state| state.from <= revision);
        let state = self.states.get(after.checked_sub(1)?)?;
        (revision <= state.to).then_some(&state.pairs)
    }

    /// Forgets what was kept for long enough.
    pub fn expire(&mut self, now: Instant) {
        while self.states.front().is_some_and(|state| now.saturating_duration_since(state.kept_at) >= KEPT_FOR) {
            self.forget_oldest();
        }
    }

    /// Forgets all of it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.states.pop_front() {
            self.bytes -= oldest.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::mvccpb::KeyValue;

    /// A state with one pair, whose version tells it from others.
    fn state(version: i64) -> Tree<Pair> {
        let kv = KeyValue { key: "a".into(), version, ..Default::default() };
        let mut pairs = Tree::default();
        pairs.insert(Pair::new(&kv), b"a");
        pairs
    }

    fn found(past: &Past, revision: i64) -> Option<i64> {
        past.at(Revision(revision)).map(|pairs| pairs.get(b"a").expect("a pair").fields().version)
    }

    #[test]
    fn each_state_has_its_own_revisions_and_no_others() {
        let (mut past, now) = (Past::default(), Instant::now());
        // Revisions 7 and 8 came in one answer: there is no state of 7.
        for (version, from, to) in [(1, 3, 4), (2, 5, 6), (3, 8, 9)] {
            past.keep(state(version), (Revision(from), Revision(to)), 10, now);
        }
        let all: Vec<_> = (2..=10).map(|revision| found(&past, revision)).collect();
        assert_eq!(all, [None, Some(1), Some(1), Some(2), Some(2), None, Some(3), Some(3), None]);
        assert_eq!(past.bytes(), 30);
    }

    #[test]
    fn states_are_kept_for_a_while_and_within_a_bound() {
        let (mut past, start) = (Past::default(), Instant::now());
        let keep = |past: &mut Past, revision, bytes, now| {
            past.keep(state(revision), (Revision(revision), Revision(revision)), bytes, now);
        };
        keep(&mut past, 1, 10, start);
        keep(&mut past, 2, 10, start + KEPT_FOR / 2);
        past.expire(start + KEPT_FOR);
        assert_eq!((found(&past, 1), found(&past, 2), past.bytes()), (None, Some(2), 10));
        keep(&mut past, 3, KEPT_BYTES_MAX - 10, start + KEPT_FOR);
        assert_eq!((found(&past, 2), found(&past, 3)), (Some(2), Some(3)));
        keep(&mut past, 4, 1, start + KEPT_FOR);
        assert_eq!((found(&past, 2), found(&past, 3), found(&past, 4)), (None, Some(3), Some(4)));
        keep(&mut past, 5, KEPT_BYTES_MAX + 1, start + KEPT_FOR);
        assert_eq!((found(&past, 4), found(&past, 5), past.bytes()), (None, None, 0), "larger than all of it");
    }
}
