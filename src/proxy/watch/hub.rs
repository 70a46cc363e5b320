use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};

use futures::TryFutureExt;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tonic::Status;
use tracing::{debug, warn};

use super::broadcast_handle::BroadcastHandle;
use super::config::WatchHubConfig;
use super::group::CredentialGroup;
use super::history::PrivateWatches;
use super::member_versions::MemberVersions;
use super::metrics::ProxyWatchMetrics;
use super::no_leader::{NoLeaderEvidence, is_no_leader};
use super::open_permissions::OpenPermissions;
use super::read_index::{Read, ReadAnswer};
use super::status::{is_refusal, lost};
use super::upstream::{Members, Upstream};
use crate::api_error::ApiError;
use crate::client::{Channel, Pool};
use crate::eventlog::{HeaderSource, WatcherSetHandle};
use crate::proxy::{Identity, ProxyUser, ReadPermissions};
use crate::shutdown::Tasks;
use crate::types::{ClusterId, KeyRange, MemberId, Revision, Term};

/// All watches of one namespace in a proxy process. Cheap to clone.
#[derive(Clone)]
pub struct WatchHub {
    pub(super) inner: Arc<HubInner>,
}

/// With whose credentials a hub reads.
pub enum HubReader {
    /// With those that each client sends.
    Clients,
    /// As the proxy's own user, for all clients that may read the same.
    Proxy(ProxyUser),
    /// As the user that all its clients are.
    Callers(Channel),
}

/// What the broadcasts and the client streams of a namespace share.
pub(super) struct HubInner {
    pub upstream: Arc<dyn Upstream>,
    /// Of the callers of a hub that reads as the proxy's own user.
    pub open_permissions: Option<OpenPermissions>,
    /// Whether all callers are the user that the hub reads as.
    pub is_callers_user: bool,
    pub config: WatchHubConfig,
    pub metrics: ProxyWatchMetrics,
    pub header_source: Arc<HeaderSource>,
    pub history: Arc<PrivateWatches>,
    pub versions: Arc<MemberVersions>,
    /// One compaction at a time has positions renewed.
    renewing: tokio::sync::Mutex<()>,
    groups: Mutex<HashMap<Identity, Weak<CredentialGroup>>>,
    watcher_sets: Mutex<Vec<WatcherSetHandle>>,
    /// One at a time ends what the cluster has lost.
    ending_lost: tokio::sync::Mutex<()>,
    revision: AtomicI64,
    no_leader: NoLeaderEvidence,
    runtime: Handle,
    tasks: Tasks,
}

impl std::fmt::Debug for WatchHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchHub").finish_non_exhaustive()
    }
}

impl WatchHub {
    /// A hub that reaches the cluster through `pool`, from the current runtime; the pool should not be used
    /// elsewhere but by other hubs on that runtime.
    pub fn new(
        pool: Pool,
        reader: HubReader,
        config: WatchHubConfig,
        metrics: ProxyWatchMetrics,
        tasks: &Tasks,
    ) -> Self {
        let members = pool.endpoints().len();
        let is_callers_user = matches!(reader, HubReader::Callers(_));
        let (own, permissions) = match reader {
            HubReader::Clients => (None, None),
            HubReader::Proxy(user) => (Some(user.channel), Some(user.permissions)),
            HubReader::Callers(channel) => (Some(channel), None),
        };
        let upstream = Arc::new(Members { pool, own });
        let hub = Self::with_upstream(upstream, permissions, is_callers_user, config, metrics, tasks);
        hub.inner.warm_up(members);
        hub
    }

