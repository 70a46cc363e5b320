use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgAction, Parser};

use super::discovery::{RawSrv, SrvConfig};
use super::error::{ConfigError, FlagWords, WrongFlag};
use super::flags::Variables;
use super::golang::GoDuration;
use super::log::RawLogConfig;
use super::namespace_flag::{from_hex, spell_in_hex};
use super::peer_source::{PeerSourceConfig, RawPeerSource};
use super::proxy_user::{ProxyUserConfig, RawProxyUser};
use super::server::{KEEPALIVE_MIN_TIME, YEARS_MAX, identity};
use super::tenants::{ListenerFacts, TenantConfig, read_tenants_file};
use super::unsupported::{Mode, read_flags};
use super::url::{ListenUrl, listen_address};
use crate::net::{
    ClientAuth, ClientTlsConfig, Endpoint, EndpointError, SelfSigned, ServerIdentity, ServerTlsConfig, TlsPolicy,
};
use crate::telemetry::{LogConfig, LogLevel};

/// A member's own default, and the shortest it takes.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Flags of `grpc-proxy start`, by etcd's names; the last group is ours.
#[derive(Clone, Debug, Parser)]
#[command(name = "watershed grpc-proxy start", about = "Runs the gRPC proxy in front of a cluster.")]
pub struct RawProxyConfig {
    /// Listen address.
    #[arg(long, default_value = "127.0.0.1:23790", value_name = "HOST:PORT")]
    pub listen_addr: String,
    /// Comma-separated endpoints of the cluster.
    #[arg(long, default_value = "127.0.0.1:2379", value_name = "ENDPOINTS", action = ArgAction::Append)]
    pub endpoints: String,
    /// How often the endpoints are replaced by the client URLs of the cluster's members; 0 is never.
    #[arg(long, default_value = "0s", value_name = "DURATION")]
    pub endpoints_auto_sync_interval: GoDuration,
    /// URL the proxy names as the only member in MemberList; the listen address unless given, with the host name in place
    /// of a wildcard; empty for the real list.
    #[arg(long, value_name = "URL")]
    pub advertise_client_url: Option<String>,
    /// Prefix put before all keys, hidden from clients.
    #[arg(long, default_value = "", value_name = "PREFIX")]
    pub namespace: String,
    /// The same as pairs of hexadecimal digits.
    #[arg(long, default_value = "", value_name = "HEX")]
    pub namespace_hex: String,
    /// Prefix under which the proxy registers itself, for clients that resolve its address there and for the MemberList of
    /// the proxies that share it.
    #[arg(long, default_value = "", value_name = "PREFIX")]
    pub resolver_prefix: String,
    /// Seconds after which the registration of a proxy that is gone ends.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub resolver_ttl: i64,
    /// Silence after which a connection to the cluster is pinged; 0 is never.
    #[arg(long, default_value = "0s", value_name = "DURATION")]
    pub dial_keepalive_time: GoDuration,
    /// Wait for the answer to such a ping.
    #[arg(long, default_value = "20s", value_name = "DURATION")]
    pub dial_keepalive_timeout: GoDuration,
    /// Ping connections to the cluster that have no request in flight too.
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    pub permit_without_stream: bool,
    /// Listen for /metrics and /health on this URL too.
    #[arg(long, default_value = "", value_name = "URL")]
    pub metrics_addr: String,
    /// Least time between two pings of a client, which is disconnected if it pings more often; 0 is 5m.
    #[arg(long, default_value = "5s", value_name = "DURATION")]
    pub grpc_keepalive_min_time: GoDuration,
    /// Silence after which a client is pinged; 0 is never.
    #[arg(long, default_value = "2h", value_name = "DURATION")]
    pub grpc_keepalive_interval: GoDuration,
    /// Wait for the answer to such a ping before the client's connection is closed; 0 turns pings off.
    #[arg(long, default_value = "20s", value_name = "DURATION")]
    pub grpc_keepalive_timeout: GoDuration,
    /// Memory that long answers rewritten for a namespace may take; one without room waits and is refused then.
    #[arg(long, default_value_t = 536_870_912, value_name = "BYTES")]
    pub answer_memory_bytes: u64,
    /// Streams a client may have open on one connection; 0 is no limit.
    #[arg(long, default_value_t = u32::MAX, value_name = "COUNT")]
    pub max_concurrent_streams: u32,
    /// Largest message of a request; 0 is what the member takes.
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    pub max_send_bytes: i64,
    /// Largest message of an answer; 0 is what the member gives.
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    pub max_recv_bytes: i64,
    /// Serve profiles under /debug/pprof/.
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    pub enable_pprof: bool,
    /// Log debug lines.
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    pub debug: bool,

