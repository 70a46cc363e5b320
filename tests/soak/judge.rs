use super::sample::Sample;

/// What must not grow, by how much it may: a part of what it was, and a number.
const LIMITS: [(&str, f64, f64); 9] = [
    ("rss_kb", 0.10, 8.0 * 1024.0),
    ("anon_kb", 0.10, 8.0 * 1024.0),
    ("descriptors", 0.10, 8.0),
    ("threads", 0.0, 2.0),
    ("open_calls", 0.10, 8.0),
    ("watchers", 0.10, 8.0),
    ("db_kb", 0.15, 2.0 * 1024.0),
    // A segment is 64 MB.
    ("wal_kb", 0.10, 64_000.0),
    ("files", 0.0, 4.0),
];

/// Seconds a process runs before it is compared, and until when: members that are restarted are compared at equal ages.
const AGES: [f64; 2] = [60.0, 360.0];

/// A member and a column in the second and in the last quarter of the run.
struct Line {
    member: usize,
    column: &'static str,
    before: f64,
    after: f64,
    allowed: f64,
}

/// What grew and what did not.
pub struct Verdict(Vec<Line>);

/// Compares the median of the last quarter with that of the second one.
pub fn judge(samples: &[Sample]) -> Verdict {
    let end = samples.iter().map(|sample| sample.seconds).fold(0.0, f64::max);
    let mut lines = Vec::new();
    for member in 0..3 {
        let restarted = samples.iter().any(|sample| sample.member == member && sample.seconds - sample.age > AGES[0]);
        let quarter = |from: f64, to: f64, column: &str| {
            let of = |sample: &&Sample| {
                let aged = !restarted || (AGES[0]..AGES[1]).contains(&sample.age);
                sample.member == member && aged && (end * from..=end * to).contains(&sample.seconds)
            };
            median(samples.iter().filter(of).map(|sample| sample.value(column)).collect())
        };
        for (column, part, number) in LIMITS {
            let (Some(before), Some(after)) = (quarter(0.25, 0.5, column), quarter(0.75, 1.0, column)) else {
                continue;
            };
            lines.push(Line { member, column, before, after, allowed: before * (1.0 + part) + number });
        }
    }
    Verdict(lines)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl Verdict {
    /// Everything was compared and nothing grew.
    pub fn is_flat(&self) -> bool {
        self.0.len() == 3 * LIMITS.len() && self.0.iter().all(|line| line.after <= line.allowed)
    }

    pub fn table(&self) -> String {
        let mut text =
            "| Member | | Second quarter | Last quarter | Allowed |\n| --- | --- | --- | --- | --- |\n".to_owned();
        for Line { member, column, before, after, allowed } in &self.0 {
            text += &format!("| {} | {column} | {before:.0} | {after:.0} | {allowed:.0} |\n", member + 1);
        }
        text
    }
}

#[test]
fn growth_is_told_from_noise_and_from_restarts() {
    // An hour; the first member is restarted each eight minutes.
    let run = |growth: f64| -> Vec<Sample> {
        let mut samples = Vec::new();
        for step in 0..360 {
            for member in 0..3 {
                let seconds = f64::from(step) * 10.0;
                let age = if member == 0 { seconds % 480.0 } else { seconds };
                let mut values = [20.0; super::sample::COLUMNS.len()];
                // A process grows in its first minutes.
                values[0] = 40_000.0 + 5_000.0 * (age / 300.0).min(1.0) + f64::from(step % 7) * 300.0 + growth * age;
                samples.push(Sample { member, seconds, age, values });
            }
        }
        samples
    };
    assert!(judge(&run(0.0)).is_flat());
    // 20 MB an hour.
    assert!(!judge(&run(8.0)).is_flat());
    assert!(!judge(&[]).is_flat(), "nothing was compared");
}
