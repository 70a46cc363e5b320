use std::collections::HashMap;
use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use pprof::{Frames, ProfilerGuardBuilder, Report, Symbol};
use prost::Message;

use crate::pb::profiles::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType};

/// Samples per second of CPU time, as Go takes them.
const FREQUENCY: i32 = 100;
const PERIOD: Duration = Duration::from_millis(10);
/// The stack is not walked from inside these: an unwinder that is walked could wait for itself, and what the vDSO says
/// about its frames is wrong on some systems.
const NOT_WALKED: [&str; 3] = ["libgcc", "ld-linux", "vdso"];
/// The only mapping.
const PROGRAM: u64 = 1;

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(super) enum CpuProfileError {
    #[error("Could not enable CPU profiling: cpu profiling already in use")]
    InUse,
    #[error("Could not enable CPU profiling: {0}")]
    Profiler(pprof::Error),
    #[error("could not write the profile: {0}")]
    Write(#[from] std::io::Error),
    #[error("nobody waits for the profile any more")]
    Abandoned,
}

impl From<pprof::Error> for CpuProfileError {
    fn from(error: pprof::Error) -> Self {
        match error {
            pprof::Error::Running => Self::InUse,
            error => Self::Profiler(error),
        }
    }
}

/// Looks a hundred times per second of CPU time at where the process is, and returns that in the format of pprof, compressed.
/// Ends early when the sender of `abandoned` is gone. Blocks for `length`.
///
/// SIGPROF interrupts the threads; system calls are restarted, and those that cannot be are repeated by their callers.
pub(super) fn cpu_profile(length: Duration, abandoned: &Receiver<()>) -> Result<Vec<u8>, CpuProfileError> {
    let profiler = ProfilerGuardBuilder::default().frequency(FREQUENCY).blocklist(&NOT_WALKED).build()?;
    if abandoned.recv_timeout(length) == Err(RecvTimeoutError::Disconnected) {
        return Err(CpuProfileError::Abandoned);
    }
    let report = profiler.report().build()?;
    drop(profiler);
    let mut compressed = GzEncoder::new(Vec::new(), Compression::default());
    compressed.write_all(&profile(&report).encode_to_vec())?;
    Ok(compressed.finish()?)
}

fn profile(report: &Report) -> Profile {
    let mut tables = Tables::default();
    tables.text("");
    let sample_type = vec![tables.value_type("samples", "count"), tables.value_type("cpu", "nanoseconds")];
    let period_type = Some(tables.value_type("cpu", "nanoseconds"));
    let program = std::env::current_exe().unwrap_or_default();
    let mapping = vec![Mapping {
        id: PROGRAM,
        filename: tables.text(&program.to_string_lossy()),
        has_functions: true,
        has_filenames: true,
        has_line_numbers: true,
        has_inline_frames: true,
    }];
    let sample = report.data.iter().map(|(frames, count)| tables.sample(frames, i64::try_from(*count).unwrap_or(0)));
    Profile {
        sample_type,
        sample: sample.collect(),
        mapping,
        time_nanos: nanoseconds(report.timing.start_time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()),
        duration_nanos: nanoseconds(report.timing.duration),
        period_type,
        period: nanoseconds(PERIOD),
        location: tables.locations,
        function: tables.functions,
        string_table: tables.texts,
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// What samples point to; each thing once. Numbers of functions and locations begin with 1.
#[derive(Default)]
struct Tables {
    texts: Vec<String>,
    text_numbers: HashMap<String, i64>,
    functions: Vec<Function>,
    function_ids: HashMap<(i64, i64), u64>,
    locations: Vec<Location>,
    location_ids: HashMap<Vec<(u64, i64)>, u64>,
}

impl Tables {
    fn text(&mut self, text: &str) -> i64 {
        if let Some(number) = self.text_numbers.get(text) {
            return *number;
        }
        let number = i64::try_from(self.texts.len()).unwrap_or(0);
        self.texts.push(text.to_owned());
        self.text_numbers.insert(text.to_owned(), number);
        number
    }

    fn value_type(&mut self, name: &str, unit: &str) -> ValueType {
        ValueType { r#type: self.text(name), unit: self.text(unit) }
    }

    fn sample(&mut self, frames: &Frames, count: i64) -> Sample {
        let location_id = frames.frames.iter().filter(|symbols| !symbols.is_empty());
        let location_id = location_id.map(|symbols| self.location(symbols)).collect();
        let label = vec![Label { key: self.text("thread"), str: self.text(&frames.thread_name_or_id()) }];
        Sample { location_id, value: vec![count, count.saturating_mul(nanoseconds(PERIOD))], label }
    }

    /// One frame of the stack: a function and those inlined into it.
    fn location(&mut self, symbols: &[Symbol]) -> u64 {
        let lines: Vec<_> = symbols.iter().map(|symbol| (self.function(symbol), i64::from(symbol.lineno()))).collect();
        if let Some(id) = self.location_ids.get(&lines) {
            return *id;
        }
        let id = self.locations.len() as u64 + 1;
        let line = lines.iter().map(|&(function_id, line)| Line { function_id, line }).collect();
        self.locations.push(Location { id, mapping_id: PROGRAM, line });
        self.location_ids.insert(lines, id);
        id
    }

    fn function(&mut self, symbol: &Symbol) -> u64 {
        let key = (self.text(&symbol.sys_name()), self.text(&symbol.filename()));
        if let Some(id) = self.function_ids.get(&key) {
            return *id;
        }
        let id = self.functions.len() as u64 + 1;
        let (system_name, filename) = key;
        let name = self.text(&symbol.name());
        self.functions.push(Function { id, name, system_name, filename });
        self.function_ids.insert(key, id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(name: &str, line: u32) -> Symbol {
        Symbol { name: Some(name.into()), addr: None, lineno: Some(line), filename: Some("a.rs".into()) }
    }

    fn frames(frames: Vec<Vec<Symbol>>) -> Frames {
        Frames { frames, thread_name: "worker".into(), thread_id: 1, sample_timestamp: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn what_samples_share_is_written_once() {
        let mut tables = Tables::default();
        tables.text("");
        let (inner, outer, other) = (symbol("inner", 3), symbol("outer", 7), symbol("outer", 8));
        // `inner` is inlined; a frame without a symbol is left out.
        let first = tables.sample(&frames(vec![vec![inner.clone(), outer.clone()], Vec::new(), vec![other]]), 2);
        let second = tables.sample(&frames(vec![vec![inner, outer]]), 1);
        assert_eq!((first.location_id, first.value), (vec![1, 2], vec![2, 20_000_000]));
        assert_eq!((second.location_id, second.label), (vec![1], first.label));
        let names: Vec<_> =
            tables.functions.iter().map(|function| tables.texts[function.name as usize].as_str()).collect();
        assert_eq!(names, ["inner", "outer"]);
        let lines: Vec<Vec<_>> = tables.locations.iter().map(|at| at.line.iter().map(|it| it.line).collect()).collect();
        assert_eq!(lines, [vec![3, 7], vec![8]]);
        assert_eq!(tables.texts.iter().filter(|text| *text == "outer").count(), 1);
    }
}