    /// Pause between two progress notifications of an idle watch where the member's is longer or does not show; 0 is
    /// 10m.
    #[arg(long, default_value = "0s", value_name = "DURATION")]
    pub watch_progress_notify_interval: GoDuration,
    /// Opens Compact, Maintenance, Auth and member changes to clients of a namespace.
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    pub namespace_admin: bool,
    /// File with the tenants of the proxy, each with its own namespace; read again when it changes and at SIGHUP. In place
    /// of --namespace.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub tenants_file: String,
    /// Requests to the cluster that all tenants together may have in flight; where more wait, tenants take turns.
    #[arg(long, default_value_t = 128, value_name = "COUNT")]
    pub tenants_requests_in_flight: usize,
    /// Threads that serve clients; 0 is one per core.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub serving_threads: usize,
    /// Bound of one connection attempt to a member.
    #[arg(long, default_value = "3s", value_name = "DURATION")]
    pub dial_timeout: GoDuration,
    /// Time open requests get to finish when the proxy stops.
    #[arg(long, default_value = "5s", value_name = "DURATION")]
    pub shutdown_grace: GoDuration,
    /// Which ranges are answered from the cache: off, serializable ones, or linearizable ones too.
    #[arg(long, default_value = "linearizable", value_name = "READS")]
    pub cache: String,
    /// Prefixes whose keys are cached, as clients see them: a comma list, or given more than once. Unless given, all of the
    /// namespace, and without one the prefixes that are read often.
    #[arg(long, value_delimiter = ',', value_name = "PREFIXES")]
    pub cache_prefix: Vec<String>,
    /// Memory of the cache; 0 is a quarter of the machine's, at most 2 GiB.
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    pub cache_bytes: u64,
    /// How long ago a write may have been acknowledged that a serializable range from the cache does not show.
    #[arg(long, default_value = "1s", value_name = "DURATION")]
    pub cache_staleness: GoDuration,

    /// Certificate shown to members of the cluster; its common name must be empty.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub cert: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub key: String,
    /// Authorities whose certificates members have.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub cacert: String,
    /// Take any certificate of members: for tests only.
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    pub insecure_skip_tls_verify: bool,
    /// Certificate shown to clients.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub cert_file: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub key_file: String,
    /// Authorities whose certificates clients have to show.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub trusted_ca_file: String,
    /// Certificates of clients that are revoked.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub client_crl_file: String,
    /// Cipher suites of TLS 1.2 with clients by Go's names, as a comma list.
    #[arg(long, default_value = "", value_name = "SUITES", action = ArgAction::Append)]
    pub listen_cipher_suites: String,
    /// Make a certificate for clients, in the data folder.
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    pub auto_tls: bool,
    /// Years for which it is valid.
    #[arg(long, default_value_t = 1, value_name = "YEARS")]
    pub self_signed_cert_validity: u32,
    /// Where it is kept.
    #[arg(long, default_value = "default.proxy", value_name = "FOLDER", value_parser = PathBuf::from_str)]
    pub data_dir: PathBuf,
    /// Lowest version of TLS with clients: TLS1.2 or TLS1.3.
    #[arg(long, default_value = "TLS1.2", value_name = "VERSION")]
    pub tls_min_version: String,
    /// Highest version of TLS with clients.
    #[arg(long, default_value = "", value_name = "VERSION")]
    pub tls_max_version: String,

    /// Discovery by DNS.
    #[command(flatten)]
    pub srv: RawSrv,
    /// Discovery by URL or token.
    #[command(flatten)]
    pub peers: RawPeerSource,
    /// Who the proxy is for the cluster.
    #[command(flatten)]
    pub user: RawProxyUser,
    /// Logging.
    #[command(flatten)]
    pub log: RawLogConfig,
}

