use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Parser};

use super::asked_cluster::{AskedCluster, AskedFor, RawAskedCluster};
use super::discovery::{RawSrv, SrvConfig};
use super::error::ConfigError;
use super::flags::Variables;
use super::gateway_address::GatewayAddress;
use super::golang::GoDuration;
use super::log::RawLogConfig;
use super::peer_source::{PeerSourceConfig, RawPeerSource};
use super::route::{RouteConfig, RouteMatch, routes};
use super::unsupported::{Mode, read_flags};
use crate::net::{ClientTlsConfig, Endpoint, HostPort, IpPrefix, with_client_port};
use crate::telemetry::LogConfig;

/// Etcd's pause between two checks of an endpoint that is down when `--retry-delay` is 0.
const RETRY_DELAY_OF_ZERO: Duration = Duration::from_secs(300);
const SERVING_THREADS_MAX: usize = 1024;

/// The gateway's flags as they are given: etcd's, then our own. No variables are read, as in etcd.
#[derive(Clone, Debug, Parser)]
#[command(name = "watershed gateway start", about = "Runs the TCP gateway", next_help_heading = "Gateway")]
#[command(override_usage = "watershed gateway start [flags]")]
pub struct RawGatewayConfig {
    /// YAML file with the flags as keys, in place of all others; its endpoints and routes are read again when it changes and at
    /// SIGHUP.
    #[arg(long, value_name = "FILE", value_parser = PathBuf::from_str, help_heading = "Not flags of etcd")]
    pub config_file: Option<PathBuf>,
    /// Where clients connect: host:port or unix:///path.
    #[arg(long, default_value = "127.0.0.1:23790")]
    pub listen_addr: GatewayAddress,
    /// Comma list of host:port, http, https or unix URLs to send connections to.
    #[arg(long, default_value = "127.0.0.1:2379", action = ArgAction::Append)]
    pub endpoints: String,
    /// Longest pause between two checks of an endpoint that is down; 0 is 5m.
    #[arg(long, default_value = "1m")]
    pub retry_delay: GoDuration,
    /// Authorities whose certificates endpoints in SRV records have; those of the system unless given.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub trusted_ca_file: String,
    /// Discovery by DNS.
    #[command(flatten)]
    pub srv: RawSrv,
    /// Discovery by URL or token.
    #[command(flatten)]
    pub peers: RawPeerSource,
    /// Discovery by a cluster.
    #[command(flatten)]
    pub asked: RawAskedCluster,

