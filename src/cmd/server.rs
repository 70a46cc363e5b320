//! The server: flags, logging, then a member behind its listeners until a signal.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::future::OptionFuture;
use tracing::{error, info, warn};

use super::grpc_proxy;
use super::initial_cluster::{Surplus, initial_cluster};
use super::process::{notify_ready, raise_descriptor_limit, refuse};
use super::usage::no_server;
use crate::config::{
    CompleteCluster, Fallback, ListenAddress, ListenUrl, ServerConfig, TlsConfig, Variables, parse_server_config,
};
use crate::core::peer::{PeerDialer, PeerTls};
use crate::core::server::{CoreMetrics, Failed, HttpHandler, Member, PeerHandler, SlowRequests, Traffic};
use crate::listener::{self, ConnectionLimits, ListenerConfig, ListenerError, Protection, Serving, Socket, WorkerId};
use crate::net::{ClientTls, Identity, PortUse, ServerTls, descriptor_limit};
use crate::pages::{BrowserRules, Profiles};
use crate::shutdown::{Interruption, Tasks, interrupted};
use crate::telemetry::{Metrics, PeerMetrics, Tracing, WatchMetrics, init_logging};
use crate::types::API_VERSION;

/// Time that open requests of clients get to finish at a stop; watches have to be cut.
const CLIENT_GRACE: Duration = Duration::from_millis(800);
/// The same for the peer port.
const PEER_GRACE: Duration = Duration::from_millis(200);
/// How long parts get to end at a stop.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Runs a server until SIGINT or SIGTERM, which then ends the process like etcd's; returns the exit code otherwise.
pub fn run(args: &[OsString]) -> u8 {
    let config = match parse_server_config(args, &Variables::of_process("ETCD_")) {
        Ok(config) => config,
        Err(error) => return no_server(&error),
    };
    if let Err(error) = init_logging(&config.log) {
        return refuse(error);
    }
    for notice in &config.notices {
        notice.log();
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(format!("start runtime: {error}")),
    };
    raise_descriptor_limit();
    match runtime.block_on(serve(&config)) {
        Ended::With(code) => code,
        Ended::Surplus(cluster) => {
            drop(runtime);
            let peers = cluster.peer_urls.join(",");
            warn!(peers, "the cluster is complete without this member: it becomes a gRPC proxy");
            match config.surplus_proxy(cluster) {
                Ok(proxy) => grpc_proxy::serve_until_told(proxy),
                Err(error) => refuse(error),
            }
        }
    }
}

/// How a server ended.
enum Ended {
    /// With this exit code.
    With(u8),
    /// Before it began: its cluster is complete.
    Surplus(CompleteCluster),
}

async fn serve(config: &ServerConfig) -> Ended {
    let tasks = Tasks::new();
    let server = match Server::start(config, &tasks).await {
        Ok(server) => server,
        Err(error) => {
            return match error.downcast_ref::<Surplus>() {
                Some(surplus) if config.fallback == Fallback::Proxy => Ended::Surplus(surplus.cluster.clone()),
                _ => Ended::With(refuse(format!("{error:#}"))),
            };
        }
    };
    notify_ready();
    let interruption = tokio::select! {
        interruption = interrupted() => match interruption {
            Ok(interruption) => Some(interruption),
            Err(error) => {
                error!(%error, "signals cannot be received");
                None
            }
        },
        () = server.member.removed() => {
            error!("the member has been permanently removed from the cluster");
            warn!("data-dir used by this member must be removed");
            // The client that asked for it gets its answer, and the other members learn that it is committed.
            tokio::time::sleep(REMOVED_DELAY).await;
            None
        }
    };
    info!(?interruption, "stopping");
    server.stop().await;
    if !tasks.finish(STOP_GRACE).await {
        error!("some tasks did not end in time");
    }
    info!("stopped");
    Ended::With(interruption.map_or(0, Interruption::pass_on))
}

/// Time from the removal of this member to its stop.
const REMOVED_DELAY: Duration = Duration::from_secs(1);

/// A member with its listeners.
pub struct Server {
    member: Member,
    clients: Serving,
    peers: Serving,
    /// Metrics and health on addresses of their own.
    watched: Option<Serving>,
    tracing: Option<Tracing>,
}

