//! A whole tier on loopback: server, gateway and proxy in one process, to try things out.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser};

use super::grpc_proxy::{self, RunningProxy};
use super::process::{answer, raise_descriptor_limit, refuse, without_config};
use super::server::Server;
use crate::config::{
    FlagWords, GatewayConfig, ServerConfig, Variables, parse_flags, parse_proxy_config, parse_server_config,
};
use crate::discovery::StaticList;
use crate::gateway::Gateway;
use crate::listener;
use crate::net::Endpoint;
use crate::shutdown::{Tasks, interrupted};
use crate::telemetry::{Metrics, init_logging};

const CLIENTS: &str = "127.0.0.1:2379";
const PEERS: &str = "127.0.0.1:2380";
const GATEWAY: &str = "127.0.0.1:23790";
const PROXY: &str = "127.0.0.1:23791";
/// How long parts get to end at a stop.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// Flags of `watershed dev`.
#[derive(Debug, Parser)]
#[command(name = "watershed dev", about = "Runs server, gateway and proxy on loopback, to try things out.")]
#[command(override_usage = "watershed dev [flags]")]
struct RawDevConfig {
    /// Folder of all data; it stays when the tier stops.
    #[arg(long, default_value = "default.watershed", value_name = "DIR")]
    data_dir: PathBuf,
    /// Keep data in a temporary folder that is removed at the end.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
    ephemeral: bool,
}

/// Runs the tier until SIGINT or SIGTERM; returns the exit code.
pub fn run(args: &[OsString]) -> u8 {
    let parsed = match parse_flags(RawDevConfig::command(), args, &Variables::none(), FlagWords::Cobra) {
        Ok(parsed) => parsed,
        Err(error) => return without_config("dev", &error),
    };
    let raw = match parsed.read::<RawDevConfig>() {
        Ok(raw) => raw,
        Err(error) => return refuse(error),
    };
    if raw.ephemeral && parsed.is_given("data-dir") {
        return refuse("--ephemeral and --data-dir exclude each other");
    }
    match serve(&raw) {
        Ok(()) => 0,
        Err(error) => refuse(format!("{error:#}")),
    }
}

fn serve(raw: &RawDevConfig) -> anyhow::Result<()> {
    let temporary = if raw.ephemeral { Some(tempfile::tempdir().context("make a temporary folder")?) } else { None };
    let data_dir = temporary.as_ref().map_or(raw.data_dir.as_path(), |folder| folder.path());
    let config = server_config(data_dir)?;
    init_logging(&config.log)?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(async {
        let tasks = Tasks::new();
        let tier = Tier::start(&config, &tasks).await?;
        answer(&screen(data_dir, raw.ephemeral));
        interrupted().await.context("wait for signals")?;
        answer("\nstopping\n");
        tier.stop().await;
        tasks.finish(STOP_GRACE).await;
        anyhow::Ok(())
    });
    runtime.shutdown_background();
    outcome
}

fn server_config(data_dir: &Path) -> anyhow::Result<ServerConfig> {
    let mut data_flag = OsString::from("--data-dir=");
    data_flag.push(data_dir);
    let mut args = vec![data_flag];
    args.extend(
        [
            format!("--listen-client-urls=http://{CLIENTS}"),
            format!("--advertise-client-urls=http://{CLIENTS}"),
            format!("--listen-peer-urls=http://{PEERS}"),
            format!("--initial-advertise-peer-urls=http://{PEERS}"),
            format!("--initial-cluster=default=http://{PEERS}"),
            "--log-level=warn".to_owned(),
            "--log-format=console".to_owned(),
        ]
        .map(OsString::from),
    );
    Ok(parse_server_config(&args, &Variables::none())?)
}

/// The three parts.
struct Tier {
    server: Server,
    gateway: Gateway,
    proxy: RunningProxy,
}

impl Tier {
    async fn start(config: &ServerConfig, tasks: &Tasks) -> anyhow::Result<Self> {
        // All ports are tried before anything is written.
        for address in [CLIENTS, PEERS, GATEWAY, PROXY] {
            drop(listener::bind(address.parse().expect("constants are addresses"))?);
        }
        let server = Server::start(config, tasks).await?;
        let endpoint: Endpoint = CLIENTS.parse()?;
        let gateway_config = GatewayConfig::new(GATEWAY.parse().map_err(anyhow::Error::msg)?, vec![endpoint.clone()]);
        let gateway = Gateway::start(&gateway_config, &StaticList::new([endpoint]), &Metrics::new(), tasks).await?;
        let flags = [format!("--listen-addr={PROXY}"), format!("--endpoints={CLIENTS}")].map(OsString::from);
        let proxy_config = parse_proxy_config(&flags)?;
        let listed = grpc_proxy::listed_endpoints(&proxy_config, tasks).await?;
        let proxy = grpc_proxy::start(proxy_config, listed, tasks)?;
        Ok(Self { server, gateway, proxy })
    }

    /// From the outside in.
    async fn stop(self) {
        self.proxy.finish().await;
        self.gateway.finish().await;
        self.server.stop().await;
    }
}

fn screen(data_dir: &Path, ephemeral: bool) -> String {
    let program = std::env::args_os().next().map_or_else(|| "watershed".into(), PathBuf::from);
    let program = program.display();
    let kept = if ephemeral { "removed at the end" } else { "kept" };
    format!(
        "\
watershed dev: a tier on loopback, one member, without TLS and users

  server    http://{CLIENTS}    gRPC (etcd v3 API), /health /readyz /metrics /version
  peers     http://{PEERS}    /members /version
  gateway   {GATEWAY}          TCP to the server
  proxy     http://{PROXY}   gRPC with coalesced watches and keep-alives, /proxy/health /proxy/metrics
  data      {} ({kept})

Try, in another terminal:

  {program} ctl --endpoints={PROXY} watch /a --prefix
  {program} ctl --endpoints={PROXY} put /a/1 x
  {program} ctl --endpoints={GATEWAY} get /a --prefix
  {program} ctl --endpoints={CLIENTS} endpoint status -w table
  {program} bench put --endpoints={CLIENTS} --clients=64 --conns=8 --total=100000

Any etcd v3 client works on all three ports. Ctrl-C stops.
",
        data_dir.display()
    )
}
