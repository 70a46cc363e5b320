use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;

use super::error::ConfigError;
use super::flags::Variables;
use super::golang::GoDuration;
use super::log::RawLogConfig;
use super::unsupported::{Mode, read_flags};
use crate::net::HostPort;
use crate::telemetry::LogConfig;

/// Etcd's pause between two checks of an endpoint that is down when `--retry-delay` is 0.
const RETRY_DELAY_OF_ZERO: Duration = Duration::from_secs(300);
const SERVING_THREADS_MAX: usize = 1024;

/// The gateway's flags as they are given: etcd's, then our own. No variables are read, as in etcd.
#[derive(Clone, Debug, Parser)]
#[command(name = "watershed gateway start", about = "Runs the TCP gateway", next_help_heading = "Gateway")]
#[command(override_usage = "watershed gateway start [flags]")]
pub struct RawGatewayConfig {
    /// Where clients connect.
    #[arg(long, default_value = "127.0.0.1:23790")]
    pub listen_addr: HostPort,
    /// Comma list of host:port or URLs to send connections to.
    #[arg(long, default_value = "127.0.0.1:2379")]
    pub endpoints: String,
    /// Longest pause between two checks of an endpoint that is down; 0 is 5m.
    #[arg(long, default_value = "1m")]
    pub retry_delay: GoDuration,

    /// Wait for an endpoint to accept a connection before the next one is tried.
    #[arg(long, default_value = "2s", help_heading = "Not flags of etcd")]
    pub connect_timeout: GoDuration,
    /// Time that open connections get to end after SIGTERM.
    #[arg(long, default_value = "5s", help_heading = "Not flags of etcd")]
    pub drain_timeout: GoDuration,
    /// Where /metrics and /health are served; nowhere if not given.
    #[arg(long, help_heading = "Not flags of etcd")]
    pub metrics_addr: Option<HostPort>,
    /// Threads that move bytes; 0 is one per core.
    #[arg(long, default_value_t = 0, help_heading = "Not flags of etcd")]
    pub serving_threads: usize,

    /// Logging.
    #[command(flatten)]
    pub log: RawLogConfig,
}

/// The checked configuration of a gateway.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Where clients connect.
    pub listen_addr: HostPort,
    /// Where connections go, in the order given, each once, one at least.
    pub endpoints: Vec<HostPort>,
    /// Longest pause between two checks of an endpoint that is down.
    pub retry_delay: Duration,
    /// Wait for an endpoint to accept a connection.
    pub connect_timeout: Duration,
    /// Time that open connections get to end at a stop.
    pub drain_timeout: Duration,
    /// Where `/metrics` and `/health` are served.
    pub metrics_addr: Option<HostPort>,
    /// Threads that move bytes, one at least.
    pub serving_threads: usize,
    /// Client connections at once; none for as many as the descriptor limit allows.
    pub connections_max: Option<usize>,
    /// What is logged, how and where.
    pub log: LogConfig,
}

impl GatewayConfig {
    /// A gateway with default settings; `dev` and tests start from it.
    pub fn new(listen_addr: HostPort, endpoints: Vec<HostPort>) -> Self {
        Self {
            listen_addr,
            endpoints,
            retry_delay: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(5),
            metrics_addr: None,
            serving_threads: cores(),
            connections_max: None,
            log: LogConfig::default(),
        }
    }
}

/// Reads and checks the gateway's arguments. Touches neither disk nor network.
///
/// # Errors
/// The first thing that is wrong, naming the flag; also the answer to `--help`.
pub fn parse_gateway_config(args: &[OsString]) -> Result<GatewayConfig, ConfigError> {
    read_flags::<RawGatewayConfig>(Mode::Gateway, args, &Variables::none())?.0.try_into()
}

impl TryFrom<RawGatewayConfig> for GatewayConfig {
    type Error = ConfigError;

    fn try_from(raw: RawGatewayConfig) -> Result<Self, ConfigError> {
        let wrong = |flag, reason: &str| ConfigError::Value { flag, reason: reason.to_owned() };
        if raw.connect_timeout.0.is_zero() {
            return Err(wrong("connect-timeout", "must be >0"));
        }
        if raw.serving_threads > SERVING_THREADS_MAX {
            return Err(wrong("serving-threads", "must be 1024 at most"));
        }
        let retry_delay = raw.retry_delay.0;
        Ok(Self {
            listen_addr: raw.listen_addr,
            endpoints: endpoints(&raw.endpoints)?,
            retry_delay: if retry_delay.is_zero() { RETRY_DELAY_OF_ZERO } else { retry_delay },
            connect_timeout: raw.connect_timeout.0,
            drain_timeout: raw.drain_timeout.0,
            metrics_addr: raw.metrics_addr,
            serving_threads: if raw.serving_threads == 0 { cores() } else { raw.serving_threads },
            connections_max: None,
            log: raw.log.into(),
        })
    }
}

/// The gateway moves bytes, so a scheme only has to be one with a TCP address behind it.
fn endpoints(list: &str) -> Result<Vec<HostPort>, ConfigError> {
    let wrong = |reason| ConfigError::Value { flag: "endpoints", reason };
    let mut endpoints = Vec::new();
    for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let wrong = |reason| wrong(format!("{text:?} {reason}"));
        let address = match text.split_once("://") {
            None => text,
            Some(("http" | "https", rest)) => rest.strip_suffix('/').unwrap_or(rest),
            Some(_) => return Err(wrong("is neither host:port nor an http or https URL")),
        };
        let endpoint: HostPort = address.parse().map_err(wrong)?;
        if endpoint.host().is_empty() || endpoint.port() == 0 {
            return Err(wrong("must have the form host:port"));
        }
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    if endpoints.is_empty() {
        return Err(wrong("names no endpoint".to_owned()));
    }
    Ok(endpoints)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<GatewayConfig, String> {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        parse_gateway_config(&args).map_err(|error| error.to_string())
    }

    #[test]
    fn schemes_are_stripped_and_repeats_dropped() {
        let config = parse("--endpoints=http://a:1,b:2,https://[::1]:3/,a:1 --retry-delay 0").unwrap();
        let shown: Vec<String> = config.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["a:1", "b:2", "[::1]:3"]);
        assert_eq!(config.retry_delay, RETRY_DELAY_OF_ZERO);
        assert_eq!(config.listen_addr.to_string(), "127.0.0.1:23790");
    }

    #[test]
    fn refusals_name_the_flag() {
        let cases = [
            ("--endpoints=127.0.0.1", "--endpoints: \"127.0.0.1\" must have the form host:port"),
            ("--endpoints=,", "--endpoints: names no endpoint"),
            ("--endpoints=unix://x", "--endpoints: \"unix://x\" is neither host:port nor an http or https URL"),
            ("--discovery-srv example.com", "--discovery-srv is not supported yet"),
            ("--connect-timeout 0", "--connect-timeout: must be >0"),
            (
                "--listen-addr here",
                "invalid argument \"here\" for \"--listen-addr\" flag: must have the form host:port",
            ),
            (
                "--retry-delay 5",
                "invalid argument \"5\" for \"--retry-delay\" flag: time: missing unit in duration \"5\"",
            ),
            ("--nope", "unknown flag: --nope"),
        ];
        for (line, text) in cases {
            assert_eq!(parse(line).unwrap_err(), text, "{line}");
        }
    }
}
