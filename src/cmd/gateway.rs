//! `watershed gateway start`.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;
use listenfd::ListenFd;

use super::changed_file::ChangedFile;
use super::process::{notify_ready, raise_descriptor_limit, refuse, without_config};
use super::reload::{GatewayReload, ask_at_hangups, hangups};
use super::sources;
use crate::client::{Client, ClientConfig};
use crate::config::{AskedCluster, GatewayConfig, parse_gateway_config};
use crate::discovery::{Discovery, MemberList, RegisteredEndpoints, StaticList, current_endpoints};
use crate::gateway::{Gateway, Handover, Predecessor};
use crate::net::{Alpn, ClientTls, ClientTlsConfig, Endpoint, ServerAuth};
use crate::shutdown::{Interruptions, Tasks};
use crate::telemetry::{Metrics, init_logging};

/// Time that the gateway's own tasks get once all connections have ended.
const GRACE: Duration = Duration::from_secs(1);

/// Runs a gateway until SIGINT or SIGTERM; a second signal ends the drain. `args` are the flags.
pub fn run(args: &[OsString]) -> u8 {
    let config = match parse_gateway_config(args) {
        Ok(config) => config,
        Err(error) => return without_config("gateway start", &error),
    };
    match serve(&config) {
        Ok(()) => 0,
        Err(error) => refuse(format!("{error:#}")),
    }
}

fn serve(config: &GatewayConfig) -> anyhow::Result<()> {
    init_logging(&config.log)?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let outcome = runtime.block_on(async {
        let tasks = Tasks::new();
        // From here on, so that a SIGHUP which comes early does not end the process, and none that should is lost.
        let hangup = hangups()?;
        let mut interruptions = Interruptions::new().context("install the signal handlers")?;
        // As it was read: the first endpoints may be long in coming, and the file may change meanwhile.
        let file = config.file.clone().map(|file| (ChangedFile::new(&file.path), file));
        let Listed { source: listed, list } = tokio::select! {
            listed = listed_endpoints(config, &tasks) => listed?,
            // SIGINT and SIGTERM end the wait for the first endpoints, too.
            _ = interruptions.next() => return Ok(()),
        };
        let metrics = Metrics::new();
        let members = listed_members(config, &*listed, &tasks)?;
        let endpoints: &dyn Discovery = members.as_ref().map_or(&*listed, |members| members);
        let sources = sources::counted(&*listed, members.as_ref(), &metrics);
        let mut predecessor = predecessor(config)?;
        let gateway = match (passed_listener().context("the socket passed by LISTEN_FDS")?, &mut predecessor) {
            (Some(listener), _) => Gateway::start_with(listener, config, endpoints, &metrics, &tasks).await?,
            (None, Some(predecessor)) => {
                Gateway::start_after(predecessor.sockets(), config, endpoints, &metrics, &tasks).await?
            }
            (None, None) => Gateway::start(config, endpoints, &metrics, &tasks).await?,
        };
        let (mut gateway, handover) = succeed(gateway, predecessor, config).await?;
        let stop = tasks.stop_signal();
        match file {
            Some((changed, file)) => {
                let reload = GatewayReload::new(file, list, gateway.endpoint_lists(), &metrics);
                tasks.spawn(async move { stop.run_until_cancelled(reload.follow(changed, hangup, sources)).await });
            }
            None => {
                tasks.spawn(async move { stop.run_until_cancelled(ask_at_hangups(hangup, sources)).await });
            }
        }
        notify_ready();
        let handed_over = async {
            match &handover {
                Some(handover) => handover.taken().await,
                None => std::future::pending().await,
            }
        };
        let successor = tokio::select! {
            _ = interruptions.next() => None,
            successor = handed_over => Some(successor),
        };
        if successor.is_some() {
            gateway.leave_addresses();
        }
        // In this order: the next gateway takes the place of the file once its connection ends.
        drop(handover);
        drop(successor);
        tracing::info!("stopping");
        tokio::select! {
            () = gateway.finish() => {}
            _ = interruptions.next() => {}
        }
        tasks.finish(GRACE).await;
        anyhow::Ok(())
    });
    // A resolver that does not answer must not hold the exit up.
    runtime.shutdown_background();
    outcome
}

