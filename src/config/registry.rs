use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser};

use super::error::{ConfigError, FlagWords};
use super::flags::{Variables, parse_flags};
use super::golang::GoDuration;
use super::log::RawLogConfig;
use super::proxy_user::user_and_password;
use super::url::listen_address;
use crate::net::{ClientTlsConfig, Endpoint, HostPort, IdentityFiles, ServerIdentity, ServerTlsConfig};
use crate::telemetry::LogConfig;
use crate::types::Credentials;

/// The flags of `discovery serve` as they are given. No variables are read.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "watershed discovery serve",
    about = "Answers the discovery URL protocol on top of an etcd v3 cluster"
)]
#[command(override_usage = "watershed discovery serve [flags]")]
struct RawRegistryConfig {
    /// Where members that are started look each other up.
    #[arg(long, default_value = "127.0.0.1:2389", value_name = "HOST:PORT")]
    listen_addr: HostPort,
    /// URL before the tokens that /new makes; the listen address unless given.
    #[arg(long, default_value = "", value_name = "URL")]
    advertise_url: String,
    /// Comma-separated endpoints of the cluster that keeps the tokens.
    #[arg(long, default_value = "127.0.0.1:2379", value_name = "ENDPOINTS")]
    endpoints: String,
    /// Time after which a token that nobody has used ends; 0 is never.
    #[arg(long, default_value = "168h", value_name = "DURATION")]
    token_ttl: GoDuration,
    /// Tokens and members that may be stored; more are refused.
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    keys_max: u32,

    /// Certificate shown to those who ask.
    #[arg(long, default_value = "", value_name = "FILE")]
    cert_file: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE")]
    key_file: String,
    /// Certificate shown to members of the cluster.
    #[arg(long, default_value = "", value_name = "FILE")]
    cert: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE")]
    key: String,
    /// Authorities whose certificates members of the cluster have.
    #[arg(long, default_value = "", value_name = "FILE")]
    cacert: String,
    /// Take any certificate of members: for tests only.
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    insecure_skip_tls_verify: bool,
    /// User of the cluster, as NAME or NAME:PASSWORD; it needs to read and write below /_etcd/registry/.
    #[arg(long, default_value = "", value_name = "USER")]
    user: String,
    /// Its password.
    #[arg(long, default_value = "", value_name = "PASSWORD")]
    password: String,
    /// File with its password, without the line's end.
    #[arg(long, default_value = "", value_name = "FILE")]
    password_file: String,

    /// Logging.
    #[command(flatten)]
    log: RawLogConfig,
}

/// The checked configuration of a registry of discovery tokens.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// TLS with those who ask.
    pub listen_tls: Option<ServerTlsConfig>,
    /// Put before tokens, without a slash at its end; none for the listen address.
    pub advertise_url: Option<String>,
    /// Members of the cluster that keeps the tokens.
    pub endpoints: Vec<Endpoint>,
    /// TLS with them.
    pub upstream_tls: Option<ClientTlsConfig>,
    /// Who the registry is for them.
    pub user: Option<Credentials>,
    /// Time after which a token that nobody has used ends.
    pub token_ttl: Option<Duration>,
    /// Tokens and members that may be stored.
    pub keys_max: u32,
    /// Log lines.
    pub log: LogConfig,
}

/// Reads and checks the arguments after `discovery serve`. Touches neither network nor disk, but for a password file.
///
/// # Errors
/// The first thing that is wrong, naming the flag; also the answer to `--help`.
pub fn parse_registry_config(args: &[OsString]) -> Result<RegistryConfig, ConfigError> {
    let parsed = parse_flags(RawRegistryConfig::command(), args, &Variables::none(), FlagWords::Cobra)?;
    let raw = RawRegistryConfig::from_arg_matches(&parsed.matches);
    raw.map_err(|error| ConfigError::Other(error.to_string()))?.try_into()
}

