use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tonic::Status;

use super::compaction::Agreement;
use super::stored::StoredCount;
use super::tenant::{Tenant, TenantUser};
use crate::api_error::ApiError;
use crate::client::{Channel, Pool};
use crate::pb::etcdserverpb::{CompactionRequest, CompactionResponse};
use crate::proxy::cache::{CacheConfig, CacheParts, CacheReads, RangeCache};
use crate::proxy::endpoints::UpstreamPools;
use crate::proxy::identity::{Identity, ProxyUser};
use crate::proxy::lease::KeepAliveBroadcasts;
use crate::proxy::watch::{HubReader, ProxyWatchMetrics, WatchHub, WatchHubConfig};
#[cfg(any(test, fuzzing))]
use crate::shutdown::Tasks;
use crate::types::{KeyRange, Revision};

/// What the range cache of each tenant holds, and what they share.
pub struct TenantCache {
    /// Which reads are answered.
    pub reads: CacheReads,
    /// Prefixes as clients see them; all of the namespace when there is none.
    pub prefixes: Vec<KeyRange>,
    /// Bound of what a serializable read may not show yet.
    pub staleness: Duration,
    /// Shared.
    pub parts: CacheParts,
}

/// What the tenants of a process need of the cluster. One pool of connections serves the watches of all of them; a hub or
/// a cache is made when its tenant first needs it, so that a tenant without clients costs nothing.
pub struct TenantUpstream {
    /// The pools of all.
    pub pools: UpstreamPools,
    /// Of the watches of all tenants, and used on this runtime alone.
    pub watch_pool: Pool,
    /// The user that reads for all clients.
    pub reader: Option<ProxyUser>,
    /// Made by [`ProxyWatchMetrics::register`].
    pub watch_metrics: ProxyWatchMetrics,
    /// Between two progress notifications of an idle watch.
    pub progress_interval: Duration,
    /// None where nothing is cached.
    pub cache: Option<TenantCache>,
    /// The runtime of hubs and caches, which outlive the connections of clients.
    pub runtime: Handle,
}

impl TenantUpstream {
    /// Without a user of the proxy, and without a cache.
    #[cfg(any(test, fuzzing))]
    pub(in crate::proxy) fn for_tests(
        pools: UpstreamPools,
        metrics: &crate::telemetry::Metrics,
        tasks: &Tasks,
    ) -> Arc<Self> {
        Arc::new(Self {
            watch_pool: pools.open(tasks),
            pools,
            reader: None,
            watch_metrics: ProxyWatchMetrics::register(metrics),
            progress_interval: Duration::from_secs(600),
            cache: None,
            runtime: Handle::current(),
        })
    }

