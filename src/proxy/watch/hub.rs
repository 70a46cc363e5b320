use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use super::broadcast::{Broadcast, BroadcastHandle, is_no_leader};
use super::history::{Parked, read_history};
use super::metrics::ProxyWatchMetrics;
use super::ranges::Ranges;
use super::read_index::{Read, ReadAnswer, SharedReadIndex, StartPosition};
use super::trust::Trust;
use super::upstream::Upstream;
use crate::api_error::ApiError;
use crate::client::Pool;
use crate::eventlog::{
    Admission, HeaderSource, HistoryError, HistoryRequest, Refusal, Source, WatchLimits, WatcherSetHandle,
};
use crate::proxy::{Identity, Namespace};
use crate::shutdown::Tasks;
use crate::types::{ClusterId, KeyRange, MemberId, Revision, Term};

/// How long a prefix that a group may not read stays out of its promotions.
const REFUSED_MAX: Duration = Duration::from_secs(60);
/// Refused prefixes a group remembers.
const REFUSED_COUNT_MAX: usize = 1024;
/// Private upstream watches that read history at the same time.
const PRIVATE_WATCHES_MAX: usize = 32;
/// Times the hub works with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Periods {
    /// How long an upstream watch outlives its last client watch, for clients that come back at once.
    pub linger: Duration,
    /// First pause after a member failed; it doubles up to `retry_max`.
    pub retry_first: Duration,
    pub retry_max: Duration,
    /// A member that lags says nothing to a progress request: it is asked again after this.
    pub progress_again: Duration,
    /// A refresh is given up after this; its client gets no answer, as from a member that lags.
    pub refresh_max: Duration,
    /// A permission is asked for again when the last answer is older than this: the bound within which a revoked one
    /// takes effect on new watches.
    pub verdict_max: Duration,
    /// How long no member may know a leader before streams that want one end.
    pub leaderless_max: Duration,
    /// Evidence of a missing leader older than this says nothing about now.
    pub leaderless_fresh: Duration,
    /// The position of an upstream watch is not let grow older than this while its member lives: behind a compaction
    /// it could not be resumed there.
    pub position_max: Duration,
    /// How long a compaction waits for upstream watches to renew their positions.
    pub compaction_wait: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self {
            linger: Duration::from_secs(5),
            retry_first: Duration::from_millis(20),
            retry_max: Duration::from_secs(1),
            progress_again: Duration::from_millis(50),
            refresh_max: Duration::from_secs(5),
            verdict_max: Duration::from_secs(1),
            leaderless_max: Duration::from_secs(3),
            leaderless_fresh: Duration::from_secs(2),
            position_max: Duration::from_secs(60),
            compaction_wait: Duration::from_millis(500),
        }
    }
}

/// How a hub covers the key space.
#[derive(Clone, Debug)]
pub struct WatchHubConfig {
    /// The keys its clients see.
    pub namespace: Namespace,
    /// Prefixes, as clients see them, that are watched whole from the first watch below them. A namespace is one by
    /// itself; ranges outside of all follow the rule of promotion.
    pub prefixes: Vec<KeyRange>,
    /// Memory for the newest events of one upstream watch.
    pub log_bytes_max: usize,
    /// Bounds and periods towards clients.
    pub limits: WatchLimits,
    /// Between two progress notifications of an idle watch, where the interval of the member cannot be followed or is
    /// longer.
    pub progress_interval: Duration,
    pub(super) periods: Periods,
}

impl WatchHubConfig {
    /// Usual values for the clients of a namespace.
    pub fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            prefixes: Vec::new(),
            log_bytes_max: 16 * 1024 * 1024,
            // A member cuts at its --max-request-bytes and 512 KiB. The proxy does not know the former, and stays
            // below what any member would send.
            limits: WatchLimits { fragment_bytes: 512 * 1024, progress_interval: None, ..WatchLimits::default() },
            progress_interval: Duration::from_secs(600),
            periods: Periods::default(),
        }
    }
}

/// All watches of one namespace in a proxy process. Cheap to clone.
#[derive(Clone)]
pub struct WatchHub {
    pub(super) inner: Arc<HubInner>,
}

