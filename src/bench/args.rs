use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::server::ServerPid;
use crate::client::Endpoint;
use crate::config::{GoDuration, SrvConfig};
use crate::net::{ClientTls, ClientTlsConfig};

/// Commands that do without a cluster are parsed by `tcp.rs`.
const AFTER_HELP: &str = "\
tcp-pingpong, tcp-bulk, tcp-connect and tcp-idle measure what a TCP forwarder costs, without a cluster;
their flags: watershed bench tcp-pingpong --help";

/// Puts load on an etcd v3 cluster and measures throughput, latency and cost.
#[derive(Clone, Debug, Parser)]
#[command(name = "watershed bench", disable_help_subcommand = true)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Bench {
    #[command(subcommand)]
    pub(super) action: Action,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one for each process")]
pub(super) enum Action {
    #[command(flatten)]
    Load(Load),
    /// Runs one load against two endpoints in turns and compares the medians
    Compare(CompareArgs),
    /// Measures every figure that has a floor beside another etcd, each with processes of its own
    Suite(SuiteArgs),
    /// Computes what levels of proxies in front of a cluster cost, from measured costs of one operation
    Fleet(FleetArgs),
}

/// One kind of load.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum Load {
    /// Writes keys
    Put(PutArgs),
    /// Reads one key or a range, again and again
    Range(RangeArgs),
    /// Writes keys inside transactions
    TxnPut(TxnPutArgs),
    /// Many watchers on few keys: events per second, and whether each watcher saw each event once and in order
    Watch(WatchArgs),
    /// Time from a put to its event at each watcher
    WatchLatency(WatchArgs),
    /// Renews leases over streams
    LeaseKeepalive(KeepAliveArgs),
    /// Writes and single-key reads side by side
    Mixed(MixedArgs),
}

impl Load {
    /// Its name on the command line.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Put(_) => "put",
            Self::Range(_) => "range",
            Self::TxnPut(_) => "txn-put",
            Self::Watch(_) => "watch",
            Self::WatchLatency(_) => "watch-latency",
            Self::LeaseKeepalive(_) => "lease-keepalive",
            Self::Mixed(_) => "mixed",
        }
    }

    pub(super) fn common(&self) -> &Common {
        match self {
            Self::Put(args) => &args.common,
            Self::Range(args) => &args.common,
            Self::TxnPut(args) => &args.common,
            Self::Watch(args) | Self::WatchLatency(args) => &args.common,
            Self::LeaseKeepalive(args) => &args.common,
            Self::Mixed(args) => &args.common,
        }
    }

    pub(super) fn common_mut(&mut self) -> &mut Common {
        match self {
            Self::Put(args) => &mut args.common,
            Self::Range(args) => &mut args.common,
            Self::TxnPut(args) => &mut args.common,
            Self::Watch(args) | Self::WatchLatency(args) => &mut args.common,
            Self::LeaseKeepalive(args) => &mut args.common,
            Self::Mixed(args) => &mut args.common,
        }
    }
}

