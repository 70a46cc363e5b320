use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::wire::CallError;

/// Longest latency that is recorded, an hour.
const LONGEST_NANOS: u64 = 3_600_000_000_000;
/// Different error texts kept; a server that makes up a new text each time gets no more.
const TEXTS: usize = 50;

/// What one thread of the generator saw.
#[derive(Clone, Debug)]
pub(super) struct Record {
    latency: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    /// Of the answers and errors, those after the limit of the run.
    late: Late,
}

/// What ended after the limit of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Late {
    pub(super) answers: u64,
    pub(super) errors: u64,
}

impl Default for Record {
    fn default() -> Self {
        let latency = Histogram::new_with_bounds(1, LONGEST_NANOS, 3).expect("constant bounds that fit");
        Self { latency, errors: BTreeMap::new(), late: Late::default() }
    }
}

impl Record {
    pub(super) fn answered(&mut self, latency: Duration) {
        self.latency.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LONGEST_NANOS).max(1));
    }

    pub(super) fn failed(&mut self, error: &CallError) {
        let known = self.errors.len() < TEXTS || self.errors.contains_key(&error.0);
        let text = if known { error.0.as_str() } else { "(other errors)" };
        *self.errors.entry(text.to_owned()).or_default() += 1;
    }

    /// The request that was answered or failed last ended after the limit.
    pub(super) fn was_late(&mut self, well: bool) {
        let count = if well { &mut self.late.answers } else { &mut self.late.errors };
        *count += 1;
    }

    pub(super) fn late(&self) -> Late {
        self.late
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.late.answers += other.late.answers;
        self.late.errors += other.late.errors;
        self.latency.add(&other.latency).expect("the same bounds");
        for (text, count) in &other.errors {
            *self.errors.entry(text.clone()).or_default() += count;
        }
    }

    pub(super) fn answers(&self) -> u64 {
        self.latency.len()
    }

    pub(super) fn errors(&self) -> &BTreeMap<String, u64> {
        &self.errors
    }

    pub(super) fn latency(&self) -> Latency {
        let at = |percentile| millis(self.latency.value_at_percentile(percentile));
        if self.latency.is_empty() {
            return Latency::default();
        }
        Latency {
            mean: self.latency.mean() / 1e6,
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            p99_9: at(99.9),
            max: millis(self.latency.max()),
        }
    }

    /// Latencies in milliseconds, each a quarter above the one before, and the answers that took up to so long.
    pub(super) fn histogram(&self) -> Vec<(f64, u64)> {
        self.latency
            .iter_log(10_000, 1.25)
            .map(|bucket| (millis(bucket.value_iterated_to()), bucket.count_since_last_iteration()))
            .skip_while(|(_, count)| *count == 0)
            .collect()
    }

    /// Lines of a bar chart over the times at which answers came, ten at most.
    pub(super) fn chart(&self) -> Vec<(f64, u64)> {
        if self.latency.is_empty() {
            return Vec::new();
        }
        let (low, high) = (self.latency.min(), self.latency.max());
        let step = (high - low).div_ceil(10).max(1);
        self.latency
            .iter_linear(step)
            .map(|bucket| (millis(bucket.value_iterated_to()), bucket.count_since_last_iteration()))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

/// Latency in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Latency {
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p99_9: f64,
    pub(super) max: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_answers() {
        let mut one = Record::default();
        let mut two = Record::default();
        for millis in 1..=1000 {
            let record = if millis % 2 == 0 { &mut one } else { &mut two };
            record.answered(Duration::from_millis(millis));
        }
        two.was_late(true);
        two.was_late(false);
        one.merge(&two);
        assert_eq!(one.late(), Late { answers: 1, errors: 1 });
        let latency = one.latency();
        let near = |found: f64, expected: f64| (found - expected).abs() / expected < 0.002;
        assert_eq!(one.answers(), 1000);
        assert!(near(latency.p50, 500.0) && near(latency.p99, 990.0) && near(latency.p99_9, 999.0), "{latency:?}");
        assert!(near(latency.max, 1000.0) && near(latency.mean, 500.5), "{latency:?}");
        assert_eq!(one.chart().iter().map(|(_, count)| count).sum::<u64>(), 1000);
        let histogram = one.histogram();
        assert_eq!(histogram.iter().map(|(_, count)| count).sum::<u64>(), 1000);
        assert!(histogram.windows(2).all(|pair| pair[0].0 < pair[1].0) && histogram.len() < 40, "{histogram:?}");
    }

    #[test]
    fn errors_are_counted_by_text_and_bounded() {
        let mut record = Record::default();
        for at in 0..200 {
            record.failed(&CallError(format!("error {at}")));
        }
        record.failed(&CallError("error 0".into()));
        assert_eq!(record.errors()["error 0"], 2);
        assert_eq!(record.errors()["(other errors)"], 200 - TEXTS as u64);
    }

    #[test]
    fn nothing_measured_is_all_zero() {
        assert_eq!(Record::default().latency(), Latency::default());
        assert!(Record::default().chart().is_empty());
    }
}