pub(super) struct HubInner {
    pub upstream: Arc<dyn Upstream>,
    pub namespace: Namespace,
    pub config: WatchHubConfig,
    pub metrics: ProxyWatchMetrics,
    pub header_source: Arc<HeaderSource>,
    pub private_watches: Semaphore,
    pub parked: Parked,
    pub trust: Trust,
    /// One compaction at a time has positions renewed.
    renewing: tokio::sync::Mutex<()>,
    groups: Mutex<HashMap<Identity, Weak<CredentialGroup>>>,
    watcher_sets: Mutex<Vec<WatcherSetHandle>>,
    cluster: AtomicU64,
    revision: AtomicI64,
    leaderless: Mutex<Option<Leaderless>>,
    runtime: Handle,
    tasks: Tasks,
}

#[derive(Clone, Copy)]
struct Leaderless {
    since: Instant,
    seen: Instant,
}

impl WatchHub {
    /// A hub that reaches the cluster through `pool`, from the current runtime; the pool should not be used
    /// elsewhere.
    pub fn new(pool: Pool, config: WatchHubConfig, metrics: ProxyWatchMetrics, tasks: &Tasks) -> Self {
        let members = pool.endpoints().len();
        let hub = Self::with_upstream(Arc::new(pool), config, metrics, tasks);
        hub.inner.warm_up(members);
        hub
    }

    pub(super) fn with_upstream(
        upstream: Arc<dyn Upstream>,
        config: WatchHubConfig,
        metrics: ProxyWatchMetrics,
        tasks: &Tasks,
    ) -> Self {
        let inner = HubInner {
            upstream,
            namespace: config.namespace.clone(),
            metrics,
            header_source: Arc::default(),
            private_watches: Semaphore::new(PRIVATE_WATCHES_MAX),
            parked: Parked::default(),
            trust: Trust::default(),
            renewing: tokio::sync::Mutex::default(),
            groups: Mutex::default(),
            watcher_sets: Mutex::default(),
            cluster: AtomicU64::new(0),
            revision: AtomicI64::new(0),
            leaderless: Mutex::default(),
            runtime: Handle::current(),
            tasks: tasks.clone(),
            config,
        };
        Self { inner: Arc::new(inner) }
    }
}

impl HubInner {
    /// Starts the watchers' side of a serving thread, on its runtime.
    pub fn add_watcher_set(&self, seed: u64, tasks: &Tasks) -> WatcherSetHandle {
        let watchers = WatcherSetHandle::start(
            self.config.limits.clone(),
            self.header_source.clone(),
            self.metrics.watch.clone(),
            seed,
            ApiError::Stopped.into(),
            tasks,
        );
        self.watcher_sets.lock().push(watchers.clone());
        watchers
    }

    pub fn for_each_watcher_set(&self, act: impl Fn(&WatcherSetHandle)) {
        let watcher_sets = self.watcher_sets.lock().clone();
        watcher_sets.iter().for_each(act);
    }

    /// The group of an identity. All upstream watches want a leader: a member cut off from it is left for another.
    pub fn group(self: &Arc<Self>, identity: Identity) -> Arc<CredentialGroup> {
        let identity = identity.with_require_leader(true);
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get(&identity).and_then(Weak::upgrade) {
            return group;
        }
        groups.retain(|_, group| group.strong_count() > 0);
        let group = Arc::new(CredentialGroup {
            anonymous: identity.clone().with_require_leader(false) == Identity::default(),
            identity: identity.clone(),
            read_index: SharedReadIndex::default(),
            table: Mutex::default(),
        });
        groups.insert(identity, Arc::downgrade(&group));
        group
    }

