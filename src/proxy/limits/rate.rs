use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much may come at once: what a second allows.
const BURST: Duration = Duration::from_secs(1);

/// A token bucket of a second's tokens. They may be taken after the fact, when the cost is known, and more than there are: nothing
/// passes until the rate has made up for the excess. (The crate `governor` allows no excess.)
#[derive(Debug)]
pub(super) struct Rate {
    start: Instant,
    /// Nanoseconds from `start` until the bucket is full, if nothing more passes.
    full_at: AtomicU64,
}

impl Rate {
    pub fn new(start: Instant) -> Self {
        Self { start, full_at: AtomicU64::new(0) }
    }

    /// Whether something may pass at `now`.
    ///
    /// # Errors
    /// The time until it may.
    pub fn check(&self, now: Instant) -> Result<(), Duration> {
        match self.full_at.load(Ordering::Relaxed).saturating_sub(self.nanos(now) + BURST.as_nanos() as u64) {
            0 => Ok(()),
            early => Err(Duration::from_nanos(early)),
        }
    }

    /// Lets `count` pass if that is at most what is left.
    ///
    /// # Errors
    /// The time until it may.
    pub fn take(&self, count: u64, per_second: u64, now: Instant) -> Result<(), Duration> {
        let (now, cost) = (self.nanos(now), cost(count, per_second));
        let most = now + BURST.as_nanos() as u64;
        let taken = |full_at: u64| Some(full_at.max(now).saturating_add(cost)).filter(|full_at| *full_at <= most);
        match self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken) {
            Ok(_) => Ok(()),
            Err(full_at) => Err(Duration::from_nanos(full_at.max(now).saturating_add(cost) - most)),
        }
    }

    /// Notes that `count` has passed.
    pub fn charge(&self, count: u64, per_second: u64, now: Instant) {
        let (now, cost) = (self.nanos(now), cost(count, per_second));
        let taken = |full_at: u64| Some(full_at.max(now).saturating_add(cost));
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
    }

    /// Drops an excess: what was taken at another rate says nothing of this one.
    pub fn drop_excess(&self, now: Instant) {
        self.full_at.fetch_min(self.nanos(now) + BURST.as_nanos() as u64, Ordering::Relaxed);
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX / 2)
    }
}

fn cost(count: u64, per_second: u64) -> u64 {
    u64::try_from(u128::from(count) * 1_000_000_000 / u128::from(per_second.max(1))).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_allows_what_it_allows() {
        let start = Instant::now();
        let rate = Rate::new(start);
        let at = |millis| start + Duration::from_millis(millis);
        for _ in 0..10 {
            assert_eq!(rate.take(1, 10, at(0)), Ok(()));
        }
        assert_eq!(rate.take(1, 10, at(0)), Err(Duration::from_millis(100)));
        assert_eq!(rate.take(1, 10, at(99)), Err(Duration::from_millis(1)));
        assert_eq!(rate.take(1, 10, at(100)), Ok(()));
        assert_eq!(rate.take(1, 10, at(100)), Err(Duration::from_millis(100)));
        // What was not used is gone, but for a second's worth.
        let taken = (0..100).filter(|_| rate.take(1, 10, at(60_000)).is_ok()).count();
        assert_eq!(taken, 10);
    }

    #[test]
    fn an_excess_ends_with_time() {
        let start = Instant::now();
        let rate = Rate::new(start);
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(rate.check(at(0)), Ok(()));
        rate.charge(5_000, 1_000, at(0));
        assert_eq!(rate.check(at(0)), Err(Duration::from_secs(4)));
        assert_eq!(rate.check(at(3_999)), Err(Duration::from_millis(1)));
        assert_eq!(rate.check(at(4_000)), Ok(()));
        rate.charge(u64::MAX, 1, at(4_000));
        assert!(rate.check(at(4_000)).is_err());
        rate.drop_excess(at(5_000));
        assert_eq!(rate.check(at(5_000)), Ok(()));
        assert_eq!(rate.take(1, 10, at(5_000)), Err(Duration::from_millis(100)), "nothing is left over, either");
    }
}
