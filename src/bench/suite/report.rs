//! The outcome of a suite: JSON, and a table.

use std::fmt::Write as _;

use serde::Serialize;

use super::judge::{Judged, Verdict};
use super::load::Sample;
use super::noise::Moment;

/// Everything that was measured; the JSON file is this.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// This program, and the one it is measured against.
    pub(super) programs: [String; 2],
    pub(super) machine: String,
    pub(super) rounds: u32,
    pub(super) seconds: f64,
    pub(super) rows: Vec<RowReport>,
}

/// One row.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct RowReport {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    /// Why it was not measured.
    pub(super) not_run: Option<String>,
    /// Sides that are missing, and why.
    pub(super) notes: Vec<String>,
    pub(super) sides: Vec<&'static str>,
    pub(super) figures: Vec<Judged>,
    /// Why the machine was too noisy.
    pub(super) noise: Option<String>,
    pub(super) moments: Vec<Moment>,
    /// By side.
    pub(super) samples: Vec<Vec<Sample>>,
}

impl Report {
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings are JSON")
    }

    /// Rows that could not be measured.
    pub(super) fn not_run(&self) -> usize {
        self.rows.iter().filter(|row| row.not_run.is_some()).count()
    }

    /// Figures with a verdict, over all rows.
    pub(super) fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().flat_map(|row| &row.figures).filter(|figure| figure.verdict == verdict).count()
    }

    /// A table in Markdown, as docs/benchmarks.md has it.
    pub(super) fn markdown(&self) -> String {
        let [ours, peer] = &self.programs;
        let mut text = format!(
            "{ours} against {peer}; medians of {} rounds of {} s in turns. {}.\n\n\
             | row | load | figure | watershed | peer | others | value | floor | aim | |\n\
             | --- | --- | --- | ---: | ---: | --- | ---: | ---: | ---: | --- |\n",
            self.rounds, self.seconds, self.machine
        );
        for row in &self.rows {
            row.lines(&mut text);
        }
        let _ = write!(
            text,
            "\n{} figures at their aim, {} at their floor, {} below it; {} rows not run.\n",
            self.count(Verdict::Aim),
            self.count(Verdict::Floor),
            self.count(Verdict::Below),
            self.not_run()
        );
        text
    }
}

impl RowReport {
    fn lines(&self, text: &mut String) {
        if let Some(reason) = &self.not_run {
            let _ = writeln!(text, "| {} | `{}` | not run: {reason} | | | | | | | |", self.name, self.what);
            return;
        }
        for (number, figure) in self.figures.iter().enumerate() {
            let (name, what) = if number == 0 { (self.name, format!("`{}`", self.what)) } else { ("", String::new()) };
            let others: Vec<String> = self
                .sides
                .iter()
                .zip(&figure.medians)
                .skip(2)
                .filter_map(|(side, median)| Some(format!("{side} {}", number_text((*median)?))))
                .collect();
            let own = |at: usize| figure.medians.get(at).copied().flatten().map(number_text).unwrap_or_default();
            let _ = writeln!(
                text,
                "| {name} | {what} | {} | {} | {} | {} | {} | {} | {} | {} |",
                figure.figure,
                own(0),
                own(1),
                others.join(", "),
                value_text(figure),
                figure.floor.map(number_text).unwrap_or_default(),
                figure.aim.map(number_text).unwrap_or_default(),
                self.verdict_text(figure),
            );
        }
        for note in &self.notes {
            let _ = writeln!(text, "| | | {note} | | | | | | | |");
        }
    }

    /// What there is to say of a figure, in words.
    pub(super) fn verdict_text(&self, figure: &Judged) -> String {
        let verdict = match figure.verdict {
            Verdict::Aim => "aim reached",
            Verdict::Floor => "floor held",
            Verdict::Below if figure.failed => "failed: errors, or rounds without answers",
            Verdict::Below => "below the floor",
            Verdict::None => "",
        };
        let noise = self.noise.as_ref().filter(|_| figure.verdict != Verdict::None);
        let noise = noise.map(|why| format!("too noisy to judge: {why}"));
        let unsteady = figure.unsteady.then(|| "rounds differ".to_owned());
        let parts = [Some(verdict.to_owned()).filter(|text| !text.is_empty()), noise, unsteady];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

/// The ratio, or the figure itself where that is what counts.
pub(super) fn value_text(figure: &Judged) -> String {
    match (figure.value, figure.is_ratio) {
        (Some(ratio), true) => format!("{ratio:.2}x"),
        (Some(value), false) => number_text(value),
        (None, _) => String::new(),
    }
}

/// A number with as many digits as matter.
pub(super) fn number_text(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 1000.0 => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at) % 3 == 0 && !text.ends_with('-') {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::judge::{OURS, PEER, judge, less, more};
    use super::super::load::{CPU, PER_SECOND};
    use super::*;

    pub(in super::super) fn report() -> Report {
        let sample = |rate: f64, cpu: f64| Sample {
            figures: [(PER_SECOND, rate), (CPU, cpu)].into(),
            latencies: vec![(0.5, 10.0), (1.0, 90.0), (2.0, 5.0)],
            rates: vec![(0.2, rate), (0.4, rate * 1.1)],
            ..Sample::default()
        };
        let sides = [
            (OURS, vec![sample(45_438.4, 24.4)]),
            (PEER, vec![sample(24_819.0, 49.6)]),
            ("haproxy", vec![sample(1.0, 2.0)]),
        ];
        let targets = [more(PER_SECOND, Some(1.6), Some(2.5)), less(CPU, Some(0.4), None)];
        let row = RowReport {
            name: "put-64",
            what: "put --clients=64",
            sides: sides.iter().map(|(name, _)| *name).collect(),
            figures: targets.iter().map(|target| judge(target, &sides)).collect(),
            notes: vec!["nginx not run: nginx not found".into()],
            noise: Some("other work kept 1.50 processors busy".into()),
            samples: sides.into_iter().map(|(_, samples)| samples).collect(),
            ..RowReport::default()
        };
        let missing = RowReport { name: "x", what: "y", not_run: Some("<no> port".into()), ..RowReport::default() };
        Report {
            programs: ["watershed 1".into(), "etcd 3.7.1".into()],
            machine: "2 processors".into(),
            rounds: 1,
            seconds: 3.0,
            rows: vec![row, missing],
        }
    }

    #[test]
    fn the_table_has_medians_ratios_and_verdicts() {
        let text = report().markdown();
        for line in [
            "| put-64 | `put --clients=64` | per second | 45,438 | 24,819 | haproxy 1.00 | 1.83x | 1.60 | 2.50 | floor held; too noisy to judge: other work kept 1.50 processors busy |",
            "|  |  | cpu µs | 24.4 | 49.6 | haproxy 2.00 | 0.49x | 0.40 |  | below the floor; too noisy",
            "| | | nginx not run: nginx not found |",
            "| x | `y` | not run: <no> port |",
            "0 figures at their aim, 1 at their floor, 1 below it; 1 rows not run.",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn numbers_have_the_digits_that_matter() {
        let texts = [0.0, 0.015_625, 0.49, 12.34, 123.4, 1234.5, 1_234_567.0].map(number_text);
        assert_eq!(texts, ["0", "0.0156", "0.49", "12.3", "123", "1,234", "1,234,567"]);
    }

    #[test]
    fn json_has_every_round() {
        let json: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
        assert_eq!(json["rows"][0]["samples"][1][0]["figures"][PER_SECOND], 24_819.0);
        assert_eq!(json["rows"][0]["figures"][0]["verdict"], "floor");
        assert_eq!(json["rows"][1]["not_run"], "<no> port");
    }
}
