//! `grpc-proxy start`: the L7 proxy as a process, or as a part of one.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Runtime;
use tracing::{info, warn};

use super::dispatch::{answer, refuse};
use crate::client::{Head, KeepAlive, Method, Pool, PoolConfig, UpstreamCluster, check_one_cluster, framed, unframed};
use crate::config::{Advertise, FlagError, ProxyConfig, ProxyConfigError, parse_proxy_config};
use crate::listener::{ListenerConfig, Serving, WorkerId, bind, serve};
use crate::net::Endpoint;
use crate::pb::etcdserverpb::{MemberListRequest, MemberListResponse};
use crate::proxy::{
    AnswerRoom, Namespace, ProxyService, ProxyWatchMetrics, ProxyWatchService, SelfMember, Tenant, Tenants, WatchHub,
    WatchHubConfig, WorkerParts, proxy_calls,
};
use crate::shutdown::{Tasks, interrupted};
use crate::telemetry::{Metrics, init_logging};

/// Runs `grpc-proxy start` with the arguments after these words and returns the exit code.
pub fn run(args: &[OsString]) -> u8 {
    let config = match parse_proxy_config(args) {
        Ok(config) => config,
        Err(ProxyConfigError::Flags(FlagError::Help(flags))) => return answer(&flags),
        Err(error) => return refuse(error),
    };
    if let Err(error) = init_logging(&config.log) {
        return refuse(error);
    }
    let outcome =
        Runtime::new().context("start the runtime").and_then(|runtime| runtime.block_on(run_until_told(config)));
    match outcome {
        Ok(()) => 0,
        Err(error) => refuse(format!("{error:#}")),
    }
}

async fn run_until_told(config: ProxyConfig) -> anyhow::Result<()> {
    let tasks = Tasks::new();
    let grace = config.grace;
    check_one_cluster(&pool_config(&config), &tasks).await.context("--endpoints")?;
    let proxy = start(config, &tasks)?;
    interrupted().await.context("wait for signals")?;
    info!("stopping gRPC proxy");
    proxy.finish().await;
    tasks.finish(grace).await;
    Ok(())
}

/// A proxy that serves.
#[derive(Debug)]
pub struct RunningProxy {
    serving: Serving,
    tasks: Tasks,
}

impl RunningProxy {
    /// Where clients can connect; the second address is that of `--metrics-addr`.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.serving.addresses()
    }

    /// Takes no new connections and lets open requests finish within the grace period.
    pub async fn finish(self) {
        self.tasks.stop();
        self.serving.finish().await;
    }
}

/// Starts a proxy; it stops with `tasks`, or by [`RunningProxy::finish`].
///
/// # Errors
/// When an address cannot be bound; names its flag.
pub fn start(config: ProxyConfig, tasks: &Tasks) -> anyhow::Result<RunningProxy> {
    let tasks = tasks.child();
    let mut listeners = vec![bind(config.listen).context("--listen-addr")?];
    if let Some(address) = config.metrics_listen {
        listeners.push(bind(address).context("--metrics-addr")?);
    }
    let metrics = Metrics::new();
    let calls = proxy_calls(&metrics);
    let pools = Pools::default();
    let tenants = Tenants::everybody(Tenant {
        namespace: Namespace::new(config.namespace.clone().into_bytes()),
        admin: config.namespace_admin,
    });
    let self_member = self_member(&config.advertise, listeners[0].local_addr().context("--listen-addr")?);
    let listener_config = ListenerConfig {
        max_concurrent_streams: config.max_concurrent_streams,
        keepalive_interval: config.keepalive_interval,
        keepalive_timeout: config.keepalive_timeout,
        ping_min_time: Some(config.keepalive_min_time),
        grace: config.grace,
        ..ListenerConfig::default()
    };
    let listener_config = ListenerConfig {
        serving_threads: config.serving_threads.unwrap_or(listener_config.serving_threads),
        ..listener_config
    };
    let cluster = UpstreamCluster::new(&config.endpoints, &metrics);
    let pool_config = PoolConfig { cluster: Some(cluster.clone()), ..pool_config(&config) };
    let hubs = watch_hubs(&tenants, config.watch_progress_notify_interval, &pool_config, &pools, &metrics, &tasks);
    // The member list is asked for on this runtime, as the hubs' watches are.
    let sync_pool = config.auto_sync.map(|interval| (Pool::new(pool_config.clone(), &tasks), interval));
    let (worker_tasks, worker_pools) = (tasks.clone(), pools.clone());
    let answers = AnswerRoom::new(config.answer_memory_bytes);
    let make = move |worker: WorkerId| {
        let pool = Pool::new(pool_config.clone(), &worker_tasks);
        worker_pools.add(pool.clone());
        ProxyService::new(WorkerParts {
            pool,
            tenants: tenants.clone(),
            watches: hubs
                .iter()
                .map(|(tenant, hub)| (tenant.clone(), ProxyWatchService::start(hub, worker.0, &worker_tasks)))
                .collect(),
            self_member: self_member.clone(),
            answers: answers.clone(),
            metrics: metrics.clone(),
            calls: calls.clone(),
            tasks: worker_tasks.clone(),
        })
    };
    let serving = serve(listeners, listener_config, make, &tasks).context("start serving")?;
    if let Some((pool, interval)) = sync_pool {
        let stop = tasks.stop_signal();
        pools.add(pool.clone());
        let sync = follow_members(pool, pools, cluster, config.endpoints.clone(), interval);
        tasks.spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = sync => {} }
        });
    }
    let endpoints: Vec<_> = config.endpoints.iter().map(ToString::to_string).collect();
    info!(address = %config.listen, endpoints = endpoints.join(","), namespace = %config.namespace, "started gRPC proxy");
    Ok(RunningProxy { serving, tasks })
}