/// The checked configuration of a proxy.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// TLS with clients.
    pub listen_tls: Option<ServerTlsConfig>,
    /// Where they can connect as well.
    pub listen_too: Vec<ListenUrl>,
    /// Where metrics and health are served too.
    pub metrics_listen: Vec<ListenUrl>,
    /// TLS with members of the cluster.
    pub upstream_tls: Option<ClientTlsConfig>,
    /// Who the proxy itself is for the cluster.
    pub user: Option<ProxyUserConfig>,
    /// Members of the cluster.
    pub endpoints: Vec<Endpoint>,
    /// Where they are found in place of these.
    pub srv: Option<SrvConfig>,
    /// The cluster whose members are the endpoints in place of these.
    pub peers: Option<PeerSourceConfig>,
    /// How often the endpoints are taken from the member list.
    pub auto_sync: Option<Duration>,
    /// What MemberList names.
    pub advertise: Advertise,
    /// What is put before all keys; empty for none.
    pub namespace: Bytes,
    /// Where the proxy registers itself.
    pub resolver: Option<ResolverConfig>,
    /// Whether clients of the namespace may use calls that reach beyond it.
    pub namespace_admin: bool,
    /// Who may use the proxy; none where all clients see the same namespace.
    pub tenants: Option<TenantsConfig>,
    /// Pings towards the cluster.
    pub upstream_pings: Option<UpstreamPings>,
    /// Bound of one connection attempt.
    pub dial_timeout: Duration,
    /// Pause between two progress notifications of an idle watch, unless the member's is shorter.
    pub watch_progress_notify_interval: Duration,
    /// Least time between two pings of a client; one that pings more often is disconnected.
    pub keepalive_min_time: Duration,
    /// Silence after which a client is pinged; zero for never.
    pub keepalive_interval: Duration,
    /// Wait for the client's answer.
    pub keepalive_timeout: Duration,
    /// Memory of answers that are rewritten.
    pub answer_memory_bytes: u64,
    /// What is cached; none for nothing.
    pub cache: Option<RangeCacheConfig>,
    /// Streams per connection.
    pub max_concurrent_streams: u32,
    /// Largest message of a request; none for what the member takes.
    pub send_bytes_max: Option<usize>,
    /// Largest message of an answer; none for what the member gives.
    pub receive_bytes_max: Option<usize>,
    /// Whether profiles are served.
    pub enable_pprof: bool,
    /// Serving threads; none for one per core.
    pub serving_threads: Option<usize>,
    /// Time for open requests at the end.
    pub grace: Duration,
    /// Log lines.
    pub log: LogConfig,
}

/// Who may use the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantsConfig {
    /// Where it is written, and read again.
    pub file: PathBuf,
    /// Requests to the cluster that all of them together may have in flight.
    pub requests_max: usize,
    /// What the listeners can know of clients.
    pub listeners: ListenerFacts,
    /// What the file said.
    pub tenants: Vec<TenantConfig>,
}

/// What is cached, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeCacheConfig {
    /// Whether linearizable ranges are answered too.
    pub linearizable: bool,
    /// Prefixes as clients see them; none for all of the namespace.
    pub prefixes: Vec<String>,
    /// Memory of the cache; none for a part of the machine's.
    pub bytes_max: Option<u64>,
    /// Bound of what a serializable range may not show yet.
    pub staleness: Duration,
}

/// What MemberList names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advertise {
    /// The proxy, where it listens.
    ListenAddress,
    /// The proxy, at this endpoint.
    Endpoint(Endpoint),
    /// The members of the cluster.
    Members,
}

/// Where the proxy registers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverConfig {
    /// Before the keys of registrations.
    pub prefix: String,
    /// Of their leases, in seconds.
    pub ttl: i64,
}

/// Pings towards the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamPings {
    /// Silence before one.
    pub interval: Duration,
    /// Wait for the answer.
    pub timeout: Duration,
    /// Whether connections without a request are pinged.
    pub while_idle: bool,
}

/// Reads the arguments after `grpc-proxy start`. etcd's proxy reads no variables, nor does this one.
///
/// # Errors
/// The first thing that is wrong; [`ConfigError::Help`] when the flags were asked for.
pub fn parse_proxy_config(args: &[std::ffi::OsString]) -> Result<ProxyConfig, ConfigError> {
    read_flags::<RawProxyConfig>(Mode::Proxy, &spell_in_hex(args), &Variables::none())?.0.try_into()
}

impl TryFrom<RawProxyConfig> for ProxyConfig {
    type Error = ConfigError;

