//! `grpc-proxy start`: the L7 proxy as a process, or as a part of one.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::process::{notify_ready, raise_descriptor_limit, refuse, run_to_end, without_config};
use super::reload::{ask_at_hangups, hangups};
use super::sources;
use super::tenants::{TenantListeners, TenantsFileChanges, TenantsOfFile, listen_addresses};
use crate::client::{Channel, KeepAlive, PoolConfig, UpstreamCluster, check_one_cluster};
use crate::config::{
    Advertise, ListenAddress, ListenUrl, ProxyConfig, ProxyUserConfig, RangeCacheConfig, parse_proxy_config,
};
use crate::discovery::{Discovery, Followed, MemberList, StaticList, current_endpoints};
use crate::listener::{ConnectionLimits, ListenerConfig, Protection, Serving, WorkerId, bind, bind_unix, serve};
use crate::net::{Alpn, ClientTls, ClientTlsConfig, Identity, ServerAuth, ServerTls, descriptor_limit};
use crate::pages::Profiles;
use crate::proxy::{
    CacheBudget, CacheMetrics, CacheParts, CacheReads, KeepAliveBroadcasts, KnownLeases, Listeners, MessageLimits,
    Namespace, PageListeners, ProxyService, ProxyUser, ProxyWatchMetrics, ReadPermissions, RegisteredProxies,
    Registration, ResponseMemory, SelfMember, Tenant, TenantCache, TenantUpstream, Tenants, UpstreamPools, WorkerParts,
    pause_without_cluster, proxy_calls,
};
use crate::shutdown::{Interruptions, Tasks};
use crate::telemetry::{Metrics, init_logging};
use crate::types::KeyRange;

/// Memory of the range cache, unless told.
const CACHE_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// Runs `grpc-proxy start` with the arguments after these words and returns the exit code.
pub fn run(args: &[OsString]) -> u8 {
    let config = match parse_proxy_config(args) {
        Ok(config) => config,
        Err(error) => return without_config("grpc-proxy start", &error),
    };
    if let Err(error) = init_logging(&config.log) {
        return refuse(error);
    }
    raise_descriptor_limit();
    serve_until_told(config)
}

/// Runs a proxy until SIGINT or SIGTERM and returns the exit code.
pub(super) fn serve_until_told(config: ProxyConfig) -> u8 {
    match run_to_end(run_until_told(config)) {
        Ok(()) => 0,
        Err(error) => refuse(format!("{error:#}")),
    }
}