impl Server {
    /// Binds the ports, then opens the data directory, then serves.
    ///
    /// # Errors
    /// Names the port, file or directory at fault. With a port in use nothing on disk has changed.
    pub async fn start(config: &ServerConfig, tasks: &Tasks) -> anyhow::Result<Self> {
        let tls = Tls::read(&config.tls)?;
        log_start(config);
        let port_use = if config.socket_reuse_port { PortUse::Shared } else { PortUse::Alone };
        let mut client_sockets =
            bind_all(&config.listen_client_urls, tls.clients.as_ref(), port_use).context("--listen-client-urls")?;
        let http_sockets = bind_all(&config.listen_client_http_urls, tls.clients.as_ref(), port_use)
            .context("--listen-client-http-urls")?;
        let on_client_urls = if http_sockets.is_empty() { Traffic::Any } else { Traffic::Grpc };
        let mut traffic = vec![on_client_urls; client_sockets.len()];
        traffic.resize(client_sockets.len() + http_sockets.len(), Traffic::Http);
        client_sockets.extend(http_sockets);
        let traffic: Arc<[Traffic]> = traffic.into();
        let peer_tls = tls.peers.as_ref().map(|tls| &tls.accepting);
        let peer_sockets = bind_all(&config.listen_peer_urls, peer_tls, port_use).context("--listen-peer-urls")?;
        let metric_sockets =
            bind_all(&config.listen_metrics_urls, tls.clients.as_ref(), port_use).context("--listen-metrics-urls")?;

        #[cfg(feature = "failpoints")]
        super::failpoints::start(tasks)?;
        let registry = Metrics::new();
        let slow = SlowRequests { apply: config.warning_apply_duration, unary: config.warning_unary_request_duration };
        let tracing =
            config.tracing.as_ref().map(Tracing::start).transpose().context("--distributed-tracing-address")?;
        let metrics = CoreMetrics::register(&registry, config.extensive_metrics, slow, tracing.clone());
        let watch_metrics = WatchMetrics::register(&registry);
        let failed: Failed = Arc::new(|reason| {
            // Fail-stop: what was acknowledged is in the log, and no request may be answered from a state that may be wrong.
            error!(reason, "member stops: its state can no longer be trusted");
            eprintln!("watershed: {reason}");
            std::process::exit(1);
        });
        let peer_metrics = PeerMetrics::register(&registry);
        let dialer = PeerDialer { tls: tls.peers, local_address: config.peer_local_address };
        let initial = initial_cluster(config).await?;
        let config = &ServerConfig { initial, ..config.clone() };
        let member = Member::start(config, dialer, metrics, peer_metrics, failed, tasks).await?;
        let pauses = config.feature_gates.stop_grpc_service_on_defrag;
        let services = member.services().with_json(config.enable_grpc_gateway).pausing_for_defragmentation(pauses);
        services.refresh_gauges(&registry, config.feature_gates);
        let watch = services.watch_context(watch_metrics, config.watch_progress_notify_interval);
        let rules = BrowserRules { origins: config.cors.clone(), hosts: config.host_whitelist.clone() };
        let http = services.http(registry, rules).with_profiles(config.enable_pprof.then_some(Profiles));
        if config.enable_pprof {
            info!(path = "/debug/pprof", "pprof is enabled");
        }
        let limits = ConnectionLimits::of_member(descriptor_limit(), config.serving_threads);
        let listener = ListenerConfig {
            connections_max: limits.clients,
            serving_threads: config.serving_threads,
            max_concurrent_streams: config.max_concurrent_streams,
            keepalive_interval: config.keepalive_interval,
            keepalive_timeout: config.keepalive_timeout,
            ping_min_time: Some(config.keepalive_min_time),
            grace: CLIENT_GRACE,
            ..ListenerConfig::default()
        };
        let peer_handler = listener::answering(services.peers(http.clone()), PeerHandler::answer);
        let single = ListenerConfig { serving_threads: 1, grace: PEER_GRACE, ping_min_time: None, ..listener.clone() };
        let watched = match metric_sockets.is_empty() {
            true => None,
            false => {
                let metrics_handler = listener::answering(http.clone(), HttpHandler::answer_metrics);
                let single = ListenerConfig { connections_max: limits.metrics, ..single.clone() };
                Some(listener::serve(metric_sockets, single, move |_| metrics_handler.clone(), tasks)?)
            }
        };
        let rejection_message = "rejected connection on peer endpoint";
        let peer_config = ListenerConfig { rejection_message, connections_max: limits.peers, ..single };
        let peer_addresses: Vec<String> = peer_sockets.iter().map(ToString::to_string).collect();
        let peers = listener::serve(peer_sockets, peer_config, move |_| peer_handler.clone(), tasks)?;
        for address in peer_addresses {
            info!(address, "serving peer traffic");
        }
        member.join(config).await?;
        let worker_tasks = tasks.clone();
        let served: Vec<(String, Protection, &str)> = (client_sockets.iter().zip(traffic.iter()))
            .map(|(socket, traffic)| (socket.to_string(), socket.protection().clone(), traffic.label()))
            .collect();
        let make = move |worker: WorkerId| {
            services.router(watch.clone(), worker.0, traffic.clone(), http.clone(), &worker_tasks)
        };
        let clients = listener::serve(client_sockets, listener, make, tasks)?;
        info!("ready to serve client requests");
        for (address, protection, traffic) in served {
            if !matches!(protection, Protection::Tls(_)) {
                info!(traffic, address, "serving client traffic insecurely; this is strongly discouraged!");
            }
            if !matches!(protection, Protection::Plain) {
                info!(traffic, address, "serving client traffic securely");
            }
        }
        Ok(Self { member, clients, peers, watched, tracing })
    }

