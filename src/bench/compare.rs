use std::fmt::Write as _;

use serde::Serialize;

use super::args::{self, Action, CompareArgs, Load, Refusal};
use super::measure;
use super::record::Latency;
use super::report::{Delivery, Report};
use super::statistics::median;
use super::wire::CallError;
use crate::client::Endpoint;

/// One figure of a run, and where it is found.
struct Figure {
    name: &'static str,
    of: fn(&Report) -> Option<f64>,
}

const FIGURES: &[Figure] = &[
    Figure { name: "throughput /s", of: |report| Some(report.throughput) },
    Figure { name: "p50 ms", of: |report| latency(report).map(|one| one.p50) },
    Figure { name: "p90 ms", of: |report| latency(report).map(|one| one.p90) },
    Figure { name: "p99 ms", of: |report| latency(report).map(|one| one.p99) },
    Figure { name: "p99.9 ms", of: |report| latency(report).map(|one| one.p99_9) },
    Figure { name: "events /s", of: |report| report.delivery.as_ref().map(|one| one.events_per_second) },
    Figure { name: "delivery p50 ms", of: |report| delivered(report).map(|one| one.latency_ms.p50) },
    Figure { name: "delivery p99 ms", of: |report| delivered(report).map(|one| one.latency_ms.p99) },
    Figure { name: "idle bytes/stream", of: idle_bytes },
    Figure { name: "cpu µs/op", of: |report| charged(report, sum(report, |cost| cost.cpu_us_per_op)) },
    Figure { name: "resident MiB", of: |report| sum(report, |cost| cost.rss_bytes as f64 / f64::from(1 << 20)) },
    Figure { name: "peak MiB", of: |report| sum(report, |cost| cost.rss_peak_bytes as f64 / f64::from(1 << 20)) },
    Figure { name: "generator cpu µs/op", of: |report| charged(report, Some(report.generator_cpu_us_per_op)) },
];

/// None without answers: nothing took no time.
fn latency(report: &Report) -> Option<&Latency> {
    (report.operations > 0).then_some(&report.latency_ms)
}

fn delivered(report: &Report) -> Option<&Delivery> {
    report.delivery.as_ref().filter(|delivery| delivery.events > 0)
}

/// A cost of each operation, if there was one.
fn charged(report: &Report, cost: Option<f64>) -> Option<f64> {
    cost.filter(|_| report.cpu_operations > 0)
}

fn sum(report: &Report, of: fn(&super::server::Cost) -> f64) -> Option<f64> {
    (!report.servers.is_empty()).then(|| report.servers.iter().map(of).sum())
}

fn idle_bytes(report: &Report) -> Option<f64> {
    let idle = &report.delivery.as_ref()?.idle_bytes_per_stream;
    (!idle.is_empty()).then(|| idle.values().sum())
}

/// One figure of both sides.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    figure: &'static str,
    a: f64,
    b: f64,
    /// Median of A over median of B.
    ratio: f64,
    a_rounds: Vec<f64>,
    b_rounds: Vec<f64>,
}

/// The outcome of a comparison; the JSON output is this.
#[derive(Debug, Serialize)]
struct Comparison {
    load: String,
    a: String,
    b: String,
    rounds: u32,
    /// Runs with errors or lost events, by side.
    unclean: [u32; 2],
    medians: Vec<Row>,
}

/// Runs A, B, A, B, … and gives the text to print and whether every run was clean.
pub(super) fn run(args: &CompareArgs) -> Result<(String, bool), CallError> {
    let load = read_load(args)?;
    let sides = [side(&load, &args.a, "a", args)?, side(&load, &args.b, "b", args)?];
    let mut reports = [Vec::new(), Vec::new()];
    for round in 1..=args.rounds {
        for (at, side) in sides.iter().enumerate() {
            let report = measure::measure(side)?;
            if !args.json {
                let name = ["a", "b"][at];
                let errors: u64 = report.errors.values().sum();
                eprintln!(
                    "round {round} {name}: {:.1}/s, p50 {:.3} ms, p99 {:.3} ms, {errors} errors",
                    report.throughput, report.latency_ms.p50, report.latency_ms.p99
                );
            }
            reports[at].push(report);
        }
    }
    let unclean = [0, 1].map(|at: usize| reports[at].iter().filter(|report| !report.is_clean()).count() as u32);
    let comparison = Comparison {
        load: args.load.join(" "),
        a: args.a.to_string(),
        b: args.b.to_string(),
        rounds: args.rounds,
        unclean,
        medians: rows(&reports),
    };
    let text = if args.json {
        serde_json::to_string(&comparison).expect("numbers and strings are JSON") + "\n"
    } else {
        comparison.text()
    };
    Ok((text, unclean == [0, 0]))
}

