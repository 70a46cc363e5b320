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
use crate::config::{GatewayConfig, parse_gateway_config};
use crate::discovery::{Discovery, RegisteredEndpoints, StaticList, count_sources};
use crate::gateway::{Gateway, Handover, Predecessor};
use crate::net::{Alpn, ClientTls, ClientTlsConfig, ServerAuth};
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
        let Listed { source: endpoints, list } = tokio::select! {
            endpoints = listed_endpoints(config, &tasks) => endpoints?,
            // SIGINT and SIGTERM end the wait for the first endpoints, too.
            _ = interruptions.next() => return Ok(()),
        };
        let metrics = Metrics::new();
        count_sources(&metrics, &[&*endpoints]);
        let mut predecessor = predecessor(config)?;
        let gateway = match (passed_listener().context("the socket passed by LISTEN_FDS")?, &mut predecessor) {
            (Some(listener), _) => Gateway::start_with(listener, config, &*endpoints, &metrics, &tasks).await?,
            (None, Some(predecessor)) => {
                Gateway::start_after(predecessor.sockets(), config, &*endpoints, &metrics, &tasks).await?
            }
            (None, None) => Gateway::start(config, &*endpoints, &metrics, &tasks).await?,
        };
        let (mut gateway, handover) = succeed(gateway, predecessor, config).await?;
        let (source, stop) = (endpoints.followed(), tasks.stop_signal());
        match file {
            Some((changed, file)) => {
                let reload = GatewayReload::new(file, list, gateway.endpoint_lists(), &metrics);
                tasks.spawn(async move { stop.run_until_cancelled(reload.follow(changed, hangup, source)).await });
            }
            None => {
                tasks.spawn(async move { stop.run_until_cancelled(ask_at_hangups(hangup, vec![source])).await });
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
    if let Some(naming) = &config.naming {
        let found = RegisteredEndpoints::start(naming, &config.endpoints, tasks).await;
        return Ok(Box::new(found.with_context(|| format!("--resolver-prefix={}", naming.prefix))?));
    }
    let srv = config.srv.as_ref().context("no source of endpoints")?;
    let mut tls = ClientTlsConfig::new(Alpn::H2);
    if let Some(file) = &config.trusted_ca_file {
        tls.servers = ServerAuth::File(file.clone());
    }
    let tls = ClientTls::new(&tls).context("--trusted-ca-file")?;
    sources::of_srv(srv, tls, tasks).await
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
