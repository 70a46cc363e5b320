use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::cluster::Cluster;
use super::config::CacheConfig;
use super::metrics::CacheMetrics;
use super::read_index::ReadIndex;
use super::shared::SharedReplica;
use super::spawner::Spawner;
use crate::proxy::Identity;
use crate::types::KeyRange;

/// Clients that carry the same credentials, and their replicas.
pub(super) struct Group {
    pub identity: Identity,
    pub read_index: Arc<ReadIndex>,
    replicas: Vec<Arc<SharedReplica>>,
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
        Self { identity, read_index, replicas: config.prefixes.iter().map(replica).collect() }
    }

    /// Whether the caller has the credentials of the group, and not those of a user whom the proxy reads for.
    pub fn is_of(&self, caller: &Identity) -> bool {
        self.identity.has_credentials_of(caller)
    }

    /// The replica that holds a range.
    pub fn covering(&self, range: &KeyRange) -> Option<&Arc<SharedReplica>> {
        self.replicas.iter().find(|replica| replica.range.covers(range))
    }

    /// All of them, those that were never read included.
    pub fn replicas(&self) -> &[Arc<SharedReplica>] {
        &self.replicas
    }

    /// Whether none of its replicas has a task.
    pub fn is_idle(&self) -> bool {
        self.replicas.iter().all(|replica| !replica.running.load(Ordering::Relaxed))
    }
}
