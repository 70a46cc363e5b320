use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// Cells of one series; threads share a cell only when there are more of them than this.
const STRIPES: usize = 8;

/// A histogram of durations for hot paths: an observation is two relaxed additions to a cell that is all but the
/// thread's own. A series whose labels are known in advance is a row; rows that were never observed are not rendered,
/// unless there is only one.
#[derive(Clone)]
pub struct Durations(Arc<Family>);

struct Family {
    desc: Desc,
    bounds: Vec<f64>,
    bounds_ns: Vec<u64>,
    rows: Vec<Row>,
}

struct Row {
    labels: Vec<LabelPair>,
    stripes: [Stripe; STRIPES],
}

#[repr(align(64))]
struct Stripe {
    sum_ns: AtomicU64,
    /// One for each bound, and one for what is above all of them.
    counts: Box<[AtomicU64]>,
}

impl Durations {
    /// `rows` holds the values of `labels` for each row.
    pub(super) fn new(name: &str, help: &str, labels: &[&str], rows: &[Vec<&str>], bounds: Vec<f64>) -> Self {
        let names = labels.iter().map(|&label| label.to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), names, Default::default());
        let row = |values: &Vec<&str>| {
            let mut pairs: Vec<_> = labels.iter().zip(values).map(|(label, value)| pair(label, value)).collect();
            // The registry expects them in this order.
            pairs.sort();
            let counts = || (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
            let stripes = std::array::from_fn(|_| Stripe { sum_ns: AtomicU64::new(0), counts: counts() });
            Row { labels: pairs, stripes }
        };
        Self(Arc::new(Family {
            desc: desc.expect("metric names are valid"),
            bounds_ns: bounds.iter().map(|&bound| Duration::from_secs_f64(bound).as_nanos() as u64).collect(),
            rows: rows.iter().map(row).collect(),
            bounds,
        }))
    }

    /// Adds a duration to a row.
    pub fn observe(&self, row: usize, took: Duration) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.0.bounds_ns.partition_point(|&bound| bound < took_ns);
        let stripe = &self.0.rows[row].stripes[stripe_of_thread()];
        stripe.counts[bucket].fetch_add(1, Ordering::Relaxed);
        stripe.sum_ns.fetch_add(took_ns, Ordering::Relaxed);
    }
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

/// Threads take stripes in turn.
fn stripe_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static STRIPE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    }
    // A thread on its way out uses the first.
    STRIPE.try_with(|stripe| *stripe).unwrap_or(0)
}

impl Row {
    fn render(&self, bounds: &[f64]) -> Metric {
        let mut count = 0;
        let count_of = |bucket: usize| -> u64 {
            self.stripes.iter().map(|stripe| stripe.counts[bucket].load(Ordering::Relaxed)).sum()
        };
        let buckets = bounds.iter().enumerate().map(|(at, &bound)| {
            count += count_of(at);
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(count + count_of(bounds.len()));
        let sum_ns: u64 = self.stripes.iter().map(|stripe| stripe.sum_ns.load(Ordering::Relaxed)).sum();
        histogram.set_sample_sum(sum_ns as f64 / 1e9);
        let mut metric = Metric::from_label(self.labels.clone());
        metric.set_histogram(histogram);
        metric
    }
}

impl Collector for Durations {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Family { desc, bounds, rows, .. } = &*self.0;
        let rendered = rows.iter().map(|row| row.render(bounds));
        let shown = rendered.filter(|metric| rows.len() == 1 || metric.get_histogram().get_sample_count() > 0);
        let mut family = MetricFamily::default();
        family.set_name(desc.fq_name.clone());
        family.set_help(desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(shown.collect());
        vec![family]
    }
}

impl fmt::Debug for Durations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Durations").field(&self.0.desc.fq_name).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::Metrics;
    use super::*;

    #[test]
    fn threads_add_to_one_histogram() {
        let metrics = Metrics::default();
        let rows = [vec!["Put", "true"], vec!["Put", "false"]];
        let durations = metrics.durations_by("took_seconds", "help", &["type", "success"], &rows, vec![0.001, 0.002]);
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| {
                    durations.observe(0, Duration::from_millis(1));
                    durations.observe(0, Duration::from_micros(1500));
                    durations.observe(0, Duration::from_secs(1));
                });
            }
        });
        let text = metrics.render();
        let line = |bound: &str, count: u64| {
            format!("took_seconds_bucket{{success=\"true\",type=\"Put\",le=\"{bound}\"}} {count}\n")
        };
        assert!(text.contains("# TYPE took_seconds histogram\n"), "{text}");
        for (bound, count) in [("0.001", 16), ("0.002", 32), ("+Inf", 48)] {
            assert!(text.contains(&line(bound, count)), "{text}");
        }
        assert!(text.contains("took_seconds_sum{success=\"true\",type=\"Put\"} 16.04\n"), "{text}");
        assert!(text.contains("took_seconds_count{success=\"true\",type=\"Put\"} 48\n"), "{text}");
        assert!(!text.contains("success=\"false\""), "{text}");
    }

    #[test]
    fn a_histogram_without_labels_exists_before_its_first_observation() {
        let metrics = Metrics::default();
        metrics.durations("took_seconds", "help", vec![0.001]);
        assert!(metrics.render().contains("took_seconds_count 0\n"));
    }
}