    /// The tenant's watch hub, shared by all serving threads.
    pub fn hub<'t>(&self, tenant: &'t Tenant) -> &'t WatchHub {
        tenant.hub.get_or_init(|| {
            let _runtime = self.runtime.enter();
            let mut config = WatchHubConfig::new(tenant.namespace.clone());
            config.progress_interval = self.progress_interval;
            config.tenant_limits = tenant.limits.clone();
            config.replicas = Some(tenant.cache.clone());
            let tasks = tenant.tasks();
            let reader = match &tenant.user {
                Some(user) => HubReader::Callers(user.channel(&self.watch_pool, &self.pools, tasks)),
                None => self.reader.clone().map_or(HubReader::Clients, HubReader::Proxy),
            };
            WatchHub::new(self.watch_pool.clone(), reader, config, self.watch_metrics.clone(), tasks)
        })
    }

    /// Notes that a tenant is active which takes part in the agreement on compactions, if that is due.
    pub(in crate::proxy) fn note_active(&self, tenant: &Arc<Tenant>, headers: &HeaderMap) {
        if tenant.compaction.as_ref().is_some_and(|compaction| compaction.is_due(Instant::now())) {
            let (tenant, agreement) = (tenant.clone(), self.agreement(tenant, headers));
            let tasks = tenant.tasks().clone();
            let _runtime = self.runtime.enter();
            tasks.spawn(async move {
                if let Some(compaction) = &tenant.compaction {
                    compaction.note_active(&agreement).await;
                }
            });
        }
    }

    /// Has what the tenant has stored counted from its first request on, if that has a limit.
    pub(in crate::proxy) fn count_stored(&self, tenant: &Tenant, headers: &HeaderMap) {
        if tenant.limits.counts_stored() && tenant.counting.is_due(headers) {
            let _runtime = self.runtime.enter();
            let count = StoredCount {
                as_caller: self.reader.is_none() && tenant.user.is_none(),
                channel: self.agreement(tenant, headers).channel,
                namespace: tenant.namespace.clone(),
                limits: tenant.limits.clone(),
                counting: tenant.counting.clone(),
            };
            let (tasks, stop) = (tenant.tasks(), tenant.tasks().stop_signal());
            tasks.spawn(async move {
                stop.run_until_cancelled(count.run()).await;
            });
        }
    }

    /// Keeps a tenant's wish to compact the cluster, and compacts it where all agree; answers with that revision too.
    pub(in crate::proxy) async fn wish(
        &self,
        tenant: &Arc<Tenant>,
        headers: &HeaderMap,
        request: CompactionRequest,
        before: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(CompactionResponse, Option<Revision>), Status> {
        let (tenant, agreement) = (tenant.clone(), self.agreement(tenant, headers));
        let tasks = tenant.tasks().clone();
        let wishing = {
            let _runtime = self.runtime.enter();
            tasks.spawn(async move {
                match &tenant.compaction {
                    Some(compaction) => compaction.wish(request, &agreement, before).await,
                    None => Err(ApiError::PermissionDenied.into()),
                }
            })
        };
        wishing.await.unwrap_or_else(|_| Err(ApiError::Stopped.into()))
    }

    /// Requests of the agreement are those of the proxy's own user, else of the tenant's, else of the caller.
    fn agreement(&self, tenant: &Tenant, headers: &HeaderMap) -> Agreement {
        let (channel, metadata) = match (&self.reader, &tenant.user) {
            (Some(reader), _) => (reader.channel.clone(), HeaderMap::new()),
            (None, Some(user)) => {
                let _runtime = self.runtime.enter();
                let open = || user.channel(&self.watch_pool, &self.pools, tenant.tasks());
                (tenant.own_channel.get_or_init(open).clone(), HeaderMap::new())
            }
            (None, None) => (Channel::new(self.watch_pool.clone()), Identity::of(headers).metadata()),
        };
        Agreement { channel, metadata }
    }

    /// The keep-alives of a tenant that is this user, shared by all serving threads.
    pub(in crate::proxy) fn keep_alives<'t>(&self, tenant: &'t Tenant, user: &TenantUser) -> &'t KeepAliveBroadcasts {
        tenant.keep_alives.get_or_init(|| {
            let _runtime = self.runtime.enter();
            let channel = user.channel(&self.watch_pool, &self.pools, tenant.tasks());
            KeepAliveBroadcasts::new(channel, tenant.tasks().clone())
        })
    }

    /// The tenant's range cache, shared by all serving threads. That of a tenant that is a user of its own reads as that user, and
    /// asks as that user what may be read.
    pub fn range_cache<'t>(&self, tenant: &'t Tenant) -> Option<&'t RangeCache> {
        let make = || {
            let cache = self.cache.as_ref()?;
            let _runtime = self.runtime.enter();
            let prefixes = cache.prefixes.clone();
            let config = CacheConfig::new(tenant.namespace.clone(), cache.reads, prefixes, cache.staleness);
            let (shared, tasks) = (cache.parts.clone(), tenant.tasks().clone());
            let parts = match &tenant.user {
                None => CacheParts { tasks, ..shared },
                Some(user) => {
                    let own = user.channel(&shared.pool, &self.pools, &tasks);
                    let permissions = shared.permissions.of_user(own.clone(), &tasks);
                    CacheParts { own: Some(own), is_callers_user: true, permissions, tasks, ..shared }
                }
            };
            Some(RangeCache::new(config, parts))
        };
        tenant.cache.0.get_or_init(make).as_ref()
    }
}
