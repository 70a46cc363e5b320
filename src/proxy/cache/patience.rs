use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::config::Periods;

/// How long readers wait for one replica once the cluster's revision is read. Decisions only.
///
/// It follows the time that the readers before had to wait, and not only how long the read took: one thread may have the answer
/// to the read long before the task that follows the watch has come to the events. After a wait that was too short the next one is
/// twice as long. After one of the greatest length the replica counts as behind, not as late: readers are better off passed on, so
/// that the next ones begin with the least again.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Microseconds the replica was late: the most of late, less with each reader that waited less.
    late: AtomicU64,
}

impl Patience {
    /// How long the next reader waits, where the read of the cluster's revision takes so long.
    pub fn wait(&self, took: Duration, periods: &Periods) -> Duration {
        let late = Duration::from_micros(self.late.load(Ordering::Relaxed));
        (took.max(late) * 4).clamp(periods.wait_min, periods.wait_max)
    }

    /// The replica was there after so long.
    pub fn reached(&self, after: Duration) {
        let (after, before) = (micros(after), self.late.load(Ordering::Relaxed));
        if after != before {
            let late = if after > before { after } else { before - (before - after).div_ceil(8) };
            self.late.store(late, Ordering::Relaxed);
        }
    }

    /// It was not there after so long.
    pub fn missed(&self, waited: Duration, periods: &Periods) {
        if waited >= periods.wait_max {
            self.late.store(0, Ordering::Relaxed);
        } else {
            self.late.fetch_max(micros(waited) / 2, Ordering::Relaxed);
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn readers_wait_as_long_as_those_before_had_to() {
        let (patience, periods) = (Patience::default(), Periods::default());
        let wait = || patience.wait(MS, &periods);
        assert_eq!(wait(), periods.wait_min);
        assert_eq!(patience.wait(30 * MS, &periods), 120 * MS, "a read that takes long has waits that are long");
        // The replica is 100 ms late. Readers of the same read miss it together, which counts once.
        let mut missed = 0;
        while wait() < 100 * MS {
            let waited = wait();
            (0..10).for_each(|_| patience.missed(waited, &periods));
            assert_eq!(wait(), 2 * waited);
            missed += 1;
        }
        assert_eq!(missed, 3);
        patience.reached(100 * MS);
        assert_eq!(wait(), 400 * MS);
        (0..20).for_each(|_| patience.reached(Duration::ZERO));
        assert!((20 * MS..100 * MS).contains(&wait()), "{:?}", wait());
        (0..100).for_each(|_| patience.reached(Duration::ZERO));
        assert_eq!(wait(), periods.wait_min);
    }

    #[test]
    fn a_replica_that_is_behind_is_not_waited_for_at_length_each_time() {
        let (patience, periods) = (Patience::default(), Periods::default());
        let waits: Vec<_> = std::iter::repeat_with(|| {
            let waited = patience.wait(MS, &periods);
            patience.missed(waited, &periods);
            waited
        })
        .take(7)
        .collect();
        assert_eq!(waits, [20, 40, 80, 160, 320, 500, 20].map(Duration::from_millis));
        assert_eq!(patience.wait(Duration::from_secs(9), &periods), periods.wait_max);
    }
}
