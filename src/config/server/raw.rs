use std::path::PathBuf;
use std::str::FromStr;

use clap::ArgAction::Set;
use clap::Parser;

use super::super::golang::GoDuration;
use super::super::log::RawLogConfig;
use super::cluster::InitialState;
use super::discovery::RawDiscovery;
use super::values::FeatureGates;

/// Where a member listens for peers and clients, and what it advertises, unless told.
pub(super) const DEFAULT_PEER_URL: &str = "http://localhost:2380";
pub(super) const DEFAULT_CLIENT_URL: &str = "http://localhost:2379";
const LOG_ROTATION: &str = r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#;

/// The server's flags as they are given; [`ServerConfig`](super::ServerConfig) is what rooms get.
///
/// An `Option` here means that the default depends on other flags. An empty path is as if it was not given: clap's own parser of
/// paths refuses it.
#[derive(Clone, Debug, Parser)]
#[command(name = "watershed", about = "Runs a server with etcd's flags; every --flag has a variable ETCD_FLAG")]
#[command(override_usage = "watershed [flags]", next_help_heading = "Member")]
pub struct RawServerConfig {
    /// YAML or JSON file with these flags as keys; every other flag and variable is ignored then. Durations in it are
    /// whole numbers of nanoseconds.
    #[arg(long, value_name = "FILE", value_parser = PathBuf::from_str, help_heading = "Configuration file")]
    pub config_file: Option<PathBuf>,
    /// Print the version and exit.
    #[arg(long, default_value_t = false, action = Set, help_heading = "Configuration file")]
    pub version: bool,
    /// Name of this member.
    #[arg(long, default_value = "default")]
    pub name: String,
    /// Folder of all data; NAME.etcd if not given.
    #[arg(long, value_parser = PathBuf::from_str)]
    pub data_dir: Option<PathBuf>,
    /// Folder of the log, if it has a disk of its own.
    #[arg(long, value_parser = PathBuf::from_str)]
    pub wal_dir: Option<PathBuf>,
    /// Entries after which the log is compacted up to what the backend has; 0 is 10000.
    #[arg(long, default_value_t = 10_000)]
    pub snapshot_count: u64,
    /// Entries kept in memory behind that for slow followers; 0 is 5000.
    #[arg(long, default_value_t = 5000)]
    pub snapshot_catchup_entries: u64,
    /// Milliseconds between two heartbeats of a leader.
    #[arg(long, default_value_t = 100)]
    pub heartbeat_interval: u64,
    /// Milliseconds without a heartbeat until a follower stands for election.
    #[arg(long, default_value_t = 1000)]
    pub election_timeout: u64,
    /// Where other members connect.
    #[arg(long, default_value = DEFAULT_PEER_URL, value_name = "URLS")]
    pub listen_peer_urls: String,
    /// Where clients connect.
    #[arg(long, value_name = "URLS", help = "Where clients connect [default: http://localhost:2379]")]
    pub listen_client_urls: Option<String>,
    /// Where clients connect for all but gRPC; --listen-client-urls then has gRPC only.
    #[arg(long, default_value = "", value_name = "URLS")]
    pub listen_client_http_urls: String,
    /// Let another process listen on the same ports (SO_REUSEPORT).
    #[arg(long, default_value_t = false, action = Set)]
    pub socket_reuse_port: bool,
    /// Size of the state at which writes are refused; 0 is 2 GiB, a negative value no limit.
    #[arg(long, default_value_t = 0)]
    pub quota_backend_bytes: i64,
    /// Operations one transaction may hold.
    #[arg(long, default_value_t = 128)]
    pub max_txn_ops: u64,
    /// Size one request may have, 67104768 at most.
    #[arg(long, default_value_t = 1_572_864)]
    pub max_request_bytes: u64,
    /// Memory that long answers in flight may take, over all clients; a request without room waits and is refused then.
    #[arg(long, default_value_t = 536_870_912)]
    pub answer_memory_bytes: u64,
    /// Streams one client connection may have open; 0 is no limit.
    #[arg(long, default_value_t = u32::MAX)]
    pub max_concurrent_streams: u32,
    /// Least time between two pings of a client, which is disconnected if it pings more often; 0 is 5m.
    #[arg(long, default_value = "5s")]
    pub grpc_keepalive_min_time: GoDuration,
    /// Pause after which an idle client connection is pinged; 0 is never.
    #[arg(long, default_value = "2h")]
    pub grpc_keepalive_interval: GoDuration,
    /// Wait for the answer to a ping before the connection is closed; 0 is for ever.
    #[arg(long, default_value = "20s")]
    pub grpc_keepalive_timeout: GoDuration,
    /// Features by name, as in A=true,B=false.
    #[arg(long, default_value = "", value_parser = FeatureGates::from_str)]
    pub feature_gates: FeatureGates,
    /// Threads that serve clients; 0 is one per core. Not a flag of etcd.
    #[arg(long, default_value_t = 0)]
    pub serving_threads: usize,

