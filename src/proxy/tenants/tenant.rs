use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::compaction::AgreedCompaction;
use super::stored::Counting;
use crate::client::{Channel, Pool, SharedLogin};
use crate::net::ClientTls;
use crate::proxy::Identity;
use crate::proxy::cache::RangeCache;
use crate::proxy::endpoints::UpstreamPools;
use crate::proxy::lease::KeepAliveBroadcasts;
use crate::proxy::limits::Limits;
use crate::proxy::namespace::{Namespace, Rights};
use crate::proxy::watch::{ReplicaWatches, Subscription, WatchHub};
use crate::shutdown::Tasks;
use crate::types::KeyRange;

/// What a client sees of the cluster and may do to it.
#[derive(Debug)]
pub struct Tenant {
    id: u64,
    /// For logs; empty where all clients are one tenant.
    pub name: Arc<str>,
    /// The keys it sees.
    pub namespace: Namespace,
    /// What it may do.
    pub rights: Rights,
    /// Who its requests are for the cluster; none for what each says itself.
    pub user: Option<TenantUser>,
    /// Its part in the agreement on compactions; none where its wishes are refused, or need no agreement.
    pub compaction: Option<AgreedCompaction>,
    /// What it may use.
    pub limits: Arc<Limits>,
    /// What runs for it alone; stops when it is gone.
    pub(super) tasks: Tasks,
    /// Of a tenant that is a user.
    pub(super) keep_alives: OnceLock<KeepAliveBroadcasts>,
    /// Of a tenant that is a user: for what the proxy asks of the cluster on its behalf.
    pub(super) own_channel: OnceLock<Channel>,
    pub(super) counting: Arc<Counting>,
    pub(super) hub: OnceLock<WatchHub>,
    pub(super) cache: Arc<TenantRangeCache>,
}

/// The range cache of a tenant, once it has read anything.
#[derive(Debug, Default)]
pub(super) struct TenantRangeCache(pub OnceLock<Option<RangeCache>>);

impl ReplicaWatches for TenantRangeCache {
    fn subscribe(&self, identity: &Identity, range: &KeyRange) -> Option<Subscription> {
        self.0.get()?.as_ref()?.subscribe(identity, range)
    }
}

/// The user of the cluster that a tenant is.
#[derive(Clone, Debug)]
pub enum TenantUser {
    /// One that logs in.
    Login(SharedLogin),
    /// The one that a certificate names.
    Certificate(ClientTls),
}

impl TenantUser {
    /// A way to the cluster as this user, on the current runtime; `pool` is that of the runtime.
    pub(in crate::proxy) fn channel(&self, pool: &Pool, pools: &UpstreamPools, tasks: &Tasks) -> Channel {
        match self {
            Self::Login(login) => Channel::of_login(pool.clone(), login),
            Self::Certificate(tls) => Channel::of_certificate(pools.open_with(Some(tls.clone()), tasks)),
        }
    }
}

impl Tenant {
    /// A tenant that sees `namespace` and may do what is within it, as whoever its clients are.
    pub fn new(name: impl Into<Arc<str>>, namespace: Namespace, tasks: &Tasks) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            namespace,
            rights: Rights::default(),
            user: None,
            compaction: None,
            limits: Arc::default(),
            tasks: tasks.child(),
            keep_alives: OnceLock::new(),
            own_channel: OnceLock::new(),
            counting: Arc::default(),
            hub: OnceLock::new(),
            cache: Arc::default(),
        }
    }

    /// Different for all tenants that this process ever has.
    pub(in crate::proxy) fn id(&self) -> u64 {
        self.id
    }

    /// Where what runs for this tenant runs.
    pub(in crate::proxy) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Its range cache, if it has read anything.
    pub(in crate::proxy) fn range_cache(&self) -> Option<&RangeCache> {
        self.cache.0.get()?.as_ref()
    }

    /// Its watch hub, if it has watched anything.
    pub(in crate::proxy) fn watch_hub(&self) -> Option<&WatchHub> {
        self.hub.get()
    }
}