    /// Wait for an endpoint to accept a connection before the next one is tried.
    #[arg(long, default_value = "1s", help_heading = "Not flags of etcd")]
    pub connect_timeout: GoDuration,
    /// Which of the live endpoints gets a connection: round-robin, weighted (by the weights of the source), least-conn or
    /// p2c. Unless given, round-robin, or weighted where the source has weights.
    #[arg(long, default_value = "", help_heading = "Not flags of etcd")]
    pub balance: String,
    /// Time in which an endpoint that came back gets to its full share; 0 is at once.
    #[arg(long, default_value = "10s", help_heading = "Not flags of etcd")]
    pub slow_start: GoDuration,
    /// Open connections of an endpoint that goes down: keep or close.
    #[arg(long, default_value = "keep", help_heading = "Not flags of etcd")]
    pub on_eject: String,
    /// How endpoints are checked, up or down: tcp, http or grpc; not at all while they are up unless given.
    #[arg(long, default_value = "", help_heading = "Not flags of etcd")]
    pub health_check: String,
    /// Pause between two health checks of an endpoint.
    #[arg(long, default_value = "1s", help_heading = "Not flags of etcd")]
    pub health_check_interval: GoDuration,
    /// Wait for the answer to a health check.
    #[arg(long, default_value = "1s", help_heading = "Not flags of etcd")]
    pub health_check_timeout: GoDuration,
    /// Health checks in a row that an endpoint must pass to be used again.
    #[arg(long, default_value_t = 2, help_heading = "Not flags of etcd")]
    pub health_check_rise: u32,
    /// Health checks in a row that an endpoint must fail to be down.
    #[arg(long, default_value_t = 2, help_heading = "Not flags of etcd")]
    pub health_check_fall: u32,
    /// Path that --health-check=http gets; /readyz unless given, or /health where there is no /readyz.
    #[arg(long, default_value = "", help_heading = "Not flags of etcd")]
    pub health_check_path: String,
    /// Authorities that certificates of endpoints are verified by in health checks.
    #[arg(long, default_value = "", help_heading = "Not flags of etcd")]
    pub health_check_cacert: String,
    /// Certificate shown to endpoints in health checks.
    #[arg(long, default_value = "", help_heading = "Not flags of etcd")]
    pub health_check_cert: String,
    /// Its key.
    #[arg(long, default_value = "", help_heading = "Not flags of etcd")]
    pub health_check_key: String,
    /// Accept any certificate of an endpoint in health checks.
    #[arg(long, default_value_t = false, action = ArgAction::Set, help_heading = "Not flags of etcd")]
    pub health_check_insecure_skip_verify: bool,
    /// Time that open connections get to end once their endpoint is no longer listed; 0 is none.
    #[arg(long, default_value = "1m", help_heading = "Not flags of etcd")]
    pub endpoint_drain_timeout: GoDuration,
    /// Client connections at once; 0 is as many as the descriptor limit allows.
    #[arg(long, default_value_t = 0, help_heading = "Not flags of etcd")]
    pub max_connections: usize,
    /// Client connections at once from one address; 0 is no limit.
    #[arg(long, default_value_t = 0, help_heading = "Not flags of etcd")]
    pub max_connections_per_source: usize,
    /// Time without a byte in either direction after which a connection is closed; 0 is no limit.
    #[arg(long, default_value = "0s", help_heading = "Not flags of etcd")]
    pub idle_timeout: GoDuration,
    /// Time after which a connection is closed; 0 is no limit.
    #[arg(long, default_value = "0s", help_heading = "Not flags of etcd")]
    pub max_connection_age: GoDuration,
    /// Comma list of addresses and prefixes (10.0.0.0/8) of load balancers whose connections begin with a PROXY header.
    #[arg(long, default_value = "", help_heading = "Not flags of etcd")]
    pub proxy_protocol_from: String,
    /// Find endpoints whose connections come back to this gateway, by a request of its own when many connections are open.
    #[arg(long, default_value_t = true, action = ArgAction::Set, help_heading = "Not flags of etcd")]
    pub detect_loops: bool,
    /// Begin connections to endpoints with a PROXY header: v1 or v2.
    #[arg(long, default_value = "", help_heading = "Not flags of etcd")]
    pub send_proxy_protocol: String,
    /// Send TLS connections that ask for a server name to endpoints of their own: NAME[/ALPN]=host:port,…; NAME is one,
    /// *.NAME or *. May be repeated, the first that fits counts; the others go to --endpoints.
    #[arg(long, value_name = "NAME[/ALPN]=ENDPOINTS", help_heading = "Not flags of etcd")]
    pub route: Vec<String>,
    /// File of a unix socket by which the next gateway that is started with it gets the listening sockets of this one, so that no
    /// connection is refused; this one drains then.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Not flags of etcd")]
    pub hot_restart_socket: String,
    /// Time that open connections get to end after SIGTERM.
    #[arg(long, default_value = "5s", help_heading = "Not flags of etcd")]
    pub drain_timeout: GoDuration,
    /// Where /metrics, /health, /livez, /readyz, /gateway/status and the page /ui are served, as host:port and no URL; nowhere if
    /// not given.
    #[arg(long, help_heading = "Not flags of etcd")]
    pub metrics_addr: Option<HostPort>,
    /// Permissions of the file of a unix socket in --listen-addr, in octal digits as 0660; what the umask of the process leaves
    /// unless given.
    #[arg(long, default_value = "", value_name = "MODE", help_heading = "Not flags of etcd")]
    pub listen_socket_mode: String,
    /// Threads that move bytes; 0 is one per core.
    #[arg(long, default_value_t = 0, help_heading = "Not flags of etcd")]
    pub serving_threads: usize,

    /// Logging.
    #[command(flatten)]
    pub log: RawLogConfig,
}

/// How connections are divided among the live endpoints of the best priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// As the source lists them: by weight where it has weights, else by turns.
    Listed,
    /// By turns, whatever the weights.
    RoundRobin,
    /// At random, in proportion to the weights, as RFC 2782 has it.
    Weighted,
    /// To the endpoint with the fewest connections for its weight.
    LeastConn,
    /// To the one of two, chosen at random, that has fewer connections for its weight.
    P2c,
}

const BALANCES: [(&str, Balance); 5] = [
    ("", Balance::Listed),
    ("round-robin", Balance::RoundRobin),
    ("weighted", Balance::Weighted),
    ("least-conn", Balance::LeastConn),
    ("p2c", Balance::P2c),
];

/// What happens to the open connections of an endpoint that goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum OnEject {
    Keep,
    Close,
}