/// What every load understands.
#[derive(Clone, Debug, Args)]
pub(super) struct Common {
    /// Members to load; connections take turns
    #[arg(long, value_delimiter = ',', value_parser = Endpoint::of_client, default_value = "127.0.0.1:2379")]
    pub(super) endpoints: Vec<Endpoint>,
    /// Domain whose SRV records name the members to load, in place of --endpoints; those without TLS are taken too
    #[arg(long, default_value = "", value_name = "DOMAIN")]
    pub(super) discovery_srv: String,
    /// Suffix of the service in the names of those records
    #[arg(long, default_value = "", value_name = "NAME")]
    pub(super) discovery_srv_name: String,
    /// DNS server to ask, as ADDRESS or ADDRESS:PORT
    #[arg(long, default_value = "", value_name = "ADDRESS")]
    pub(super) discovery_dns: String,
    /// Connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) conns: u32,
    /// Concurrent callers, spread over the connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) clients: u32,
    /// Threads of the generator
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(super) threads: u32,
    /// Requests in the run
    #[arg(long, default_value_t = 10_000)]
    pub(super) total: u64,
    /// Run for this long instead of a number of requests; with --rate, send what is due in this time
    #[arg(long, value_name = "DURATION")]
    pub(super) duration: Option<GoDuration>,
    /// Requests per second at which to send, answered or not; 0 sends as fast as answers come
    #[arg(long, default_value_t = 0.0, value_parser = rate)]
    pub(super) rate: f64,
    /// How long a request may take, at a rate from the time at which it was due
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub(super) request_timeout: GoDuration,
    /// How long a connection attempt may take
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub(super) dial_timeout: GoDuration,
    /// Connect to the leader alone
    #[arg(long)]
    pub(super) target_leader: bool,
    /// NAME:PASSWORD to log in with
    #[arg(long, value_name = "USER", value_parser = user)]
    pub(super) user: Option<(String, String)>,
    /// Authorities whose certificates members have
    #[arg(long, default_value = "", value_name = "FILE")]
    pub(super) cacert: String,
    /// Certificate to show to members
    #[arg(long, default_value = "", value_name = "FILE")]
    pub(super) cert: String,
    /// Its key
    #[arg(id = "tls_key", long = "key", default_value = "", value_name = "FILE")]
    pub(super) tls_key: String,
    /// Take any certificate of members
    #[arg(long)]
    pub(super) insecure_skip_tls_verify: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(super) json: bool,
    /// Report CPU and memory of this process, as PID or NAME=PID; may be repeated
    #[arg(long, value_name = "[NAME=]PID")]
    pub(super) server_pid: Vec<ServerPid>,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if f64::is_finite(rate) && rate >= 0.0 => Ok(rate),
        _ => Err("must be a number of requests per second, 0 for no limit".into()),
    }
}

fn user(text: &str) -> Result<(String, String), String> {
    let (name, password) = text.split_once(':').ok_or("must be NAME:PASSWORD")?;
    Ok((name.to_owned(), password.to_owned()))
}

impl Common {
    pub(super) fn rate(&self) -> Option<f64> {
        (self.rate > 0.0).then_some(self.rate)
    }

    /// The SRV records that name the members, if any do.
    pub(super) fn srv(&self) -> Result<Option<SrvConfig>, String> {
        SrvConfig::from_flags(&self.discovery_srv, &self.discovery_srv_name, true, &self.discovery_dns)
            .map_err(|(flag, reason)| format!("--{flag}: {reason}"))
    }

    /// TLS with members, by the rules of `ctl`.
    pub(super) fn tls(&self) -> Result<Option<ClientTls>, String> {
        let skip = self.insecure_skip_tls_verify;
        let config = ClientTlsConfig::from_flags(&self.cacert, &self.cert, &self.tls_key, skip)?;
        config.as_ref().map(ClientTls::new).transpose().map_err(|error| error.to_string())
    }

    pub(super) fn limit(&self) -> Option<Duration> {
        self.duration.map(|duration| duration.0)
    }
}

/// `l` or `s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consistency {
    Linearizable,
    Serializable,
}

impl FromStr for Consistency {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "l" => Ok(Self::Linearizable),
            "s" => Ok(Self::Serializable),
            _ => Err("must be l (linearizable) or s (serializable)"),
        }
    }
}

/// Which keys are written, and with what.
#[derive(Clone, Debug, Args)]
pub(super) struct KeyArgs {
    /// Bytes of a key
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) key_size: u32,
    /// Bytes of a value
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=100_000_000))]
    pub(super) val_size: u32,
    /// Different keys
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) key_space_size: u64,
    /// Take the keys in turns instead of at random
    #[arg(long)]
    pub(super) sequential_keys: bool,
}

/// Flags of `put`.
#[derive(Clone, Debug, Args)]
pub(super) struct PutArgs {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(flatten)]
    pub(super) keys: KeyArgs,
}

