use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::super::error::{ConfigError, UrlError};
use super::super::flags::Variables;
use super::super::log::{ServerLogFlags, server_log};
use super::super::unsupported::{Mode, read_flags};
use super::super::url::{ListenUrl, Place, bound_url, each, own_url, split};
use super::auth::AuthConfig;
use super::cluster::InitialCluster;
use super::discovery::{Fallback, InitialDiscovery};
use super::notice::{Notice, PROGRESS_INTERVAL_MIN, notices};
use super::raw::{DEFAULT_CLIENT_URL, RawServerConfig};
use super::tls::{ListenUrls, TlsConfig};
use super::values::{AutoCompaction, FeatureGates, IntegrityChecks, Quota};
use crate::telemetry::{LogConfig, LogLevel, TracingConfig};

/// The longest `--election-timeout`, in milliseconds.
const ELECTION_TIMEOUT_MAX_MS: u64 = 50_000;
/// Every request.
const SAMPLES_MAX: u32 = 1_000_000;
/// The longest `--max-request-bytes`: a request travels between members in one frame of 64 MiB, with what raft adds to it.
pub const REQUEST_BYTES_MAX: usize = (64 << 20) - 4096;
/// Most serving threads that are accepted.
const SERVING_THREADS_MAX: usize = 1024;
/// What several flags stand for when they say 0.
const SNAPSHOT_COUNT: u64 = 10_000;
const CATCH_UP_ENTRIES: u64 = 5000;
const COMPACTION_BATCH: usize = 1000;
const COMPACTION_SLEEP: Duration = Duration::from_millis(10);
/// Minimum of the gRPC library, which etcd does not change when the flag is 0.
pub(in crate::config) const KEEPALIVE_MIN_TIME: Duration = Duration::from_secs(300);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);

/// The checked configuration of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Name of this member.
    pub name: String,
    /// Folder of all data. Not touched while flags are checked.
    pub data_dir: PathBuf,
    /// Folder of the log: `member/wal` in the data folder unless it has a place of its own.
    pub wal_dir: PathBuf,
    /// Entries after which the log may forget what the state on disk covers.
    pub snapshot_count: u64,
    /// Entries kept in memory behind that.
    pub snapshot_catchup_entries: u64,
    /// Pause between two heartbeats of a leader; one raft tick.
    pub heartbeat_interval: Duration,
    /// Silence after which a follower stands for election.
    pub election_timeout: Duration,
    /// Where other members connect.
    pub listen_peer_urls: Vec<ListenUrl>,
    /// TLS for clients and between members.
    pub tls: TlsConfig,
    /// What `--feature-gates` changes.
    pub feature_gates: FeatureGates,
    /// Where connections to other members come from; the system chooses when there is none.
    pub peer_local_address: Option<IpAddr>,
    /// Where clients connect.
    pub listen_client_urls: Vec<ListenUrl>,
    /// Where clients connect for all but gRPC; with none, `listen_client_urls` has everything.
    pub listen_client_http_urls: Vec<ListenUrl>,
    /// More addresses for `/metrics` and `/health`.
    pub listen_metrics_urls: Vec<ListenUrl>,
    /// Initial cluster of a member without data.
    pub initial: InitialCluster,
    /// Where a member without data finds it instead.
    pub discovery: Option<InitialDiscovery>,
    /// What it does where that cluster is complete without it.
    pub fallback: Fallback,
    /// Start a one-member cluster with the data of a member whose cluster is lost.
    pub force_new_cluster: bool,
    /// Comparisons of the members' states.
    pub integrity: IntegrityChecks,
    /// Client URLs this member publishes.
    pub advertise_client_urls: Vec<String>,
    /// Size of the state at which writes are refused.
    pub quota: Quota,
    /// Operations one transaction may hold.
    pub max_txn_ops: usize,
    /// Size one request may have.
    pub max_request_bytes: usize,
    /// Memory that long answers in flight may take.
    pub answer_memory_bytes: u64,
    /// Streams one client connection may have open.
    pub max_concurrent_streams: u32,
    /// Least time between two pings of a client; one that pings more often is disconnected.
    pub keepalive_min_time: Duration,
    /// Pause after which an idle client connection is pinged; zero is never.
    pub keepalive_interval: Duration,
    /// Wait for the answer to a ping; zero is for ever.
    pub keepalive_timeout: Duration,
    /// Refuse membership changes that would lose the quorum.
    pub strict_reconfig_check: bool,
    /// Ask before an election whether it could be won.
    pub pre_vote: bool,
    /// Learners the cluster may have.
    pub max_learners: usize,
    /// Automatic compaction by the leader.
    pub auto_compaction: AutoCompaction,
    /// How users log in.
    pub auth: AuthConfig,
    /// Origins whose scripts may call; `*` for all.
    pub cors: Vec<String>,
    /// Names a Host header may have; `*` or none for all.
    pub host_whitelist: Vec<String>,
    /// Whether calls may come as JSON.
    pub enable_grpc_gateway: bool,
    /// Whether ports may be shared with other processes.
    pub socket_reuse_port: bool,
    /// Whether profiles are served.
    pub enable_pprof: bool,
    /// Whether gRPC methods have latency histograms.
    pub extensive_metrics: bool,
    /// Requests slower than this are logged.
    pub warning_unary_request_duration: Duration,
    /// Entries that take longer to apply are logged.
    pub warning_apply_duration: Duration,
    /// Where request spans are exported to.
    pub tracing: Option<TracingConfig>,
    /// What is logged, how and where.
    pub log: LogConfig,
    /// Defragment at the start if that frees at least so many bytes.
    pub bootstrap_defrag_threshold_bytes: Option<u64>,
    /// Records a compaction removes in one slice.
    pub compaction_batch_limit: usize,
    /// Pause between two slices of a compaction.
    pub compaction_sleep_interval: Duration,
    /// Pause between two progress notifications of an idle watch.
    pub watch_progress_notify_interval: Duration,
    /// Unsafe: acknowledge before the disk has it.
    pub unsafe_no_fsync: bool,
    /// Threads that serve clients, one at least.
    pub serving_threads: usize,
    /// What to log about the flags once logging runs.
    pub notices: Vec<Notice>,
}