/// When the gateway closes a connection that goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Time without a byte in either direction.
    pub idle: Option<Duration>,
    /// Time since it was accepted.
    pub age: Option<Duration>,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ProxyProtocol {
    V1,
    V2,
}

const PROXY_PROTOCOLS: [(&str, Option<ProxyProtocol>); 3] =
    [("", None), ("v1", Some(ProxyProtocol::V1)), ("v2", Some(ProxyProtocol::V2))];

/// How endpoints are checked.
#[derive(Clone, Debug)]
pub struct HealthCheckConfig {
    /// What is asked.
    pub kind: HealthCheckKind,
    /// Pause between two checks of an endpoint that is up, and the longest of one that is down.
    pub interval: Duration,
    /// Wait for an answer.
    pub timeout: Duration,
    /// Checks in a row that an endpoint must pass to be used again, one at least.
    pub rise: u32,
    /// Checks in a row that it must fail to be left out, one at least.
    pub fall: u32,
    /// For endpoints with TLS.
    pub tls: Option<ClientTlsConfig>,
}

/// What an endpoint is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthCheckKind {
    /// To take a connection.
    Tcp,
    /// This page; none for `/readyz` or else `/health`.
    Http {
        /// Begins with a slash.
        path: Option<String>,
    },
    /// The gRPC health service.
    Grpc,
}

/// The checked configuration of a gateway.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Where clients connect.
    pub listen_addr: GatewayAddress,
    /// Permissions of the file of a unix socket there.
    pub listen_socket_mode: Option<u32>,
    /// Where connections go, in the order given, each address once, one at least. Whether TLS is spoken there matters to
    /// health checks only.
    pub endpoints: Vec<Endpoint>,
    /// Where the endpoints are found in place of these.
    pub srv: Option<SrvConfig>,
    /// The cluster whose members are the endpoints in place of these.
    pub peers: Option<PeerSourceConfig>,
    /// The cluster of these, or of the source in place of these, which tells the endpoints then. Asked for registrations, these are not
    /// connected to themselves.
    pub asked: Option<AskedCluster>,
    /// Authorities of the endpoints found there.
    pub trusted_ca_file: Option<PathBuf>,
    /// Longest pause between two checks of an endpoint that is down.
    pub retry_delay: Duration,
    /// Wait for an endpoint to accept a connection.
    pub connect_timeout: Duration,
    /// Which of the live endpoints gets a connection.
    pub balance: Balance,
    /// Time in which an endpoint that came back gets to its full share.
    pub slow_start: Duration,
    /// What happens to the open connections of an endpoint that goes down.
    pub on_eject: OnEject,
    /// How endpoints are checked; none for not at all while they are up.
    pub health_check: Option<HealthCheckConfig>,
    /// Time that open connections get to end once their endpoint is no longer listed.
    pub endpoint_drain_timeout: Duration,
    /// Time that open connections get to end at a stop.
    pub drain_timeout: Duration,
    /// Where `/metrics`, the checks, the endpoint table and the status page are served.
    pub metrics_addr: Option<HostPort>,
    /// Threads that move bytes, one at least.
    pub serving_threads: usize,
    /// Client connections at once; none for as many as the descriptor limit allows.
    pub connections_max: Option<usize>,
    /// Client connections at once from one address.
    pub connections_per_source_max: Option<usize>,
    /// When a connection is closed by the gateway.
    pub limits: ConnectionLimits,
    /// Whose connections begin with a PROXY header.
    pub proxy_protocol_from: Vec<IpPrefix>,
    /// Whether endpoints whose connections come back are looked for.
    pub detect_loops: bool,
    /// The PROXY header that connections to endpoints begin with.
    pub send_proxy_protocol: Option<ProxyProtocol>,
    /// Connections that go elsewhere, in the order in which they are tried.
    pub routes: Vec<RouteConfig>,
    /// Where the next gateway gets the listening sockets of this one.
    pub hot_restart_socket: Option<PathBuf>,
    /// What is logged, how and where.
    pub log: LogConfig,
    /// The file that says all of it.
    pub file: Option<GatewayFile>,
}

/// The configuration file of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it says, by key, in the notation of the flags.
    pub values: BTreeMap<String, String>,
}

impl GatewayFile {
    /// Keys whose values count while the gateway runs.
    pub const RELOADED: [&str; 2] = ["endpoints", "route"];