    pub(super) fn with_upstream(
        upstream: Arc<dyn Upstream>,
        permissions: Option<ReadPermissions>,
        is_callers_user: bool,
        mut config: WatchHubConfig,
        metrics: ProxyWatchMetrics,
        tasks: &Tasks,
    ) -> Self {
        if !config.namespace.is_whole() {
            config.prefixes.insert(0, KeyRange::prefix("".into()));
        }
        let versions = Arc::<MemberVersions>::default();
        let inner = HubInner {
            history: Arc::new(PrivateWatches::new(upstream.clone(), versions.clone(), &config)),
            upstream,
            open_permissions: permissions.map(OpenPermissions::new),
            is_callers_user,
            metrics,
            header_source: Arc::default(),
            versions,
            renewing: tokio::sync::Mutex::default(),
            groups: Mutex::default(),
            watcher_sets: Mutex::default(),
            ending_lost: tokio::sync::Mutex::default(),
            revision: AtomicI64::new(0),
            no_leader: NoLeaderEvidence::new(&config.periods),
            runtime: Handle::current(),
            tasks: tasks.clone(),
            config,
        };
        let inner = Arc::new(inner);
        let history = inner.history.clone();
        inner.start(async move { history.close_idle().await });
        if inner.open_permissions.is_some() {
            let hub = inner.clone();
            inner.start(async move {
                if let Some(permissions) = &hub.open_permissions {
                    let end = |permission: &_| hub.for_each_watcher_set(|watchers| watchers.end_permission(permission));
                    permissions.watch_over(end).await;
                }
            });
        }
        Self { inner }
    }
}

impl WatchHub {
    /// To be called before a compaction is passed on; waits two seconds at most.
    pub(in crate::proxy) async fn before_compaction(&self) {
        self.inner.before_compaction().await;
    }

    /// The cluster has acknowledged a compaction. A watch that begins at its revision gets what a member has of that: not
    /// what was there before.
    pub(in crate::proxy) fn note_compaction(&self, revision: Revision) {
        self.inner.note_compaction(revision);
    }
}

impl HubInner {
    /// Starts the watcher set of a serving thread, on its runtime.
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

    /// The group of an identity. All upstream watches require a leader: a member cut off from it is left for another.
    pub fn group(&self, identity: Identity) -> Arc<CredentialGroup> {
        let identity = identity.with_require_leader(true);
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get(&identity).and_then(Weak::upgrade) {
            return group;
        }
        groups.retain(|_, group| group.strong_count() > 0);
        let group = Arc::new(CredentialGroup::new(identity.clone()));
        groups.insert(identity, Arc::downgrade(&group));
        group
    }