    /// Listeners first, then the member. Leadership is transferred while the requests of clients finish.
    pub async fn stop(self) {
        tokio::join!(self.clients.finish(), self.member.hand_over());
        tokio::join!(self.peers.finish(), OptionFuture::from(self.watched.map(Serving::finish)));
        self.member.stop().await;
        if let Some(tracing) = self.tracing {
            tracing.finish().await;
        }
    }
}

/// What the files of TLS hold.
struct Tls {
    clients: Option<ServerTls>,
    peers: Option<PeerTls>,
}

impl Tls {
    fn read(config: &TlsConfig) -> anyhow::Result<Self> {
        if let Some(files) = &config.client_identity {
            Identity::from_files(files.clone()).context("--client-cert-file, --client-key-file")?;
        }
        let clients = config.clients.as_ref().map(ServerTls::new).transpose().context("TLS for clients")?;
        let peers = config.peers.as_ref().map(|peers| {
            let accepting = ServerTls::new(&peers.accepting)?;
            anyhow::Ok(PeerTls { accepting, dialling: ClientTls::new(&peers.dialling)? })
        });
        Ok(Self { clients, peers: peers.transpose().context("TLS between members")? })
    }
}

/// One line with what decides how a member behaves; support reads it first.
fn log_start(config: &ServerConfig) {
    let list = |urls: &[ListenUrl]| urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    info!(
        "etcd-version" = API_VERSION,
        "watershed-version" = env!("CARGO_PKG_VERSION"),
        name = config.name,
        "data-dir" = %config.data_dir.display(),
        "wal-dir" = %config.wal_dir.display(),
        "force-new-cluster" = config.force_new_cluster,
        "heartbeat-interval" = ?config.heartbeat_interval,
        "election-timeout" = ?config.election_timeout,
        "snapshot-count" = config.snapshot_count,
        "snapshot-catchup-entries" = config.snapshot_catchup_entries,
        "initial-advertise-peer-urls" = config.initial.own_urls().join(","),
        "listen-peer-urls" = list(&config.listen_peer_urls),
        "advertise-client-urls" = config.advertise_client_urls.join(","),
        "listen-client-urls" = list(&config.listen_client_urls),
        "listen-client-http-urls" = list(&config.listen_client_http_urls),
        "listen-metrics-urls" = list(&config.listen_metrics_urls),
        "initial-cluster-token" = config.initial.token,
        "quota" = ?config.quota,
        "max-request-bytes" = config.max_request_bytes,
        "max-concurrent-streams" = config.max_concurrent_streams,
        "pre-vote" = config.pre_vote,
        "auto-compaction" = ?config.auto_compaction,
        "max-learners" = config.max_learners,
        "v2-deprecation" = "write-only",
        "starting an etcd server"
    );
}

/// Binds each address once: a plain and a secure URL of one address share its socket.
fn bind_all(urls: &[ListenUrl], tls: Option<&ServerTls>, port_use: PortUse) -> Result<Vec<Socket>, ListenerError> {
    let mut addresses: Vec<&ListenAddress> = Vec::new();
    for url in urls {
        if !addresses.contains(&url.address()) {
            addresses.push(url.address());
        }
    }
    let bound = addresses.into_iter().map(|address| {
        let socket = match address {
            ListenAddress::Tcp(address) => listener::bind_port(*address, port_use)?,
            ListenAddress::Unix(path) => listener::bind_unix(path)?,
        };
        let of = |secure| urls.iter().any(|url| url.address() == address && url.is_tls() == secure);
        // There is none without a certificate: the flags were checked.
        Ok(socket.speaking(match (tls, of(true), of(false)) {
            (Some(tls), true, false) => Protection::Tls(tls.clone()),
            (Some(tls), true, true) => Protection::Both(tls.clone()),
            _ => Protection::Plain,
        }))
    });
    bound.collect()
}