/// Flags of `range`.
#[derive(Clone, Debug, Args)]
pub(super) struct RangeArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// First key
    pub(super) key: String,
    /// First key not to read
    pub(super) end_range: Option<String>,
    /// l asks the leader, s reads what the member has
    #[arg(long, default_value = "l")]
    pub(super) consistency: Consistency,
    /// Read all keys that start with the key
    #[arg(long, conflicts_with = "end_range")]
    pub(super) prefix: bool,
    /// Pairs to return at most; 0 is no limit
    #[arg(long, default_value_t = 0)]
    pub(super) limit: i64,
    /// Leave the values out
    #[arg(long)]
    pub(super) keys_only: bool,
    /// Only count
    #[arg(long)]
    pub(super) count_only: bool,
}

/// Flags of `txn-put`.
#[derive(Clone, Debug, Args)]
pub(super) struct TxnPutArgs {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(flatten)]
    pub(super) keys: KeyArgs,
    /// Puts in each transaction
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) txn_ops: u32,
}

/// Flags of `mixed`.
#[derive(Clone, Debug, Args)]
pub(super) struct MixedArgs {
    #[command(flatten)]
    pub(super) common: Common,
    #[command(flatten)]
    pub(super) keys: KeyArgs,
    /// Reads for each write
    #[arg(long, default_value_t = 1.0, value_parser = rate)]
    pub(super) rw_ratio: f64,
    /// l asks the leader, s reads what the member has
    #[arg(long, default_value = "l")]
    pub(super) consistency: Consistency,
}

/// Flags of `watch` and `watch-latency`. What is left out depends on which of them runs.
#[derive(Clone, Debug, Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// Watch streams, spread over the connections
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) streams: u32,
    /// Watchers on each stream [default: 1, watch-latency 10]
    #[arg(long, alias = "watch-per-stream", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) watchers_per_stream: Option<u32>,
    /// What the watched keys start with
    #[arg(long, default_value = "watershed-bench/")]
    pub(super) prefix: String,
    /// Watched keys; watchers take turns
    #[arg(long, alias = "watched-key-total", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(super) keys: u32,
    /// Each watcher watches the whole prefix instead of one key
    #[arg(long)]
    pub(super) whole_prefix: bool,
    /// Puts per second, answered or not; 0 puts as fast as answers come [default: 0, watch-latency 100]
    #[arg(long, value_parser = rate)]
    pub(super) put_rate: Option<f64>,
    /// Puts in the run
    #[arg(long, default_value_t = 1000)]
    pub(super) put_total: u64,
    /// Bytes of a value, 16 at least
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(16..=100_000_000))]
    pub(super) val_size: u32,
    /// Ask for the old pair with each event
    #[arg(long, alias = "prevkv")]
    pub(super) prev_kv: bool,
    /// How long the last events may take to arrive, counted anew with each event
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub(super) drain_timeout: GoDuration,
}

/// Flags of `lease-keepalive`.
#[derive(Clone, Debug, Args)]
pub(super) struct KeepAliveArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// Leases to keep alive
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(super) leases: u32,
    /// Keep-alive streams, spread over the connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) streams: u32,
    /// Renewals under way on each stream
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) in_flight: u32,
    /// Seconds of each lease
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(i64).range(1..))]
    pub(super) ttl: i64,
}

/// Flags of `compare`.
#[derive(Clone, Debug, Args)]
pub(super) struct CompareArgs {
    /// The endpoint that is measured
    #[arg(long)]
    pub(super) a: Endpoint,
    /// The endpoint it is measured against
    #[arg(long)]
    pub(super) b: Endpoint,
    /// Runs on each side
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// Report CPU and memory of a side, as a=PID or b=PID; may be repeated
    #[arg(long, value_name = "SIDE=PID")]
    pub(super) server_pid: Vec<ServerPid>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(super) json: bool,
    /// The load, as on a command line of its own
    #[arg(last = true, required = true)]
    pub(super) load: Vec<String>,
}