    /// Newest revision noted: the cluster has reached it, unless it was restored or is another one.
    pub fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Relaxed))
    }

    pub fn note_revision(&self, revision: Revision) {
        self.revision.fetch_max(revision.0, Ordering::Relaxed);
    }

    /// The cluster is at this revision, whatever was noted before.
    fn reset_revision(&self, revision: Revision) {
        self.revision.store(revision.0, Ordering::Relaxed);
        self.history.forget();
        self.groups.lock().values().filter_map(Weak::upgrade).for_each(|group| group.read_index.forget());
    }

    /// Notes which member answers now.
    pub fn note_member(&self, cluster: ClusterId, member: MemberId, term: Term) {
        self.no_leader.clear();
        self.follow_member(cluster, member, term);
    }

    /// The same of one that has answered a while ago, which says nothing of a leader.
    pub fn follow_member(&self, cluster: ClusterId, member: MemberId, term: Term) {
        if self.header_source.follow(cluster, member, term) {
            self.reset_revision(Revision(0));
        }
    }

    /// Ends all broadcasts whose history the cluster has lost, if it has not reached `position`, which a member had told before.
    /// A member may lag, so a linearizable read decides. Tries until the cluster answers.
    pub async fn look_for_lost_history(&self, group: &CredentialGroup, range: &KeyRange, position: Revision) {
        let mut backoff = self.config.periods.backoff();
        loop {
            let newest = |_| {
                let newest = self.newest(&group.identity, range);
                newest.map_ok(|revision| Read::Answer(ReadAnswer { revision, ..ReadAnswer::default() }))
            };
            let outcome = match group.newest.read(Revision(0), |task| self.start(task), newest).await {
                Ok(answer) if answer.revision >= position => Ok(()),
                Ok(_) => self.end_lost_history(&group.identity, range).await,
                Err(status) => Err(status),
            };
            match outcome {
                Err(status) if !is_refusal(&status) => {
                    debug!(%status, ?range, "the cluster is asked again how far it is");
                    sleep(backoff.pause()).await;
                }
                Ok(()) | Err(_) => return,
            }
        }
    }

    /// Ends all broadcasts that stand where the cluster has not been: it was restored from a db snapshot, or is another one. To be
    /// called when a linearizable read has told less than a member had told before that read was sent.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn end_lost_history(&self, identity: &Identity, range: &KeyRange) -> Result<(), Status> {
        let _turn = self.ending_lost.lock().await;
        let known = self.revision();
        let positions: Vec<_> =
            self.broadcasts().into_iter().filter_map(|broadcast| Some((broadcast.position()?, broadcast))).collect();
        // Sent after all of that was told.
        let revision = self.newest(identity, range).await?;
        if revision < known {
            warn!(%known, %revision, "the cluster's revision went back: it was restored, or is another one");
            self.reset_revision(revision);
        }
        let gone = positions.into_iter().filter(|(position, _)| *position > revision);
        let ending = gone.map(|(position, broadcast)| async move {
            broadcast.end_lost(position, lost(revision, "the cluster's revision went back: it was restored")).await;
        });
        join_all(ending).await;
        Ok(())
    }

    /// The cluster's revision, by a linearizable read of a key.
    fn newest(&self, identity: &Identity, range: &KeyRange) -> impl Future<Output = Result<Revision, Status>> + use<> {
        let key = self.config.namespace.add_prefix(range.start());
        self.upstream.read_index(identity, key, Revision(0)).map_ok(|header| Revision(header.revision))
    }

    /// Notes how an upstream stream ended; ends the client streams that require a leader once the cluster is known to
    /// have none.
    pub fn note_stream_end(&self, status: &Status) {
        if !is_no_leader(status) {
            return;
        }
        self.no_leader.note(Instant::now());
        if self.has_no_leader() {
            self.for_each_watcher_set(|watchers| watchers.end_streams(&ApiError::NoLeader.into(), true));
        }
    }

    /// Whether the cluster is known to have no leader.
    pub fn has_no_leader(&self) -> bool {
        self.no_leader.is_conclusive(Instant::now())
    }

    /// Opens the connections before the first watch comes, whose start is read on one of them.
    fn warm_up(self: &Arc<Self>, members: usize) {
        for _ in 0..members {
            let hub = self.clone();
            self.start(async move {
                // Whatever the answer: the connection is there.
                let _ = hub.upstream.version(&Identity::default()).await;
            });
        }
    }

    /// Learns whether the member answers progress requests in order.
    pub fn learn_version(self: &Arc<Self>, member: MemberId, identity: &Identity) {
        let (hub, identity) = (self.clone(), identity.clone());
        self.start(async move { hub.versions.learn(&*hub.upstream, &identity, member).await });
    }

    /// A compaction is about to pass: has all upstream watches renew their positions, so that none of them stands
    /// below it without having missed anything.
    pub async fn before_compaction(&self) {
        let _turn = self.renewing.lock().await;
        let broadcasts = self.broadcasts();
        let within = self.config.periods.compaction_wait;
        join_all(broadcasts.iter().map(|broadcast| broadcast.renew(within))).await;
    }

    pub fn note_compaction(&self, revision: Revision) {
        self.broadcasts().iter().filter_map(BroadcastHandle::source).for_each(|source| source.log().compact(revision));
    }

    fn broadcasts(&self) -> Vec<BroadcastHandle> {
        let groups: Vec<Arc<CredentialGroup>> = self.groups.lock().values().filter_map(Weak::upgrade).collect();
        groups.iter().flat_map(|group| group.broadcasts()).collect()
    }

    /// Runs a task on the hub's own runtime, where its connections live, and waits for it.
    pub async fn run<T>(&self, task: impl Future<Output = Result<T, Status>> + Send + 'static) -> Result<T, Status>
    where
        T: Send + 'static,
    {
        self.spawn(task).await.unwrap_or_else(|_| Err(ApiError::Stopped.into()))
    }

    /// Starts a task on the hub's own runtime that ends with the hub.
    pub fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.tasks.stop_signal();
        self.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let _runtime = self.runtime.enter();
        self.tasks.spawn(task)
    }
}