/// Reads and checks the server's arguments and its `ETCD_*` variables. Touches neither disk nor network, but for a
/// configuration file.
///
/// # Errors
/// The first thing that is wrong, naming the flag; also the answer to `--help`.
pub fn parse_server_config(args: &[OsString], variables: &Variables) -> Result<ServerConfig, ConfigError> {
    let (mut raw, parsed) = read_flags::<RawServerConfig>(Mode::Server, args, variables)?;
    if raw.version {
        return Err(ConfigError::Version);
    }
    if parsed.file.is_some() {
        // In a file, the default stays when only the other key is given.
        raw.advertise_client_urls.get_or_insert_with(|| DEFAULT_CLIENT_URL.to_owned());
    }
    let default_host = raw.advertise_default_host();
    let mut config = ServerConfig::try_from(raw).map_err(|error| match error {
        ConfigError::Url {
            flag,
            source: source @ (UrlError::Scheme(_) | UrlError::HostPort(_) | UrlError::Path(_)),
        } => parsed.wrong(flag, source.to_string()),
        error => error,
    })?;
    let mut all = notices(&parsed);
    all.extend(default_host.map(Notice::DefaultHost));
    all.append(&mut config.notices);
    config.notices = all;
    Ok(config)
}

impl TryFrom<RawServerConfig> for ServerConfig {
    type Error = ConfigError;