impl TryFrom<RawRegistryConfig> for RegistryConfig {
    type Error = ConfigError;

    fn try_from(raw: RawRegistryConfig) -> Result<Self, ConfigError> {
        let wrong = |flag, reason: String| ConfigError::Value { flag, reason };
        let listen = listen_address(&raw.listen_addr).map_err(|reason| wrong("listen-addr", reason))?;
        let listen_tls = match (raw.cert_file.is_empty(), raw.key_file.is_empty()) {
            (true, true) => None,
            (false, false) => {
                let files = IdentityFiles { certificates: raw.cert_file.into(), key: raw.key_file.into() };
                Some(ServerTlsConfig::new(ServerIdentity::Files(files)))
            }
            _ => return Err(wrong("cert-file, --key-file", "both or none must be given".to_owned())),
        };
        let upstream_tls = ClientTlsConfig::from_flags(&raw.cacert, &raw.cert, &raw.key, raw.insecure_skip_tls_verify)
            .map_err(|reason| wrong("cert, --key, --cacert", reason))?;
        let endpoints = Endpoint::parse_list(&raw.endpoints).map_err(|error| wrong("endpoints", error.to_string()))?;
        let ttl = raw.token_ttl.0;
        if !ttl.is_zero() && ttl < Duration::from_secs(1) {
            return Err(wrong("token-ttl", "must be 0 or at least 1s".to_owned()));
        }
        Ok(Self {
            listen,
            listen_tls,
            advertise_url: advertised(&raw.advertise_url).map_err(|reason| wrong("advertise-url", reason))?,
            endpoints,
            upstream_tls,
            user: user_and_password(&raw.user, &raw.password, &raw.password_file)?,
            token_ttl: (!ttl.is_zero()).then_some(ttl),
            keys_max: raw.keys_max,
            log: raw.log.into(),
        })
    }
}

/// A URL without a slash at its end.
fn advertised(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let url = url::Url::parse(text).map_err(|error| format!("{text:?}: {error}"))?;
    let is_plain = matches!(url.scheme(), "http" | "https") && url.has_host();
    if !is_plain || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{text:?} is no http or https URL without a query"));
    }
    Ok(Some(text.trim_end_matches('/').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<RegistryConfig, String> {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        parse_registry_config(&args).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_and_values() {
        let config = parse("").unwrap();
        assert_eq!((config.listen.to_string().as_str(), config.advertise_url), ("127.0.0.1:2389", None));
        assert_eq!(config.token_ttl, Some(Duration::from_secs(7 * 24 * 3600)));
        let config = parse("--advertise-url=https://d.example/x/ --token-ttl=0 --user=a:b --listen-addr=:1").unwrap();
        assert_eq!(config.advertise_url.as_deref(), Some("https://d.example/x"));
        assert_eq!((config.token_ttl, config.user.unwrap().name.as_str()), (None, "a"));
    }

    #[test]
    fn refusals_name_the_flag() {
        for (line, text) in [
            ("--token-ttl=1ms", "--token-ttl: must be 0 or at least 1s"),
            ("--cert-file=a", "--cert-file, --key-file: both or none must be given"),
            ("--advertise-url=ftp://a", "--advertise-url: \"ftp://a\" is no http or https URL without a query"),
            ("--advertise-url=a", "--advertise-url: \"a\": relative URL without a base"),
            ("--endpoints=", "--endpoints: empty endpoint, expected HOST:PORT or http://HOST:PORT"),
            ("--user=a", "--user: needs one of NAME:PASSWORD, --password and --password-file"),
            ("--size=3", "unknown flag: --size"),
        ] {
            assert_eq!(parse(line).unwrap_err(), text, "{line}");
        }
        assert!(parse("--keys-max=0").unwrap_err().contains("--keys-max"));
        assert!(parse("--listen-addr=a..b:1").unwrap_err().starts_with("--listen-addr: "));
    }
}