    fn try_from(raw: RawProxyConfig) -> Result<Self, ConfigError> {
        let invalid = |flag: &str, value: &str, reason: String| ConfigError::Flag {
            words: FlagWords::Cobra,
            wrong: WrongFlag::Invalid { flag: flag.to_owned(), value: value.to_owned(), reason },
        };
        let listen = raw.listen_addr.parse().map_err(str::to_owned).and_then(|place| listen_address(&place));
        let listen = listen.map_err(|reason| invalid("listen-addr", &raw.listen_addr, reason))?;
        let metrics_listen = match raw.metrics_addr.as_str() {
            "" => None,
            url => Some(url.parse::<ListenUrl>().map_err(|error| invalid("metrics-addr", url, error.to_string()))?),
        };
        let listen_tls = listen_tls(&raw, listen)?;
        if let Some(url) = metrics_listen.as_ref().filter(|url: &&ListenUrl| url.is_tls() && listen_tls.is_none()) {
            let reason = format!("cannot listen on TLS for {url}: KeyFile and CertFile are not presented");
            return Err(ConfigError::Value { flag: "metrics-addr, --cert-file, --key-file", reason });
        }
        let upstream_tls = ClientTlsConfig::from_flags(&raw.cacert, &raw.cert, &raw.key, raw.insecure_skip_tls_verify)
            .map_err(|reason| ConfigError::Value { flag: "cert, --key, --cacert", reason })?;
        let user = raw.user.checked(&raw.cacert, raw.insecure_skip_tls_verify)?;
        // Members that know a user by its certificate speak TLS, also with those that have none.
        let upstream_tls = match &user {
            Some(ProxyUserConfig::Certificate(tls)) => {
                upstream_tls.or_else(|| Some(ClientTlsConfig { identity: None, ..tls.clone() }))
            }
            _ => upstream_tls,
        };
        let endpoints = Endpoint::parse_list(&raw.endpoints)
            .map_err(|error| invalid("endpoints", &raw.endpoints, error.to_string()))?;
        let (peers, srv) = (raw.peers.checked(&raw.srv)?, raw.srv.checked()?);
        // Another source takes the place of the flag, whose default may be the address of the proxy.
        let are_used = peers.is_none() && srv.is_none();
        if are_used
            && let Some(own) = endpoints.iter().find(|endpoint| {
                endpoint.port() == listen.port()
                    && endpoint.host().parse().is_ok_and(|ip: IpAddr| {
                        ip == listen.ip() || ip.is_unspecified() && listen.ip().is_unspecified()
                    })
            })
        {
            let reason = format!("{own} is the proxy's own --listen-addr");
            return Err(invalid("endpoints", &raw.endpoints, reason));
        }
        if matches!(user, Some(ProxyUserConfig::Certificate(_)))
            && let Some(plain) = endpoints.iter().find(|endpoint| !endpoint.uses_tls(true))
        {
            return Err(ConfigError::Value {
                flag: "user-cert",
                reason: format!("{plain} is an endpoint without TLS"),
            });
        }
        let namespace = match raw.namespace_hex.as_str() {
            "" => Bytes::from(raw.namespace.clone().into_bytes()),
            hex => {
                if !raw.namespace.is_empty() {
                    let reason = "the namespace is given twice".to_owned();
                    return Err(ConfigError::Value { flag: "namespace, --namespace-hex", reason });
                }
                from_hex(hex).map_err(|reason| invalid("namespace-hex", hex, reason.to_owned()))?
            }
        };
        if namespace.starts_with(&[0]) {
            let reason = "keys that begin with a zero byte are reserved for the proxy".to_owned();
            return Err(invalid("namespace", &namespace.escape_ascii().to_string(), reason));
        }
        let resolver = resolver(&raw.resolver_prefix, raw.resolver_ttl, raw.advertise_client_url.as_deref())?;
        let listeners = ListenerFacts {
            tls: listen_tls.is_some(),
            client_certificates: listen_tls.as_ref().is_some_and(|tls| tls.clients != ClientAuth::None),
            metrics: metrics_listen.as_ref().and_then(|url| url.address().tcp()),
        };
        let tenants = tenants(&raw, &namespace, resolver.is_some(), listeners)?;
        let advertise = match raw.advertise_client_url {
            None => Advertise::ListenAddress,
            Some(url) if url.is_empty() => Advertise::Members,
            Some(url) => Advertise::Endpoint(
                url.parse().map_err(|error: EndpointError| invalid("advertise-client-url", &url, error.to_string()))?,
            ),
        };
        let linearizable = match raw.cache.as_str() {
            "off" => None,
            "serializable" => Some(false),
            "linearizable" => Some(true),
            other => return Err(invalid("cache", other, "must be off, serializable or linearizable".to_owned())),
        };
        let cache = linearizable.map(|linearizable| RangeCacheConfig {
            linearizable,
            prefixes: raw.cache_prefix,
            bytes_max: (raw.cache_bytes > 0).then_some(raw.cache_bytes),
            staleness: raw.cache_staleness.0,
        });
        // As in etcd, what is not positive is as if it was not given.
        let bytes_max = |bytes: i64| usize::try_from(bytes).ok().filter(|&bytes| bytes > 0);
        let (send_bytes_max, receive_bytes_max) = (bytes_max(raw.max_send_bytes), bytes_max(raw.max_recv_bytes));
        if let (Some(send), Some(receive)) = (send_bytes_max, receive_bytes_max)
            && send > receive
        {
            let reason =
                format!("gRPC message recv limit ({receive} bytes) must be greater than send limit ({send} bytes)");
            return Err(ConfigError::Value { flag: "max-recv-bytes, --max-send-bytes", reason });
        }
        let nonzero = |duration: GoDuration| (!duration.0.is_zero()).then_some(duration.0);
        let upstream_pings = nonzero(raw.dial_keepalive_time).map(|interval| UpstreamPings {
            interval,
            timeout: raw.dial_keepalive_timeout.0,
            while_idle: raw.permit_without_stream,
        });
        let dial_timeout = nonzero(raw.dial_timeout)
            .ok_or_else(|| invalid("dial-timeout", "0s", "must be longer than nothing".to_owned()))?;
        let mut log: LogConfig = raw.log.into();
        if raw.debug {
            log.level = LogLevel::Debug;
        }
        Ok(Self {
            listen,
            listen_tls,
            listen_too: Vec::new(),
            metrics_listen: metrics_listen.into_iter().collect(),
            upstream_tls,
            user,
            endpoints,
            peers,
            srv,
            auto_sync: nonzero(raw.endpoints_auto_sync_interval),
            advertise,
            namespace,
            tenants,
            resolver,
            namespace_admin: raw.namespace_admin,
            upstream_pings,
            dial_timeout,
            watch_progress_notify_interval: nonzero(raw.watch_progress_notify_interval)
                .map_or(PROGRESS_INTERVAL, |interval| interval.max(PROGRESS_INTERVAL_MIN)),
            keepalive_min_time: nonzero(raw.grpc_keepalive_min_time).unwrap_or(KEEPALIVE_MIN_TIME),
            keepalive_interval: raw.grpc_keepalive_interval.0,
            keepalive_timeout: raw.grpc_keepalive_timeout.0,
            answer_memory_bytes: raw.answer_memory_bytes,
            cache,
            // Nobody could make a call on a connection without streams.
            max_concurrent_streams: match raw.max_concurrent_streams {
                0 => u32::MAX,
                streams => streams,
            },
            send_bytes_max,
            receive_bytes_max,
            enable_pprof: raw.enable_pprof,
            serving_threads: (raw.serving_threads > 0).then_some(raw.serving_threads),
            grace: raw.shutdown_grace.0,
            log,
        })
    }
}