/// Flags of `suite`.
#[derive(Clone, Debug, Args)]
pub(super) struct SuiteArgs {
    /// The etcd to measure against, for its member, its proxy and its gateway
    #[arg(long, value_name = "PROGRAM")]
    pub(super) against: String,
    /// Rows to measure; all of them unless given
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(super) rows: Vec<String>,
    /// Runs on each side; three at most where one takes long
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// Length of a run
    #[arg(long, default_value_t = 3.0)]
    pub(super) seconds: f64,
    /// Where the reports go, and the data of members while they run
    #[arg(long, default_value = "bench-suite", value_name = "FOLDER")]
    pub(super) folder: std::path::PathBuf,
    /// A document that gets the table, too, between the lines "<!-- bench suite -->" and "<!-- end of bench suite -->"
    #[arg(long, value_name = "FILE")]
    pub(super) document: Option<std::path::PathBuf>,
    /// HAProxy to show beside the gateways; found by its name unless given
    #[arg(long, value_name = "PROGRAM")]
    pub(super) haproxy: Option<String>,
    /// nginx to show beside the gateways; found by its name unless given
    #[arg(long, value_name = "PROGRAM")]
    pub(super) nginx: Option<String>,
}

/// Flags of `fleet`.
#[derive(Clone, Debug, Args)]
pub(super) struct FleetArgs {
    /// Proxies in each level, from the cluster outwards
    #[arg(long, value_delimiter = ',', default_value = "4", value_name = "COUNTS")]
    pub(super) levels: Vec<u32>,
    /// Members of the cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9))]
    pub(super) members: u32,
    /// Machines with a gateway of their own in front of the last level
    #[arg(long, default_value_t = 0)]
    pub(super) hosts: u32,
    /// Client connections on each of them
    #[arg(long, default_value_t = 10.0)]
    pub(super) connections_per_host: f64,
    /// Watchers of all clients
    #[arg(long, default_value_t = 10_000.0)]
    pub(super) watchers: f64,
    /// How many of them share a stream
    #[arg(long, default_value_t = 10.0)]
    pub(super) watchers_per_stream: f64,
    /// Puts per second, each of them an event
    #[arg(long, default_value_t = 100.0)]
    pub(super) events: f64,
    /// Part of the events that one watcher sees
    #[arg(long, default_value_t = 0.01)]
    pub(super) watched_share: f64,
    /// Linearizable reads per second
    #[arg(long, default_value_t = 1000.0)]
    pub(super) reads: f64,
    /// Part of the reads that are of cached keys
    #[arg(long, default_value_t = 1.0)]
    pub(super) cached_share: f64,
    /// Renewals of leases per second
    #[arg(long, default_value_t = 1000.0)]
    pub(super) keepalives: f64,
    /// Bytes of a key
    #[arg(long, default_value_t = 32)]
    pub(super) key_size: u32,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    pub(super) val_size: u32,
    /// Processors of each process
    #[arg(long, default_value_t = 4.0)]
    pub(super) cores: f64,
    /// Memory of each process
    #[arg(long, default_value_t = 8.0)]
    pub(super) memory_gib: f64,
    /// Bandwidth of each process in each direction
    #[arg(long, default_value_t = 10_000.0)]
    pub(super) network_mbit: f64,
    /// Costs to compute with, as --measure writes them; the stored ones unless given
    #[arg(long, value_name = "FILE")]
    pub(super) costs: Option<std::path::PathBuf>,
    /// Take the costs on this machine first, and write them to --costs if that is given
    #[arg(long)]
    pub(super) measure: bool,
    /// Show the costs and how each is measured
    #[arg(long)]
    pub(super) show_costs: bool,
    /// Run three small fleets here and compare them with what is computed for them
    #[arg(long)]
    pub(super) check: bool,
    /// Length of each run of --measure and --check
    #[arg(long, default_value_t = 3.0)]
    pub(super) seconds: f64,
    /// Where the data of members is while they run
    #[arg(long, default_value = ".", value_name = "FOLDER")]
    pub(super) folder: std::path::PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(super) json: bool,
}

