use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::record::{Late, Latency, Record};
use super::server::{Charged, Cost, Meter, per};
use super::timeline::Timeline;

/// The outcome of one run; the JSON output is this.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) load: &'static str,
    pub(super) endpoints: Vec<String>,
    pub(super) conns: u32,
    pub(super) clients: u32,
    /// What the throughput is counted over: the limit of the run, or up to the last answer.
    pub(super) seconds: f64,
    /// Requests that were answered well, however late.
    pub(super) operations: u64,
    /// Of them, and of the errors, those after the limit; the throughput is without them.
    pub(super) late_answers: u64,
    pub(super) late_errors: u64,
    pub(super) throughput: f64,
    /// Requests per second that were to be sent; absent in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offered: Option<f64>,
    pub(super) latency_ms: Latency,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delivery: Option<Delivery>,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) servers: Vec<Cost>,
    /// What the CPU times are divided by.
    pub(super) cpu_operations: u64,
    /// Begin and end of what they are taken over, in seconds since the machine started.
    pub(super) cpu_window: [f64; 2],
    /// CPU microseconds this generator spent on each operation; near those of the server, it is the bottleneck.
    pub(super) generator_cpu_us_per_op: f64,
    #[serde(skip)]
    pub(super) chart: Vec<(f64, u64)>,
    /// Latencies in milliseconds, and the answers up to each that took longer than the one before.
    pub(super) latency_histogram: Vec<(f64, u64)>,
    /// Seconds since the first operation, and operations (of watches, events) per second before.
    pub(super) rates: Vec<(f64, f64)>,
}

/// What watchers saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Delivery {
    pub(super) streams: u32,
    pub(super) watchers: u64,
    pub(super) events: u64,
    /// From the first put to the last event.
    pub(super) events_per_second: f64,
    pub(super) latency_ms: Latency,
    pub(super) missing: u64,
    /// Events seen again, or after a later one.
    pub(super) duplicate_or_disordered: u64,
    /// Watches that ended by themselves.
    pub(super) ended_watches: u64,
    /// Time to set all watches up.
    pub(super) setup_seconds: f64,
    /// Memory of each server for each stream, before any event: how much it grew while the watches were set up.
    pub(super) idle_bytes_per_stream: BTreeMap<String, f64>,
}

impl Delivery {
    pub(super) fn is_exact(&self) -> bool {
        self.missing == 0 && self.duplicate_or_disordered == 0 && self.ended_watches == 0
    }
}

/// What a load measured, before it becomes a report.
pub(super) struct Measured {
    pub(super) record: Record,
    pub(super) elapsed: Duration,
    pub(super) offered: Option<f64>,
    pub(super) delivery: Option<Delivery>,
    pub(super) timeline: Timeline,
}

impl Report {
    pub(super) fn new(
        load: &'static str,
        endpoints: Vec<String>,
        (conns, clients): (u32, u32),
        measured: Measured,
        meter: &Meter,
    ) -> Self {
        let Measured { record, elapsed, offered, delivery, timeline } = measured;
        let operations = record.answers();
        let Late { answers: late_answers, errors: late_errors } = record.late();
        let in_time = operations - late_answers;
        let seconds = elapsed.as_secs_f64();
        // What a fan-out costs, it costs for its events. A closed loop is charged up to its limit, one at a rate until all
        // that was due has ended.
        let own = if offered.is_none() { in_time } else { operations };
        let cpu_operations = delivery.as_ref().map_or(own, |delivery| delivery.events);
        let Charged { costs, own_cpu_seconds, window } = meter.charged(cpu_operations);
        Self {
            load,
            endpoints,
            conns,
            clients,
            seconds,
            operations,
            late_answers,
            late_errors,
            throughput: if seconds > 0.0 { in_time as f64 / seconds } else { 0.0 },
            offered,
            latency_ms: record.latency(),
            delivery,
            errors: record.errors().clone(),
            servers: costs,
            cpu_operations,
            cpu_window: window,
            generator_cpu_us_per_op: per(own_cpu_seconds * 1e6, cpu_operations),
            chart: record.chart(),
            latency_histogram: record.histogram(),
            rates: timeline.rates(),
        }
    }

