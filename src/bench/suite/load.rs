//! One run of a load, as a process of its own.

use std::collections::BTreeMap;
use std::process::{Child, Output, Stdio};

use serde::Serialize;
use serde_json::Value;

use super::programs::{Programs, command};

/// What one run gave: figures by name, and what is drawn of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(in crate::bench) struct Sample {
    pub(in crate::bench) figures: BTreeMap<&'static str, f64>,
    /// Milliseconds and the answers that took up to so long.
    pub(in crate::bench) latencies: Vec<(f64, f64)>,
    /// Seconds and operations per second.
    pub(in crate::bench) rates: Vec<(f64, f64)>,
    /// Absent for the loads of TCP.
    #[serde(skip)]
    pub(in crate::bench) cpu_window: Option<CpuWindow>,
}

/// The CPU time of servers from the first request of a load to the last one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::bench) struct CpuWindow {
    /// Begin and end, in seconds since the machine started.
    pub(in crate::bench) seconds: [f64; 2],
    /// CPU seconds of each server at both, in the order of the command line.
    pub(in crate::bench) cpu_seconds: Vec<[f64; 2]>,
    /// What was done meanwhile.
    pub(in crate::bench) operations: f64,
}

impl CpuWindow {
    fn of(report: &Value) -> Option<Self> {
        let window = &report["cpu_window"];
        let cpu = |server: &Value| {
            let before = server["cpu_before_seconds"].as_f64()?;
            Some([before, before + server["cpu_seconds"].as_f64()?])
        };
        Some(Self {
            seconds: [window[0].as_f64()?, window[1].as_f64()?],
            cpu_seconds: report["servers"].as_array()?.iter().map(cpu).collect::<Option<_>>()?,
            operations: report["cpu_operations"].as_f64()?,
        })
    }

    /// CPU microseconds of each server for each operation, less what it needs in each second in which nothing happens.
    pub(in crate::bench) fn each(&self, idle: f64) -> Vec<f64> {
        let [begin, end] = self.seconds;
        let cpu = self.cpu_seconds.iter().map(|[before, after]| (after - before) * 1e6 - idle * (end - begin));
        cpu.map(|micros| micros / self.operations.max(1.0)).collect()
    }
}

/// Figures of one answer or one event: without any they are zero in the JSON, which would be better than every other.
const OF_ANSWERS: &[&str] = &[P50, P99, P99_9, P50_MICROS, P99_MICROS];
const OF_EVENTS: &[&str] = &[DELIVERY_P50, DELIVERY_P99];
const OF_EITHER: &[&str] = &[CPU, GENERATOR_CPU];

/// Where a figure is in the JSON of a load, and what it is called.
const FIGURES: &[(&str, &str)] = &[
    (PER_SECOND, "/throughput"),
    (P50, "/latency_ms/p50"),
    (P99, "/latency_ms/p99"),
    (P99_9, "/latency_ms/p99_9"),
    (EVENTS, "/delivery/events_per_second"),
    (DELIVERED, "/delivery/events"),
    (DELIVERY_P50, "/delivery/latency_ms/p50"),
    (DELIVERY_P99, "/delivery/latency_ms/p99"),
    (GENERATOR_CPU, "/generator_cpu_us_per_op"),
    (PER_SECOND, "/rounds_per_second"),
    (P50_MICROS, "/p50_us"),
    (P99_MICROS, "/p99_us"),
    (CPU, "/cpu_us_per_round"),
    (PER_SECOND, "/connections_per_second"),
    (CPU, "/cpu_us_per_connection"),
    (GIGABYTES, "/gb_per_second"),
    (CPU_PER_GIGABYTE, "/cpu_s_per_gb"),
    (BYTES_PER_CONNECTION, "/bytes_per_connection"),
];