    /// Peer URLs of this member as the others dial them.
    #[arg(long, default_value = DEFAULT_PEER_URL, value_name = "URLS", help_heading = "Clustering")]
    pub initial_advertise_peer_urls: String,
    /// Members at the first start, as in a=http://…,b=http://…; NAME=URL for each own peer URL if not given.
    #[arg(long, help_heading = "Clustering")]
    pub initial_cluster: Option<String>,
    /// new or existing; only looked at when there is no data yet.
    #[arg(long, default_value = "new", value_parser = InitialState::from_str, help_heading = "Clustering")]
    pub initial_cluster_state: InitialState,
    /// Keeps clusters with equal URLs apart; part of the ids.
    #[arg(long, default_value = "etcd-cluster", help_heading = "Clustering")]
    pub initial_cluster_token: String,
    /// What stands in place of the list.
    #[command(flatten)]
    pub discovery: RawDiscovery,
    /// Client URLs of this member as clients dial them; needed once --listen-client-urls is given.
    #[arg(long, value_name = "URLS", help_heading = "Clustering")]
    pub advertise_client_urls: Option<String>,
    /// Refuse membership changes that would lose the quorum.
    #[arg(long, default_value_t = true, action = Set, help_heading = "Clustering")]
    pub strict_reconfig_check: bool,
    /// Ask before an election whether it could be won.
    #[arg(long, default_value_t = true, action = Set, help_heading = "Clustering")]
    pub pre_vote: bool,
    /// Learners the cluster may have.
    #[arg(long, default_value_t = 1, help_heading = "Clustering")]
    pub max_learners: usize,
    /// periodic or revision.
    #[arg(long, default_value = "periodic", help_heading = "Clustering")]
    pub auto_compaction_mode: String,
    /// Hours or a duration (periodic), a count (revision); 0 is off.
    #[arg(long, default_value = "0", help_heading = "Clustering")]
    pub auto_compaction_retention: String,

    /// Origins whose scripts may call, as a comma list.
    #[arg(long, default_value = "*", help_heading = "Security")]
    pub cors: String,
    /// Names a Host header may have on plain ports, as a comma list.
    #[arg(long, default_value = "*", help_heading = "Security")]
    pub host_whitelist: String,