/// The tenants of `--tenants-file`, which says all that the flags for one namespace say.
fn tenants(
    raw: &RawProxyConfig,
    namespace: &Bytes,
    registers: bool,
    listeners: ListenerFacts,
) -> Result<Option<TenantsConfig>, ConfigError> {
    if raw.tenants_file.is_empty() {
        return Ok(None);
    }
    let conflicts = [
        (!namespace.is_empty(), "tenants-file, --namespace", "the file gives each tenant its namespace"),
        (raw.namespace_admin, "tenants-file, --namespace-admin", "the file opens these calls to a tenant by \"admin\""),
        (registers, "tenants-file, --resolver-prefix", "a registration would be in the namespace of no tenant"),
    ];
    if let Some((_, flag, reason)) = conflicts.into_iter().find(|(given, ..)| *given) {
        return Err(ConfigError::Value { flag, reason: reason.to_owned() });
    }
    let requests_max = raw.tenants_requests_in_flight;
    if requests_max == 0 {
        let reason = "must be at least 1".to_owned();
        return Err(ConfigError::Value { flag: "tenants-requests-in-flight", reason });
    }
    let file = PathBuf::from(&raw.tenants_file);
    let tenants = read_tenants_file(&file, listeners)?;
    Ok(Some(TenantsConfig { file, requests_max, listeners, tenants }))
}

/// Where the proxy registers itself; what is wrong is said as etcd's proxy says it.
fn resolver(prefix: &str, ttl: i64, advertise: Option<&str>) -> Result<Option<ResolverConfig>, ConfigError> {
    let wrong = |flag, reason| Err(ConfigError::Value { flag, reason });
    match (prefix, ttl) {
        ("", ..1) => Ok(None),
        ("", _) => wrong("resolver-prefix", "invalid resolver-prefix \"\"".to_owned()),
        (_, ..1) => wrong("resolver-ttl", format!("invalid resolver-ttl {ttl}")),
        _ if advertise == Some("") => wrong("advertise-client-url", "invalid advertise-client-url \"\"".to_owned()),
        _ => Ok(Some(ResolverConfig { prefix: prefix.to_owned(), ttl })),
    }
}