pub(in crate::bench) const PER_SECOND: &str = "per second";
pub(in crate::bench) const P50: &str = "p50 ms";
pub(in crate::bench) const P99: &str = "p99 ms";
pub(in crate::bench) const P99_9: &str = "p99.9 ms";
pub(in crate::bench) const P50_MICROS: &str = "p50 µs";
pub(in crate::bench) const P99_MICROS: &str = "p99 µs";
pub(in crate::bench) const EVENTS: &str = "events per second";
pub(in crate::bench) const DELIVERED: &str = "events";
pub(in crate::bench) const DELIVERY_P50: &str = "delivery p50 ms";
pub(in crate::bench) const DELIVERY_P99: &str = "delivery p99 ms";
pub(in crate::bench) const CPU: &str = "cpu µs";
pub(in crate::bench) const GENERATOR_CPU: &str = "generator cpu µs";
pub(in crate::bench) const RESIDENT: &str = "resident MiB";
pub(in crate::bench) const IDLE_BYTES: &str = "bytes per idle stream";
pub(in crate::bench) const GIGABYTES: &str = "GB per second";
pub(in crate::bench) const CPU_PER_GIGABYTE: &str = "cpu s per GB";
pub(in crate::bench) const BYTES_PER_CONNECTION: &str = "bytes per idle connection";
pub(in crate::bench) const ERRORS: &str = "errors";
/// Of the calls that were due, those that failed.
pub(in crate::bench) const FAILED_SHARE: &str = "failed share";
pub(in crate::bench) const OPERATIONS: &str = "operations";

/// A load that is running.
pub(in crate::bench) struct Load {
    child: Child,
    words: String,
}

impl Load {
    /// Starts `watershed bench` with these words.
    pub(in crate::bench) fn start(programs: &Programs, words: &[String]) -> Result<Self, String> {
        let words_read = format!("bench {}", words.join(" "));
        let all: Vec<String> = std::iter::once("bench".to_owned()).chain(words.iter().cloned()).collect();
        let child = command(&programs.ours, &all)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{words_read}: {error}"))?;
        Ok(Self { child, words: words_read })
    }

    /// Whether it has not ended yet.
    pub(in crate::bench) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it measured. A load with errors is measured, too.
    pub(in crate::bench) fn finish(self) -> Result<Sample, String> {
        let output = self.child.wait_with_output().map_err(|error| format!("{}: {error}", self.words))?;
        read(&output).map_err(|error| format!("{}: {error}", self.words))
    }
}

/// What a load printed. Its exit code says that something went wrong; what did has to be among its figures.
fn read(output: &Output) -> Result<Sample, String> {
    let said = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let sample = match serde_json::from_slice(&output.stdout) {
        Ok(report) => Sample::of(&report),
        Err(_) => return Err(said()),
    };
    if !output.status.success() && sample.errors() == 0.0 {
        let operations = sample.figures.get(OPERATIONS).copied().unwrap_or_default();
        return Err(format!("{} after {operations} answers and no error: {}", output.status, said()));
    }
    Ok(sample)
}

/// Runs a load from begin to end.
pub(in crate::bench) fn measure(programs: &Programs, words: &[String]) -> Result<Sample, String> {
    Load::start(programs, words)?.finish()
}

/// Words of a line that has no spaces within words.
pub(in crate::bench) fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Runs a load for so many seconds.
pub(in crate::bench) fn measure_for(
    programs: &Programs,
    mut words: Vec<String>,
    seconds: f64,
) -> Result<Sample, String> {
    words.push(duration(seconds));
    measure(programs, &words)
}

/// `--duration` of so many seconds.
pub(in crate::bench) fn duration(seconds: f64) -> String {
    format!("--duration={seconds}s")
}

