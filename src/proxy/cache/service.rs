use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use super::answer::{range_answer, stream_answer};
use super::budget::{AnswerPermits, CacheBudget};
use super::cluster::Cluster;
use super::config::{CacheConfig, CacheReads};
use super::follow::Follower;
use super::group::{Group, GroupParts};
use super::metrics::CacheMetrics;
use super::pair::Pair;
use super::promotion::COUNTED_IN;
use super::range::{Found, Search, Step, can_be_streamed, covered};
use super::read_ahead::ReadAhead;
use super::report::CachedRange;
use super::shared::{SharedReplica, Snapshot};
use super::spawner::Spawner;
use crate::client::{Channel, PeekedHeader, Pool, Seen};
use crate::listener::{Arriving, ConnectionInfo};
use crate::pb::encoded::ResponseHeader;
use crate::pb::etcdserverpb::RangeRequest;
use crate::proxy::watch::{MemberVersions, Members, ReplicaWatches, Subscription};
use crate::proxy::{Identity, ReadPermission, ReadPermissions};
use crate::shutdown::Tasks;
use crate::tree::Tree;
use crate::types::{KeyRange, Revision};

const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
/// Groups of callers that have replicas at once; the ranges of more pass.
pub(super) const GROUPS_MAX: usize = 256;

/// The coherent range cache of one namespace. Cheap to clone.
#[derive(Clone)]
pub struct RangeCache {
    inner: Arc<Inner>,
}

/// What the groups of a cache share.
struct Inner {
    config: CacheConfig,
    /// Who reads for all callers; without, each reads with its own credentials.
    reader: Option<Identity>,
    /// Whether all callers are the reader.
    is_callers_user: bool,
    cluster: Arc<dyn Cluster>,
    spawner: Spawner,
    metrics: CacheMetrics,
    versions: Arc<MemberVersions>,
    permissions: ReadPermissions,
    budget: CacheBudget,
    groups: ArcSwap<HashMap<Identity, Arc<Group>>>,
    /// Some group has promoted prefixes.
    promoted: AtomicBool,
}

/// What becomes of a read that is looked at.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Look {
    /// It counts in finding what is read often.
    pub(super) counts: bool,
}

/// Why a range is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passed {
    /// Compressed, not one message, or with fields that are not known here.
    Unread,
    /// A form that only a member answers, an error for instance.
    Form,
    /// At a revision that is not kept here, or may be compacted.
    Revision,
    /// `--cache=serializable`, and it is linearizable.
    Linearizable,
    Uncovered,
    NotLive,
    /// Not permitted, as far as is known.
    Permission,
    /// The cluster's revision is not known.
    ReadIndex,
    /// The replica did not reach the cluster's revision in time.
    Behind,
    /// The cluster is not the one the replica follows, or not as far.
    WentBack,
    Inexact,
    /// Too many long answers are not sent yet, or keep too much in memory.
    Memory,
}

impl Passed {
    fn label(self) -> &'static str {
        match self {
            Self::Unread => "unread",
            Self::Form => "form",
            Self::Revision => "revision",
            Self::Linearizable => "linearizable",
            Self::Uncovered => "uncovered",
            Self::NotLive => "not_live",
            Self::Permission => "permission",
            Self::ReadIndex => "read_index",
            Self::Behind => "behind",
            Self::WentBack => "went_back",
            Self::Inexact => "inexact",
            Self::Memory => "memory",
        }
    }
}

/// What the caches of all tenants of a proxy share.
#[derive(Clone)]
pub struct CacheParts {
    /// Way to the cluster with the credentials of clients; not used elsewhere.
    pub pool: Pool,
    /// The same as a user who reads for all clients.
    pub own: Option<Channel>,
    /// Whether all clients are that user, whatever they send.
    pub is_callers_user: bool,
    /// Who may read what.
    pub permissions: ReadPermissions,
    /// Made by [`CacheMetrics::register`].
    pub metrics: CacheMetrics,
    /// Memory of the replicas of all tenants.
    pub budget: CacheBudget,
    /// Where tasks run.
    pub tasks: Tasks,
}

impl std::fmt::Debug for RangeCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RangeCache").finish_non_exhaustive()
    }
}

/// What a cache takes besides the cluster.
pub(super) struct OverParts {
    pub config: CacheConfig,
    pub reader: Option<Identity>,
    pub is_callers_user: bool,
    pub permissions: ReadPermissions,
    pub metrics: CacheMetrics,
    pub budget: CacheBudget,
    pub tasks: Tasks,
}