/// Reads a command line. The error is one line, or the help text that was asked for.
pub(super) fn read<I: IntoIterator<Item = T>, T: Into<std::ffi::OsString> + Clone>(words: I) -> Result<Bench, Refusal> {
    Bench::try_parse_from(words).map_err(|error| match error.kind() {
        clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => {
            Refusal::Help(error.to_string())
        }
        clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Refusal::Help(error.to_string()),
        _ => {
            let text = error.to_string();
            // What follows the first empty line are hints.
            let text = text.split("\n\n").next().unwrap_or_default();
            let words: Vec<&str> = text.split_whitespace().collect();
            let text = words.join(" ");
            Refusal::Wrong(text.strip_prefix("error: ").unwrap_or(&text).to_owned())
        }
    })
}

/// Why a command line does not run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Help(String),
    Wrong(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(text: &str) -> Result<Action, Refusal> {
        read(std::iter::once("bench").chain(text.split_whitespace())).map(|bench| bench.action)
    }

    fn line(text: &str) -> Result<Load, Refusal> {
        match action(text)? {
            Action::Load(load) => Ok(load),
            Action::Compare(_) | Action::Suite(_) | Action::Fleet(_) => panic!("{text} is no load"),
        }
    }

    #[test]
    fn etcds_flags_are_understood() {
        let Ok(Load::Put(put)) = line(
            "put --endpoints=127.0.0.1:1,127.0.0.1:2 --conns=8 --clients 64 --total=100000 --key-size=8 \
             --val-size=256 --key-space-size=100000 --sequential-keys --rate 500 --target-leader",
        ) else {
            panic!("a put")
        };
        assert_eq!((put.common.conns, put.common.clients, put.common.total), (8, 64, 100_000));
        assert_eq!(put.common.endpoints.len(), 2);
        assert_eq!(put.common.rate(), Some(500.0));
        assert!(put.keys.sequential_keys && put.common.target_leader);
        let Ok(Load::Range(range)) = line("range foo --consistency=s --total 10") else { panic!("a range") };
        assert_eq!((range.key.as_str(), range.consistency), ("foo", Consistency::Serializable));
        let Ok(Load::WatchLatency(watch)) =
            line("watch-latency --streams 5 --watchers-per-stream 2 --put-rate 10 --prevkv")
        else {
            panic!("a watch")
        };
        assert_eq!((watch.streams, watch.watchers_per_stream, watch.put_rate), (5, Some(2), Some(10.0)));
        let Ok(Action::Compare(compare)) =
            action("compare --a 127.0.0.1:1 --b 127.0.0.1:2 --rounds 3 --server-pid a=1 -- put --clients 4")
        else {
            panic!("a comparison")
        };
        assert_eq!(compare.load, ["put", "--clients", "4"]);
    }

    #[test]
    fn a_bad_line_is_refused_in_one_line_that_names_the_flag() {
        for (text, named) in [
            ("put --nope", "--nope"),
            ("put --conns=x", "--conns"),
            ("put --conns=0", "--conns"),
            ("put --rate=-1", "--rate"),
            ("put --endpoints=foo:", "--endpoints"),
            ("put --duration=5", "--duration"),
            ("put --server-pid=x=y", "--server-pid"),
            ("range", "<KEY>"),
            ("range k --consistency=z", "--consistency"),
            ("frob", "frob"),
        ] {
            let Err(Refusal::Wrong(error)) = line(text) else { panic!("{text} is wrong") };
            assert!(error.contains(named), "{text}: {error}");
            assert!(!error.contains('\n'), "{text}: {error}");
        }
        assert!(matches!(line("put --help"), Err(Refusal::Help(_))));
    }
}