    /// Reads it again.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line and key.
    pub fn read_again(&self) -> Result<GatewayConfig, ConfigError> {
        let mut flag = OsString::from("--config-file=");
        flag.push(&self.path);
        parse_gateway_config(&[flag])
    }

    /// Keys that have another value in `newer`, or are in one of both, and count at a start alone.
    pub fn fixed_changes(&self, newer: &Self) -> Vec<String> {
        let keys: BTreeSet<&String> = self.values.keys().chain(newer.values.keys()).collect();
        let differs = |key: &&String| self.values.get(*key) != newer.values.get(*key);
        let fixed = |key: &&String| !Self::RELOADED.contains(&key.as_str());
        keys.into_iter().filter(differs).filter(fixed).cloned().collect()
    }
}

impl GatewayConfig {
    /// A gateway with default settings; `dev` and tests start from it.
    pub fn new(listen_addr: GatewayAddress, endpoints: Vec<Endpoint>) -> Self {
        Self {
            listen_addr,
            listen_socket_mode: None,
            endpoints,
            srv: None,
            peers: None,
            asked: None,
            trusted_ca_file: None,
            retry_delay: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(1),
            balance: Balance::Listed,
            slow_start: Duration::from_secs(10),
            on_eject: OnEject::Keep,
            health_check: None,
            endpoint_drain_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(5),
            metrics_addr: None,
            serving_threads: cores(),
            connections_max: None,
            connections_per_source_max: None,
            limits: ConnectionLimits::default(),
            proxy_protocol_from: Vec::new(),
            detect_loops: true,
            send_proxy_protocol: None,
            routes: Vec::new(),
            hot_restart_socket: None,
            log: LogConfig::default(),
            file: None,
        }
    }

    /// The endpoints of all routes.
    pub fn routes_endpoints(&self) -> Vec<Endpoint> {
        self.routes.iter().flat_map(|route| route.endpoints.clone()).collect()
    }

    /// Whether the endpoints are those of a flag or of the configuration file, and not of another source.
    pub fn has_listed_endpoints(&self) -> bool {
        let registered = self.asked.as_ref().is_some_and(|asked| asked.prefix().is_some());
        self.srv.is_none() && self.peers.is_none() && !registered
    }
}

/// Reads and checks the gateway's arguments. Touches neither disk nor network, but for a configuration file.
///
/// # Errors
/// The first thing that is wrong, naming the flag; also the answer to `--help`.
pub fn parse_gateway_config(args: &[OsString]) -> Result<GatewayConfig, ConfigError> {
    let (raw, parsed) = read_flags::<RawGatewayConfig>(Mode::Gateway, args, &Variables::none())?;
    let Some(path) = &parsed.file else { return raw.try_into() };
    if let Some((key, line)) = parsed.unknown_keys.first() {
        let reason = format!("line {line}: {key} is no key: keys are the flags of the gateway, without dashes");
        return Err(ConfigError::File { path: path.clone(), reason });
    }
    let config = GatewayConfig::try_from(raw).map_err(|error| parsed.in_file(error))?;
    let values = parsed.given.iter().map(|(flag, (value, _))| (flag.clone(), value.clone())).collect();
    Ok(GatewayConfig { file: Some(GatewayFile { path: path.clone(), values }), ..config })
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
        let health_check = health_check(&raw)?;
        let (peers, asked, srv) = (raw.peers.checked(&raw.srv)?, raw.asked.checked()?, raw.srv.checked()?);
        let trusted_ca_file = Some(raw.trusted_ca_file).filter(|file| !file.is_empty()).map(PathBuf::from);
        match asked.as_ref().map(|asked| &asked.asked_for) {
            Some(AskedFor::Registrations { .. }) if peers.is_some() || srv.is_some() => {
                let reason = "is for the cluster of --endpoints, not for another source of endpoints";
                return Err(wrong("resolver-prefix", reason));
            }
            Some(AskedFor::Members { .. }) if peers.is_some() => {
                let reason = "is not for a discovery URL or token: the members that registered are followed already";
                return Err(wrong("endpoints-auto-sync-interval", reason));
            }
            _ => {}
        }
        let endpoints = endpoints("endpoints", &raw.endpoints)?.into_iter();
        // As the member list will name them.
        let endpoints = endpoints.map(|endpoint| match &asked {
            Some(AskedCluster { asked_for: AskedFor::Members { .. }, tls, .. }) => endpoint.settled(tls.is_some()),
            _ => endpoint,
        });
        Ok(Self {
            listen_socket_mode: socket_mode(&raw.listen_socket_mode, &raw.listen_addr)?,
            listen_addr: raw.listen_addr,
            endpoints: endpoints.collect(),
            peers,
            asked,
            srv,
            trusted_ca_file,
            retry_delay: if retry_delay.is_zero() { RETRY_DELAY_OF_ZERO } else { retry_delay },
            connect_timeout: raw.connect_timeout.0,
            balance: one_of("balance", &raw.balance, &BALANCES)?,
            slow_start: raw.slow_start.0,
            on_eject: one_of("on-eject", &raw.on_eject, &[("keep", OnEject::Keep), ("close", OnEject::Close)])?,
            health_check,
            endpoint_drain_timeout: raw.endpoint_drain_timeout.0,
            drain_timeout: raw.drain_timeout.0,
            metrics_addr: raw.metrics_addr,
            serving_threads: if raw.serving_threads == 0 { cores() } else { raw.serving_threads },
            connections_max: Some(raw.max_connections).filter(|&most| most > 0),
            connections_per_source_max: Some(raw.max_connections_per_source).filter(|&most| most > 0),
            limits: ConnectionLimits {
                idle: Some(raw.idle_timeout.0).filter(|limit| !limit.is_zero()),
                age: Some(raw.max_connection_age.0).filter(|limit| !limit.is_zero()),
            },
            proxy_protocol_from: prefixes("proxy-protocol-from", &raw.proxy_protocol_from)?,
            detect_loops: raw.detect_loops,
            send_proxy_protocol: one_of("send-proxy-protocol", &raw.send_proxy_protocol, &PROXY_PROTOCOLS)?,
            routes: checked_routes(&raw.route.join(","))?,
            hot_restart_socket: Some(raw.hot_restart_socket).filter(|file| !file.is_empty()).map(PathBuf::from),
            log: raw.log.into(),
            file: None,
        })
    }
}

