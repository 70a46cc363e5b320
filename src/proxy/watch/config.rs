use std::sync::Arc;
use std::time::Duration;

use super::upstream::ReplicaWatches;
use crate::eventlog::WatchLimits;
use crate::net::Backoff;
use crate::proxy::Namespace;
use crate::proxy::limits::Limits;
use crate::types::KeyRange;

/// How a hub covers the key space.
#[derive(Clone, Debug)]
pub struct WatchHubConfig {
    /// The keys its clients see.
    pub namespace: Namespace,
    /// Prefixes, as clients see them, that are watched whole from the first watch below them. A namespace is one by
    /// itself; ranges outside of all follow the rule of promotion.
    pub prefixes: Vec<KeyRange>,
    /// What its clients may use.
    pub tenant_limits: Arc<Limits>,
    /// Memory for the newest events of one upstream watch.
    pub log_bytes_max: usize,
    /// Bounds and periods towards clients.
    pub limits: WatchLimits,
    /// Between two progress notifications of an idle watch, where the interval of the member cannot be followed or is
    /// longer.
    pub progress_interval: Duration,
    /// Watches of the range cache that broadcasts read where they can.
    pub(in crate::proxy) replicas: Option<Arc<dyn ReplicaWatches>>,
    pub(super) periods: Periods,
}

impl WatchHubConfig {
    /// Usual values for the clients of a namespace.
    pub fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            prefixes: Vec::new(),
            tenant_limits: Arc::default(),
            log_bytes_max: 16 * 1024 * 1024,
            // A member cuts at its --max-request-bytes and 512 KiB. The proxy does not know the former, and stays
            // below what any member would send.
            limits: WatchLimits { fragment_bytes: 512 * 1024, progress_interval: None, ..WatchLimits::default() },
            progress_interval: Duration::from_secs(600),
            replicas: None,
            periods: Periods::default(),
        }
    }
}

/// Times the hub works with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Periods {
    /// How long an upstream watch outlives its last client watch, for clients that come back at once.
    pub linger: Duration,
    /// First pause after a member failed; it doubles up to `retry_max`.
    pub retry_first: Duration,
    pub retry_max: Duration,
    /// A member that lags does not answer a progress request: another one is sent after this.
    pub progress_again: Duration,
    /// A watch of a member that answers progress requests out of order has all past events when none has come for so long:
    /// such a member looks for what a watch still needs every 100 ms.
    pub settled: Duration,
    /// A refresh is given up after this; its client gets no answer, as from a member that lags.
    pub refresh_max: Duration,
    /// A permission is asked for again when the last answer is older than this: the bound within which a revoked one
    /// takes effect on new watches.
    pub permission_max: Duration,
    /// How long no member may know a leader before streams that require one end.
    pub no_leader_max: Duration,
    /// Evidence of a missing leader older than this is dropped.
    pub no_leader_fresh: Duration,
    /// The position of an upstream watch is renewed before it is older than this: behind a compaction it could not be
    /// resumed there.
    pub position_max: Duration,
    /// How long a compaction waits for upstream watches to renew their positions.
    pub compaction_wait: Duration,
}

impl Periods {
    /// The pauses before a member is asked again.
    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.retry_first, self.retry_max)
    }
}

impl Default for Periods {
    fn default() -> Self {
        Self {
            linger: Duration::from_secs(5),
            retry_first: Duration::from_millis(20),
            retry_max: Duration::from_secs(1),
            progress_again: Duration::from_millis(50),
            settled: Duration::from_secs(1),
            refresh_max: Duration::from_secs(5),
            permission_max: Duration::from_secs(1),
            no_leader_max: Duration::from_secs(3),
            no_leader_fresh: Duration::from_secs(2),
            position_max: Duration::from_secs(60),
            compaction_wait: Duration::from_secs(2),
        }
    }
}