/// A watch hub for each tenant, shared by all serving threads; each has a pool of its own, because its upstream
/// streams outlive any one thread's clients.
fn watch_hubs(
    tenants: &Tenants,
    progress_interval: Duration,
    pool_config: &PoolConfig,
    pools: &Pools,
    metrics: &Metrics,
    tasks: &Tasks,
) -> Vec<(Arc<Tenant>, WatchHub)> {
    let watch_metrics = ProxyWatchMetrics::register(metrics);
    let hub = |tenant: &Arc<Tenant>| {
        let pool = Pool::new(pool_config.clone(), tasks);
        pools.add(pool.clone());
        let mut hub_config = WatchHubConfig::new(tenant.namespace.clone());
        hub_config.progress_interval = progress_interval;
        (tenant.clone(), WatchHub::new(pool, hub_config, watch_metrics.clone(), tasks))
    };
    tenants.all().map(hub).collect()
}

/// The proxy as MemberList names it.
fn self_member(advertise: &Advertise, listen: SocketAddr) -> Option<SelfMember> {
    let (host, port) = match advertise {
        Advertise::Members => return None,
        Advertise::ListenAddress => (listen.ip().to_string(), listen.port()),
        Advertise::Endpoint(endpoint) => (endpoint.host().to_owned(), endpoint.port()),
    };
    let member = SelfMember::new(host_name(), &host, port);
    if host.parse().is_ok_and(|address: IpAddr| address.is_unspecified()) {
        info!(%host, client_url = member.client_url, "MemberList names this host, since nobody can dial a wildcard address");
    }
    Some(member)
}

fn pool_config(config: &ProxyConfig) -> PoolConfig {
    PoolConfig {
        dial_timeout: config.dial_timeout,
        keepalive: config.upstream_pings.map(|pings| KeepAlive {
            interval: pings.interval,
            timeout: pings.timeout,
            while_idle: pings.while_idle,
        }),
        ..PoolConfig::new(config.endpoints.clone())
    }
}

/// The pools of all serving threads, for changes that concern each.
#[derive(Clone, Debug, Default)]
struct Pools(Arc<parking_lot::Mutex<Vec<Pool>>>);

impl Pools {
    fn add(&self, pool: Pool) {
        self.0.lock().push(pool);
    }

    fn set_endpoints(&self, endpoints: &[Endpoint]) {
        for pool in self.0.lock().iter() {
            pool.set_endpoints(endpoints);
        }
    }
}

/// Takes the endpoints from the cluster's member list, again and again. Members without a usable client URL, learners
/// and members that have not started are left out; an empty outcome changes nothing.
async fn follow_members(
    pool: Pool,
    pools: Pools,
    cluster: UpstreamCluster,
    endpoints: Vec<Endpoint>,
    interval: Duration,
) {
    const MEMBER_LIST: &str = "/etcdserverpb.Cluster/MemberList";
    let mut current = endpoints;
    loop {
        tokio::time::sleep(interval).await;
        let (head, request) = (Head::grpc(MEMBER_LIST, http::HeaderMap::new()), framed(&MemberListRequest::default()));
        let answer = pool.exchange(Method::of(MEMBER_LIST), &head, request).await;
        let members = match unframed::<MemberListResponse>(answer).await {
            Ok(answer) => answer.members,
            Err(status) => {
                warn!(%status, "member list not available, endpoints stay as they are");
                continue;
            }
        };
        let found: Vec<Endpoint> = members
            .iter()
            .filter(|member| !member.is_learner && !member.name.is_empty())
            .flat_map(|member| member.client_ur_ls.iter().filter_map(|url| url.parse().ok()))
            .collect();
        if !found.is_empty() && found != current {
            let names: Vec<_> = found.iter().map(ToString::to_string).collect();
            info!(endpoints = names.join(","), "endpoints follow the member list");
            cluster.set_endpoints(&found);
            pools.set_endpoints(&found);
            current = found;
        }
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_names_the_host() {
        let url =
            |advertise, listen: &str| self_member(&advertise, listen.parse().unwrap()).map(|member| member.client_url);
        let host = host_name();
        let endpoint = |text: &str| Advertise::Endpoint(text.parse().unwrap());
        assert_eq!(url(Advertise::ListenAddress, "0.0.0.0:7"), Some(format!("http://{host}:7")));
        assert_eq!(url(Advertise::ListenAddress, "[::]:7"), Some(format!("http://{host}:7")));
        assert_eq!(url(Advertise::ListenAddress, "127.0.0.1:7").as_deref(), Some("http://127.0.0.1:7"));
        assert_eq!(url(endpoint("a.example:8"), "0.0.0.0:7").as_deref(), Some("http://a.example:8"));
        assert_eq!(url(endpoint("http://0.0.0.0:8"), "127.0.0.1:7"), Some(format!("http://{host}:8")));
        assert_eq!(url(Advertise::Members, "127.0.0.1:7"), None);
    }
}