/// Permissions of a file, as chmod takes them.
fn socket_mode(text: &str, address: &GatewayAddress) -> Result<Option<u32>, ConfigError> {
    let wrong = |reason| ConfigError::Value { flag: "listen-socket-mode", reason };
    if text.is_empty() {
        return Ok(None);
    }
    if !matches!(address, GatewayAddress::Unix(_)) {
        return Err(wrong(format!("needs a unix socket as --listen-addr, which is {address}")));
    }
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.map(Some).ok_or_else(|| wrong(format!("{text:?} is no number in octal digits up to 0777")))
}

/// The health checks, which the other flags about them require.
fn health_check(raw: &RawGatewayConfig) -> Result<Option<HealthCheckConfig>, ConfigError> {
    let wrong = |flag, reason: &str| ConfigError::Value { flag, reason: reason.to_owned() };
    let path = Some(&raw.health_check_path).filter(|path| !path.is_empty()).cloned();
    if path.as_ref().is_some_and(|path| !path.starts_with('/')) {
        return Err(wrong("health-check-path", "must begin with /"));
    }
    let kinds = [
        ("", None),
        ("tcp", Some(HealthCheckKind::Tcp)),
        ("http", Some(HealthCheckKind::Http { path: path.clone() })),
        ("grpc", Some(HealthCheckKind::Grpc)),
    ];
    let kind = one_of("health-check", &raw.health_check, &kinds)?;
    if path.is_some() && !matches!(kind, Some(HealthCheckKind::Http { .. })) {
        return Err(wrong("health-check-path", "needs --health-check=http"));
    }
    let (cacert, cert, key) = (&raw.health_check_cacert, &raw.health_check_cert, &raw.health_check_key);
    let tls = ClientTlsConfig::from_flags(cacert, cert, key, raw.health_check_insecure_skip_verify)
        .map_err(|reason| wrong("health-check-cert", &reason))?;
    if tls.is_some() && matches!(kind, None | Some(HealthCheckKind::Tcp)) {
        return Err(wrong("health-check", "certificates for health checks need --health-check=http or grpc"));
    }
    let positive = |flag, value: Duration| if value.is_zero() { Err(wrong(flag, "must be >0")) } else { Ok(value) };
    let counted = |flag, value| if value == 0 { Err(wrong(flag, "must be >0")) } else { Ok(value) };
    let config = HealthCheckConfig {
        kind: kind.clone().unwrap_or(HealthCheckKind::Tcp),
        interval: positive("health-check-interval", raw.health_check_interval.0)?,
        timeout: positive("health-check-timeout", raw.health_check_timeout.0)?,
        rise: counted("health-check-rise", raw.health_check_rise)?,
        fall: counted("health-check-fall", raw.health_check_fall)?,
        tls,
    };
    Ok(kind.map(|_| config))
}

