use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::proto::MetricType;
use prometheus::{
    Counter, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::durations::Durations;

/// Content type of [`Metrics::render`].
pub const TEXT_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

type Refresh = Box<dyn Fn() + Send + Sync>;

/// All metrics of one server, proxy or gateway. Cheap to clone; the parts of a `dev` process have one each.
///
/// Names are constants of this program, so registering one twice is a fault of ours and panics at start.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Registry,
    refreshes: Arc<Mutex<Vec<Refresh>>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Runs `refresh` before each rendering, for gauges that are cheaper to read than to keep current.
    pub fn before_render(&self, refresh: impl Fn() + Send + Sync + 'static) {
        self.refreshes.lock().push(Box::new(refresh));
    }

    /// Prometheus' text format.
    pub fn render(&self) -> String {
        self.refresh();
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be rendered");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// The counters and gauges whose name `wanted` takes, by name with their labels in Prometheus' form.
    pub fn values(&self, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, f64> {
        self.refresh();
        let mut values = BTreeMap::new();
        for family in self.registry.gather().iter().filter(|family| wanted(family.name())) {
            for metric in family.get_metric() {
                let value = match family.get_field_type() {
                    MetricType::COUNTER => metric.get_counter().get_value(),
                    MetricType::GAUGE => metric.get_gauge().get_value(),
                    _ => continue,
                };
                let labels: Vec<_> =
                    metric.get_label().iter().map(|label| format!("{}={:?}", label.name(), label.value())).collect();
                let name = family.name();
                let name = if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) };
                values.insert(name, value);
            }
        }
        values
    }

    fn refresh(&self) {
        for refresh in self.refreshes.lock().iter() {
            refresh();
        }
    }

    /// Registers any collector.
    ///
    /// # Panics
    /// When its name is taken.
    pub fn register<C: Collector + Clone + 'static>(&self, collector: C) -> C {
        self.registry.register(Box::new(collector.clone())).expect("each metric is registered once");
        collector
    }

    /// A counter.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help).expect("metric names are valid"))
    }

    /// A counter of parts.
    pub fn float_counter(&self, name: &str, help: &str) -> Counter {
        self.register(Counter::new(name, help).expect("metric names are valid"))
    }

    /// A counter for each value of some labels.
    pub fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels).expect("metric names are valid"))
    }

    /// A whole number that goes up and down.
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help).expect("metric names are valid"))
    }

    /// A gauge for each value of some labels.
    pub fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels).expect("metric names are valid"))
    }

    /// A number that goes up and down.
    pub fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help).expect("metric names are valid"))
    }

    /// A float gauge for each value of some labels.
    pub fn float_gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(GaugeVec::new(Opts::new(name, help), labels).expect("metric names are valid"))
    }

    /// A histogram; see [`exponential_buckets`].
    pub fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets);
        self.register(Histogram::with_opts(options).expect("metric names are valid"))
    }

    /// A histogram of durations for hot paths; it has one row.
    pub fn durations(&self, name: &str, help: &str, buckets: Vec<f64>) -> Durations {
        self.durations_by(name, help, &[], &[Vec::new()], buckets)
    }

    /// A histogram of durations for hot paths, with a row for each list of label values.
    pub fn durations_by(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        rows: &[Vec<&str>],
        buckets: Vec<f64>,
    ) -> Durations {
        self.register(Durations::new(name, help, labels, rows, buckets))
    }

    /// A histogram for each value of some labels.
    pub fn histogram_vec(&self, name: &str, help: &str, labels: &[&str], buckets: Vec<f64>) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets);
        self.register(HistogramVec::new(options, labels).expect("metric names are valid"))
    }
}

/// Counts something in a gauge for as long as it exists.
#[derive(Debug)]
pub struct Counted(IntGauge);

impl Counted {
    /// One more.
    pub fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Sets a counter to a number that only grows and is kept elsewhere; for [`Metrics::before_render`].
pub fn raise_to(counter: &IntCounter, value: u64) {
    counter.inc_by(value.saturating_sub(counter.get()));
}

/// `count` bounds from `start`, each twice the one before.
pub fn exponential_buckets(start: f64, count: usize) -> Vec<f64> {
    std::iter::successors(Some(start), |bound| Some(bound * 2.0)).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendering_refreshes_and_names_the_process() {
        let metrics = Metrics::new();
        let gauge = metrics.gauge("a_gauge", "help");
        let refreshed = gauge.clone();
        metrics.before_render(move || refreshed.inc());
        assert!(metrics.render().contains("\na_gauge 1\n"));
        let text = metrics.render();
        assert!(text.contains("\na_gauge 2\n"));
        for name in ["process_resident_memory_bytes ", "process_cpu_seconds_total ", "os_fd_used ", "os_fd_limit "] {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            assert!(line[name.len()..].parse::<f64>().unwrap() >= 0.0, "{line}");
        }
    }
}
