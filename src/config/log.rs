use std::str::FromStr;

use super::error::ConfigError;
use crate::telemetry::{LogConfig, LogFormat, LogLevel, LogOutput, LogRotation};

/// The logging flags every long-running mode shares; flatten it into a raw config.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Logging")]
pub struct RawLogConfig {
    /// Lowest level shown: debug, info, warn, error, panic or fatal.
    #[arg(long, default_value = "info", value_name = "LEVEL", value_parser = log_level)]
    pub log_level: LogLevel,
    /// Form of a line: json or console.
    #[arg(long, default_value = "json", value_name = "FORMAT", value_parser = LogFormat::from_str)]
    pub log_format: LogFormat,
    /// Comma list of default (stderr), stderr, stdout, systemd/journal and file names.
    #[arg(long, default_value = "default", value_name = "OUTPUTS", value_delimiter = ',',
          value_parser = LogOutput::from_str)]
    pub log_outputs: Vec<LogOutput>,
}

/// A level in any case, and info for none, as in etcd.
fn log_level(text: &str) -> Result<LogLevel, &'static str> {
    match text {
        "" => Ok(LogLevel::Info),
        text => text.to_ascii_lowercase().parse(),
    }
}

impl From<RawLogConfig> for LogConfig {
    fn from(raw: RawLogConfig) -> Self {
        let mut outputs: Vec<LogOutput> = Vec::new();
        for output in raw.log_outputs {
            if !outputs.contains(&output) {
                outputs.push(output);
            }
        }
        Self { level: raw.log_level, format: raw.log_format, outputs, rotation: None }
    }
}

/// The flags that only a server has.
pub(super) struct ServerLogFlags<'a> {
    pub logger: &'a str,
    /// `--log-rotation-config-json`, if `--enable-log-rotation` is given.
    pub rotation: Option<&'a str>,
}

/// A server's log, checked by etcd's rules.
///
/// # Errors
/// In etcd's words, which name the flag or its value.
pub(super) fn server_log(raw: RawLogConfig, flags: &ServerLogFlags<'_>) -> Result<LogConfig, ConfigError> {
    let wrong = |reason: String| Err(ConfigError::Other(reason));
    match flags.logger {
        "zap" => {}
        "capnslog" => return wrong("--logger=capnslog is removed in v3.5".to_owned()),
        other => return wrong(format!("unknown logger option {other:?}")),
    }
    let mut log = LogConfig::from(raw);
    if log.outputs.len() > 1 && log.outputs.contains(&LogOutput::Default) {
        return wrong(r#"multi logoutput for "default" is not supported yet"#.to_owned());
    }
    if let Some(json) = flags.rotation {
        let files = log.outputs.iter().filter(|output| matches!(output, LogOutput::File(_))).count();
        if files != 1 {
            let reason = "--log-outputs requires a single file path when --log-rotate-config-json is defined";
            return wrong(reason.to_owned());
        }
        match LogRotation::from_json(json) {
            Ok(rotation) => log.rotation = Some(rotation),
            Err(reason) => return wrong(reason),
        }
    }
    Ok(log)
}