/// The value of a flag that takes one of a few words.
fn one_of<T: Clone>(flag: &'static str, text: &str, known: &[(&str, T)]) -> Result<T, ConfigError> {
    let found = known.iter().find(|(word, _)| *word == text).map(|(_, value)| value.clone());
    found.ok_or_else(|| {
        let words: Vec<&str> = known.iter().map(|&(word, _)| word).filter(|word| !word.is_empty()).collect();
        ConfigError::Value { flag, reason: format!("{text:?} is none of {}", words.join(", ")) }
    })
}

fn prefixes(flag: &'static str, list: &str) -> Result<Vec<IpPrefix>, ConfigError> {
    let texts = list.split(',').map(str::trim).filter(|text| !text.is_empty());
    texts.map(|text| text.parse().map_err(|reason| ConfigError::Value { flag, reason })).collect()
}

fn checked_routes(list: &str) -> Result<Vec<RouteConfig>, ConfigError> {
    let wrong = |reason| ConfigError::Value { flag: "route", reason };
    let read = routes(list).map_err(wrong)?;
    let checked = |(matching, list): (RouteMatch, String)| {
        endpoints("route", &list).map(|endpoints| RouteConfig { matching, endpoints })
    };
    read.into_iter().map(checked).collect()
}

/// The gateway moves bytes, so a scheme only has to be one with a TCP address or a socket behind it.
fn endpoints(flag: &'static str, list: &str) -> Result<Vec<Endpoint>, ConfigError> {
    let wrong = |reason| ConfigError::Value { flag, reason };
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let endpoint = endpoint(text).map_err(|reason| wrong(format!("{text:?} {reason}")))?;
        // Whatever is said of TLS: it is one place.
        if !endpoints.iter().any(|known| known.to_string() == endpoint.to_string()) {
            endpoints.push(endpoint);
        }
    }
    if endpoints.is_empty() {
        return Err(wrong("names no endpoint".to_owned()));
    }
    Ok(endpoints)
}

