mod journal;
mod output;
mod rotation;
mod sink;

use std::fmt::{self, Write as _};
use std::str::FromStr;

use parking_lot::Mutex;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use self::sink::Sink;
use super::clock::Timestamp;

pub use self::output::{LogError, LogOutput};
pub use self::rotation::LogRotation;

/// What is logged, how and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Lines below this level are dropped.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// Every line goes to each of these.
    pub outputs: Vec<LogOutput>,
    /// How the files among them are rotated, if they are.
    pub rotation: Option<LogRotation>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Json, outputs: vec![LogOutput::Default], rotation: None }
    }
}

/// Levels by etcd's names; its `panic` and `fatal` show what `error` does not: nothing of ours, so errors stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// Changes an operator cares about.
    Info,
    /// Odd, carried on.
    Warn,
    /// Someone must look.
    Error,
}

impl FromStr for LogLevel {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "debug" => Ok(Self::Debug),
            "info" => Ok(Self::Info),
            "warn" => Ok(Self::Warn),
            "error" | "dpanic" | "panic" | "fatal" => Ok(Self::Error),
            _ => Err("must be one of debug, info, warn, error, panic, fatal"),
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line, etcd's keys.
    Json,
    /// Tab-separated columns for people.
    Console,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" | "json" => Ok(Self::Json),
            "console" => Ok(Self::Console),
            _ => Err(format!("unknown log format: {text}, supported values json, console")),
        }
    }
}

/// Sends the log lines of the whole process where `config` says. Called once, by the wiring.
///
/// Lines of libraries are logged from `warn` on only, whatever the level: their debug lines are many.
///
/// # Errors
/// When a file does not open, or on a second call.
pub fn init_logging(config: &LogConfig) -> Result<(), LogError> {
    let sinks = config.outputs.iter().map(|output| Sink::open(output, config.rotation));
    let sinks = sinks.collect::<Result<Vec<_>, _>>()?;
    let level = match config.level {
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Info => Level::INFO,
        LogLevel::Warn => Level::WARN,
        LogLevel::Error => Level::ERROR,
    };
    let filter = Targets::new().with_target("watershed", level).with_default(level.min(Level::WARN));
    let lines = Lines { format: config.format, sinks: Mutex::new(sinks) };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init().map_err(|_| LogError::Twice)
}

/// Turns events into lines. A line is written whole, in one call.
struct Lines {
    format: LogFormat,
    sinks: Mutex<Vec<Sink>>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = render(event, self.format, &Timestamp::now());
        let level = *event.metadata().level();
        for sink in self.sinks.lock().iter_mut() {
            sink.write(level, &line);
        }
    }
}

fn render(event: &Event<'_>, format: LogFormat, timestamp: &Timestamp) -> String {
    let metadata = event.metadata();
    let mut fields = Fields::default();
    event.record(&mut fields);
    let level = match *metadata.level() {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        _ => "debug",
    };
    let caller = caller(metadata.file().unwrap_or_default(), metadata.line().unwrap_or_default());
    let mut line = match format {
        LogFormat::Json => {
            let message = Value::from(fields.message);
            format!(r#"{{"level":"{level}","ts":"{timestamp}","caller":"{caller}","msg":{message}"#)
        }
        LogFormat::Console => format!("{timestamp}\t{level}\t{caller}\t{}", fields.message),
    };
    let mut separator = if format == LogFormat::Json { "," } else { "\t{" };
    for (name, value) in &fields.rest {
        // Writing to a string cannot fail.
        let _ = write!(line, "{separator}{}:{value}", Value::from(*name));
        separator = ",";
    }
    if format == LogFormat::Json || !fields.rest.is_empty() {
        line.push('}');
    }
    line.push('\n');
    line
}

/// Last folder, file and line: `gateway/accept.rs:42`.
fn caller(file: &str, line: u32) -> String {
    let start = file.rmatch_indices('/').nth(1).map_or(0, |(at, _)| at + 1);
    format!("{}:{line}", &file[start..])
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.rest.push((field.name(), value));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        if field.name() == "message" { self.message = text } else { self.put(field, text.into()) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" { self.message = value.to_owned() } else { self.put(field, value.into()) }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    struct Capture(LogFormat, Arc<Mutex<String>>);

    impl<S: Subscriber> Layer<S> for Capture {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            *self.1.lock() += &render(event, self.0, &Timestamp::now());
        }
    }

    fn lines_of(format: LogFormat, log: impl FnOnce()) -> String {
        let text = Arc::<Mutex<String>>::default();
        let subscriber = tracing_subscriber::registry().with(Capture(format, Arc::clone(&text)));
        tracing::subscriber::with_default(subscriber, log);
        text.lock().clone()
    }

    #[test]
    fn a_json_line_has_etcds_keys_and_typed_fields() {
        let line = lines_of(LogFormat::Json, || {
            tracing::warn!(member = %"ab\"c", lag = 7, slow = true, "follower is\nbehind");
        });
        assert_eq!(line.matches('\n').count(), 1, "one line per event: {line}");
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "warn");
        assert_eq!(value["msg"], "follower is\nbehind");
        assert_eq!((&value["member"], &value["lag"], &value["slow"]), (&"ab\"c".into(), &7.into(), &true.into()));
        assert!(value["caller"].as_str().unwrap().starts_with("telemetry/log.rs:"), "{line}");
        assert!(value["ts"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_console_line_ends_with_its_fields() {
        let line = lines_of(LogFormat::Console, || tracing::info!(port = 1, "listening"));
        assert!(line.ends_with("listening\t{\"port\":1}\n"), "{line}");
    }
}
