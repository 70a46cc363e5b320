use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Shortest sleep of the pacing thread; closer requests leave together.
const TICK: Duration = Duration::from_micros(50);
/// Longest sleep: how late it may learn that the run is stopped.
const LOOK: Duration = Duration::from_millis(100);

/// Hands out the requests of a run: as fast as the callers come back, or at a fixed rate.
///
/// At a fixed rate each request has a time at which it was to be sent, whether or not a caller was free then, and its
/// latency counts from that time. A server that stalls is charged for every request it held up.
pub(super) struct Pace {
    next: AtomicU64,
    /// Requests in the whole run.
    total: u64,
    limit: Option<Duration>,
    /// Requests per second; none is a closed loop.
    rate: Option<f64>,
    start: OnceLock<Instant>,
    due: Semaphore,
}

/// One request to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ticket {
    pub(super) index: u64,
    /// Latency counts from here.
    pub(super) from: Instant,
}

impl Pace {
    /// `total` requests, or as many as fit into `limit`; `rate` per second, or as fast as they are answered.
    pub(super) fn new(total: u64, limit: Option<Duration>, rate: Option<f64>) -> Self {
        let total = match (limit, rate) {
            (Some(limit), Some(rate)) => (limit.as_secs_f64() * rate).ceil() as u64,
            (Some(_), None) => u64::MAX,
            (None, _) => total,
        };
        Self { next: AtomicU64::new(0), total, limit, rate, start: OnceLock::new(), due: Semaphore::new(0) }
    }

    /// Requests in the run, when that is known beforehand.
    pub(super) fn total(&self) -> Option<u64> {
        (self.total != u64::MAX).then_some(self.total)
    }

    /// The first caller fixes the start of the run.
    pub(super) fn start(&self) -> Instant {
        *self.start.get_or_init(Instant::now)
    }

    /// When request `index` was meant to leave.
    fn planned(&self, index: u64, rate: f64) -> Instant {
        self.start() + Duration::from_secs_f64(index as f64 / rate)
    }

    /// The next request, or none when the run is over.
    pub(super) async fn take(&self) -> Option<Ticket> {
        let start = self.start();
        if self.rate.is_some() {
            // The semaphore is never closed; the pacing thread ends it with one permit for each caller.
            self.due.acquire().await.ok()?.forget();
        }
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        if index >= self.total {
            return None;
        }
        let now = Instant::now();
        // At a rate `total` is the limit: what is due is sent however late, or a stall would leave no trace.
        if self.rate.is_none() && self.limit.is_some_and(|limit| now.duration_since(start) >= limit) {
            return None;
        }
        let from = self.rate.map_or(now, |rate| self.planned(index, rate));
        Some(Ticket { index, from })
    }

    /// Whether what ended at this time ended after the limit.
    pub(super) fn is_over(&self, at: Instant) -> bool {
        self.limit.is_some_and(|limit| at.duration_since(self.start()) > limit)
    }

    /// The time that throughput is counted over: the limit, or up to the `last` answer of a number of requests. With a
    /// limit, one call that is answered late does not lengthen it.
    pub(super) fn elapsed(&self, last: Instant) -> Duration {
        self.limit.unwrap_or_else(|| last.duration_since(self.start()))
    }

    /// Waits on the calling thread until a closed loop hands out no more; false if it was told to `stop` before, or if
    /// no limit ends it.
    pub(super) fn wait_for_limit(&self, stop: &CancellationToken) -> bool {
        let Some(limit) = self.limit.filter(|_| self.rate.is_none()) else { return false };
        while !stop.is_cancelled() {
            let left = limit.saturating_sub(self.start().elapsed());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(LOOK));
        }
        false
    }

    /// Releases requests when they are due, on the calling thread, until the run is over. `callers` is how many
    /// [`take`](Self::take) concurrently. Returns at once for a closed loop.
    pub(super) fn drive(&self, callers: usize, stop: &CancellationToken) {
        let Some(rate) = self.rate else { return };
        let start = self.start();
        let mut released = 0;
        while released < self.total && !stop.is_cancelled() {
            let due = due_by(start.elapsed(), rate).min(self.total);
            self.due.add_permits((due - released) as usize);
            released = due;
            if released < self.total {
                let wait = self.planned(released, rate).saturating_duration_since(Instant::now());
                std::thread::sleep(wait.max(TICK).min(LOOK));
            }
        }
        // Callers that still wait find out that nothing is left.
        if stop.is_cancelled() {
            self.next.fetch_max(self.total, Ordering::Relaxed);
        }
        self.due.add_permits(callers);
    }
}