async fn run_until_told(config: ProxyConfig) -> anyhow::Result<()> {
    let tasks = Tasks::new();
    let grace = config.grace;
    // From here on, so that one which comes early does not end the process.
    let hangup = hangups()?;
    let mut interruptions = Interruptions::new().context("install the signal handlers")?;
    let tenants_file = config.tenants.as_ref().map(TenantsFileChanges::of).transpose()?;
    let listed = tokio::select! {
        listed = listed_endpoints(&config, &tasks) => listed?,
        // SIGINT and SIGTERM end the wait for the first endpoints, too.
        _ = interruptions.next() => return Ok(()),
    };
    let pool = PoolConfig { endpoints: current_endpoints(&*listed), ..pool_config(&config, upstream_tls(&config)?) };
    check_one_cluster(&pool, &tasks).await.context("--endpoints")?;
    let proxy = start_with(config, listed, tenants_file, &tasks)?;
    let (sources, stop) = (proxy.sources.clone(), tasks.stop_signal());
    tasks.spawn(async move { stop.run_until_cancelled(ask_at_hangups(hangup, sources)).await });
    notify_ready();
    interruptions.next().await;
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
    /// Where its endpoints come from.
    sources: Vec<Followed>,
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

/// The source that the flags name.
///
/// # Errors
/// When nothing is found to begin with, or when what is found cannot be used.
pub async fn listed_endpoints(config: &ProxyConfig, tasks: &Tasks) -> anyhow::Result<Box<dyn Discovery>> {
    let tls = config.upstream_tls.as_ref();
    let found = match (&config.srv, &config.peers) {
        (_, Some(peers)) => sources::of_peers(peers, tasks).await?,
        (Some(srv), None) => {
            let usual = ClientTlsConfig::new(Alpn::H2);
            let handshake = ClientTls::new(tls.unwrap_or(&usual)).context("TLS with members")?;
            sources::of_srv(srv, handshake, tasks).await?
        }
        (None, None) => {
            // As the member list will name them.
            let endpoints = config.endpoints.iter().map(|endpoint| endpoint.clone().settled(tls.is_some()));
            return Ok(Box::new(StaticList::new(endpoints)));
        }
    };
    for endpoint in current_endpoints(&*found) {
        let own = |ip: &IpAddr| SocketAddr::new(*ip, endpoint.port()) == config.listen;
        let named = endpoint.host().parse().is_ok_and(|ip| own(&ip));
        if named || endpoint.addresses().is_some_and(|addresses| addresses.iter().any(own)) {
            bail!("{}: {endpoint} is the proxy's own --listen-addr", found.name());
        }
        if matches!(config.user, Some(ProxyUserConfig::Certificate(_))) && !endpoint.uses_tls(false) {
            bail!("--user-cert: {endpoint} is an endpoint without TLS");
        }
    }
    Ok(found)
}

/// Starts a proxy in front of the endpoints of `listed`; it stops with `tasks`, or by [`RunningProxy::finish`].
///
/// # Errors
/// When an address cannot be bound; names its flag.
pub fn start(config: ProxyConfig, listed: Box<dyn Discovery>, tasks: &Tasks) -> anyhow::Result<RunningProxy> {
    let tenants_file = config.tenants.as_ref().map(TenantsFileChanges::of).transpose()?;
    start_with(config, listed, tenants_file, tasks)
}

/// The same, where the file of tenants may have changed since it was read.
fn start_with(
    config: ProxyConfig,
    listed: Box<dyn Discovery>,
    tenants_file: Option<TenantsFileChanges>,
    tasks: &Tasks,
) -> anyhow::Result<RunningProxy> {
    let tasks = tasks.child();
    let tls = config.listen_tls.as_ref().map(ServerTls::new).transpose().context("TLS with clients")?;
    let protection = |secure| tls.clone().filter(|_| secure).map_or(Protection::Plain, Protection::Tls);
    let upstream_tls = upstream_tls(&config)?;
    let mut listeners = vec![bind(config.listen).context("--listen-addr")?.speaking(protection(true))];
    info!(address = %config.listen, "listening for gRPC proxy client requests");
    let bind_url = |url: &ListenUrl| {
        let socket = match url.address() {
            ListenAddress::Tcp(address) => bind(*address),
            ListenAddress::Unix(path) => bind_unix(path),
        };
        socket.map(|socket| socket.speaking(protection(url.is_tls())))
    };
    for url in &config.metrics_listen {
        listeners.push(bind_url(url).context("--metrics-addr")?);
        info!(address = %url, "gRPC proxy listening for metrics");
    }
    let metrics_listeners = match config.metrics_listen.len() {
        0 => None,
        count => Some((listeners.len() - count, listeners.len() - 1)),
    };
    for url in &config.listen_too {
        listeners.push(bind_url(url).with_context(|| format!("--listen-client-urls: {url}"))?);
        info!(address = %url, "listening for gRPC proxy client requests");
    }
    let tenant_listeners: Vec<SocketAddr> = match &config.tenants {
        Some(file) => listen_addresses(&file.tenants, config.listen).into_iter().collect(),
        None => Vec::new(),
    };
    let fixed_listeners = listeners.len();
    for address in &tenant_listeners {
        let socket = bind(*address).with_context(|| format!("--tenants-file: listen: {address}"))?;
        listeners.push(socket.speaking(protection(true)));
        info!(%address, "listening for requests of tenants");
    }
    let metrics = Metrics::new();
    let calls = proxy_calls(&metrics);
    let mut of_file = config.tenants.as_ref().map(|file| {
        let plain_endpoints =
            current_endpoints(&*listed).iter().any(|endpoint| !endpoint.uses_tls(upstream_tls.is_some()));
        TenantsOfFile::new(config.upstream_tls.clone(), plain_endpoints, file.requests_max, &metrics, &tasks)
    });
    let tenants = match &of_file {
        Some(of_file) => of_file.tenants(),
        None => {
            let mut everybody = Tenant::new("", Namespace::new(config.namespace.clone()), &tasks);
            everybody.rights.admin = config.namespace_admin;
            Tenants::everybody(everybody)
        }
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut self_member = self_member(&config.advertise, scheme, listeners[0].local_addr().context("--listen-addr")?);
    let listener_config = ListenerConfig {
        max_concurrent_streams: config.max_concurrent_streams,
        keepalive_interval: config.keepalive_interval,
        keepalive_timeout: config.keepalive_timeout,
        ping_min_time: Some(config.keepalive_min_time),
        grace: config.grace,
        ..ListenerConfig::default()
    };
    let endpoints = current_endpoints(&*listed);
    let serving_threads = config.serving_threads.unwrap_or(listener_config.serving_threads);
    let listener_config = ListenerConfig {
        serving_threads,
        connections_max: ConnectionLimits::of_proxy(descriptor_limit(), serving_threads, endpoints.len()),
        ..listener_config
    };
    let cluster = UpstreamCluster::new(&endpoints, &metrics);
    let names: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
    let pool_config = PoolConfig { cluster: Some(cluster.clone()), endpoints, ..pool_config(&config, upstream_tls) };
    let pools = UpstreamPools::new(pool_config);
    let user = own_user(&config, &pools, &tasks)?;
    let own_channel = || user.as_ref().map(|user| user.channel(&pools, &tasks));
    let members = config.auto_sync.map(|interval| {
        let channel = own_channel().unwrap_or_else(|| Channel::new(pools.open(&tasks)));
        MemberList::follow(channel, &*listed, interval, &tasks)
    });
    let source: &dyn Discovery = members.as_ref().map_or(&*listed, |members| members);
    let sources = sources::counted(&*listed, members.as_ref(), &metrics);
    let asks = user.is_some() || config.cache.is_some();
    let permissions = asks.then(|| ReadPermissions::new(pools.open(&tasks), &metrics, &tasks));
    let reader =
        own_channel().zip(permissions.clone()).map(|(channel, permissions)| ProxyUser { channel, permissions });
    let cache = config.cache.as_ref().zip(permissions.clone()).map(|(cache, permissions)| {
        let metrics = CacheMetrics::register(&metrics);
        let budget = CacheBudget::new(cache_bytes(cache), &metrics);
        let parts = CacheParts {
            pool: pools.open(&tasks),
            own: own_channel(),
            is_callers_user: false,
            permissions,
            budget: if config.tenants.is_some() { budget.of_several_tenants() } else { budget },
            metrics,
            tasks: tasks.clone(),
        };
        tenant_cache(cache, parts)
    });
    let upstream = Arc::new(TenantUpstream {
        watch_pool: pools.open(&tasks),
        pools: pools.clone(),
        reader,
        watch_metrics: ProxyWatchMetrics::register(&metrics),
        progress_interval: config.watch_progress_notify_interval,
        cache,
        runtime: Handle::current(),
    });
    // The only tenant has its hub before its first watch comes.
    for tenant in tenants.current().tenants() {
        upstream.hub(tenant);
    }
    if let (Some(member), Some(resolver)) = (&mut self_member, &config.resolver) {
        let channel = match &user {
            Some(user) => user.channel(&pools, &tasks),
            None => Channel::new(pools.open(&tasks)),
        };
        let registration = Registration {
            namespace: Namespace::new(config.namespace.clone()),
            prefix: resolver.prefix.clone(),
            address: member.address().to_owned(),
            name: member.name.clone(),
            ttl: resolver.ttl,
            scheme,
        };
        member.registered = Some(RegisteredProxies::start(channel, registration, &tasks));
    }
    let page_listeners = match (&config.tenants, metrics_listeners) {
        (Some(_), numbers) => PageListeners::of_tenants(numbers),
        (None, Some((first, last))) => PageListeners { status: Listeners::Only(first, last), ..PageListeners::all() },
        (None, None) => PageListeners::all(),
    };
    let limits = MessageLimits { send_bytes_max: config.send_bytes_max, receive_bytes_max: config.receive_bytes_max };
    let health_pool = pools.open(&tasks);
    // In a pool whose only requests were streams nothing would show which endpoints know a leader, or are learners.
    let leases = KeepAliveBroadcasts::new(Channel::new(health_pool.clone()), tasks.clone());
    let paused = pause_without_cluster(health_pool.clone(), &metrics, &tasks);
    let (worker_tasks, worker_pools) = (tasks.clone(), pools.clone());
    let (response_memory, known_leases) = (ResponseMemory::new(config.answer_memory_bytes), KnownLeases::default());
    let make = move |worker: WorkerId| {
        let parts = WorkerParts {
            pool: worker_pools.open(&worker_tasks),
            tenants: tenants.clone(),
            upstream: upstream.clone(),
            page_listeners,
            leases: leases.clone(),
            permissions: permissions.clone(),
            paused: paused.clone(),
            limits,
            health_pool: health_pool.clone(),
            self_member: self_member.clone(),
            response_memory: response_memory.clone(),
            known_leases: known_leases.clone(),
            metrics: metrics.clone(),
            profiles: config.enable_pprof.then_some(Profiles),
            calls: calls.clone(),
            tasks: worker_tasks.clone(),
        };
        ProxyService::new(worker, parts)
    };
    if let (Some(of_file), Some(file)) = (&mut of_file, &config.tenants) {
        let numbers = tenant_listeners.iter().zip(fixed_listeners..).map(|(address, number)| (*address, number));
        let numbers = numbers.chain([(config.listen, 0)]).collect();
        of_file.replace(&file.tenants, &numbers).with_context(|| file.file.display().to_string())?;
        info!(file = %file.file.display(), tenants = file.tenants.len(), "serving the tenants of a file");
    }
    let mut serving = serve(listeners, listener_config, make, &tasks).context("start serving")?;
    pools.follow(source, cluster, &tasks);
    if let (Some(of_file), Some(file), Some(changes)) = (of_file, config.tenants, tenants_file) {
        let opened = serving.take_listeners().into_iter().skip(fixed_listeners);
        let listeners = TenantListeners {
            listening: serving.listening().clone(),
            protection: protection(true),
            fixed: HashMap::from([(config.listen, 0)]),
            open: tenant_listeners.into_iter().zip(opened).collect(),
        };
        of_file.follow(file, changes, listeners, &tasks);
    }
    if config.enable_pprof {
        info!(path = "/debug/pprof", "gRPC proxy enabled pprof");
    }
    info!(address = %config.listen, endpoints = names.join(","), namespace = %config.namespace.escape_ascii(), "started gRPC proxy");
    Ok(RunningProxy { serving, tasks, sources })
}

/// What the range caches of tenants hold.
fn tenant_cache(config: &RangeCacheConfig, parts: CacheParts) -> TenantCache {
    let reads = if config.linearizable { CacheReads::Linearizable } else { CacheReads::Serializable };
    let prefixes = config.prefixes.iter().map(|prefix| KeyRange::prefix(prefix.clone().into_bytes().into())).collect();
    TenantCache { reads, prefixes, staleness: config.staleness, parts }
}

/// Memory of the range cache.
fn cache_bytes(config: &RangeCacheConfig) -> usize {
    let bytes = config.bytes_max.unwrap_or_else(|| CACHE_BYTES_MAX.min(memory_bytes() / 4));
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Memory of the machine.
fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// The proxy as MemberList names it.
fn self_member(advertise: &Advertise, scheme: &str, listen: SocketAddr) -> Option<SelfMember> {
    let (scheme, host, port) = match advertise {
        Advertise::Members => return None,
        Advertise::ListenAddress => (scheme, listen.ip().to_string(), listen.port()),
        Advertise::Endpoint(endpoint) => {
            let scheme = if endpoint.uses_tls(scheme == "https") { "https" } else { "http" };
            (scheme, endpoint.host().to_owned(), endpoint.port())
        }
    };
    let member = SelfMember::new(host_name(), scheme, &host, port);
    if host.parse().is_ok_and(|address: IpAddr| address.is_unspecified()) {
        info!(%host, client_url = member.client_url, "MemberList names this host, since nobody can dial a wildcard address");
    }
    Some(member)
}

/// Who the proxy itself is for the cluster.
enum OwnUser {
    Password(Channel),
    /// Shown on connections that carry no request of a client: to a member they are all that user's.
    Certificate(ClientTls),
}

impl OwnUser {
    /// A way to the cluster as this user, on the current runtime.
    fn channel(&self, pools: &UpstreamPools, tasks: &Tasks) -> Channel {
        match self {
            // All of them share one login.
            Self::Password(channel) => channel.through(pools.open(tasks)),
            Self::Certificate(tls) => Channel::new(pools.open_with(Some(tls.clone()), tasks)),
        }
    }
}

fn own_user(config: &ProxyConfig, pools: &UpstreamPools, tasks: &Tasks) -> anyhow::Result<Option<OwnUser>> {
    let (name, user) = match &config.user {
        None => return Ok(None),
        Some(ProxyUserConfig::Password(user)) => {
            (user.name.clone(), OwnUser::Password(Channel::of_user(pools.open(tasks), user.clone())))
        }
        Some(ProxyUserConfig::Certificate(tls)) => {
            let files = tls.identity.clone().context("--user-cert, --user-key")?;
            let name = Identity::from_files(files).context("--user-cert, --user-key")?.common_name();
            let name = name.filter(|name| !name.is_empty());
            let name = name.context("--user-cert: the certificate has no Common Name, which would be the user")?;
            (name.to_string(), OwnUser::Certificate(ClientTls::new(tls).context("TLS with members")?))
        }
    };
    info!(
        user = name,
        "watches of all clients are read as this user, each client's permission is asked of the cluster"
    );
    Ok(Some(user))
}

/// TLS with members. As in etcd, a certificate with a common name is refused: members would take it for the user of
/// every client of the proxy.
fn upstream_tls(config: &ProxyConfig) -> anyhow::Result<Option<ClientTls>> {
    let Some(tls) = &config.upstream_tls else { return Ok(None) };
    if let Some(files) = &tls.identity {
        let name = Identity::from_files(files.clone()).context("--cert, --key")?.common_name();
        if let Some(name) = name {
            bail!("--cert: cert has non empty Common Name ({name}): {}", files.certificates.display());
        }
    }
    if tls.servers == ServerAuth::Skip {
        warn!(
            "--insecure-skip-tls-verify was given, this grpc proxy process skips authentication of etcd server TLS \
             certificates. This option should be enabled only for testing purposes."
        );
    }
    Ok(Some(ClientTls::new(tls).context("TLS with members")?))
}

fn pool_config(config: &ProxyConfig, tls: Option<ClientTls>) -> PoolConfig {
    PoolConfig {
        tls,
        dial_timeout: config.dial_timeout,
        keepalive: config.upstream_pings.map(|pings| KeepAlive {
            interval: pings.interval,
            timeout: pings.timeout,
            while_idle: pings.while_idle,
        }),
        ..PoolConfig::new(config.endpoints.clone())
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
        let url = |advertise, listen: &str| {
            self_member(&advertise, "http", listen.parse().unwrap()).map(|member| member.client_url)
        };
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
