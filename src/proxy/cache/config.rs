use std::time::Duration;

use crate::proxy::Namespace;
use crate::types::KeyRange;

/// Which reads are answered from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheReads {
    /// Serializable ones; the others pass.
    Serializable,
    /// All.
    Linearizable,
}

/// What is cached, and how.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// The keys its clients see.
    pub namespace: Namespace,
    /// Which reads are answered.
    pub reads: CacheReads,
    /// Ranges that are cached, as clients see them; the first that covers a request serves it. Without any, prefixes that are read
    /// often are promoted.
    pub prefixes: Vec<KeyRange>,
    /// How long ago a write may have been acknowledged that a serializable read does not show.
    pub staleness: Duration,
    pub(super) periods: Periods,
}

impl CacheConfig {
    /// Caches `prefixes`, or all of a namespace when none is given.
    pub fn new(namespace: Namespace, reads: CacheReads, prefixes: Vec<KeyRange>, staleness: Duration) -> Self {
        let whole = prefixes.is_empty() && !namespace.is_whole();
        let prefixes = if whole { vec![KeyRange::prefix("".into())] } else { prefixes };
        Self { namespace, reads, prefixes, staleness, periods: Periods::default() }
    }
}

/// Times the cache works with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Periods {
    /// Bounds of the wait of a linearizable read for its replica; past that it passes.
    pub wait_min: Duration,
    pub wait_max: Duration,
    /// Such a read waits no longer for others that it could serve too.
    pub gather_max: Duration,
    /// A read of the cluster's revision is given up after this.
    pub read_index_max: Duration,
    /// Pauses before progress is requested again, while a member is behind.
    pub progress_first: Duration,
    pub progress_max: Duration,
    /// How long a member may take to confirm a watch or to answer a page.
    pub answer_max: Duration,
    /// Progress is requested when the position is older: a watch whose position is compacted cannot be resumed.
    pub position_max: Duration,
    /// Pauses before a watch that ended is opened again.
    pub resume_first: Duration,
    pub resume_max: Duration,
    /// Pauses before a replica that was dropped is loaded again.
    pub reload_first: Duration,
    pub reload_max: Duration,
    /// The pause when it was larger than the budget, or the member cannot be trusted with progress.
    pub reload_late: Duration,
    /// A replica without a read for this long is dropped.
    pub idle_max: Duration,
    /// The same for the replica of a prefix that was promoted.
    pub promoted_idle_max: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self {
            wait_min: Duration::from_millis(20),
            wait_max: Duration::from_millis(500),
            gather_max: Duration::from_millis(1),
            read_index_max: Duration::from_secs(2),
            progress_first: Duration::from_millis(2),
            progress_max: Duration::from_millis(50),
            answer_max: Duration::from_secs(10),
            position_max: Duration::from_secs(30),
            resume_first: Duration::from_millis(20),
            resume_max: Duration::from_secs(1),
            reload_first: Duration::from_millis(500),
            reload_max: Duration::from_secs(30),
            reload_late: Duration::from_secs(60),
            idle_max: Duration::from_secs(600),
            promoted_idle_max: Duration::from_secs(60),
        }
    }
}
