use std::time::{Duration, Instant};

/// Shortest time over which a rate is given.
const STEP: Duration = Duration::from_millis(200);

/// How many operations had ended at some moments of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Timeline(Vec<(Instant, u64)>);

impl Timeline {
    pub(super) fn note(&mut self, at: Instant, done: u64) {
        self.0.push((at, done));
    }

    /// Seconds since the first operation, and operations per second in the time before.
    pub(super) fn rates(&self) -> Vec<(f64, f64)> {
        // Before the first operation connections are made.
        let first = self.0.iter().position(|(_, done)| *done > 0).unwrap_or(self.0.len());
        let mut moments = self.0[first.saturating_sub(1)..].iter();
        let Some(&(start, done)) = moments.next() else { return Vec::new() };
        let (mut last, mut rates) = ((start, done), Vec::new());
        for &(at, done) in moments {
            let took = at - last.0;
            if took >= STEP {
                rates.push(((at - start).as_secs_f64(), (done - last.1) as f64 / took.as_secs_f64()));
                last = (at, done);
            }
        }
        rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_begin_with_the_first_operation() {
        let start = Instant::now();
        let mut timeline = Timeline::default();
        assert_eq!(timeline.rates(), []);
        for (millis, done) in [(0, 0), (100, 0), (200, 5), (300, 10), (350, 12), (500, 40)] {
            timeline.note(start + Duration::from_millis(millis), done);
        }
        assert_eq!(timeline.rates(), [(0.2, 50.0), (0.4, 150.0)]);
    }
}