    fn try_from(raw: RawServerConfig) -> Result<Self, ConfigError> {
        check_timers(&raw)?;
        let rotation = raw.enable_log_rotation.then_some(raw.log_rotation_config_json.as_str());
        let log = server_log(raw.log.clone(), &ServerLogFlags { logger: &raw.logger, rotation })?;
        let local_time = log.rotation.is_some_and(|rotation| rotation.local_time);
        let value = |flag, reason: String| ConfigError::Value { flag, reason };
        if raw.name.is_empty() || raw.name.contains(['/', '=', ',']) {
            return Err(value("name", format!("{:?} is no name: it is empty or holds '/', '=' or ','", raw.name)));
        }
        if raw.listen_client_urls.is_some() && raw.advertise_client_urls.is_none() {
            return Err(ConfigError::AdvertiseMissing);
        }
        let peer_urls = urls("initial-advertise-peer-urls", &raw.initial_advertise_peer_urls, own_url)?;
        let list = raw.initial_cluster.as_deref();
        let discovery = raw.discovery.checked(list.is_some_and(|list| !list.is_empty()))?;
        let token = match &discovery {
            Some(InitialDiscovery::Registry(registry)) => registry.cluster_token(),
            Some(InitialDiscovery::Srv(_)) | None => raw.initial_cluster_token.as_str(),
        };
        let fallback = raw.discovery.fallback()?;
        if fallback == Fallback::Proxy && raw.auto_tls && raw.cert_file.is_empty() {
            let reason = "a proxy cannot verify certificates that members have made for themselves".to_owned();
            return Err(value("discovery-fallback, --auto-tls", reason));
        }
        let list = list.filter(|_| discovery.is_none());
        let initial = InitialCluster::parse(&raw.name, list, peer_urls, token, raw.initial_cluster_state)?;
        let listen_client_urls = raw.listen_client_urls.as_deref().unwrap_or(DEFAULT_CLIENT_URL);
        let advertise_client_urls = raw.advertise_client_urls.as_deref().unwrap_or(DEFAULT_CLIENT_URL);
        let (auth, cost_replaced) = AuthConfig::from_flags(&raw)?;
        let extensive_metrics = match raw.metrics.as_str() {
            "" | "basic" => false,
            "extensive" => true,
            other => return Err(value("metrics", format!("{other:?} is neither basic nor extensive"))),
        };
        if raw.feature_gates.persist_without_checkpoint {
            return Err(ConfigError::GateNeeded { gate: "LeaseCheckpointPersist", needed: "LeaseCheckpoint" });
        }
        let tracing = tracing(&raw)?;
        let auto_compaction = AutoCompaction::from_flags(&raw.auto_compaction_mode, &raw.auto_compaction_retention)
            .map_err(|reason| value("auto-compaction-mode, --auto-compaction-retention", reason))?;
        let listen_peer_urls = urls("listen-peer-urls", &raw.listen_peer_urls, bound_url)?;
        let listen_client_urls = urls("listen-client-urls", listen_client_urls, bound_url)?;
        let optional = |flag, list: &str| match list {
            "" => Ok(Vec::new()),
            list => urls(flag, list, bound_url),
        };
        let listen_client_http_urls: Vec<ListenUrl> =
            optional("listen-client-http-urls", &raw.listen_client_http_urls)?;
        let listen_metrics_urls = optional("listen-metrics-urls", &raw.listen_metrics_urls)?;
        let taken =
            |url: &&ListenUrl| listen_client_urls.iter().any(|other: &ListenUrl| other.address() == url.address());
        if let Some(url) = listen_client_http_urls.iter().find(taken) {
            let text = "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url";
            return Err(ConfigError::Other(format!("{text} {url}")));
        }
        let given = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        let data_dir = given(&raw.data_dir).unwrap_or_else(|| format!("{}.etcd", raw.name).into());
        let clients = [listen_client_urls.as_slice(), &listen_client_http_urls].concat();
        let listen = ListenUrls { clients: &clients, metrics: &listen_metrics_urls, peers: &listen_peer_urls };
        let (tls, tls_notices) = TlsConfig::from_flags(&raw, &listen, &data_dir)?;
        let set_address = raw.feature_gates.set_member_local_address;
        let peer_local_address = set_address.then(|| local_address(initial.own_urls())).flatten();
        let progress = raw.watch_progress_notify_interval.0;
        let short = (!progress.is_zero() && progress < PROGRESS_INTERVAL_MIN).then_some(progress);
        if raw.serving_threads > SERVING_THREADS_MAX {
            return Err(value("serving-threads", format!("must be {SERVING_THREADS_MAX} at most")));
        }
        if raw.compact_hash_check_time.0.is_zero() {
            return Err(value("compact-hash-check-time", "must be >0 (set to 0s)".to_owned()));
        }
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let max_request_bytes = usize::try_from(raw.max_request_bytes).unwrap_or(usize::MAX);
        if max_request_bytes > REQUEST_BYTES_MAX {
            let reason = format!("must be {REQUEST_BYTES_MAX} at most, which one message between members holds");
            return Err(value("max-request-bytes", reason));
        }
        let large = raw.max_request_bytes > 10 << 20;

        Ok(Self {
            // Names of other directories are made of it, so no slash may be at its end.
            wal_dir: given(&raw.wal_dir)
                .map_or_else(|| data_dir.join("member").join("wal"), |dir| dir.components().collect()),
            data_dir,
            name: raw.name,
            snapshot_count: or_default(raw.snapshot_count, SNAPSHOT_COUNT),
            snapshot_catchup_entries: or_default(raw.snapshot_catchup_entries, CATCH_UP_ENTRIES),
            heartbeat_interval: Duration::from_millis(raw.heartbeat_interval),
            election_timeout: Duration::from_millis(raw.election_timeout),
            listen_peer_urls,
            tls,
            feature_gates: raw.feature_gates,
            peer_local_address,
            listen_client_urls,
            listen_client_http_urls,
            listen_metrics_urls,
            initial,
            discovery,
            fallback,
            force_new_cluster: raw.force_new_cluster,
            integrity: IntegrityChecks {
                at_start: raw.feature_gates.initial_corrupt_check,
                state: Some(raw.corrupt_check_time.0).filter(|period| !period.is_zero()),
                compactions: raw.compact_hash_check_time.0,
            },
            advertise_client_urls: urls("advertise-client-urls", advertise_client_urls, own_url)?,
            quota: Quota::from_flag(raw.quota_backend_bytes),
            max_txn_ops: usize::try_from(raw.max_txn_ops).unwrap_or(usize::MAX),
            max_request_bytes,
            answer_memory_bytes: raw.answer_memory_bytes,
            max_concurrent_streams: or_default(raw.max_concurrent_streams, u32::MAX),
            keepalive_min_time: or_default(raw.grpc_keepalive_min_time.0, KEEPALIVE_MIN_TIME),
            keepalive_interval: raw.grpc_keepalive_interval.0,
            keepalive_timeout: raw.grpc_keepalive_timeout.0,
            strict_reconfig_check: raw.strict_reconfig_check,
            pre_vote: raw.pre_vote,
            max_learners: raw.max_learners,
            auto_compaction,
            auth,
            cors: names(&raw.cors),
            host_whitelist: names(&raw.host_whitelist),
            enable_grpc_gateway: raw.enable_grpc_gateway,
            socket_reuse_port: raw.socket_reuse_port,
            enable_pprof: raw.enable_pprof || log.level == LogLevel::Debug,
            extensive_metrics,
            warning_unary_request_duration: raw.warning_unary_request_duration.0,
            warning_apply_duration: raw.warning_apply_duration.0,
            tracing,
            log,
            bootstrap_defrag_threshold_bytes: Some(raw.bootstrap_defrag_threshold_megabytes)
                .filter(|megabytes| *megabytes > 0)
                .map(|megabytes| megabytes.saturating_mul(1 << 20)),
            compaction_batch_limit: or_default(raw.compaction_batch_limit, COMPACTION_BATCH),
            compaction_sleep_interval: or_default(raw.compaction_sleep_interval.0, COMPACTION_SLEEP),
            watch_progress_notify_interval: or_default(
                short.map_or(progress, |_| PROGRESS_INTERVAL_MIN),
                PROGRESS_INTERVAL,
            ),
            unsafe_no_fsync: raw.unsafe_no_fsync,
            serving_threads: or_default(raw.serving_threads, cores()),
            notices: [
                given(&raw.config_file).map(Notice::ConfigFile),
                large.then_some(Notice::LargeRequests(raw.max_request_bytes)),
                short.map(Notice::ShortProgressInterval),
                local_time.then_some(Notice::RotationInUtc),
                set_address.then_some(Notice::PeerLocalAddress(peer_local_address)),
                cost_replaced.then_some(Notice::BcryptCost(raw.bcrypt_cost)),
            ]
            .into_iter()
            .flatten()
            .chain(tls_notices)
            .collect(),
        })
    }
}

