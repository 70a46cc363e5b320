use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::config::CacheConfig;
use super::metrics::CacheMetrics;
use super::promotion::Promotion;
use super::read_index::ReadIndex;
use super::shared::{Retired, SharedReplica};
use super::spawner::Spawner;
use crate::proxy::{Identity, Namespace};
use crate::types::KeyRange;

/// Promoted prefixes of one group.
const PROMOTED_MAX: usize = 16;

/// Clients that carry the same credentials, and their replicas.
pub(super) struct Group {
    pub identity: Identity,
    pub read_index: Arc<ReadIndex>,
    replicas: ArcSwap<Vec<Arc<SharedReplica>>>,
    /// Where no prefix is configured.
    promotion: Option<Promotion>,
    base: Instant,
}

/// What a group takes from its cache.
pub(super) struct GroupParts<'c> {
    pub config: &'c CacheConfig,
    pub cluster: &'c Arc<dyn Cluster>,
    pub spawner: &'c Spawner,
    pub metrics: &'c CacheMetrics,
    /// Times of reads count from here, for all replicas of the process.
    pub base: Instant,
}

impl Group {
    pub fn new(identity: Identity, parts: GroupParts<'_>) -> Self {
        let GroupParts { config, cluster, spawner, metrics, base } = parts;
        let replica = |range: &KeyRange| {
            let (key, range_end) = config.namespace.upstream_range(range);
            Arc::new(SharedReplica::new(range.clone(), KeyRange::from_wire(key, range_end), base))
        };
        let read_index =
            ReadIndex::new(cluster.clone(), identity.clone(), spawner.clone(), metrics.clone(), config.periods);
        let replicas: Vec<_> = config.prefixes.iter().map(replica).collect();
        let promotion = replicas.is_empty().then(|| Promotion::new(Instant::now()));
        Self { identity, read_index, replicas: ArcSwap::from_pointee(replicas), promotion, base }
    }

    /// Whether the caller has the credentials of the group, and not those of a user whom the proxy reads for.
    pub fn is_of(&self, caller: &Identity) -> bool {
        self.identity.has_credentials_of(caller)
    }

    /// The replica that holds a range.
    pub fn covering(&self, range: &KeyRange) -> Option<Arc<SharedReplica>> {
        let replicas = self.replicas.load();
        replicas.iter().find(|replica| replica.range.covers(range) && replica.retired.get().is_none()).cloned()
    }

    /// Counts a read that no replica covers, and promotes its prefix when it is read often enough.
    pub fn count_uncovered(&self, range: &KeyRange, namespace: &Namespace) {
        let (Some(promotion), now) = (&self.promotion, Instant::now()) else { return };
        if self.replicas.load().iter().any(|replica| replica.retired.get().is_some()) {
            self.replicas.rcu(|replicas| {
                let (retired, kept): (Vec<_>, Vec<_>) =
                    replicas.iter().cloned().partition(|replica| replica.retired.get().is_some());
                let refused = retired.iter().filter(|replica| replica.retired.get() == Some(&Retired::NotWorthIt));
                refused.for_each(|replica| promotion.refuse(&replica.range, now));
                kept
            });
        }
        let Some(prefix) = promotion.count(range, now) else { return };
        let (key, range_end) = namespace.upstream_range(&prefix);
        let replica = Arc::new(SharedReplica::promoted(prefix, KeyRange::from_wire(key, range_end), self.base));
        self.replicas.rcu(|replicas| {
            let is_there = replicas.iter().any(|other| other.range.covers(&replica.range));
            let more = (!is_there && replicas.len() < PROMOTED_MAX).then(|| replica.clone());
            replicas.iter().cloned().chain(more).collect::<Vec<_>>()
        });
    }

    /// All of them, those that were never read included.
    pub fn replicas(&self) -> Arc<Vec<Arc<SharedReplica>>> {
        self.replicas.load_full()
    }

    /// Whether none of its replicas has a task.
    pub fn is_idle(&self) -> bool {
        self.replicas.load().iter().all(|replica| !replica.running.load(Ordering::Relaxed))
    }
}
