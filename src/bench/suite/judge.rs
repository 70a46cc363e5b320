//! From rounds to ratios and verdicts.

use serde::Serialize;

use super::load::{FAILED_SHARE, Sample};
use crate::bench::statistics::{median, spread};

/// Rounds further apart than this, relative to their median, are marked.
const SPREAD_MAX: f64 = 0.3;

/// The side that floors hold for.
pub(super) const OURS: &str = "watershed";
/// The side it is measured against.
pub(super) const PEER: &str = "peer";

/// What a figure is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Against {
    /// The figure of another side: the ratio counts.
    Side(&'static str),
    /// Nothing: the figure itself counts.
    Nothing,
}

/// A figure that has to be reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) figure: &'static str,
    pub(super) against: Against,
    pub(super) more_is_better: bool,
    /// What has to hold.
    pub(super) floor: Option<f64>,
    /// Where it is to go.
    pub(super) aim: Option<f64>,
}

/// More than `floor` times the peer's.
pub(super) const fn more(figure: &'static str, floor: Option<f64>, aim: Option<f64>) -> Target {
    Target { figure, against: Against::Side(PEER), more_is_better: true, floor, aim }
}

/// Less than `floor` times the peer's.
pub(super) const fn less(figure: &'static str, floor: Option<f64>, aim: Option<f64>) -> Target {
    Target { figure, against: Against::Side(PEER), more_is_better: false, floor, aim }
}

impl Target {
    pub(super) const fn against(self, against: Against) -> Self {
        Self { against, ..self }
    }
}

/// How a figure stands to its floor and aim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// The aim is reached.
    Aim,
    /// The floor holds.
    Floor,
    /// The floor does not hold.
    Below,
    /// It has neither.
    None,
}

/// One figure of all sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Judged {
    pub(super) figure: &'static str,
    /// Medians by side, in the order of the sides; absent where a side has no such figure.
    pub(super) medians: Vec<Option<f64>>,
    /// Whether rounds of a side differ too much.
    pub(super) unsteady: bool,
    /// What is compared with floor and aim.
    pub(super) value: Option<f64>,
    pub(super) is_ratio: bool,
    pub(super) more_is_better: bool,
    pub(super) floor: Option<f64>,
    pub(super) aim: Option<f64>,
    /// Whether rounds of ours had errors, or no such figure; then no floor holds.
    pub(super) failed: bool,
    pub(super) verdict: Verdict,
}