fn tracing(raw: &RawServerConfig) -> Result<Option<TracingConfig>, ConfigError> {
    if !raw.enable_distributed_tracing {
        return Ok(None);
    }
    let refused =
        |reason| Err(ConfigError::Other(format!("distributed tracing configurition is not valid: ({reason})")));
    let samples_per_million = match u32::try_from(raw.distributed_tracing_sampling_rate) {
        Ok(rate @ 0..=SAMPLES_MAX) => rate,
        _ if raw.distributed_tracing_sampling_rate < 0 => return refused("tracing sampling rate must be positive"),
        _ => return refused("tracing sampling rate must be less than 1000000"),
    };
    Ok(Some(TracingConfig {
        address: raw.distributed_tracing_address.clone(),
        service_name: raw.distributed_tracing_service_name.clone(),
        instance_id: raw.distributed_tracing_instance_id.clone(),
        samples_per_million,
    }))
}

fn check_timers(raw: &RawServerConfig) -> Result<(), ConfigError> {
    let (heartbeat, election) = (raw.heartbeat_interval, raw.election_timeout);
    if heartbeat == 0 {
        return Err(ConfigError::ZeroTimer("heartbeat-interval"));
    }
    if election == 0 {
        return Err(ConfigError::ZeroTimer("election-timeout"));
    }
    if heartbeat.saturating_mul(5) > election {
        return Err(ConfigError::TimerRatio { election, heartbeat });
    }
    if election > ELECTION_TIMEOUT_MAX_MS {
        return Err(ConfigError::ElectionTooLong(election));
    }
    Ok(())
}