    /// Newest revision seen, for headers that promise nothing.
    pub fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Relaxed))
    }

    pub fn saw_revision(&self, revision: Revision) {
        self.revision.fetch_max(revision.0, Ordering::Relaxed);
    }

    /// Notes who answers now; false when it is a member of another cluster.
    pub fn saw_member(&self, cluster: ClusterId, member: MemberId, term: Term) -> bool {
        *self.leaderless.lock() = None;
        let known = self.cluster.compare_exchange(0, cluster.0, Ordering::Relaxed, Ordering::Relaxed);
        if known.is_err_and(|known| known != cluster.0) {
            return false;
        }
        self.header_source.follow(cluster, member, term);
        true
    }

    /// Notes how an upstream stream ended; ends client streams that want a leader when nobody has had one for long.
    pub fn saw_status(&self, status: &Status) {
        if !is_no_leader(status) {
            return;
        }
        let now = Instant::now();
        let since = {
            let mut leaderless = self.leaderless.lock();
            let fresh = leaderless.filter(|state| now - state.seen < self.config.periods.leaderless_fresh);
            let since = fresh.map_or(now, |state| state.since);
            *leaderless = Some(Leaderless { since, seen: now });
            since
        };
        if now - since >= self.config.periods.leaderless_max {
            self.for_each_watcher_set(|watchers| watchers.end_streams(&ApiError::NoLeader.into(), true));
        }
    }

    /// Whether the cluster is known to have no leader.
    pub fn is_leaderless(&self) -> bool {
        let now = Instant::now();
        self.leaderless.lock().is_some_and(|state| {
            now - state.seen < self.config.periods.leaderless_fresh
                && now - state.since >= self.config.periods.leaderless_max
        })
    }

    /// Has the connections open by the time the first watch comes, whose start is read on one of them.
    fn warm_up(self: &Arc<Self>, members: usize) {
        for _ in 0..members {
            let hub = self.clone();
            self.spawn(self.stoppable(async move {
                // Whatever the answer: the connection is there.
                let _ = hub.upstream.version(HeaderMap::new()).await;
            }));
        }
    }

    /// Learns whether the progress that a member tells is proven.
    pub fn learn_trust(self: &Arc<Self>, member: MemberId, metadata: HeaderMap) {
        let hub = self.clone();
        self.spawn(self.stoppable(async move { hub.trust.learn(&*hub.upstream, &metadata, member).await }));
    }

    /// A compaction is about to pass: has all upstream watches renew their positions, so that none of them stands
    /// below it without having missed anything.
    pub async fn before_compaction(&self) {
        let _turn = self.renewing.lock().await;
        let groups: Vec<Arc<CredentialGroup>> = self.groups.lock().values().filter_map(Weak::upgrade).collect();
        let broadcasts: Vec<BroadcastHandle> = groups.iter().flat_map(|group| group.broadcasts()).collect();
        let within = self.config.periods.compaction_wait;
        join_all(broadcasts.iter().map(|broadcast| broadcast.renew(within))).await;
    }

    /// Runs a task on the hub's own runtime, where its connections live.
    fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let _runtime = self.runtime.enter();
        self.tasks.spawn(task)
    }

    /// Finds or makes the source a watch reads, and the revision it begins behind.
    pub async fn admit(
        self: Arc<Self>,
        group: Arc<CredentialGroup>,
        range: KeyRange,
        start: Revision,
    ) -> Result<Admission, Refusal> {
        if range.is_empty() {
            return Err(self.refusal("mvcc: watcher range is empty".to_owned()));
        }
        // At the same time: opening an upstream watch must not delay where a watch from now begins.
        let (position, source) = tokio::try_join!(self.read_index(&group, &range, start), self.source(&group, &range))?;
        Ok(Admission { source, after: position.revision, compacted: position.compacted })
    }

    /// A source that covers a range and that the group may read.
    async fn source(self: &Arc<Self>, group: &Arc<CredentialGroup>, range: &KeyRange) -> Result<Arc<Source>, Refusal> {
        loop {
            let entry = self.entry(group, range);
            let source = match entry.broadcast.live().await {
                Ok(source) => source,
                // A wider range is off the table now; the client's own answers for the client.
                Err(end) if entry.range == *range && !end.reason.is_empty() => return Err(self.refusal(end.reason)),
                Err(_) => continue,
            };
            // Without credentials the read_index tells: then nobody may read anything once the cluster asks for some.
            if !group.anonymous
                && let Err(reason) = self.verify(group, &entry).await
            {
                if entry.range == *range {
                    return Err(self.refusal(reason));
                }
                group.refuse(&entry.range);
                continue;
            }
            return Ok(source);
        }
    }

    fn refusal(&self, reason: String) -> Refusal {
        Refusal::Watch { revision: self.revision(), reason }
    }

    /// The entry that covers a range; opens an upstream watch when there is none.
    fn entry(self: &Arc<Self>, group: &Arc<CredentialGroup>, range: &KeyRange) -> Entry {
        let mut table = group.table.lock();
        let usable = |range: &KeyRange, entry: &Entry| !table.is_refused(range) && entry.broadcast.is_open();
        if let Some((_, entry)) = table.ranges.covering(range, usable) {
            return entry.clone();
        }
        let whole = (!self.namespace.is_whole()).then(|| KeyRange::prefix("".into()));
        let mut configured = whole.iter().chain(&self.config.prefixes);
        let wanted = configured.find(|prefix| prefix.covers(range) && !table.is_refused(prefix)).cloned();
        let wanted = wanted.or_else(|| table.ranges.promotion(range).filter(|prefix| !table.is_refused(prefix)));
        let taken = wanted.unwrap_or_else(|| range.clone());
        // What is still there under this range has just ended.
        table.ranges.remove(&taken);
        // From where the narrower ones stand, so that their watchers find in the new log what they still need.
        let narrower = table.ranges.within(&taken);
        let narrow = narrower.iter().filter_map(|range| table.ranges.get(range)).map(|entry| entry.broadcast.clone());
        let (broadcast, handle) = Broadcast::new(self.clone(), group.clone(), taken.clone(), narrow.collect());
        let entry = Entry { range: taken.clone(), broadcast: handle, permission: Arc::default() };
        table.ranges.insert(taken, entry.clone());
        drop(table);
        self.spawn(self.stoppable(broadcast.run()));
        if !narrower.is_empty() {
            let (group, range, handle) = (group.clone(), entry.range.clone(), entry.broadcast.clone());
            self.spawn(self.stoppable(async move { take_over(&group, &range, &handle).await }));
        }
        entry
    }

    fn stoppable(&self, task: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> + Send + 'static {
        let stop = self.tasks.stop_signal();
        async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        }
    }

    /// Asks the cluster where a watch stands, together with whoever else asks; tries until it answers. A cluster
    /// without quorum keeps the client waiting, as the write it might have missed would.
    async fn read_index(
        self: &Arc<Self>,
        group: &Arc<CredentialGroup>,
        range: &KeyRange,
        start: Revision,
    ) -> Result<StartPosition, Refusal> {
        let mut pause = self.config.periods.retry_first;
        loop {
            match group.read_index.read(start, |at| self.read_at(group, range, at)).await {
                Ok(position) => {
                    self.saw_revision(position.revision);
                    return Ok(position);
                }
                Err(status) if is_refusal(&status) => return Err(self.refusal(embedded(&status))),
                Err(status) => {
                    tracing::debug!(%status, "revision for a new watch is asked for again");
                    sleep(pause).await;
                    pause = (pause * 2).min(self.config.periods.retry_max);
                }
            }
        }
    }

    /// One linearizable read of a key at a revision (0: the newest). It is refused as compacted exactly when a watch
    /// from there would be, by a member that has applied all that was acknowledged before.
    async fn read_at(
        self: &Arc<Self>,
        group: &CredentialGroup,
        range: &KeyRange,
        at: Revision,
    ) -> Result<Read, Status> {
        let key = self.namespace.add_prefix(range.start());
        let read = async |at| {
            let read = self.spawn(self.upstream.read_index(group.identity.metadata(), key.clone(), at));
            read.await.unwrap_or_else(|_| Err(ApiError::Stopped.into()))
        };
        let (header, at) = match read(at).await {
            Ok(header) => (header, at),
            Err(status) => match ApiError::from_text(status.message()) {
                Some(ApiError::Compacted) => {
                    return Ok(Read::Compacted(self.compacted_above(group, range, at).await?));
                }
                Some(ApiError::FutureRevision) => (read(Revision(0)).await?, Revision(0)),
                _ => return Err(status),
            },
        };
        Ok(Read::Answer(ReadAnswer { revision: Revision(header.revision), at }))
    }

    /// The compacted revision, which is known to be above `start`: only a watch is told.
    async fn compacted_above(
        self: &Arc<Self>,
        group: &CredentialGroup,
        range: &KeyRange,
        start: Revision,
    ) -> Result<Revision, Status> {
        let request = HistoryRequest {
            range: range.clone(),
            from: start,
            up_to: start,
            prev_kv: false,
            revisions_max: 1,
            bytes_max: 1,
        };
        let mut pause = self.config.periods.retry_first;
        loop {
            match read_history(self, &group.identity, request.clone()).await {
                Err(HistoryError::Compacted(compacted)) => return Ok(compacted),
                Err(HistoryError::Refused(reason)) => return Err(Status::unavailable(reason)),
                // A member that lags behind the compaction; the next one may not.
                Ok(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(self.config.periods.retry_max);
        }
    }

    /// Whether the group may still read the range of an entry; the cluster decides, for each second anew.
    async fn verify(self: &Arc<Self>, group: &Arc<CredentialGroup>, entry: &Entry) -> Result<(), String> {
        let mut pause = self.config.periods.retry_first;
        loop {
            let _turn = entry.permission.turn.lock().await;
            if entry.permission.is_fresh(self.config.periods.verdict_max) {
                return Ok(());
            }
            let upstream = self.upstream.clone();
            let metadata = group.identity.metadata();
            let (key, range_end) = entry.range.to_wire();
            let (key, range_end) = self.namespace.enter_range(&key, &range_end);
            let asked = self.spawn(super::probe::may_watch(upstream, metadata, key, range_end)).await;
            match asked.unwrap_or_else(|_| Err(ApiError::Stopped.into())) {
                Ok(None) => {
                    entry.permission.set();
                    return Ok(());
                }
                Ok(Some(reason)) => return Err(reason),
                Err(status) => {
                    tracing::debug!(%status, "permission for a watch is asked for again");
                    sleep(pause).await;
                    pause = (pause * 2).min(self.config.periods.retry_max);
                }
            }
        }
    }
}

/// Has a wide source take the watchers of the ranges it covers, once it runs.
async fn take_over(group: &CredentialGroup, range: &KeyRange, wide: &BroadcastHandle) {
    let Ok(source) = wide.live().await else { return };
    let narrow: Vec<Entry> = {
        let mut table = group.table.lock();
        let within = table.ranges.within(range);
        within.iter().filter_map(|range| table.ranges.remove(range)).collect()
    };
    for entry in narrow {
        entry.broadcast.supersede(source.clone()).await;
    }
}

/// Clients that carry the same credentials.
pub(super) struct CredentialGroup {
    pub identity: Identity,
    anonymous: bool,
    /// Shared by all its new watches: a revision is the cluster's, whatever key was read for it.
    read_index: SharedReadIndex,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    ranges: Ranges<Entry>,
    refused: HashMap<KeyRange, Instant>,
}

impl Table {
    /// Another broadcast may have taken the place since.
    fn remove(&mut self, range: &KeyRange, broadcast: &BroadcastHandle) {
        if self.ranges.get(range).is_some_and(|entry| entry.broadcast.is(broadcast)) {
            self.ranges.remove(range);
        }
    }

    fn is_refused(&self, range: &KeyRange) -> bool {
        self.refused.get(range).is_some_and(|at| at.elapsed() < REFUSED_MAX)
    }
}

/// One upstream watch of a group.
#[derive(Clone)]
struct Entry {
    range: KeyRange,
    broadcast: BroadcastHandle,
    permission: Arc<PermissionCheck>,
}

/// When the cluster last said that a group may read a range.
#[derive(Default)]
struct PermissionCheck {
    at: Mutex<Option<Instant>>,
    turn: tokio::sync::Mutex<()>,
}

impl PermissionCheck {
    fn set(&self) {
        *self.at.lock() = Some(Instant::now());
    }

    fn is_fresh(&self, for_long: Duration) -> bool {
        self.at.lock().is_some_and(|at| at.elapsed() < for_long)
    }
}

impl CredentialGroup {
    /// Its upstream watches.
    pub fn broadcasts(&self) -> Vec<BroadcastHandle> {
        self.table.lock().ranges.values().map(|entry| entry.broadcast.clone()).collect()
    }

    /// The cluster has just let the group watch a range.
    pub fn saw_permission(&self, range: &KeyRange) {
        let mut table = self.table.lock();
        table.refused.remove(range);
        if let Some(entry) = table.ranges.get(range) {
            entry.permission.set();
        }
    }

    /// Takes an upstream watch off the table if nobody has joined meanwhile.
    pub fn remove_if(&self, range: &KeyRange, broadcast: &BroadcastHandle, idle: impl FnOnce() -> bool) -> bool {
        let mut table = self.table.lock();
        let idle = idle();
        if idle {
            table.remove(range, broadcast);
        }
        idle
    }

    /// Takes an upstream watch off the table that has ended; one that never was allowed is not tried again soon.
    pub fn remove_ended(&self, range: &KeyRange, broadcast: &BroadcastHandle, refused: bool) {
        self.table.lock().remove(range, broadcast);
        if refused {
            self.refuse(range);
        }
    }

    /// Keeps a range out of covering and promotion for a while.
    fn refuse(&self, range: &KeyRange) {
        let mut table = self.table.lock();
        if table.refused.len() >= REFUSED_COUNT_MAX {
            table.refused.retain(|_, at| at.elapsed() < REFUSED_MAX);
            if table.refused.len() >= REFUSED_COUNT_MAX {
                table.refused.clear();
            }
        }
        table.refused.insert(range.clone(), Instant::now());
    }
}

/// Whether the cluster has decided against the client, so that asking again would not help.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument)
}

/// A status within an answer, in the form clients know from etcd.
fn embedded(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}