/// The gateway that serves now, where this one is to take over from it.
fn predecessor(config: &GatewayConfig) -> anyhow::Result<Option<Predecessor>> {
    let Some(file) = &config.hot_restart_socket else { return Ok(None) };
    Predecessor::ask(file).with_context(|| format!("--hot-restart-socket={}", file.display()))
}

/// Stops the gateway that served before, and offers the sockets of this one to the next.
async fn succeed(
    mut gateway: Gateway,
    predecessor: Option<Predecessor>,
    config: &GatewayConfig,
) -> anyhow::Result<(Gateway, Option<Handover>)> {
    let Some(file) = &config.hot_restart_socket else { return Ok((gateway, None)) };
    let wrong = || format!("--hot-restart-socket={}", file.display());
    if let Some(predecessor) = predecessor {
        tokio::task::spawn_blocking(|| predecessor.stop()).await?.with_context(wrong)?;
    }
    let handover = Handover::offer(file, gateway.take_sockets()).with_context(wrong)?;
    Ok((gateway, Some(handover)))
}

/// The source of the endpoints.
pub(super) struct Listed {
    pub source: Box<dyn Discovery>,
    /// The same, if it is a list that can be replaced.
    pub list: Option<StaticList>,
}

/// What the flags say, or what they say is to be asked.
pub(super) async fn listed_endpoints(config: &GatewayConfig, tasks: &Tasks) -> anyhow::Result<Listed> {
    if config.has_listed_endpoints() {
        let list = StaticList::new(config.endpoints.clone());
        return Ok(Listed { source: Box::new(list.clone()), list: Some(list) });
    }
    found_endpoints(config, tasks).await.map(|source| Listed { source, list: None })
}

async fn found_endpoints(config: &GatewayConfig, tasks: &Tasks) -> anyhow::Result<Box<dyn Discovery>> {
    if let Some(peers) = &config.peers {
        return sources::of_peers(peers, tasks).await;
    }
    if let Some(cluster) = &config.asked
        && let Some(prefix) = cluster.prefix()
    {
        let client = client_of(cluster, config, config.endpoints.clone())?;
        return Ok(Box::new(RegisteredEndpoints::start(client, prefix, tasks).await));
    }
    let srv = config.srv.as_ref().context("no source of endpoints")?;
    sources::of_srv(srv, tls_of_discovery(config)?, tasks).await
}

fn tls_of_discovery(config: &GatewayConfig) -> anyhow::Result<ClientTls> {
    let mut tls = ClientTlsConfig::new(Alpn::H2);
    if let Some(file) = &config.trusted_ca_file {
        tls.servers = ServerAuth::File(file.clone());
    }
    ClientTls::new(&tls).context("--trusted-ca-file")
}

/// The members of the cluster at the endpoints of `listed`, where the flags want them followed.
fn listed_members(config: &GatewayConfig, listed: &dyn Discovery, tasks: &Tasks) -> anyhow::Result<Option<MemberList>> {
    let Some(cluster) = &config.asked else { return Ok(None) };
    let Some(interval) = cluster.interval() else { return Ok(None) };
    let client = client_of(cluster, config, current_endpoints(listed))?;
    Ok(Some(MemberList::follow_alone(client, listed, interval, tasks)))
}

fn client_of(cluster: &AskedCluster, config: &GatewayConfig, endpoints: Vec<Endpoint>) -> anyhow::Result<Client> {
    let tls = match &cluster.tls {
        Some(tls) => Some(ClientTls::new(tls).context("--resolver-cacert, --resolver-cert, --resolver-key")?),
        // Endpoints in SRV records tell by themselves whether they have TLS.
        None if config.srv.is_some() => Some(tls_of_discovery(config)?),
        None => None,
    };
    Ok(Client::connect(ClientConfig { tls, user: cluster.user.clone(), ..ClientConfig::new(endpoints) })?)
}

/// The listening socket that systemd passes to a service with a socket unit. It holds the socket over restarts, so that no
/// connection is refused meanwhile.
fn passed_listener() -> anyhow::Result<Option<OwnedFd>> {
    let mut passed = ListenFd::from_env();
    anyhow::ensure!(passed.len() <= 1, "there are {}, and a gateway listens on one", passed.len());
    if passed.len() == 0 {
        return Ok(None);
    }
    // One that is of neither kind stays where it is.
    Ok(match passed.take_unix_listener(0) {
        Ok(listener) => listener.map(OwnedFd::from),
        Err(_) => passed.take_tcp_listener(0)?.map(OwnedFd::from),
    })
}