    /// Whether everything that was asked for happened.
    pub(super) fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.operations > 0 && self.delivery.as_ref().is_none_or(Delivery::is_exact)
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let out = &mut text;
        let _ = writeln!(
            out,
            "{}: {} answers in {:.3} s from {} ({} connections, {} clients)",
            self.load,
            self.operations,
            self.seconds,
            self.endpoints.join(","),
            self.conns,
            self.clients
        );
        let offered = self.offered.map_or(String::new(), |rate| format!(" of {rate:.1} offered"));
        let _ = writeln!(out, "  throughput  {:.1}/s{offered}", self.throughput);
        if self.late_answers + self.late_errors > 0 {
            let _ = writeln!(
                out,
                "  late        {} answers and {} errors after the end, not in the throughput",
                self.late_answers, self.late_errors
            );
        }
        latency_line(out, "latency", &self.latency_ms);
        if let Some(delivery) = &self.delivery {
            let _ = writeln!(
                out,
                "  events      {} to {} watchers on {} streams, {:.1}/s",
                delivery.events, delivery.watchers, delivery.streams, delivery.events_per_second
            );
            latency_line(out, "delivery", &delivery.latency_ms);
            let _ = writeln!(
                out,
                "  exactness   {} missing, {} duplicate or out of order, {} watches ended",
                delivery.missing, delivery.duplicate_or_disordered, delivery.ended_watches
            );
            let _ = writeln!(out, "  setup       {:.3} s", delivery.setup_seconds);
            for (name, bytes) in &delivery.idle_bytes_per_stream {
                let _ = writeln!(out, "  {name:<10}  {bytes:.0} bytes for each idle stream");
            }
        }
        for cost in &self.servers {
            let _ = writeln!(
                out,
                "  {:<10}  {:.2} s CPU, {:.1} µs for each operation; resident {} (peak {})",
                cost.name,
                cost.cpu_seconds,
                cost.cpu_us_per_op,
                mib(cost.rss_bytes),
                mib(cost.rss_peak_bytes)
            );
        }
        let _ = writeln!(out, "  generator   {:.1} µs CPU for each operation", self.generator_cpu_us_per_op);
        for (text, count) in &self.errors {
            let _ = writeln!(out, "  error       {count} x {text}");
        }
        if !self.chart.is_empty() {
            let most = self.chart.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
            let _ = writeln!(out, "  answers within");
            for (millis, count) in &self.chart {
                let bar = "▆".repeat((count * 40 / most) as usize);
                let _ = writeln!(out, "  {millis:>10.3} ms  {count:>9}  {bar}");
            }
        }
        text
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings are JSON")
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn latency_line(out: &mut String, name: &str, latency: &Latency) {
    let Latency { mean, p50, p90, p99, p99_9, max } = latency;
    let _ = writeln!(
        out,
        "  {name:<10}  mean {mean:.3}  p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  p99.9 {p99_9:.3}  max {max:.3} ms"
    );
}

#[cfg(test)]
mod tests {
    use super::super::wire::CallError;
    use super::*;

    fn report(delivery: Option<Delivery>, errors: u32) -> Report {
        let mut record = Record::default();
        (1..=100).for_each(|millis| record.answered(Duration::from_millis(millis)));
        (0..errors).for_each(|_| record.failed(&CallError("Unavailable: gone".into())));
        let measured = Measured {
            record,
            elapsed: Duration::from_secs(2),
            offered: Some(60.0),
            delivery,
            timeline: Timeline::default(),
        };
        let meter = Meter::start(&[]).unwrap();
        Report::new("put", vec!["127.0.0.1:2379".into()], (1, 2), measured, &meter)
    }

    #[test]
    fn late_answers_are_no_throughput_and_are_shown() {
        let mut record = Record::default();
        (0..4).for_each(|_| record.answered(Duration::from_millis(1)));
        record.was_late(true);
        record.failed(&CallError("no answer within 30s".into()));
        record.was_late(false);
        let of = |offered| {
            let (record, elapsed) = (record.clone(), Duration::from_secs(3));
            let measured = Measured { record, elapsed, offered, delivery: None, timeline: Timeline::default() };
            Report::new("put", vec![], (1, 1), measured, &Meter::start(&[]).unwrap())
        };
        let closed = of(None);
        assert_eq!((closed.operations, closed.late_answers, closed.late_errors), (4, 1, 1));
        assert_eq!((closed.throughput, closed.cpu_operations), (1.0, 3));
        assert!(closed.text().contains("late        1 answers and 1 errors after the end"), "{}", closed.text());
        assert_eq!((of(Some(2.0)).throughput, of(Some(2.0)).cpu_operations), (1.0, 4));
    }

    #[test]
    fn json_has_the_figures_by_name() {
        let json: serde_json::Value = serde_json::from_str(&report(None, 2).json()).unwrap();
        assert_eq!(json["operations"], 100);
        assert_eq!(json["throughput"], 50.0);
        assert_eq!(json["offered"], 60.0);
        assert_eq!(json["errors"]["Unavailable: gone"], 2);
        for name in ["mean", "p50", "p90", "p99", "p99_9", "max"] {
            assert!(json["latency_ms"][name].as_f64().unwrap() > 0.0, "{name}");
        }
        assert!(json.get("delivery").is_none());
    }

    #[test]
    fn a_run_is_clean_only_without_errors_and_losses() {
        assert!(report(None, 0).is_clean());
        assert!(!report(None, 1).is_clean());
        let exact = Delivery { events: 100, ..Default::default() };
        assert!(report(Some(exact.clone()), 0).is_clean());
        assert!(!report(Some(Delivery { missing: 1, ..exact.clone() }), 0).is_clean());
        assert!(!report(Some(Delivery { duplicate_or_disordered: 1, ..exact }), 0).is_clean());
    }

    #[test]
    fn the_text_names_percentiles_and_errors() {
        let text = report(None, 1).text();
        assert!(text.contains("throughput  50.0/s of 60.0 offered"), "{text}");
        assert!(text.contains("p99.9 ") && text.contains("error       1 x Unavailable: gone"), "{text}");
    }
}
