use tokio::time::Instant;

use crate::config::ConnectionLimits;

/// Looks at a connection in the time that it may be idle: it is closed a quarter of that late at most, and a byte costs
/// no look at the clock.
const IDLE_LOOKS: u32 = 4;

/// Why the gateway closes a connection that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    Idle,
    Age,
}

/// Tells when a connection has reached a limit.
#[derive(Debug)]
pub(super) struct LimitClock {
    limits: ConnectionLimits,
    started: Instant,
    /// Activity of the connection at the last look, and when that was another number for the last time.
    activity: u64,
    active: Instant,
}

impl LimitClock {
    pub(super) fn new(limits: ConnectionLimits, now: Instant) -> Self {
        Self { limits, started: now, activity: 0, active: now }
    }

    /// When to ask [`reached`](Self::reached) next; never without limits.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        let idle = self.limits.idle.map(|idle| now + idle / IDLE_LOOKS);
        idle.into_iter().chain(self.limits.age.map(|age| self.started + age)).min()
    }

    /// Takes note of a number that grows while bytes move, in either direction, and tells whether a limit is reached.
    pub(super) fn reached(&mut self, now: Instant, activity: u64) -> Option<Limit> {
        if self.limits.age.is_some_and(|age| now - self.started >= age) {
            return Some(Limit::Age);
        }
        if activity != self.activity {
            (self.activity, self.active) = (activity, now);
        }
        let is_idle = self.limits.idle.is_some_and(|idle| now - self.active >= idle);
        is_idle.then_some(Limit::Idle)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Looks as often as told; bytes move at these seconds.
    fn closed_after(limits: ConnectionLimits, bytes_at: &[u64]) -> Option<(u64, Limit)> {
        let started = Instant::now();
        let mut clock = LimitClock::new(limits, started);
        let mut now = started;
        while let Some(look) = clock.next_look(now) {
            now = look;
            let passed = (now - started).as_secs();
            let moved = bytes_at.iter().filter(|&&at| at < passed).count() as u64;
            if let Some(limit) = clock.reached(now, moved) {
                return Some((passed, limit));
            }
        }
        None
    }

    #[test]
    fn bytes_keep_a_connection_from_being_idle_and_nothing_from_ageing() {
        let limits = |idle: u64, age: u64| ConnectionLimits {
            idle: Some(idle).filter(|&idle| idle > 0).map(Duration::from_secs),
            age: Some(age).filter(|&age| age > 0).map(Duration::from_secs),
        };
        let busy: Vec<u64> = (0..1000).step_by(30).collect();
        assert_eq!(closed_after(limits(40, 0), &[]), Some((40, Limit::Idle)));
        assert_eq!(closed_after(limits(40, 0), &[5, 33]), Some((80, Limit::Idle)), "seen at 40");
        assert_eq!(closed_after(limits(40, 700), &busy), Some((700, Limit::Age)));
        assert_eq!(closed_after(limits(40, 0), &busy), Some((1040, Limit::Idle)), "the last byte at 990, seen at 1000");
        assert_eq!(closed_after(limits(0, 7), &busy), Some((7, Limit::Age)));
        assert_eq!(closed_after(limits(0, 0), &[]), None);
    }
}