/// Judges one target by the rounds of each side.
pub(super) fn judge(target: &Target, sides: &[(&'static str, Vec<Sample>)]) -> Judged {
    let rounds = |samples: &[Sample]| -> Vec<f64> {
        samples.iter().filter_map(|sample| sample.figures.get(target.figure).copied()).collect()
    };
    let medians: Vec<Option<f64>> = sides.iter().map(|(_, samples)| median(&rounds(samples))).collect();
    let of = |name: &str| medians[sides.iter().position(|(side, _)| *side == name)?];
    let value = match target.against {
        Against::Nothing => of(OURS),
        Against::Side(other) => {
            of(OURS).zip(of(other)).filter(|(_, other)| *other != 0.0).map(|(own, other)| own / other)
        }
    };
    let reached =
        |mark: f64| value.is_some_and(|value| if target.more_is_better { value >= mark } else { value <= mark });
    // Of a hung member the errors are the figure.
    let has_errors = |sample: &Sample| target.figure != FAILED_SHARE && sample.errors() > 0.0;
    let failed = sides
        .iter()
        .filter(|(side, _)| *side == OURS)
        .flat_map(|(_, samples)| samples)
        .any(|sample| has_errors(sample) || !sample.figures.contains_key(target.figure));
    let verdict = match (value, target.floor, target.aim) {
        (_, Some(_), _) | (_, _, Some(_)) if failed => Verdict::Below,
        (None, ..) | (_, None, None) => Verdict::None,
        (_, _, Some(aim)) if reached(aim) => Verdict::Aim,
        (_, Some(floor), _) if !reached(floor) => Verdict::Below,
        (_, None, Some(_)) => Verdict::None,
        _ => Verdict::Floor,
    };
    Judged {
        figure: target.figure,
        unsteady: sides.iter().any(|(_, samples)| spread(&rounds(samples)) > SPREAD_MAX),
        medians,
        value,
        is_ratio: target.against != Against::Nothing,
        more_is_better: target.more_is_better,
        floor: target.floor,
        aim: target.aim,
        failed,
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::{CPU, ERRORS, PER_SECOND};
    use super::*;

    fn side(figure: &'static str, rounds: &[f64]) -> Vec<Sample> {
        let sample = |value: &f64| Sample { figures: [(figure, *value)].into(), ..Sample::default() };
        rounds.iter().map(sample).collect()
    }

    fn verdict(target: &Target, ours: f64, peer: f64) -> Verdict {
        judge(target, &[(OURS, side(target.figure, &[ours])), (PEER, side(target.figure, &[peer]))]).verdict
    }

    #[test]
    fn more_and_less_have_floors_and_aims() {
        let rate = more(PER_SECOND, Some(1.6), Some(2.5));
        assert_eq!(verdict(&rate, 26.0, 10.0), Verdict::Aim);
        assert_eq!(verdict(&rate, 16.0, 10.0), Verdict::Floor);
        assert_eq!(verdict(&rate, 15.9, 10.0), Verdict::Below);
        let cpu = less(CPU, Some(0.5), None);
        assert_eq!(verdict(&cpu, 5.0, 10.0), Verdict::Floor);
        assert_eq!(verdict(&cpu, 5.1, 10.0), Verdict::Below);
        assert_eq!(verdict(&more(PER_SECOND, None, None), 1.0, 1.0), Verdict::None);
        let aim = more(PER_SECOND, None, Some(2.0));
        assert_eq!((verdict(&aim, 2.0, 1.0), verdict(&aim, 1.0, 1.0)), (Verdict::Aim, Verdict::None));
        let own = less(CPU, Some(2.0), Some(1.0)).against(Against::Nothing);
        assert_eq!((verdict(&own, 1.5, 100.0), verdict(&own, 3.0, 100.0)), (Verdict::Floor, Verdict::Below));
    }

    #[test]
    fn without_the_other_side_there_is_no_verdict() {
        let judged = judge(&more(PER_SECOND, Some(1.0), None), &[(OURS, side(PER_SECOND, &[5.0]))]);
        assert_eq!((judged.value, judged.verdict), (None, Verdict::None));
        assert_eq!(verdict(&more(PER_SECOND, Some(1.0), None), 1.0, 0.0), Verdict::None);
    }

    #[test]
    fn errors_and_rounds_without_the_figure_hold_no_floor() {
        // A run of nothing but errors had the best latency of all.
        fn round(figures: &[(&'static str, f64)]) -> Vec<Sample> {
            vec![Sample { figures: figures.iter().copied().collect(), ..Sample::default() }]
        }
        fn judged(target: &Target, ours: &[(&'static str, f64)], peer: &[(&'static str, f64)]) -> Judged {
            judge(target, &[(OURS, round(ours)), (PEER, round(peer))])
        }
        let rate = more(PER_SECOND, Some(1.0), Some(2.0));
        let fast = judged(&rate, &[(PER_SECOND, 9.0), (ERRORS, 1.0)], &[(PER_SECOND, 1.0)]);
        assert_eq!((fast.verdict, fast.failed, fast.value), (Verdict::Below, true, Some(9.0)));
        assert_eq!(judged(&rate, &[(ERRORS, 0.0)], &[(PER_SECOND, 1.0)]).verdict, Verdict::Below);
        assert_eq!(judged(&rate, &[(PER_SECOND, 9.0)], &[(PER_SECOND, 1.0), (ERRORS, 5.0)]).verdict, Verdict::Aim);
        let shown = more(PER_SECOND, None, None);
        assert_eq!(judged(&shown, &[(PER_SECOND, 9.0), (ERRORS, 1.0)], &[]).verdict, Verdict::None);
        let share = less(FAILED_SHARE, Some(0.01), Some(0.0)).against(Against::Nothing);
        assert_eq!(judged(&share, &[(FAILED_SHARE, 0.005), (ERRORS, 5.0)], &[]).verdict, Verdict::Floor);
    }

    #[test]
    fn rounds_that_differ_are_marked() {
        let unsteady =
            |rounds: &[f64]| judge(&more(PER_SECOND, None, None), &[(OURS, side(PER_SECOND, rounds))]).unsteady;
        assert!(!unsteady(&[10.0, 10.5, 9.9, 10.1, 30.0]));
        assert!(unsteady(&[10.0, 20.0, 10.0, 20.0, 15.0]));
    }
}