/// Requests that are due after `elapsed`; the first one is due at once.
fn due_by(elapsed: Duration, rate: f64) -> u64 {
    (elapsed.as_secs_f64() * rate) as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_closed_loop_hands_out_every_request_once() {
        let pace = Pace::new(3, None, None);
        let indexes = block_on(async {
            let mut indexes = Vec::new();
            while let Some(ticket) = pace.take().await {
                indexes.push(ticket.index);
            }
            indexes
        });
        assert_eq!(indexes, [0, 1, 2]);
        assert_eq!(pace.total(), Some(3));
        assert!(pace.start.get().is_some(), "the first ticket starts the clock");
    }

    #[test]
    fn latency_at_a_rate_counts_from_the_planned_time() {
        let pace = Pace::new(5, None, Some(1_000_000.0));
        // Everything is long due when the first caller comes, as after a stall.
        let start = pace.start();
        pace.drive(1, &CancellationToken::new());
        let planned = block_on(async {
            let mut planned = Vec::new();
            while let Some(ticket) = pace.take().await {
                planned.push(ticket.from.duration_since(start).as_micros());
            }
            planned
        });
        assert_eq!(planned, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_rate_for_a_time_is_a_number_of_requests() {
        assert_eq!(Pace::new(0, Some(Duration::from_secs(2)), Some(400.0)).total(), Some(800));
        assert_eq!(Pace::new(7, Some(Duration::from_secs(2)), None).total(), None);
        assert_eq!(due_by(Duration::from_millis(10), 1000.0), 11);
        assert_eq!(due_by(Duration::ZERO, 1000.0), 1);
    }

    #[test]
    fn only_a_closed_loop_drops_what_comes_after_the_limit() {
        // Requests that were due while every caller waited were neither answered nor failed: a stall went unseen.
        let begun = |rate| {
            let pace = Pace::new(0, Some(Duration::from_millis(125)), rate);
            pace.start.set(Instant::now().checked_sub(Duration::from_secs(1)).unwrap()).unwrap();
            pace.drive(1, &CancellationToken::new());
            pace
        };
        let open = begun(Some(64.0));
        let indexes = block_on(async {
            let mut indexes = Vec::new();
            while let Some(ticket) = open.take().await {
                indexes.push(ticket.index);
            }
            indexes
        });
        assert_eq!(indexes, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(block_on(begun(None).take()), None);
    }

    #[test]
    fn a_late_answer_does_not_lengthen_a_run_with_a_limit() {
        let second = Duration::from_secs(1);
        let limited = Pace::new(0, Some(second), None);
        let start = limited.start();
        assert!(!limited.is_over(start + second) && limited.is_over(start + second * 2));
        assert_eq!(limited.elapsed(start + second * 30), second);
        let counted = Pace::new(5, None, None);
        let start = counted.start();
        assert!(!counted.is_over(start + second * 30));
        assert_eq!(counted.elapsed(start + second * 30), second * 30);
    }

    #[test]
    fn only_the_limit_of_a_closed_loop_is_waited_for() {
        let (none, short) = (CancellationToken::new(), Some(Duration::from_millis(1)));
        assert!(Pace::new(0, short, None).wait_for_limit(&none));
        assert!(!Pace::new(0, short, Some(1.0)).wait_for_limit(&none));
        assert!(!Pace::new(5, None, None).wait_for_limit(&none));
        none.cancel();
        assert!(!Pace::new(0, Some(Duration::from_secs(3600)), None).wait_for_limit(&none));
    }

    #[test]
    fn a_stopped_run_lets_its_callers_go() {
        let pace = Pace::new(1_000, None, Some(0.001));
        let stop = CancellationToken::new();
        stop.cancel();
        pace.drive(2, &stop);
        assert_eq!(block_on(pace.take()), None);
        assert_eq!(block_on(pace.take()), None);
    }
}
