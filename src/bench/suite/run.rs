use std::path::{Path, PathBuf};

use super::document::Document;
use super::html::page;
use super::judge::judge;
use super::load::Sample;
use super::noise::{Moment, too_noisy};
use super::programs::{Programs, at, command, find};
use super::report::{Report, RowReport, number_text};
use super::rows::{Row, chosen};
use super::side::Sides;
use crate::bench::args::SuiteArgs;
use crate::bench::wire::CallError;

/// Rounds of a row whose rounds take long.
const SLOW_ROUNDS: u32 = 3;

/// Measures the rows, writes the reports, and gives the table and whether every row was measured.
pub(in crate::bench) fn run(args: &SuiteArgs) -> Result<(String, bool), CallError> {
    let document = args.document.as_deref().map(Document::open).transpose();
    let document = document.map_err(|error| CallError(format!("--document {error}")))?;
    let report = measured(args).map_err(CallError)?;
    let folder = &args.folder;
    for (name, text) in
        [("report.json", report.json()), ("report.html", page(&report)), ("report.md", report.markdown())]
    {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|error| CallError(at(&path, &error)))?;
    }
    if let Some(document) = document {
        document.replace(&report.markdown()).map_err(|error| CallError(format!("--document {error}")))?;
    }
    let text = format!("{}\nreports: {}/report.{{md,json,html}}\n", report.markdown(), folder.display());
    Ok((text, report.not_run() == 0))
}

fn measured(args: &SuiteArgs) -> Result<Report, String> {
    let rows = chosen(&args.rows)?;
    if !(args.seconds > 0.0 && args.seconds.is_finite()) {
        return Err(format!("--seconds {}: must be above 0", args.seconds));
    }
    let peer = find(&args.against).ok_or_else(|| format!("--against {}: there is no such program", args.against))?;
    let ours = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    std::fs::create_dir_all(&args.folder).map_err(|error| at(&args.folder, &error))?;
    let absolute = |path: &Path| std::fs::canonicalize(path).map_err(|error| at(path, &error));
    let optional = |flag: &str, given: &Option<String>, name: &str| -> Result<Option<PathBuf>, String> {
        match given {
            None => Ok(find(name)),
            Some(given) => find(given).map(Some).ok_or_else(|| format!("{flag} {given}: there is no such program")),
        }
    };
    let programs = Programs {
        ours,
        peer: absolute(&peer)?,
        // Data go beside the reports, so that they are on a disk that was chosen.
        folder: absolute(&args.folder)?,
        haproxy: optional("--haproxy", &args.haproxy, "haproxy")?,
        nginx: optional("--nginx", &args.nginx, "nginx")?,
    };
    let rows = rows.iter().enumerate().map(|(number, row)| {
        eprintln!("[{}/{}] {}: {}", number + 1, rows.len(), row.name, row.what);
        measured_row(row, &programs, args)
    });
    Ok(Report {
        rows: rows.collect(),
        programs: [concat!("watershed ", env!("CARGO_PKG_VERSION")).into(), version(&programs.peer)],
        machine: machine(),
        rounds: args.rounds,
        seconds: args.seconds,
    })
}

fn measured_row(row: &Row, programs: &Programs, args: &SuiteArgs) -> RowReport {
    let report = RowReport { name: row.name, what: row.what, ..RowReport::default() };
    let rounds = if row.is_slow { args.rounds.min(SLOW_ROUNDS) } else { args.rounds };
    let outcome = in_own_folder(programs, |programs| {
        (row.open)(programs, row.what).and_then(|sides| Rounds::take(sides, rounds, args.seconds))
    });
    let taken = match outcome {
        Ok(taken) => taken,
        Err(reason) => {
            eprintln!("  not run: {reason}");
            return RowReport { not_run: Some(reason), ..report };
        }
    };
    let mut notes = taken.notes;
    notes.extend(error_notes(&taken.samples));
    let figures = row.targets.iter().map(|target| judge(target, &taken.samples)).collect();
    let (sides, samples) = taken.samples.into_iter().unzip();
    let noise = too_noisy(&taken.moments);
    RowReport { sides, samples, figures, noise, moments: taken.moments, notes, ..report }
}

/// How many errors each side had, if it had any.
fn error_notes(sides: &[(&'static str, Vec<Sample>)]) -> Vec<String> {
    let errors = sides.iter().map(|(name, samples)| (name, samples.iter().map(Sample::errors).sum::<f64>()));
    let errors = errors.filter(|(_, errors)| *errors > 0.0);
    errors.map(|(name, errors)| format!("{} errors on {name}", number_text(errors))).collect()
}

/// Runs with a folder that is removed afterwards: the data of all rows together may be more than the disk holds.
fn in_own_folder<T>(programs: &Programs, run: impl FnOnce(&Programs) -> Result<T, String>) -> Result<T, String> {
    let files = tempfile::Builder::new().prefix("row-").tempdir_in(&programs.folder);
    let files = files.map_err(|error| at(&programs.folder, &error))?;
    run(&Programs { folder: files.path().to_owned(), ..programs.clone() })
}

/// What the rounds of a row gave.
struct Rounds {
    samples: Vec<(&'static str, Vec<Sample>)>,
    moments: Vec<Moment>,
    notes: Vec<String>,
}

impl Rounds {
    /// Measures each side once in each round, every second round in the reverse order.
    fn take(sides: Sides, rounds: u32, seconds: f64) -> Result<Self, String> {
        let Sides { mut sides, notes } = sides;
        let mut samples: Vec<_> = sides.iter().map(|side| (side.name, Vec::new())).collect();
        let mut moments = Vec::new();
        for round in 1..=rounds {
            for at in order(sides.len(), round) {
                let (side, (name, samples)) = (&mut sides[at], &mut samples[at]);
                moments.push(Moment::look());
                let sample = (side.measure)(seconds).map_err(|error| format!("{name}, round {round}: {error}"))?;
                let figures: Vec<String> =
                    sample.figures.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
                eprintln!("  round {round} {name}: {}", figures.join(", "));
                samples.push(sample);
            }
        }
        Ok(Self { samples, moments, notes })
    }
}

/// Which side is measured when: one that always came second would always find the disk as the other has left it.
fn order(sides: usize, round: u32) -> Vec<usize> {
    let order = 0..sides;
    if round % 2 == 1 { order.rev().collect() } else { order.collect() }
}

/// What a program says that it is.
fn version(program: &Path) -> String {
    let output = command(program, &["--version".to_owned()]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().map_or_else(|| program.display().to_string(), |line| line.trim().to_owned())
}

/// Processors and memory.
pub(in crate::bench) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into());
    let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_else(|| "unknown".into());
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{processors} processors ({model}), memory {memory}, Linux {}, load average {}",
        kernel.trim(),
        load_average()
    )
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::load::ERRORS;
    use super::*;

    #[test]
    fn each_side_comes_first_in_every_second_round() {
        assert_eq!([1, 2, 3].map(|round| order(2, round)), [[1, 0], [0, 1], [1, 0]]);
        assert_eq!(order(3, 1), [2, 1, 0]);
    }

    #[test]
    fn errors_of_every_side_are_noted() {
        let side = |errors: &[f64]| -> Vec<Sample> {
            let sample = |errors: &f64| Sample { figures: [(ERRORS, *errors)].into(), ..Sample::default() };
            errors.iter().map(sample).collect()
        };
        let sides = [("watershed", side(&[0.0, 0.0])), ("peer", side(&[1200.0, 34.0])), ("nginx", side(&[]))];
        assert_eq!(error_notes(&sides), ["1,234 errors on peer"]);
    }
}
