//! What was written against what was seen.

use std::sync::atomic::{AtomicU64, Ordering};

/// What one key got.
#[derive(Debug, Default)]
struct Written {
    puts: AtomicU64,
    /// Sum of [`mark`]s of the puts: equal sums and counts mean equal sets, short of a wild coincidence.
    marks: AtomicU64,
    /// Puts without an answer: they may or may not have happened.
    uncertain: AtomicU64,
}

/// The puts of a run, by key.
#[derive(Debug)]
pub(super) struct WrittenLog(Vec<Written>);

/// What one watcher saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The key it watches; none is all of them.
    key: Option<u32>,
    revision: i64,
    events: u64,
    marks: u64,
    /// Events at or below a revision seen before.
    surplus: u64,
}

/// What a watcher did not see as it should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) missing: u64,
    pub(super) surplus: u64,
}

/// Spreads numbers over all bits, so that sums of different sets differ.
fn mark(number: u64) -> u64 {
    (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

impl WrittenLog {
    pub(super) fn new(keys: usize) -> Self {
        Self((0..keys).map(|_| Written::default()).collect())
    }

    /// Put number `number` on `key` came to an end.
    pub(super) fn ended(&self, key: u32, number: u64, well: bool) {
        let Some(written) = self.0.get(key as usize) else { return };
        if well {
            written.puts.fetch_add(1, Ordering::Relaxed);
            written.marks.fetch_add(mark(number), Ordering::Relaxed);
        } else {
            written.uncertain.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts that surely happened, on one key or on all.
    pub(super) fn written(&self, key: Option<u32>) -> u64 {
        self.total(key).0
    }

    fn total(&self, key: Option<u32>) -> (u64, u64, u64) {
        let keys = match key {
            Some(key) => self.0.get(key as usize..=key as usize).unwrap_or_default(),
            None => &self.0,
        };
        keys.iter().fold((0, 0, 0), |(puts, marks, uncertain), written| {
            (
                puts + written.puts.load(Ordering::Relaxed),
                written.marks.load(Ordering::Relaxed).wrapping_add(marks),
                uncertain + written.uncertain.load(Ordering::Relaxed),
            )
        })
    }

    /// Compares what a watcher saw with what was written to its keys.
    pub(super) fn judge(&self, seen: &Seen) -> Comparison {
        let (puts, marks, uncertain) = self.total(seen.key);
        let mut comparison = Comparison { missing: puts.saturating_sub(seen.events), surplus: seen.surplus };
        comparison.surplus += seen.events.saturating_sub(puts + uncertain);
        if uncertain == 0 && seen.events == puts && seen.marks != marks {
            // As many as there should be, but not the same: one stands for another.
            comparison.missing += 1;
            comparison.surplus += 1;
        }
        comparison
    }
}

impl Seen {
    pub(super) fn new(key: Option<u32>) -> Self {
        Self { key, revision: 0, events: 0, marks: 0, surplus: 0 }
    }

    /// Records an event; returns whether it is new. Each put has a revision of its own.
    pub(super) fn event(&mut self, revision: i64, number: u64) -> bool {
        if revision <= self.revision {
            self.surplus += 1;
            return false;
        }
        self.revision = revision;
        self.events += 1;
        self.marks = self.marks.wrapping_add(mark(number));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts 0, 1, 2 on key 0; the events seen are given as `revision:number`.
    fn comparison(events: &[(i64, u64)]) -> Comparison {
        let written_log = WrittenLog::new(2);
        (0..3).for_each(|number| written_log.ended(0, number, true));
        let mut seen = Seen::new(Some(0));
        events.iter().for_each(|(revision, number)| {
            seen.event(*revision, *number);
        });
        written_log.judge(&seen)
    }

    #[test]
    fn every_event_once_and_in_order_is_exact() {
        assert_eq!(comparison(&[(2, 0), (3, 1), (4, 2)]), Comparison::default());
        // Two callers may have their puts ordered either way.
        assert_eq!(comparison(&[(2, 1), (3, 0), (4, 2)]), Comparison::default());
    }

    #[test]
    fn losses_repeats_and_disorder_are_found() {
        assert_eq!(comparison(&[(2, 0), (4, 2)]), Comparison { missing: 1, surplus: 0 });
        assert_eq!(comparison(&[(2, 0), (3, 1), (3, 1), (4, 2)]), Comparison { missing: 0, surplus: 1 });
        assert_eq!(comparison(&[(2, 0), (4, 2), (3, 1)]), Comparison { missing: 1, surplus: 1 });
        assert_eq!(comparison(&[(2, 0), (3, 1), (4, 1)]), Comparison { missing: 1, surplus: 1 });
        assert_eq!(comparison(&[(2, 0), (3, 1), (4, 2), (5, 9)]), Comparison { missing: 0, surplus: 1 });
    }

    #[test]
    fn a_put_without_an_answer_may_be_seen_or_not() {
        let written_log = WrittenLog::new(1);
        written_log.ended(0, 0, true);
        written_log.ended(0, 1, false);
        let mut seen = Seen::new(None);
        seen.event(2, 0);
        assert_eq!(written_log.judge(&seen), Comparison::default());
        seen.event(3, 1);
        assert_eq!(written_log.judge(&seen), Comparison::default());
        seen.event(4, 2);
        assert_eq!(written_log.judge(&seen), Comparison { missing: 0, surplus: 1 });
    }
}