impl Sample {
    fn of(report: &Value) -> Self {
        let mut figures = BTreeMap::new();
        for (name, pointer) in FIGURES {
            if let Some(value) = report.pointer(pointer).and_then(Value::as_f64) {
                figures.insert(*name, value);
            }
        }
        let servers = report["servers"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !servers.is_empty() {
            let sum = |field: &str| servers.iter().filter_map(|server| server[field].as_f64()).sum::<f64>();
            figures.insert(CPU, sum("cpu_us_per_op"));
            figures.insert(RESIDENT, sum("rss_bytes") / f64::from(1 << 20));
        }
        if let Some(idle) = report.pointer("/delivery/idle_bytes_per_stream").and_then(Value::as_object)
            && !idle.is_empty()
        {
            figures.insert(IDLE_BYTES, idle.values().filter_map(Value::as_f64).sum::<f64>());
        }
        if let Some(operations) = report["operations"].as_f64() {
            figures.insert(OPERATIONS, operations);
            let errors =
                report["errors"].as_object().map(|errors| errors.values().filter_map(Value::as_f64).sum::<f64>());
            let lost = ["missing", "duplicate_or_disordered", "ended_watches"];
            let lost =
                lost.iter().filter_map(|name| report.pointer(&format!("/delivery/{name}"))?.as_f64()).sum::<f64>();
            // An empty sum is -0.
            figures.insert(ERRORS, errors.unwrap_or(0.0) + lost + 0.0);
        }
        let events = report.pointer("/delivery/events").and_then(Value::as_f64);
        let answers = ["operations", "rounds", "connections"].iter().find_map(|name| report[*name].as_f64());
        let mut without: Vec<&str> = Vec::new();
        for (count, names) in [(answers, OF_ANSWERS), (events, OF_EVENTS), (events.or(answers), OF_EITHER)] {
            if count == Some(0.0) {
                without.extend_from_slice(names);
            }
        }
        figures.retain(|name, _| !without.contains(name));
        Self {
            figures,
            latencies: pairs(&report["latency_histogram"]),
            rates: pairs(&report["rates"]),
            cpu_window: CpuWindow::of(report),
        }
    }

    /// Calls that failed and events that were lost, repeated or out of order.
    pub(in crate::bench) fn errors(&self) -> f64 {
        self.figures.get(ERRORS).copied().unwrap_or_default()
    }

    pub(in crate::bench) fn cpu_window(&self) -> Result<&CpuWindow, String> {
        self.cpu_window.as_ref().ok_or_else(|| "the load has no CPU times".to_owned())
    }

    pub(in crate::bench) fn figure(&self, name: &str) -> Result<f64, String> {
        self.figures.get(name).copied().ok_or_else(|| format!("the load has no figure {name:?}"))
    }
}

fn pairs(value: &Value) -> Vec<(f64, f64)> {
    let pairs = value.as_array().map(Vec::as_slice).unwrap_or_default();
    pairs.iter().filter_map(|pair| Some((pair[0].as_f64()?, pair[1].as_f64()?))).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use serde_json::json;

    use super::*;

    #[test]
    fn without_an_answer_there_is_no_latency_and_no_cost() {
        // All of them are 0 then, which reached every aim.
        let latency = json!({"p50": 0.0, "p99": 0.0, "p99_9": 0.0});
        let servers = json!([{"cpu_us_per_op": 0.0, "rss_bytes": 1_048_576}]);
        let put = json!({
            "operations": 0, "throughput": 0.0, "latency_ms": latency, "servers": servers,
            "generator_cpu_us_per_op": 0.0, "errors": {"gone": 3},
        });
        let names = |sample: &Sample| sample.figures.keys().copied().collect::<Vec<_>>();
        assert_eq!(names(&Sample::of(&put)), [ERRORS, OPERATIONS, PER_SECOND, RESIDENT]);
        let watch = json!({
            "operations": 2, "throughput": 1.0, "latency_ms": latency, "servers": servers,
            "delivery": {"events": 0, "events_per_second": 0.0, "latency_ms": latency, "missing": 2},
        });
        let expected = [ERRORS, DELIVERED, EVENTS, OPERATIONS, P50, P99, P99_9, PER_SECOND, RESIDENT];
        let found = Sample::of(&watch);
        assert!(expected.iter().all(|name| found.figures.contains_key(name)), "{found:?}");
        assert_eq!(found.figures.len(), expected.len(), "{found:?}");
        let tcp = Sample::of(&json!({"rounds": 0, "rounds_per_second": 0.0, "p50_us": 0.0, "p99_us": 0.0}));
        assert_eq!(names(&tcp), [PER_SECOND]);
    }

    #[test]
    fn an_exit_code_needs_a_reason() {
        let of = |code: i32, stdout: &str| {
            let status = ExitStatus::from_raw(code << 8);
            read(&Output { status, stdout: stdout.into(), stderr: b"panicked".to_vec() })
        };
        let (good, bad) = (r#"{"operations": 5, "errors": {}}"#, r#"{"operations": 5, "errors": {"gone": 1}}"#);
        assert_eq!(of(0, good).unwrap().errors(), 0.0);
        assert_eq!(of(1, bad).unwrap().errors(), 1.0);
        assert_eq!(of(1, good).unwrap_err(), "exit status: 1 after 5 answers and no error: panicked");
        let none = of(1, r#"{"operations": 0, "errors": {}}"#).unwrap_err();
        assert!(none.contains("after 0 answers"), "{none}");
        assert_eq!(of(1, "").unwrap_err(), "panicked");
    }

    #[test]
    fn the_cost_of_each_server_is_that_of_its_window() {
        let servers = json!([
            {"cpu_before_seconds": 7.0, "cpu_seconds": 0.5}, {"cpu_before_seconds": 1.0, "cpu_seconds": 0.25},
        ]);
        let report = json!({"cpu_window": [100.0, 102.0], "cpu_operations": 1000, "servers": servers});
        let window = CpuWindow::of(&report).unwrap();
        assert_eq!(window.cpu_seconds, [[7.0, 7.5], [1.0, 1.25]]);
        // Half of 50,000 µs in each second is what they need when nothing happens.
        assert_eq!((window.each(0.0), window.each(25_000.0)), (vec![500.0, 250.0], vec![450.0, 200.0]));
        assert_eq!(Sample::of(&json!({"rounds": 1})).cpu_window, None);
    }

    #[test]
    fn figures_are_those_of_all_servers_and_of_both_kinds_of_load() {
        let watch = json!({
            "throughput": 10.0, "operations": 5, "errors": {"a": 2, "b": 1},
            "servers": [{"cpu_us_per_op": 1.5, "rss_bytes": 1_048_576}, {"cpu_us_per_op": 2.0, "rss_bytes": 2_097_152}],
            "delivery": {"events_per_second": 7.0, "missing": 4, "idle_bytes_per_stream": {"server": 100.0}},
            "latency_histogram": [[1.0, 3], [2.0, 2]], "rates": [],
        });
        let sample = Sample::of(&watch);
        let expected =
            [(PER_SECOND, 10.0), (EVENTS, 7.0), (CPU, 3.5), (RESIDENT, 3.0), (IDLE_BYTES, 100.0), (ERRORS, 7.0)];
        for (name, value) in expected {
            assert_eq!(sample.figure(name), Ok(value), "{name}");
        }
        assert_eq!(sample.latencies, [(1.0, 3.0), (2.0, 2.0)]);
        let tcp = Sample::of(&json!({"rounds_per_second": 9.0, "cpu_us_per_round": 1.0, "p99_us": 3.0}));
        assert_eq!((tcp.figure(PER_SECOND), tcp.figure(CPU), tcp.figure(P99_MICROS)), (Ok(9.0), Ok(1.0), Ok(3.0)));
        let connections = Sample::of(&json!({"connections_per_second": 8.0, "cpu_us_per_connection": 2.0}));
        assert_eq!((connections.figure(PER_SECOND), connections.figure(CPU)), (Ok(8.0), Ok(2.0)));
        assert_eq!(tcp.figure(ERRORS).unwrap_err(), "the load has no figure \"errors\"");
    }
}
