use std::str::FromStr;

use crate::telemetry::{LogConfig, LogFormat, LogLevel, LogOutput};

/// The logging flags every long-running mode shares; flatten it into a raw config.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Logging")]
pub struct RawLogConfig {
    /// Lowest level shown: debug, info, warn, error, panic or fatal.
    #[arg(long, default_value = "info", value_name = "LEVEL", value_parser = LogLevel::from_str)]
    pub log_level: LogLevel,
    /// Form of a line: json or console.
    #[arg(long, default_value = "json", value_name = "FORMAT", value_parser = LogFormat::from_str)]
    pub log_format: LogFormat,
    /// Comma list of default (stderr), stderr, stdout and file names.
    #[arg(long, default_value = "default", value_name = "OUTPUTS", value_delimiter = ',',
          value_parser = LogOutput::from_str)]
    pub log_outputs: Vec<LogOutput>,
}

impl From<RawLogConfig> for LogConfig {
    fn from(raw: RawLogConfig) -> Self {
        let mut outputs = raw.log_outputs;
        outputs.dedup();
        Self { level: raw.log_level, format: raw.log_format, outputs }
    }
}