    /// Certificate for clients with https, in PEM form.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Security")]
    pub cert_file: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Security")]
    pub key_file: String,
    /// Authorities whose certificates clients have to show.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Security")]
    pub trusted_ca_file: String,
    /// Clients have to show a certificate, whose common name is their user unless they log in.
    #[arg(long, default_value_t = false, action = Set, help_heading = "Security")]
    pub client_cert_auth: bool,
    /// Certificates of clients that are revoked.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Security")]
    pub client_crl_file: String,
    /// Common names of which a client's certificate must have one, as a comma list; in etcd a key of the file only.
    #[arg(long, default_value = "", value_name = "NAMES", help_heading = "Security")]
    pub client_cert_allowed_cn: String,
    /// Names of which a client's certificate must have one, as a comma list.
    #[arg(long, default_value = "", value_name = "NAMES", help_heading = "Security")]
    pub client_cert_allowed_hostname: String,
    /// A certificate for connections of this member to itself; there are none, it is only checked.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Security")]
    pub client_cert_file: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Security")]
    pub client_key_file: String,
    /// Make a certificate for clients, in the data folder.
    #[arg(long, default_value_t = false, action = Set, help_heading = "Security")]
    pub auto_tls: bool,
    /// Certificate for other members, in PEM form.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Security")]
    pub peer_cert_file: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Security")]
    pub peer_key_file: String,
    /// Certificate shown when this member dials, if it is another one.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Security")]
    pub peer_client_cert_file: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Security")]
    pub peer_client_key_file: String,
    /// Authorities whose certificates members have.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Security")]
    pub peer_trusted_ca_file: String,
    /// Members that connect have to show a certificate; always so with --peer-trusted-ca-file.
    #[arg(long, default_value_t = false, action = Set, help_heading = "Security")]
    pub peer_client_cert_auth: bool,
    /// Certificates of members that are revoked.
    #[arg(long, default_value = "", value_name = "FILE", help_heading = "Security")]
    pub peer_crl_file: String,
    /// Common names that members may have, as a comma list.
    #[arg(long, default_value = "", value_name = "NAMES", help_heading = "Security")]
    pub peer_cert_allowed_cn: String,
    /// Names of which a member's certificate must have one, as a comma list.
    #[arg(long, default_value = "", value_name = "NAMES", help_heading = "Security")]
    pub peer_cert_allowed_hostname: String,
    /// Take certificates of members whatever address they come from.
    #[arg(long, default_value_t = false, action = Set, help_heading = "Security")]
    pub peer_skip_client_san_verification: bool,
    /// Make a certificate for other members, in the data folder.
    #[arg(long, default_value_t = false, action = Set, help_heading = "Security")]
    pub peer_auto_tls: bool,
    /// Years for which certificates that are made here are valid.
    #[arg(long, default_value_t = 1, value_name = "YEARS", help_heading = "Security")]
    pub self_signed_cert_validity: u32,
    /// Cipher suites of TLS 1.2 by Go's names, as a comma list; all safe ones if not given.
    #[arg(long, default_value = "", value_name = "SUITES", help_heading = "Security")]
    pub cipher_suites: String,
    /// Lowest version of TLS: TLS1.2 or TLS1.3.
    #[arg(long, default_value = "TLS1.2", value_name = "VERSION", help_heading = "Security")]
    pub tls_min_version: String,
    /// Highest version of TLS.
    #[arg(long, default_value = "", value_name = "VERSION", help_heading = "Security")]
    pub tls_max_version: String,
    /// Serve the API as JSON over HTTP, under /v3/.
    #[arg(long, default_value_t = true, action = Set, help_heading = "Clustering")]
    pub enable_grpc_gateway: bool,

    /// Serve profiles under /debug/pprof/ where clients connect; --log-level=debug does so, too.
    #[arg(long, default_value_t = false, action = Set, help_heading = "Monitoring")]
    pub enable_pprof: bool,

    /// simple, or jwt with options: jwt,pub-key=FILE,priv-key=FILE,sign-method=METHOD,ttl=DURATION.
    #[arg(long, default_value = "simple", help_heading = "Auth")]
    pub auth_token: String,
    /// Seconds that a simple token is valid after its last use; 0 is 300.
    #[arg(long, default_value_t = 300, value_name = "SECONDS", help_heading = "Auth")]
    pub auth_token_ttl: u32,
    /// Cost of hashing a password with bcrypt, 4 to 31.
    #[arg(long, default_value_t = 10, help_heading = "Auth")]
    pub bcrypt_cost: u64,