fn urls<T>(flag: &'static str, list: &str, check: impl Fn(&str) -> Result<T, UrlError>) -> Result<Vec<T>, ConfigError> {
    each(list, check).map_err(|source| ConfigError::Url { flag, source })
}

/// The first host among the URLs that is an address others can reach.
fn local_address(urls: &[String]) -> Option<IpAddr> {
    let hosts = urls.iter().filter_map(|url| match split(url) {
        Ok((_, Place::Tcp(place))) => place.host().parse::<IpAddr>().ok(),
        _ => None,
    });
    hosts.into_iter().find(|address| !address.is_loopback() && !address.is_unspecified())
}

fn names(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// In several flags of etcd, zero stands for the default.
fn or_default<T: Default + PartialEq>(value: T, default: T) -> T {
    if value == T::default() { default } else { value }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::InitialState;
    use super::*;
    use crate::net::{AllowedNames, ClientAuth, IdentityFiles, SelfSigned, ServerAuth, ServerIdentity};

    fn parse(line: &str) -> Result<ServerConfig, String> {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        parse_server_config(&args, &Variables::none()).map_err(|error| error.to_string())
    }

    fn refusal(line: &str) -> String {
        parse(line).expect_err("these flags are wrong")
    }

    #[test]
    fn defaults_are_etcds() {
        let config = parse("").unwrap();
        assert_eq!(config.data_dir, PathBuf::from("default.etcd"));
        assert_eq!(config.wal_dir, PathBuf::from("default.etcd/member/wal"));
        assert_eq!(config.listen_client_urls[0].address().to_string(), "127.0.0.1:2379");
        assert_eq!(config.initial.own_urls(), ["http://localhost:2380"]);
        assert_eq!((config.snapshot_count, config.snapshot_catchup_entries), (10_000, 5000));
        assert_eq!((config.max_learners, config.strict_reconfig_check, config.pre_vote), (1, true, true));
        assert_eq!(config.quota, Quota::Bytes(2 << 30));
        assert_eq!((config.max_txn_ops, config.max_request_bytes), (128, 1_572_864));
        assert_eq!(config.watch_progress_notify_interval, Duration::from_secs(600));
        assert!(config.serving_threads >= 1 && config.notices.is_empty());
    }

    #[test]
    fn an_empty_path_is_as_if_it_was_not_given() {
        // Cause: it was refused, where scripts have `--wal-dir="$WAL_DIR"` and etcd takes it.
        let config = parse("--data-dir= --wal-dir= --config-file=").unwrap();
        assert_eq!(config.data_dir, PathBuf::from("default.etcd"));
        assert_eq!(config.wal_dir, PathBuf::from("default.etcd/member/wal"));
        assert!(config.notices.is_empty(), "{:?}", config.notices);
    }

    #[test]
    fn a_slash_at_the_end_of_a_directory_changes_nothing() {
        // Paths are equal with and without it.
        let wal_dir = |line: &str| parse(line).unwrap().wal_dir.into_os_string();
        assert_eq!(wal_dir("--wal-dir /x/wal/"), "/x/wal");
        assert_eq!(wal_dir("--wal-dir ./wal//"), "./wal");
        assert_eq!(wal_dir("--wal-dir /"), "/");
        assert_eq!(wal_dir("--data-dir x/"), "x/member/wal");
    }

    #[test]
    fn given_values_arrive() {
        let config = parse(
            "-name n1 --quota-backend-bytes -1 --listen-client-urls http://127.0.0.1:1,http://[::1]:2 \
             --advertise-client-urls http://a:1 --serving-threads 3 --max-wals=9 \
             --initial-cluster n1=http://localhost:2380,n2=http://b:1 --initial-cluster-state existing \
             --initial-cluster-token tkn --force-new-cluster --snapshot-count 0 --snapshot-catchup-entries 0 \
             --max-learners 3 --strict-reconfig-check=false --pre-vote=false",
        )
        .unwrap();
        assert_eq!(config.data_dir, PathBuf::from("n1.etcd"));
        assert_eq!(config.quota, Quota::Unlimited);
        assert_eq!(config.listen_client_urls.len(), 2);
        assert_eq!(config.serving_threads, 3);
        assert_eq!((config.initial.state, config.initial.token.as_str()), (InitialState::Existing, "tkn"));
        assert_eq!(config.initial.members().count(), 2);
        assert!(config.force_new_cluster && !config.strict_reconfig_check && !config.pre_vote);
        assert_eq!((config.max_learners, config.snapshot_count, config.snapshot_catchup_entries), (3, 10_000, 5000));
        assert_eq!(config.notices, [Notice::Ignored("max-wals")]);
    }

    #[test]
    fn members_may_dial_with_a_certificate_of_their_own() {
        let line =
            "--listen-peer-urls https://127.0.0.1:1 --peer-cert-file c --peer-key-file k --peer-trusted-ca-file a";
        let identity =
            |certificates: &str, key: &str| IdentityFiles { certificates: certificates.into(), key: key.into() };
        let peers = |line: &str| {
            let peers = parse(line).unwrap().tls.peers.expect("given");
            (peers.accepting.identity.clone(), peers.dialling.identity.clone().unwrap(), peers)
        };
        let (accepting, dialling, all) = peers(line);
        assert_eq!((accepting, dialling), (ServerIdentity::Files(identity("c", "k")), identity("c", "k")));
        assert_eq!(all.accepting.clients, ClientAuth::File("a".into()));
        assert_eq!(all.dialling.servers, ServerAuth::File("a".into()));
        assert!(all.accepting.checks_addresses);
        let (accepting, dialling, _) = peers(&format!("{line} --peer-client-cert-file d --peer-client-key-file l"));
        assert_eq!((accepting, dialling), (ServerIdentity::Files(identity("c", "k")), identity("d", "l")));
        let (.., all) =
            peers("--peer-cert-file c --peer-key-file k --peer-client-cert-auth --peer-cert-allowed-cn=x,y");
        assert_eq!((all.accepting.clients, all.dialling.servers), (ClientAuth::System, ServerAuth::System));
        assert_eq!(all.dialling.allowed, AllowedNames::CommonNames(vec!["x".into(), "y".into()]));
        assert_eq!(all.accepting.allowed, all.dialling.allowed);
    }

    #[test]
    fn tls_for_clients_is_what_the_flags_say() {
        let certificate = "--cert-file c --key-file k --client-crl-file r --client-cert-allowed-hostname a,b";
        let urls = "--listen-client-urls https://127.0.0.1:1,http://127.0.0.1:1 --advertise-client-urls https://a:1";
        let config = parse(&format!("{certificate} {urls} --trusted-ca-file t --auto-tls")).unwrap();
        let clients = config.tls.clients.expect("given");
        assert_eq!(clients.clients, ClientAuth::File("t".into()));
        assert_eq!(clients.allowed, AllowedNames::HostNames(vec!["a".into(), "b".into()]));
        assert_eq!((clients.revocations, clients.checks_addresses), (Some("r".into()), false));
        assert!(!config.tls.client_cert_auth && config.tls.peers.is_none());
        let plain = "scheme is http or unix while key and cert files are present; ignoring key and cert files";
        let notices = [
            Notice::Warning("ignoring client auto TLS since certs given"),
            Notice::PlainUrl { text: plain, url: "http://127.0.0.1:1".into() },
        ];
        assert_eq!(config.notices, notices);
        let made = parse("--auto-tls --peer-auto-tls --name n --self-signed-cert-validity 3").unwrap().tls;
        let SelfSigned { dir, hosts, years } = match made.clients.unwrap().identity {
            ServerIdentity::SelfSigned(made) => made,
            ServerIdentity::Files(files) => panic!("{files:?}"),
        };
        assert_eq!((dir, hosts, years), ("n.etcd/fixtures/client".into(), vec!["localhost".to_owned()], 3));
        assert_eq!(made.peers.unwrap().dialling.servers, ServerAuth::Skip);
    }

    #[test]
    fn a_limit_of_no_streams_is_none() {
        // Cause: clients were told that they may open no stream, and their calls waited for ever.
        let limit = |line: &str| parse(line).unwrap().max_concurrent_streams;
        assert_eq!((limit("--max-concurrent-streams 0"), limit("--max-concurrent-streams 7")), (u32::MAX, 7));
    }

    #[test]
    fn a_short_progress_interval_is_raised_as_in_etcd() {
        let config = parse("--watch-progress-notify-interval 10ms").unwrap();
        assert_eq!(config.watch_progress_notify_interval, Duration::from_millis(100));
        assert_eq!(config.notices, [Notice::ShortProgressInterval(Duration::from_millis(10))]);
    }

    #[test]
    fn refusals_are_etcds() {
        let cases = [
            ("extra", "\"extra\" is not a valid flag"),
            (
                "--listen-client-urls http://127.0.0.1:1",
                "--advertise-client-urls is required when --listen-client-urls is set explicitly",
            ),
            ("--heartbeat-interval 0", "--heartbeat-interval must be >0 (set to 0ms)"),
            (
                "--election-timeout 100",
                "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]",
            ),
            (
                "--election-timeout 100000",
                "--election-timeout[100000ms] is too long, and should be set less than 50000ms",
            ),
            (
                "--listen-peer-urls http://example.com:1",
                "--listen-peer-urls: expected IP in URL for binding (http://example.com:1)",
            ),
            // Cause: a URL without a host was taken, for all addresses of IPv4. etcd refuses it.
            ("--listen-peer-urls http://:2380", "--listen-peer-urls: expected IP in URL for binding (http://:2380)"),
            (
                "--listen-metrics-urls http://127.0.0.1:1,http://:2381",
                "--listen-metrics-urls: expected IP in URL for binding (http://:2381)",
            ),
            // Cause: such a URL was published, and no client or member could dial it.
            (
                "--initial-advertise-peer-urls http://:2380",
                "--initial-advertise-peer-urls: unexpected empty host (http://:2380)",
            ),
            (
                "--listen-client-urls http://127.0.0.1:1 --advertise-client-urls https://a:1,https://:1",
                "--advertise-client-urls: unexpected empty host (https://:1)",
            ),
            (
                "--peer-cert-file=x",
                "--peer-cert-file, --peer-key-file: KeyFile and CertFile must both be present[key: , cert: x]",
            ),
            (
                "--listen-peer-urls https://127.0.0.1:1",
                "--listen-peer-urls, --peer-cert-file, --peer-key-file: cannot listen on TLS for https://127.0.0.1:1: \
                 KeyFile and CertFile are not presented",
            ),
            (
                "--cert-file x --key-file y --client-cert-allowed-cn a --client-cert-allowed-hostname b",
                "--client-cert-allowed-cn, --client-cert-allowed-hostname: AllowedCNs and AllowedHostnames are mutually \
                 exclusive (cns=[\"a\"], hostnames=[\"b\"])",
            ),
            (
                "--peer-cert-file x --peer-key-file y --peer-cert-allowed-cn a --peer-cert-allowed-hostname b",
                "--peer-cert-allowed-cn, --peer-cert-allowed-hostname: AllowedCNs and AllowedHostnames are mutually \
                 exclusive (cns=[\"a\"], hostnames=[\"b\"])",
            ),
            (
                "--listen-client-urls https://127.0.0.1:1 --advertise-client-urls https://a:1",
                "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS \
                 scheme",
            ),
            (
                "--listen-client-urls http://127.0.0.1:1 --advertise-client-urls http://a:1 \
                 --listen-client-http-urls http://127.0.0.1:1",
                "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url http://127.0.0.1:1",
            ),
            (
                "--listen-client-http-urls https://127.0.0.1:1",
                "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS \
                 scheme",
            ),
            (
                "--listen-metrics-urls https://127.0.0.1:1",
                "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
            ),
            (
                "--cipher-suites TLS_RSA_WITH_RC4_128_SHA",
                "--tls-min-version, --tls-max-version, --cipher-suites: TLS cipher suite \
                 \"TLS_RSA_WITH_RC4_128_SHA\" is insecure",
            ),
            (
                "--tls-min-version TLS1.0",
                "--tls-min-version, --tls-max-version, --cipher-suites: unexpected TLS version \"TLS1.0\" (must be one \
                 of: TLS1.2, TLS1.3)",
            ),
            (
                "--auto-tls --self-signed-cert-validity 0",
                "--self-signed-cert-validity: selfSignedCertValidity is invalid,it should be greater than 0",
            ),
            ("--config-file /no/such/file", "/no/such/file: No such file or directory (os error 2)"),
            (
                "--enable-distributed-tracing --distributed-tracing-sampling-rate -1",
                "distributed tracing configurition is not valid: (tracing sampling rate must be positive)",
            ),
            (
                "--enable-distributed-tracing --distributed-tracing-sampling-rate 1000001",
                "distributed tracing configurition is not valid: (tracing sampling rate must be less than 1000000)",
            ),
            (
                "--v2-deprecation not-yet",
                "invalid value \"not-yet\" for flag -v2-deprecation: invalid value \"not-yet\"",
            ),
            ("--logger capnslog", "--logger=capnslog is removed in v3.5"),
            ("--log-outputs default,stderr", "multi logoutput for \"default\" is not supported yet"),
            (
                "--enable-log-rotation",
                "--log-outputs requires a single file path when --log-rotate-config-json is defined",
            ),
            (
                "--enable-log-rotation --log-outputs a.log --log-rotation-config-json {",
                "improperly formatted log rotation config: EOF while parsing an object at \
                 line 1 column 1",
            ),
            (
                "--log-format odd",
                "invalid value \"odd\" for flag -log-format: unknown log format: odd, supported values json, console",
            ),
            ("--enable-v2", "flag provided but not defined: -enable-v2"),
            (
                "--max-request-bytes 67104769",
                "--max-request-bytes: must be 67104768 at most, which one message between members holds",
            ),
            ("--initial-cluster-state odd", "invalid value \"odd\" for flag -initial-cluster-state: invalid value"),
            (
                "--feature-gates LeaseCheckpointPersist=true",
                "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
            ),
            (
                "--feature-gates Odd=true",
                "invalid value \"Odd=true\" for flag -feature-gates: unrecognized feature gate: Odd",
            ),
            (
                "--listen-client-urls foo --advertise-client-urls http://a:1",
                "invalid value \"foo\" for flag -listen-client-urls: URL scheme must be http, https, unix, or unixs: foo",
            ),
        ];
        for (line, text) in cases {
            assert_eq!(refusal(line), text, "{line}");
        }
    }

    #[test]
    fn the_address_of_a_member_is_its_first_that_others_can_reach() {
        let address = |urls: &[&str]| {
            let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
            local_address(&urls).map(|address| address.to_string())
        };
        assert_eq!(
            address(&["http://127.0.0.1:1", "http://a:1", "http://10.0.0.2:1", "http://10.0.0.3:1"]).as_deref(),
            Some("10.0.0.2")
        );
        assert_eq!(address(&["http://[::1]:1", "https://[fd00::7]:1"]).as_deref(), Some("fd00::7"));
        assert_eq!(address(&["http://0.0.0.0:1", "unix://a:1"]), None);
    }

    #[test]
    fn a_default_value_of_a_missing_feature_is_fine() {
        assert!(parse("--cert-file= --auto-tls=false --tls-min-version TLS1.2 --client-cert-auth=f").is_ok());
        assert!(parse("--max-request-bytes 67104768").is_ok());
        assert!(parse("--enable-grpc-gateway --enable-pprof=false --discovery-fallback exit").is_ok());
    }

    #[test]
    fn the_last_of_repeated_lists_counts_as_in_etcd() {
        // Cause: the lists of all of them went together, which those of etcd's gateway and proxy alone do.
        let outputs = |line: &str| parse(line).unwrap().log.outputs;
        assert_eq!(outputs("--log-outputs=stderr,/a --log-outputs=stdout"), outputs("--log-outputs=stdout"));
        assert_eq!(outputs("--log-outputs=stdout,/a").len(), 2);
    }

    #[test]
    fn an_empty_value_is_the_default_where_it_is_in_etcd() {
        let config = parse("--metrics= --auto-compaction-retention= --log-level= --log-format=").unwrap();
        assert_eq!((config.extensive_metrics, config.auto_compaction), (false, AutoCompaction::Off));
        assert_eq!(config.log.level, LogLevel::Info);
        assert_eq!(parse("--log-level=WARN").unwrap().log.level, LogLevel::Warn, "in any case");
    }
}