impl RangeCache {
    /// A cache that reaches the cluster from the current runtime.
    pub fn new(config: CacheConfig, parts: CacheParts) -> Self {
        let CacheParts { pool, own, is_callers_user, permissions, metrics, budget, tasks } = parts;
        let reader = own.as_ref().map(|_| Identity::of_proxy());
        let cluster: Arc<dyn Cluster> = Arc::new(Members { pool, own });
        Self::over(cluster, OverParts { config, reader, is_callers_user, permissions, metrics, budget, tasks })
    }

    /// A cache of any cluster.
    pub(super) fn over(cluster: Arc<dyn Cluster>, parts: OverParts) -> Self {
        let OverParts { config, reader, is_callers_user, permissions, metrics, budget, tasks } = parts;
        let inner = Inner {
            config,
            reader,
            is_callers_user,
            cluster,
            spawner: Spawner::new(&tasks),
            budget: budget.of_tenant(),
            metrics,
            versions: Arc::default(),
            permissions,
            groups: ArcSwap::default(),
            promoted: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The cached ranges and their states, for people. Clients with different credentials may each have a range.
    pub(in crate::proxy) fn report(&self) -> Vec<CachedRange> {
        let groups = self.inner.groups.load();
        let mut ranges: Vec<_> = groups
            .values()
            .flat_map(|group| group.replicas().iter().map(|one| CachedRange::of(one)).collect::<Vec<_>>())
            .collect();
        ranges.sort_by(|one, other| one.range.cmp(&other.range));
        ranges
    }

    /// Whether a read is to be given to [`answer`](Self::answer): all are where something is cached, else those that are counted to find what
    /// is read often.
    pub(in crate::proxy) fn looks(&self) -> Option<Look> {
        let Inner { config, promoted, .. } = &*self.inner;
        if !config.prefixes.is_empty() {
            return Some(Look { counts: false });
        }
        let counts = fastrand::u32(..COUNTED_IN) == 0;
        (counts || promoted.load(Ordering::Relaxed)).then_some(Look { counts })
    }

    /// Answers a `Range` or a `RangeStream`, if what is held here gives exactly what a member would answer. `pool` is that of the
    /// serving thread.
    ///
    /// # Errors
    /// The request, to be passed on.
    pub(in crate::proxy) async fn answer<B>(
        &self,
        request: Request<B>,
        look: Look,
        pool: Option<&Pool>,
    ) -> Result<Response<Body>, Request<ReadAhead<Arriving<B>>>>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<tonic::codegen::StdError>,
    {
        let (parts, body) = request.into_parts();
        let (body, _until_answered) = Arriving::collected(body, parts.extensions.get::<Arc<ConnectionInfo>>().cloned());
        let body = match ReadAhead::read(body).await {
            Ok(body) => body,
            Err(error) => return Ok(Status::from_error(error).into_http()),
        };
        let seen = parts.extensions.get::<Seen>();
        let decided = match body.message() {
            Some(message) => self.inner.decide(&parts, seen, &message, look, pool).await,
            None => Err(Passed::Unread),
        };
        match decided {
            Ok((linearizable, response)) => {
                self.inner.metrics.hits.inc();
                self.inner.metrics.answered[usize::from(linearizable)].inc();
                Ok(response)
            }
            Err(passed) => {
                // Of reads that only counted most are not looked at.
                if passed != Passed::Uncovered || !self.inner.config.prefixes.is_empty() {
                    self.inner.metrics.misses.inc();
                    self.inner.metrics.passed.with_label_values(&[passed.label()]).inc();
                }
                Err(Request::from_parts(parts, body))
            }
        }
    }
}

impl ReplicaWatches for RangeCache {
    fn subscribe(&self, identity: &Identity, range: &KeyRange) -> Option<Subscription> {
        let group = self.inner.groups.load().get(identity).cloned()?;
        group.replicas().iter().find_map(|replica| replica.subscribers.subscribe(&replica.upstream, range))
    }
}

impl Inner {
    /// The answer, and whether the read was linearizable.
    async fn decide(
        self: &Arc<Self>,
        head: &Parts,
        seen: Option<&Seen>,
        message: &[u8],
        look: Look,
        pool: Option<&Pool>,
    ) -> Result<(bool, Response<Body>), Passed> {
        let request = RangeRequest::decode(message).map_err(|_| Passed::Unread)?;
        // What is not known here may change the answer.
        if request.encoded_len() != message.len() {
            return Err(Passed::Unread);
        }
        let covered = covered(&request).ok_or(Passed::Form)?;
        let streams = head.uri.path() == RANGE_STREAM;
        if streams && !can_be_streamed(&request) {
            return Err(Passed::Form);
        }
        let caller = self.caller(&head.headers);
        // A member without a leader refuses the latter, whatever kind of read it is.
        // Whether a revision is compacted only the cluster knows.
        let at = Revision(request.revision);
        let serializable = request.serializable && !caller.require_leader() && at.0 == 0;
        if !request.serializable && self.config.reads == CacheReads::Serializable {
            return Err(Passed::Linearizable);
        }
        let (group, replica) = self.covering(&caller, &covered, look).ok_or(Passed::Uncovered)?;
        let replica = &replica;
        replica.note_read();
        let Some(snapshot) = replica.snapshot() else {
            self.want(&group, replica);
            return Err(Passed::NotLive);
        };
        if streams && !snapshot.has_range_stream {
            return Err(Passed::Form);
        }
        if at.0 != 0 && snapshot.at(at).is_none() {
            return Err(Passed::Revision);
        }
        let newest = seen.map(Seen::newest).unwrap_or_default();
        let positioned = async {
            if serializable {
                self.serializable(&group, replica, snapshot, newest, pool).await
            } else {
                self.linearizable(&group, replica, snapshot, at, pool).await
            }
        };
        let permitted = self.permitted(&caller, &group, replica, &covered);
        let ((), snapshot) = tokio::try_join!(permitted, positioned)?;
        let pairs = match at.0 {
            0 => snapshot.pairs.clone(),
            _ => snapshot.at(at).ok_or(Passed::Revision)?,
        };
        let found = search(&pairs, &request, &covered).await?;
        if !self.budget.has_room_for_held(found.held_bytes) {
            return Err(Passed::Memory);
        }
        let room = self.budget.room_for_answer(found.kvs.len()).map_err(|_| Passed::Memory)?;
        let header = ResponseHeader {
            cluster_id: snapshot.cluster.0,
            member_id: snapshot.member.0,
            revision: snapshot.position.0,
            raft_term: snapshot.term.0,
        };
        let answer = if streams { Some(stream_answer(header, found)) } else { range_answer(header, found) };
        let answer = answer.ok_or(Passed::Inexact)?;
        let answer = match room {
            Some(room) => answer.map(|body| Body::new(LongAnswer { body, _room: room })),
            None => answer,
        };
        Ok((!request.serializable, answer))
    }

    /// The replica that has a range, and the group of the caller. Reads that are counted may have one promoted.
    fn covering(&self, caller: &Identity, range: &KeyRange, look: Look) -> Option<(Arc<Group>, Arc<SharedReplica>)> {
        let promotes = self.config.prefixes.is_empty();
        if !promotes && !self.config.prefixes.iter().any(|prefix| prefix.covers(range)) {
            return None;
        }
        let identity = self.group_identity(caller);
        let known = self.groups.load().get(&identity).cloned();
        // A group costs more than to pass a few reads.
        let group = if promotes && !look.counts { known? } else { known.or_else(|| self.new_group(identity))? };
        if let Some(replica) = group.covering(range) {
            return Some((group, replica));
        }
        if promotes && look.counts {
            group.count_uncovered(range, &self.config.namespace);
            let any = |group: &Arc<Group>| !group.replicas().is_empty();
            self.promoted.store(self.groups.load().values().any(any), Ordering::Relaxed);
        }
        None
    }

    fn caller(&self, headers: &HeaderMap) -> Identity {
        let caller = Identity::of(headers);
        match &self.reader {
            Some(reader) if self.is_callers_user => reader.clone().with_require_leader(caller.require_leader()),
            _ => caller,
        }
    }

    /// Whether the cluster permits it: the answer was read a while ago.
    async fn permitted(
        &self,
        caller: &Identity,
        group: &Group,
        replica: &SharedReplica,
        covered: &KeyRange,
    ) -> Result<(), Passed> {
        let (key, range_end) = self.config.namespace.upstream_range(covered);
        let range = KeyRange::from_wire(key, range_end);
        let permission = if group.is_of(caller) {
            self.permissions.may_read_kept(&replica.permission, caller, &replica.upstream, &range).await
        } else {
            self.permissions.may_read_within(caller, &replica.upstream, &range).await
        };
        match permission {
            ReadPermission::Permitted => Ok(()),
            // The member has the word.
            ReadPermission::Refused(_) | ReadPermission::Unknown(_) => Err(Passed::Permission),
        }
    }

    /// A state that has every write acknowledged before now, in a cluster that had not compacted the revision `at` by then
    /// (0 for a read of the newest).
    async fn linearizable(
        &self,
        group: &Group,
        replica: &Arc<SharedReplica>,
        snapshot: Arc<Snapshot>,
        at: Revision,
        pool: Option<&Pool>,
    ) -> Result<Arc<Snapshot>, Passed> {
        let read = group.read_index.read(replica, at, pool).await.map_err(|_| Passed::ReadIndex)?;
        // The position was the cluster's before the read was sent.
        if read.cluster != snapshot.cluster || read.revision < snapshot.position {
            replica.publish(None);
            replica.went_back.notify_one();
            return Err(Passed::WentBack);
        }
        if at.0 != 0 && (read.kept_from.0 == 0 || at < read.kept_from) {
            return Err(Passed::Revision);
        }
        let reached = replica.reached(read.revision, group.read_index.took(), &self.config.periods).await;
        let reached = reached.ok_or(Passed::Behind)?;
        reached.completeness.confirm(read.sent_at);
        Ok(reached)
    }

    /// A state that is not behind what the connection was shown, and has every write acknowledged before the staleness
    /// bound.
    async fn serializable(
        self: &Arc<Self>,
        group: &Arc<Group>,
        replica: &Arc<SharedReplica>,
        snapshot: Arc<Snapshot>,
        newest: PeekedHeader,
        pool: Option<&Pool>,
    ) -> Result<Arc<Snapshot>, Passed> {
        let age = snapshot.completeness.age();
        if age > self.config.staleness || !is_shown(&snapshot, newest) {
            return self.linearizable(group, replica, snapshot, Revision(0), pool).await;
        }
        if age > self.config.staleness / 2 && !replica.confirming.swap(true, Ordering::AcqRel) {
            let (this, group, replica, current) = (self.clone(), group.clone(), replica.clone(), snapshot.clone());
            self.spawner.start(async move {
                // Whatever comes of it: the next read waits, if need be.
                let _ = this.linearizable(&group, &replica, current, Revision(0), None).await;
                replica.confirming.store(false, Ordering::Release);
            });
        }
        Ok(snapshot)
    }

    /// Whose replicas a caller reads. All upstream watches require a leader: a member cut off from it is left for another.
    fn group_identity(&self, caller: &Identity) -> Identity {
        self.reader.as_ref().unwrap_or(caller).clone().with_require_leader(true)
    }

    /// None where there are too many.
    fn new_group(&self, identity: Identity) -> Option<Arc<Group>> {
        {
            // All of them are copied for a change.
            let groups = self.groups.load();
            if groups.len() >= GROUPS_MAX && !groups.values().any(|group| group.is_idle()) {
                return None;
            }
        }
        self.groups.rcu(|groups| {
            let mut groups = HashMap::clone(groups);
            if groups.len() >= GROUPS_MAX {
                groups.retain(|_, group| !group.is_idle());
            }
            if groups.len() < GROUPS_MAX && !groups.contains_key(&identity) {
                let parts = GroupParts {
                    config: &self.config,
                    cluster: &self.cluster,
                    spawner: &self.spawner,
                    metrics: &self.metrics,
                    base: self.budget.base(),
                };
                groups.insert(identity.clone(), Arc::new(Group::new(identity.clone(), parts)));
            }
            groups
        });
        self.groups.load().get(&identity).cloned()
    }

    /// Has a replica loaded, unless that is in progress or it has failed just before.
    fn want(&self, group: &Group, replica: &Arc<SharedReplica>) {
        if replica.retired.get().is_some() {
            return;
        }
        if replica.running.swap(true, Ordering::AcqRel) {
            replica.wanted.notify_one();
            return;
        }
        let follower = Follower {
            replica: replica.clone(),
            identity: group.identity.clone(),
            cluster: self.cluster.clone(),
            versions: self.versions.clone(),
            namespace: self.config.namespace.clone(),
            budget: self.budget.clone(),
            metrics: self.metrics.clone(),
            periods: self.config.periods,
        };
        self.spawner.start(follower.run());
    }
}

/// The body of an answer that holds room until it is sent or dropped.
struct LongAnswer {
    body: Body,
    _room: AnswerPermits,
}

impl HttpBody for LongAnswer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether a state is at or after the newest answer a connection was shown.
fn is_shown(snapshot: &Snapshot, newest: PeekedHeader) -> bool {
    let same = newest.cluster_id == 0 || newest.cluster_id == snapshot.cluster.0;
    same && snapshot.position.0 >= newest.revision
}

/// The answer to a request from a state; long ones let other requests run in between.
async fn search(pairs: &Tree<Pair>, request: &RangeRequest, covered: &KeyRange) -> Result<Found, Passed> {
    let mut search = Search::new(pairs, request, covered);
    loop {
        match search.step() {
            Step::Done(found) => return Ok(found),
            Step::Inexact => return Err(Passed::Inexact),
            Step::Unfinished => tokio::task::yield_now().await,
        }
    }
}