fn endpoint(text: &str) -> Result<Endpoint, &'static str> {
    if text.starts_with("unix:") || text.starts_with("unixs:") {
        return text.parse().map_err(|_| "must have the path of a socket behind unix://");
    }
    let address = match text.split_once("://") {
        None => text,
        Some(("http" | "https", rest)) => rest.strip_suffix('/').unwrap_or(rest),
        Some(_) => return Err("is neither host:port nor an http, https or unix URL"),
    };
    let address: HostPort = with_client_port(address).parse()?;
    if address.host().is_empty() || address.port() == 0 {
        return Err("must have the form host:port");
    }
    Endpoint::of_client(text).map_err(|_| "must have the form host:port")
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
    fn an_empty_name_of_a_file_is_none() {
        // Cause: clap's own parser refuses an empty path.
        assert_eq!(parse("--config-file= --listen-addr=:7").unwrap().listen_addr.to_string(), ":7");
    }

    #[test]
    fn schemes_are_stripped_and_repeats_dropped() {
        let config = parse("--endpoints=http://a:1,b:2,https://[::1]:3/,a:1 --retry-delay 0").unwrap();
        let without_port = parse("--endpoints=a,http://b/,[::1],a:2379").unwrap().endpoints;
        let without_port: Vec<String> = without_port.iter().map(ToString::to_string).collect();
        assert_eq!(without_port, ["a:2379", "b:2379", "[::1]:2379"]);
        let shown: Vec<String> = config.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["a:1", "b:2", "[::1]:3"]);
        // With certificates for health checks, an endpoint without a scheme has TLS.
        let with_tls: Vec<bool> = config.endpoints.iter().map(|endpoint| endpoint.uses_tls(true)).collect();
        assert_eq!(with_tls, [false, true, true]);
        assert_eq!(config.retry_delay, RETRY_DELAY_OF_ZERO);
        assert_eq!(config.listen_addr.to_string(), "127.0.0.1:23790");
    }

    #[test]
    fn repeated_endpoints_go_together_as_in_etcd() {
        // Cause: only those of the last flag were used.
        let config = parse("--endpoints=a:1,b:1 --endpoints c:1 --listen-addr=:7 --listen-addr=:8").unwrap();
        let shown: Vec<String> = config.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!((shown.join(","), config.listen_addr.to_string()), ("a:1,b:1,c:1".to_owned(), ":8".to_owned()));
    }

    #[test]
    fn sockets_are_endpoints_and_addresses() {
        let config = parse(
            "--listen-addr=unix:///run/g.sock --listen-socket-mode=0660 --endpoints=unix:/s,unix:///s,unixs://t:1,a:1",
        );
        let config = config.unwrap();
        let shown: Vec<String> = config.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["unix:/s", "unix:t:1", "a:1"]);
        assert_eq!(config.listen_addr, GatewayAddress::Unix("/run/g.sock".into()));
        assert_eq!(config.listen_socket_mode, Some(0o660));
    }

    #[test]
    fn a_file_says_what_flags_say_and_is_wrong_at_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.yaml");
        let read = |text: &str, more: &str| {
            std::fs::write(&path, text).unwrap();
            parse(&format!("--config-file={} {more}", path.display()))
        };
        let first = read(
            "listen-addr: 127.0.0.1:7\nendpoints: [a:1, 'https://b:2']\nroute:\n- x.example=c:1,c:2\n- '*.y.example=d:1'\n\
             retry-delay: 5s\nhealth-check: http\ntrusted-ca-file: ca\nmax-connections: 9\n",
            "",
        )
        .unwrap();
        assert_eq!(
            (first.listen_addr.to_string().as_str(), first.endpoints.len(), first.routes.len()),
            ("127.0.0.1:7", 2, 2)
        );
        assert_eq!((first.retry_delay, first.connections_max), (Duration::from_secs(5), Some(9)));
        assert_eq!(first.trusted_ca_file, Some("ca".into()));
        let second = read("listen-addr: 127.0.0.1:8\nendpoints: c:1\nmax-connections: 9\n", "").unwrap();
        let (first, second) = (first.file.unwrap(), second.file.unwrap());
        assert_eq!(first.fixed_changes(&second), ["health-check", "listen-addr", "retry-delay", "trusted-ca-file"]);
        assert_eq!(first.read_again().unwrap().file, Some(second));
        let refused = |text: &str, more: &str| {
            let error = read(text, more).unwrap_err();
            error.strip_prefix(&format!("{}: ", path.display())).map(str::to_owned).unwrap_or(error)
        };
        for (text, reason) in [
            ("endpoints:\n- \"a:\"\n", "line 1: endpoints: \"a:\" must end with a port number"),
            ("\nroute: a=b/c\n", "line 2: route: \"b/c\" must have the form host:port"),
            ("health-check: http\nhealth-check-fall: 0\n", "line 2: health-check-fall: must be >0"),
            (
                "peer-cert-file: c\ndiscovery: http://d/t\n",
                "line 1: peer-cert-file, --peer-key-file: KeyFile and CertFile must both be present[key: , cert: c]",
            ),
            ("\nlisten-addr: here\n", "line 2: invalid value \"here\" for listen-addr: must have the form host:port"),
            ("endpoint: a:1\n", "line 1: endpoint is no key: keys are the flags of the gateway, without dashes"),
            ("max-connections: many\n", "line 1: cannot unmarshal string into field max-connections of type int"),
        ] {
            assert_eq!(refused(text, ""), reason, "{text}");
        }
        assert!(refused("a: [\n", "").starts_with("yaml: line "));
        let beside = refused("", "--endpoints=a:1");
        assert_eq!(beside, "--config-file: replaces all other flags, and --endpoints stands beside it");
    }

    #[test]
    fn endpoints_are_as_the_member_list_will_name_them() {
        let shown = |line: &str| -> Vec<bool> {
            let config = parse(&format!("--endpoints=a:1,http://b:1,https://c:1 {line}")).unwrap();
            config.endpoints.iter().map(|endpoint| endpoint.uses_tls(true)).collect()
        };
        let interval = "--endpoints-auto-sync-interval=1s";
        assert_eq!(shown(""), [true, false, true], "as health checks have it");
        assert_eq!(shown(interval), [false, false, true]);
        assert_eq!(shown(&format!("{interval} --resolver-cacert=ca")), [true, false, true]);
        let config = parse(&format!("{interval} --discovery-srv=a --resolver-user=u:p")).unwrap();
        let cluster = config.asked.unwrap();
        assert_eq!(
            (cluster.interval().unwrap(), cluster.user.as_ref().unwrap().name.as_str()),
            (Duration::from_secs(1), "u")
        );
    }

    #[test]
    fn routes_have_endpoints_of_their_own() {
        let config = parse("--route=a.example=h:1,https://h:2 --route=*.B.example/h2=h:3,*/http/1.1=h:4").unwrap();
        let show = |route: &RouteConfig| {
            let endpoints: Vec<String> = route.endpoints.iter().map(ToString::to_string).collect();
            format!("{} to {}", route.matching, endpoints.join(" and "))
        };
        let shown: Vec<String> = config.routes.iter().map(show).collect();
        assert_eq!(shown, ["a.example to h:1 and h:2", "*.b.example/h2 to h:3", "*/http/1.1 to h:4"]);
    }

    #[test]
    fn refusals_name_the_flag() {
        let cases = [
            ("--endpoints=::1", "--endpoints: \"::1\" must have the form host:port"),
            ("--endpoints=,", "--endpoints: names no endpoint"),
            ("--endpoints=ftp://x:1", "--endpoints: \"ftp://x:1\" is neither host:port nor an http, https or unix URL"),
            ("--endpoints=unix://", "--endpoints: \"unix://\" must have the path of a socket behind unix://"),
            (
                "--listen-addr=unixs:///s",
                "invalid argument \"unixs:///s\" for \"--listen-addr\" flag: has TLS in its scheme, which the gateway does not end: use unix://",
            ),
            (
                "--listen-socket-mode=0660",
                "--listen-socket-mode: needs a unix socket as --listen-addr, which is 127.0.0.1:23790",
            ),
            (
                "--listen-addr=unix:///s --listen-socket-mode=1777",
                "--listen-socket-mode: \"1777\" is no number in octal digits up to 0777",
            ),
            ("--discovery-srv a/b", "--discovery-srv: \"a/b\" is no domain name"),
            (
                "--discovery=http://d/t --discovery-srv=a",
                "--discovery-srv, --discovery: choose one source of endpoints",
            ),
            (
                "--resolver-user=u:p",
                "--resolver-prefix: or --endpoints-auto-sync-interval is needed by the other --resolver flags",
            ),
            (
                "--resolver-prefix=p --endpoints-auto-sync-interval=1s",
                "--endpoints-auto-sync-interval: asks for members and --resolver-prefix for proxies: give one of both",
            ),
            (
                "--discovery=http://d/t --endpoints-auto-sync-interval=1s",
                "--endpoints-auto-sync-interval: is not for a discovery URL or token: the members that registered are followed already",
            ),
            ("--resolver-prefix=p --resolver-user=u", "--resolver-user: must be NAME:PASSWORD"),
            (
                "--resolver-prefix=p --discovery-srv=a",
                "--resolver-prefix: is for the cluster of --endpoints, not for another source of endpoints",
            ),
            ("--discovery=http://d/t --discovery-interval=0", "--discovery-interval: must be >0"),
            (
                "--discovery=http://d/t --peer-cert-file=c",
                "--peer-cert-file, --peer-key-file: KeyFile and CertFile must both be present[key: , cert: c]",
            ),
            ("--balance=random", "--balance: \"random\" is none of round-robin, weighted, least-conn, p2c"),
            ("--on-eject=", "--on-eject: \"\" is none of keep, close"),
            (
                "--proxy-protocol-from=10.0.0.0/8,lb",
                "--proxy-protocol-from: \"lb\" is neither an address nor one with a prefix length, as 10.0.0.0/8",
            ),
            ("--route=a.example", "--route: \"a.example\" must have the form NAME=host:port"),
            ("--route=*=h:1", "--route: \"*\" takes every connection: use --endpoints"),
            ("--route=a*=h:1", "--route: \"a*\" is neither a server name nor *.NAME nor *"),
            ("--route=*a=h:1", "--route: \"*a\" is neither a server name nor *.NAME nor *"),
            ("--route=a/=h:1", "--route: \"a/\" must have 1 to 255 bytes of a protocol behind the slash"),
            ("--route=a=h:1 --route=A=h:2", "--route: a is there twice"),
            ("--route=a=h/x", "--route: \"h/x\" must have the form host:port"),
            ("--route=a=", "--route: names no endpoint"),
            ("--send-proxy-protocol=v3", "--send-proxy-protocol: \"v3\" is none of v1, v2"),
            ("--health-check=ping", "--health-check: \"ping\" is none of tcp, http, grpc"),
            ("--health-check-path=/x", "--health-check-path: needs --health-check=http"),
            ("--health-check=http --health-check-path=x", "--health-check-path: must begin with /"),
            ("--health-check=http --health-check-interval=0", "--health-check-interval: must be >0"),
            ("--health-check=http --health-check-fall=0", "--health-check-fall: must be >0"),
            (
                "--health-check=tcp --health-check-cacert=x",
                "--health-check: certificates for health checks need --health-check=http or grpc",
            ),
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