fn read_load(args: &CompareArgs) -> Result<Load, CallError> {
    let words = std::iter::once("watershed bench").chain(args.load.iter().map(String::as_str));
    match args::read(words) {
        Ok(bench) => match bench.action {
            Action::Load(load) => Ok(load),
            Action::Compare(_) | Action::Suite(_) | Action::Fleet(_) => {
                Err(CallError(format!("{:?} cannot be compared: it is no load", args.load[0])))
            }
        },
        Err(Refusal::Help(text) | Refusal::Wrong(text)) => Err(CallError(text)),
    }
}

fn side(load: &Load, endpoint: &Endpoint, name: &str, args: &CompareArgs) -> Result<Load, CallError> {
    if let Some(wrong) = args.server_pid.iter().find(|server| server.name != "a" && server.name != "b") {
        return Err(CallError(format!("--server-pid {}={}: the side must be a or b", wrong.name, wrong.pid)));
    }
    let mut load = load.clone();
    let common = load.common_mut();
    common.endpoints = vec![endpoint.clone()];
    common.discovery_srv.clear();
    common.discovery_dns.clear();
    common.server_pid = args.server_pid.iter().filter(|server| server.name == name).cloned().collect();
    common.json |= args.json;
    Ok(load)
}

fn rows(reports: &[Vec<Report>; 2]) -> Vec<Row> {
    FIGURES
        .iter()
        .filter_map(|figure| {
            let [a_rounds, b_rounds] = [0, 1].map(|at: usize| reports[at].iter().filter_map(figure.of).collect());
            row(figure.name, a_rounds, b_rounds)
        })
        .collect()
}

fn row(figure: &'static str, a_rounds: Vec<f64>, b_rounds: Vec<f64>) -> Option<Row> {
    let (a, b) = (median(&a_rounds)?, median(&b_rounds)?);
    let ratio = if b == 0.0 { 0.0 } else { a / b };
    Some(Row { figure, a, b, ratio, a_rounds, b_rounds })
}

impl Comparison {
    fn text(&self) -> String {
        let mut text = format!(
            "{}: medians of {} rounds, a = {}, b = {}\n  {:<20} {:>14} {:>14} {:>8}\n",
            self.load, self.rounds, self.a, self.b, "", "a", "b", "a/b"
        );
        for row in &self.medians {
            let _ = writeln!(text, "  {:<20} {:>14.3} {:>14.3} {:>8.2}", row.figure, row.a, row.b, row.ratio);
        }
        if self.unclean != [0, 0] {
            let [a, b] = self.unclean;
            let _ = writeln!(text, "  runs with errors or lost events: a {a}, b {b}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_compares_medians() {
        let row = row("x", vec![1.0, 10.0, 4.0], vec![2.0, 2.0, 9.0]).unwrap();
        assert_eq!((row.a, row.b, row.ratio), (4.0, 2.0, 2.0));
        assert_eq!(super::row("x", vec![], vec![1.0]), None);
    }

    #[test]
    fn sides_must_be_a_or_b() {
        let words = ["x", "compare", "--a", "127.0.0.1:1", "--b", "127.0.0.1:2", "--server-pid", "c=1", "--", "put"];
        let Ok(bench) = args::read(words) else { panic!("a comparison") };
        let Action::Compare(args) = bench.action else { panic!("a comparison") };
        assert_eq!(run(&args).unwrap_err().0, "--server-pid c=1: the side must be a or b");
    }
}