/// TLS with clients, as the flags ask for it.
fn listen_tls(raw: &RawProxyConfig, listen: SocketAddr) -> Result<Option<ServerTlsConfig>, ConfigError> {
    let wrong = |flag, reason| ConfigError::Value { flag, reason };
    let policy = TlsPolicy::parse(&raw.tls_min_version, &raw.tls_max_version, &raw.listen_cipher_suites)
        .map_err(|reason| wrong("tls-min-version, --tls-max-version, --listen-cipher-suites", reason))?;
    if raw.auto_tls && !(1..=YEARS_MAX).contains(&raw.self_signed_cert_validity) {
        let reason = match raw.self_signed_cert_validity {
            0 => "selfSignedCertValidity is invalid,it should be greater than 0".to_owned(),
            years => format!("{years} years are more than {YEARS_MAX}"),
        };
        return Err(wrong("self-signed-cert-validity", reason));
    }
    let files = identity("cert-file, --key-file", &raw.cert_file, &raw.key_file)?;
    let identity = match files {
        Some(files) => ServerIdentity::Files(files),
        None if !raw.trusted_ca_file.is_empty() => {
            return Err(wrong("trusted-ca-file", "needs --cert-file and --key-file".to_owned()));
        }
        None if raw.auto_tls => ServerIdentity::SelfSigned(SelfSigned {
            dir: raw.data_dir.join("fixtures").join("proxy"),
            hosts: vec![listen.ip().to_string()],
            years: raw.self_signed_cert_validity,
        }),
        None => return Ok(None),
    };
    let clients = match raw.trusted_ca_file.as_str() {
        "" => ClientAuth::None,
        file => ClientAuth::File(file.into()),
    };
    let revocations = (!raw.client_crl_file.is_empty()).then(|| (&raw.client_crl_file).into());
    Ok(Some(ServerTlsConfig { clients, revocations, policy, ..ServerTlsConfig::new(identity) }))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::net::ServerAuth;

    fn parse(line: &str) -> Result<ProxyConfig, String> {
        let args: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        parse_proxy_config(&args).map_err(|error| error.to_string())
    }

    #[test]
    fn etcds_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:23790");
        assert_eq!(config.endpoints, ["127.0.0.1:2379".parse().unwrap()]);
        assert_eq!(config.advertise, Advertise::ListenAddress);
        assert_eq!((config.upstream_pings, config.auto_sync, config.metrics_listen), (None, None, Vec::new()));
        assert_eq!((config.listen_tls, config.upstream_tls), (None, None));
        assert_eq!(config.keepalive_interval, Duration::from_secs(7200));
        assert_eq!(config.max_concurrent_streams, u32::MAX);
        assert_eq!(config.watch_progress_notify_interval, Duration::from_secs(600));
    }

    #[test]
    fn a_limit_of_no_streams_is_none() {
        // Cause: clients were told that they may open no stream, and their calls waited for ever.
        let limit = |line: &str| parse(line).unwrap().max_concurrent_streams;
        assert_eq!((limit("--max-concurrent-streams=0"), limit("--max-concurrent-streams=7")), (u32::MAX, 7));
    }

    #[test]
    fn a_refusal_names_the_flag() {
        for (line, part) in [
            ("--listen-addr=nope", "--listen-addr\" flag: must have the form host:port"),
            ("--listen-addr=a..b:1", "--listen-addr\" flag: failed to lookup address"),
            ("--listen-addr=127.0.0.1:x", "--listen-addr\" flag: must end with a port number"),
            ("--endpoints=a:", "--endpoints\" flag: endpoint \"a:\": port is missing"),
            ("--listen-addr=127.0.0.1:5 --endpoints=127.0.0.1:5", "127.0.0.1:5 is the proxy's own --listen-addr"),
            ("--listen-addr=:5 --endpoints=0.0.0.0:5", "0.0.0.0:5 is the proxy's own --listen-addr"),
            (
                "--metrics-addr=https://127.0.0.1:1",
                "cannot listen on TLS for https://127.0.0.1:1: KeyFile and CertFile",
            ),
            ("--advertise-client-url=x", "--advertise-client-url\" flag: endpoint \"x\": port is missing"),
            ("--user=a", "--user: needs one of NAME:PASSWORD, --password and --password-file"),
            ("--user-cert=c --user-key=k --endpoints=http://a:1", "--user-cert: a:1 is an endpoint without TLS"),
            ("--dial-timeout=0", "--dial-timeout\" flag: must be longer"),
            ("--cert-file=x", "--cert-file, --key-file: KeyFile and CertFile must both be present[key: , cert: x]"),
            ("--key=x", "--cert, --key, --cacert: KeyFile and CertFile must both be present[key: x, cert: ]"),
            ("--trusted-ca-file=x", "--trusted-ca-file: needs --cert-file and --key-file"),
            (
                "--auto-tls --self-signed-cert-validity=0",
                "selfSignedCertValidity is invalid,it should be greater than 0",
            ),
            ("--tls-min-version=TLS1.1", "unexpected TLS version \"TLS1.1\""),
            ("--discovery-srv=a/b", "--discovery-srv: \"a/b\" is no domain name"),
            ("--cache=on", "--cache\" flag: must be off, serializable or linearizable"),
            ("--resolver-prefix=x", "invalid resolver-ttl 0"),
            ("--resolver-ttl=5", "invalid resolver-prefix \"\""),
            ("--resolver-prefix=x --resolver-ttl=5 --advertise-client-url=", "invalid advertise-client-url \"\""),
            ("--namespace-hex=6", "\"--namespace-hex\" flag: must be pairs of hexadecimal digits"),
            ("--namespace-hex=61 --namespace=a", "--namespace, --namespace-hex: the namespace is given twice"),
            (
                "--max-send-bytes=6 --max-recv-bytes=5",
                "--max-recv-bytes, --max-send-bytes: gRPC message recv limit (5 bytes) must be greater than send limit (6 bytes)",
            ),
            ("--max-send-bytes=x", "for \"--max-send-bytes\" flag: strconv.ParseInt"),
            ("--namespace-hex=0061", "are reserved for the proxy"),
            (
                "--tenants-file=none --namespace=a",
                "--tenants-file, --namespace: the file gives each tenant its namespace",
            ),
            ("--tenants-file=none --namespace-admin", "--tenants-file, --namespace-admin: the file opens"),
            ("--tenants-file=none --resolver-prefix=x --resolver-ttl=5", "a registration would be in the namespace of"),
            ("--tenants-file=none --tenants-requests-in-flight=0", "--tenants-requests-in-flight: must be at least 1"),
            ("--tenants-file=/none/tenants.yaml", "/none/tenants.yaml: No such file or directory"),
            ("--max-concurrent-streams=-1", "for \"--max-concurrent-streams\" flag: strconv.ParseUint"),
            ("--nonsense", "unknown flag: --nonsense"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(part) && !error.contains('\n'), "{line}: {error}");
        }
    }

    #[test]
    fn endpoints_that_are_not_used_may_be_the_proxys_own() {
        // Cause: a proxy at 127.0.0.1:2379 did not start with endpoints from DNS or a registry, for the default of --endpoints.
        for source in ["--discovery-srv=example.com", "--discovery=http://d.example/t"] {
            let config = parse(&format!("--listen-addr=127.0.0.1:2379 {source}")).expect(source);
            assert_ne!(config.srv.is_some(), config.peers.is_some(), "{source}");
        }
        assert!(parse("--listen-addr=127.0.0.1:2379").unwrap_err().contains("the proxy's own --listen-addr"));
    }

    #[test]
    fn a_refused_flag_may_hold_its_default() {
        parse("--auto-tls=false --tls-min-version=TLS1.2 --resolver-ttl=0 --discovery-srv= --cert=").unwrap();
        // Cause: clap's own parser refuses an empty path, which etcd takes.
        parse("--data-dir=").unwrap();
    }

    #[test]
    fn values_are_taken() {
        let config = parse(
            "--listen-addr :7 --endpoints http://a:1,b:2 --namespace t/ --advertise-client-url= \
             --dial-keepalive-time 10s --permit-without-stream --endpoints-auto-sync-interval 30s --debug \
             --metrics-addr http://127.0.0.1:9 --watch-progress-notify-interval 5s",
        )
        .unwrap();
        assert_eq!((config.listen.to_string().as_str(), config.endpoints.len()), ("[::]:7", 2));
        assert_eq!((config.advertise, &config.namespace[..]), (Advertise::Members, &b"t/"[..]));
        assert_eq!(config.upstream_pings.map(|pings| (pings.interval.as_secs(), pings.while_idle)), Some((10, true)));
        assert_eq!(config.auto_sync, Some(Duration::from_secs(30)));
        assert_eq!(config.watch_progress_notify_interval, Duration::from_secs(5));
        let short = parse("--watch-progress-notify-interval=1ms").unwrap();
        assert_eq!(short.watch_progress_notify_interval, Duration::from_millis(100));
        assert_eq!(config.log.level, LogLevel::Debug);
    }

    #[test]
    fn repeated_lists_go_together_as_in_etcd() {
        // Cause: only the endpoints of the last flag were used.
        let config = parse("--endpoints=a:1,b:1 --endpoints c:1 --debug --debug=false").unwrap();
        let shown: Vec<String> = config.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!((shown.join(",").as_str(), config.log.level), ("a:1,b:1,c:1", LogLevel::Info));
        let suites = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"];
        let policy =
            |flags: String| parse(&format!("--cert-file=c --key-file=k {flags}")).unwrap().listen_tls.unwrap().policy;
        let [one, other] = suites.map(|suite| format!("--listen-cipher-suites={suite}"));
        assert_eq!(policy(format!("{one} {other}")), policy(format!("--listen-cipher-suites={}", suites.join(","))));
    }

    #[test]
    fn messages_are_limited_where_a_limit_is_given() {
        let limits = |line| {
            let config = parse(line).unwrap();
            (config.send_bytes_max, config.receive_bytes_max)
        };
        assert_eq!(limits(""), (None, None));
        assert_eq!(limits("--max-send-bytes=5 --max-recv-bytes 5"), (Some(5), Some(5)));
        assert_eq!(limits("--max-send-bytes=-1 --max-recv-bytes=0"), (None, None));
    }

    #[test]
    fn the_cache_is_on_unless_it_is_turned_off() {
        assert_eq!(parse("--cache=off --cache-prefix=/a/").unwrap().cache, None);
        let usual = RangeCacheConfig {
            linearizable: true,
            prefixes: Vec::new(),
            bytes_max: None,
            staleness: Duration::from_secs(1),
        };
        assert_eq!(parse("").unwrap().cache, Some(usual));
        let line = "--cache linearizable --cache-prefix /a/ --cache-prefix /b/,/c/ --cache-staleness 500ms --cache-bytes 1000 \
             --experimental-leasing-prefix=l --experimental-serializable-ordering";
        let expected = RangeCacheConfig {
            linearizable: true,
            prefixes: ["/a/", "/b/", "/c/"].map(str::to_owned).to_vec(),
            bytes_max: Some(1000),
            staleness: Duration::from_millis(500),
        };
        assert_eq!(parse(line).unwrap().cache, Some(expected));
        let config = parse("--cache=serializable").unwrap().cache.unwrap();
        assert_eq!((config.linearizable, config.bytes_max, config.staleness.as_secs()), (false, None, 1));
    }

    #[test]
    fn a_namespace_is_bytes() {
        use std::os::unix::ffi::OsStringExt;
        let config = parse("--namespace-hex=61ff").unwrap();
        assert_eq!(&config.namespace[..], b"a\xff");
        let args = [OsString::from_vec(b"--namespace=a\xff".to_vec())];
        assert_eq!(&parse_proxy_config(&args).unwrap().namespace[..], b"a\xff");
    }

    #[test]
    fn tls_has_two_sides() {
        let line = "--cert-file c --key-file k --trusted-ca-file t --client-crl-file r --metrics-addr https://127.0.0.1:9 \
             --cert d --key l --cacert a";
        let config = parse(line).unwrap();
        let listen = config.listen_tls.unwrap();
        assert_eq!((listen.clients, listen.revocations), (ClientAuth::File("t".into()), Some("r".into())));
        assert!(config.metrics_listen[0].is_tls());
        let upstream = config.upstream_tls.unwrap();
        assert_eq!((upstream.servers, upstream.identity.unwrap().key), (ServerAuth::File("a".into()), "l".into()));
        assert_eq!(parse("--insecure-skip-tls-verify").unwrap().upstream_tls.unwrap().servers, ServerAuth::Skip);
        let made = parse("--auto-tls --data-dir d").unwrap().listen_tls.unwrap().identity;
        let hosts = vec!["127.0.0.1".to_owned()];
        assert_eq!(made, ServerIdentity::SelfSigned(SelfSigned { dir: "d/fixtures/proxy".into(), hosts, years: 1 }));
    }
}