    /// Pause between two comparisons of the members' states by the leader; 0 is never. Off in etcd.
    #[arg(long, default_value = "12m", help_heading = "Monitoring")]
    pub corrupt_check_time: GoDuration,
    /// Pause between two comparisons of what compactions left behind.
    #[arg(long, default_value = "1m", help_heading = "Monitoring")]
    pub compact_hash_check_time: GoDuration,
    /// basic or extensive: with or without latency histograms per gRPC method.
    #[arg(long, default_value = "basic", help_heading = "Monitoring")]
    pub metrics: String,
    /// More addresses for /metrics and /health.
    #[arg(long, default_value = "", value_name = "URLS", help_heading = "Monitoring")]
    pub listen_metrics_urls: String,
    /// Requests slower than this are logged.
    #[arg(long, default_value = "300ms", help_heading = "Monitoring")]
    pub warning_unary_request_duration: GoDuration,
    /// Entries that take longer to apply are logged.
    #[arg(long, default_value = "100ms", help_heading = "Monitoring")]
    pub warning_apply_duration: GoDuration,

    /// Send spans of requests to an OpenTelemetry collector.
    #[arg(long, default_value_t = false, action = Set, help_heading = "Distributed tracing")]
    pub enable_distributed_tracing: bool,
    /// Its address, for OTLP over gRPC.
    #[arg(long, default_value = "localhost:4317", value_name = "HOST:PORT", help_heading = "Distributed tracing")]
    pub distributed_tracing_address: String,
    /// Name of the service in the spans, the same for all members.
    #[arg(long, default_value = "etcd", help_heading = "Distributed tracing")]
    pub distributed_tracing_service_name: String,
    /// Instance in the spans, different for each member.
    #[arg(long, default_value = "", help_heading = "Distributed tracing")]
    pub distributed_tracing_instance_id: String,
    /// Spans to send of a million requests whose client does not decide it.
    #[arg(long, default_value_t = 0, help_heading = "Distributed tracing")]
    pub distributed_tracing_sampling_rate: i64,

    /// Logging.
    #[command(flatten)]
    pub log: RawLogConfig,
    /// zap, the only one there is.
    #[arg(long, default_value = "zap", help_heading = "Logging")]
    pub logger: String,
    /// Replace the one file of --log-outputs when it is full.
    #[arg(long, default_value_t = false, action = Set, help_heading = "Logging")]
    pub enable_log_rotation: bool,
    /// Its bounds: megabytes, days and count of older files (0 is no bound), and whether they are compressed.
    #[arg(long, default_value = LOG_ROTATION, value_name = "JSON", help_heading = "Logging")]
    pub log_rotation_config_json: String,

    /// Defragment the state at the start if that frees at least so many megabytes; 0 is never.
    #[arg(long, default_value_t = 0, value_name = "MEGABYTES", help_heading = "Tuning")]
    pub bootstrap_defrag_threshold_megabytes: u64,
    /// Records a compaction removes in one slice; 0 is 1000.
    #[arg(long, default_value_t = 0, help_heading = "Tuning")]
    pub compaction_batch_limit: usize,
    /// Pause between two slices of a compaction; 0 is 10ms.
    #[arg(long, default_value = "0s", help_heading = "Tuning")]
    pub compaction_sleep_interval: GoDuration,
    /// Pause between two progress notifications of an idle watch; 0 is 10m.
    #[arg(long, default_value = "0s", help_heading = "Tuning")]
    pub watch_progress_notify_interval: GoDuration,
    /// Unsafe: drop uncommitted entries and all other members, and start a one-member cluster with this data.
    #[arg(long, default_value_t = false, action = Set, help_heading = "Unsafe")]
    pub force_new_cluster: bool,
    /// Unsafe: acknowledge before the disk has it; a power loss or a crash of the system can lose everything.
    #[arg(long, default_value_t = false, action = Set, help_heading = "Unsafe")]
    pub unsafe_no_fsync: bool,
}
