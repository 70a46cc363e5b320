use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Response};
use moka::future::Cache;
use prometheus::IntCounterVec;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tonic::body::Body;
use tonic::{Code, Status};

use super::credentials::Identity;
use crate::api_error::ApiError;
use crate::client::{Channel, Head, Method, Pool, framed, unframed};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;
use crate::types::KeyRange;

/// How long a permission holds, counted from when the cluster was asked for it: the bound within which a revoked one
/// takes effect.
pub const PERMISSION_MAX: Duration = Duration::from_secs(1);
/// A permission that something is open under is asked for again when it is older than this, so that what is revoked ends
/// before [`PERMISSION_MAX`] is over.
const RENEW_AFTER: Duration = Duration::from_millis(700);
/// How long a caller that may not read the whole of a wide range is not asked about that one again.
const NARROW_MAX: Duration = Duration::from_secs(10);
/// Memory for permissions; the least recently used ones give way.
const TABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// What an entry takes besides its text.
const ENTRY_BYTES: usize = 256;
const RANGE: &str = "/etcdserverpb.KV/Range";

/// What the cluster says of a caller that wants to read a range.
#[derive(Clone, Debug)]
pub enum ReadPermission {
    /// It may.
    Permitted,
    /// It may not, in the member's words: they are the answer to the caller.
    Refused(Status),
    /// No member has decided. Nothing may be given to the caller; a read can be passed on with the caller's credentials.
    Unknown(Status),
}

/// The rights of callers to ranges, as the cluster sees them. Cheap to clone.
///
/// The cluster is asked with the caller's own credentials by a linearizable read that returns nothing. A permission holds for
/// [`PERMISSION_MAX`]; a refusal is never kept, so that a permission that was just granted counts at once. Callers that ask
/// for the same meanwhile share one question.
#[derive(Clone)]
pub struct ReadPermissions {
    inner: Arc<Inner>,
}

struct Inner {
    members: Arc<dyn Members>,
    permitted: Cache<Question, Permitted>,
    /// Ranges that contain more than the caller may read.
    too_wide: Cache<Question, ()>,
    /// Moves with each change of users, roles or permissions that is known of; permissions of earlier ones do not count.
    generation: Arc<AtomicU64>,
    asked: IntCounterVec,
    runtime: Handle,
    tasks: Tasks,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    caller: Identity,
    range: KeyRange,
}

#[derive(Clone, Copy, Debug)]
struct Permitted {
    asked_at: Instant,
    generation: u64,
}

impl Permitted {
    /// Whether it holds for a call that was made when this was the generation.
    fn counts(&self, generation: u64, age_max: Duration) -> bool {
        self.generation >= generation && self.asked_at.elapsed() < age_max
    }
}

/// What was decided last for one caller and one range, where a look at it costs next to nothing.
#[derive(Debug, Default)]
pub struct KeptPermission(ArcSwapOption<Permitted>);

/// Whoever decides.
pub(in crate::proxy) trait Members: Send + Sync {
    /// Asks whether these credentials may read a range.
    ///
    /// # Errors
    /// The refusal, or why there is no decision.
    fn may_read(&self, credentials: HeaderMap, range: KeyRange) -> BoxFuture<'static, Result<(), Status>>;
}

impl ReadPermissions {
    /// Asks the cluster through `pool`, from the current runtime; the pool should not be used elsewhere.
    pub fn new(pool: Pool, metrics: &Metrics, tasks: &Tasks) -> Self {
        Self::with_members(Arc::new(pool), metrics, tasks)
    }

    pub(in crate::proxy) fn with_members(members: Arc<dyn Members>, metrics: &Metrics, tasks: &Tasks) -> Self {
        let asked = metrics.counter_vec(
            "watershed_proxy_permission_checks_total",
            "Questions to the cluster whether a caller may read a range, by outcome: permitted, refused, unknown.",
            &["outcome"],
        );
        let inner = Inner {
            members,
            permitted: table(PERMISSION_MAX),
            too_wide: table(NARROW_MAX),
            generation: Arc::default(),
            asked,
            runtime: Handle::current(),
            tasks: tasks.clone(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Of callers that are all one user, whatever they send: the cluster is asked as that user, through `channel`. Both
    /// [forget](Self::forget) together.
    pub(in crate::proxy) fn of_user(&self, channel: Channel, tasks: &Tasks) -> Self {
        let inner = Inner {
            members: Arc::new(channel),
            permitted: table(PERMISSION_MAX),
            too_wide: table(NARROW_MAX),
            generation: self.inner.generation.clone(),
            asked: self.inner.asked.clone(),
            runtime: self.inner.runtime.clone(),
            tasks: tasks.clone(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Whether `caller` may read `range`, a range of the cluster's keys.
    ///
    /// The answer holds now and for the next [`PERMISSION_MAX`] at most. Dropping the future is safe.
    pub async fn may_read(&self, caller: &Identity, range: &KeyRange) -> ReadPermission {
        self.decide(Question::new(caller, range), PERMISSION_MAX).await
    }

    /// The same for callers of one wide range that contains `range`: whoever may read all of `wide` is asked about nothing
    /// else, so that any number of ranges within it cost one question.
    pub async fn may_read_within(&self, caller: &Identity, wide: &KeyRange, range: &KeyRange) -> ReadPermission {
        self.decide_within(caller, wide, range, PERMISSION_MAX).await
    }

    /// The same for something that is open for as long as the caller may read: asked at least ten times a second, it tells of
    /// a revoked permission within [`PERMISSION_MAX`].
    pub async fn may_still_read_within(&self, caller: &Identity, wide: &KeyRange, range: &KeyRange) -> ReadPermission {
        self.decide_within(caller, wide, range, RENEW_AFTER).await
    }

    /// The same as [`may_read_within`](Self::may_read_within) for a caller and a wide range that are asked about all the time,
    /// `kept` being theirs alone: while the wide range is permitted, the answer is one look at `kept`.
    pub async fn may_read_kept(
        &self,
        kept: &KeptPermission,
        caller: &Identity,
        wide: &KeyRange,
        range: &KeyRange,
    ) -> ReadPermission {
        let generation = self.inner.generation.load(Ordering::SeqCst);
        if kept.0.load().as_ref().is_some_and(|kept| kept.counts(generation, PERMISSION_MAX)) {
            return ReadPermission::Permitted;
        }
        // Boxed: it is large, and once a second.
        let permission = Box::pin(self.decide_within(caller, wide, range, PERMISSION_MAX)).await;
        if matches!(permission, ReadPermission::Permitted) {
            // Whether it was the wide range that was permitted, and when that was asked, the table knows.
            let permitted = self.inner.permitted.get(&Question::new(caller, wide)).await;
            kept.0.store(permitted.map(Arc::new));
        }
        permission
    }

    /// Users, roles or permissions have changed: nothing that was decided before counts any more.
    pub fn forget(&self) {
        self.inner.generation.fetch_add(1, Ordering::SeqCst);
        self.inner.permitted.invalidate_all();
        self.inner.too_wide.invalidate_all();
    }

    async fn decide_within(
        &self,
        caller: &Identity,
        wide: &KeyRange,
        range: &KeyRange,
        age_max: Duration,
    ) -> ReadPermission {
        let question = Question::new(caller, wide);
        if wide != range && wide.covers(range) && !self.inner.too_wide.contains_key(&question) {
            match self.decide(question.clone(), age_max).await {
                ReadPermission::Refused(status) if status.code() == Code::PermissionDenied => {
                    self.inner.too_wide.insert(question, ()).await;
                }
                permission => return permission,
            }
        }
        self.decide(Question::new(caller, range), age_max).await
    }

    async fn decide(&self, question: Question, age_max: Duration) -> ReadPermission {
        // What was asked for after this call counts, however long the answer took.
        let (called_at, generation) = (Instant::now(), self.inner.generation.load(Ordering::SeqCst));
        let counts = |permitted: Permitted| {
            let asked_since = permitted.asked_at >= called_at && permitted.generation >= generation;
            asked_since || permitted.counts(generation, age_max)
        };
        loop {
            let ask = self.inner.clone().ask(question.clone());
            match self.inner.permitted.try_get_with_by_ref(&question, ask).await {
                Ok(permitted) if counts(permitted) => return ReadPermission::Permitted,
                Ok(_) => self.inner.permitted.invalidate(&question).await,
                Err(status) if is_refusal(&status) => return ReadPermission::Refused(Status::clone(&status)),
                Err(status) => return ReadPermission::Unknown(Status::clone(&status)),
            }
        }
    }
}

impl Inner {
    /// Asks in a task of its own, on the runtime that has the connections.
    async fn ask(self: Arc<Self>, question: Question) -> Result<Permitted, Status> {
        let permitted = Permitted { asked_at: Instant::now(), generation: self.generation.load(Ordering::SeqCst) };
        let Question { caller, range } = question;
        let asking = timeout(PERMISSION_MAX, self.members.may_read(caller.metadata(), range));
        let asking = {
            let _runtime = self.runtime.enter();
            self.tasks.spawn(asking)
        };
        let outcome = match asking.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Status::unavailable("no member has decided on the permission in time")),
            Err(_) => Err(ApiError::Stopped.into()),
        };
        let label = match &outcome {
            Ok(()) => "permitted",
            Err(status) if is_refusal(status) => "refused",
            Err(_) => "unknown",
        };
        self.asked.with_label_values(&[label]).inc();
        outcome.map(|()| permitted)
    }
}

impl Question {
    fn new(caller: &Identity, range: &KeyRange) -> Self {
        // Whether the caller wants a leader has nothing to do with its rights.
        Self { caller: caller.clone().with_require_leader(false), range: range.clone() }
    }

    fn bytes(&self) -> u32 {
        let range = match &self.range {
            KeyRange::One(key) | KeyRange::From(key) => key.len(),
            KeyRange::HalfOpen { start, end } => start.len() + end.len(),
        };
        u32::try_from(ENTRY_BYTES + self.caller.bytes() + range).unwrap_or(u32::MAX)
    }
}

impl Members for Pool {
    fn may_read(&self, credentials: HeaderMap, range: KeyRange) -> BoxFuture<'static, Result<(), Status>> {
        let pool = self.clone();
        async move {
            let head = Head::grpc(RANGE, credentials);
            decision(pool.exchange(Method::of(RANGE), &head, question(&range)).await).await
        }
        .boxed()
    }
}

impl Members for Channel {
    /// Asks as the user of the channel.
    fn may_read(&self, _: HeaderMap, range: KeyRange) -> BoxFuture<'static, Result<(), Status>> {
        let channel = self.clone();
        async move {
            let head = Head::grpc(RANGE, HeaderMap::new());
            decision(channel.exchange(Method::of(RANGE), &head, question(&range)).await).await
        }
        .boxed()
    }
}

/// A read of the range at a revision that no cluster reaches. A member looks at the permission before it looks at the
/// revision, so the answer is the refusal, or that the revision is in the future; and it costs the same whatever the
/// range holds. It is linearizable, so that a member that was cut off from the others cannot know an older permission.
fn question(range: &KeyRange) -> Bytes {
    let (key, range_end) = range.to_wire();
    // A request cannot name the empty key; no key lies before this one.
    let key = if key.is_empty() { "\0".into() } else { key };
    let read = RangeRequest { key, range_end, limit: 1, keys_only: true, revision: i64::MAX, ..Default::default() };
    framed(&read)
}

async fn decision(answer: Response<Body>) -> Result<(), Status> {
    match unframed::<RangeResponse>(answer).await {
        Ok(_) => Ok(()),
        Err(status) if ApiError::from_text(status.message()) == Some(ApiError::FutureRevision) => Ok(()),
        Err(status) => Err(status),
    }
}

fn table<T: Clone + Send + Sync + 'static>(holds: Duration) -> Cache<Question, T> {
    let weigher = |question: &Question, _: &T| question.bytes();
    Cache::builder().time_to_live(holds).max_capacity(TABLE_BYTES_MAX).weigher(weigher).build()
}

/// Whether the cluster has decided against the caller.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use parking_lot::Mutex;
    use tokio::sync::Semaphore;
    use tokio::time::sleep;

    use super::*;

    /// Answers each question with `outcome` once it may.
    struct Cluster {
        outcome: Mutex<Result<(), Status>>,
        denied: Mutex<Option<KeyRange>>,
        may_answer: Arc<Semaphore>,
        questions: AtomicUsize,
    }

    impl Members for Arc<Cluster> {
        fn may_read(&self, _: HeaderMap, range: KeyRange) -> BoxFuture<'static, Result<(), Status>> {
            self.questions.fetch_add(1, Ordering::SeqCst);
            // A member decides when it gets the question.
            let denied = self.denied.lock().as_ref() == Some(&range);
            let outcome = if denied { Err(ApiError::PermissionDenied.into()) } else { self.outcome.lock().clone() };
            let may_answer = self.may_answer.clone();
            async move {
                let _turn = may_answer.acquire().await;
                outcome
            }
            .boxed()
        }
    }

    fn cluster() -> (Arc<Cluster>, ReadPermissions) {
        let cluster = Arc::new(Cluster {
            outcome: Mutex::new(Ok(())),
            denied: Mutex::new(None),
            may_answer: Arc::new(Semaphore::new(1000)),
            questions: AtomicUsize::new(0),
        });
        let permissions = ReadPermissions::with_members(Arc::new(cluster.clone()), &Metrics::new(), &Tasks::new());
        (cluster, permissions)
    }

    fn caller(token: &'static str) -> Identity {
        let mut headers = HeaderMap::new();
        headers.insert("token", http::HeaderValue::from_static(token));
        Identity::of(&headers)
    }

    fn prefix(text: &'static str) -> KeyRange {
        KeyRange::prefix(text.into())
    }

    fn asked(cluster: &Cluster) -> usize {
        cluster.questions.load(Ordering::SeqCst)
    }

    #[tokio::test(start_paused = true)]
    async fn a_permission_holds_for_a_second_and_a_refusal_not_at_all() {
        let (cluster, permissions) = cluster();
        let ask = async || permissions.may_read(&caller("a"), &prefix("k")).await;
        for _ in 0..10 {
            assert!(matches!(ask().await, ReadPermission::Permitted));
        }
        assert_eq!(asked(&cluster), 1);
        // Another caller, another range: other questions.
        assert!(matches!(permissions.may_read(&caller("b"), &prefix("k")).await, ReadPermission::Permitted));
        assert!(matches!(permissions.may_read(&caller("a"), &prefix("k2")).await, ReadPermission::Permitted));
        assert_eq!(asked(&cluster), 3);
        *cluster.outcome.lock() = Err(ApiError::PermissionDenied.into());
        sleep(PERMISSION_MAX - Duration::from_millis(1)).await;
        assert!(matches!(ask().await, ReadPermission::Permitted));
        sleep(Duration::from_millis(1)).await;
        assert!(matches!(ask().await, ReadPermission::Refused(status) if status.code() == Code::PermissionDenied));
        *cluster.outcome.lock() = Ok(());
        assert!(matches!(ask().await, ReadPermission::Permitted), "granted a moment ago");
        *cluster.outcome.lock() = Err(ApiError::InvalidAuthToken.into());
        assert!(matches!(ask().await, ReadPermission::Permitted));
        permissions.forget();
        assert!(matches!(ask().await, ReadPermission::Refused(status) if status.code() == Code::Unauthenticated));
        *cluster.outcome.lock() = Err(Status::unavailable("nobody"));
        assert!(matches!(ask().await, ReadPermission::Unknown(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_permission_holds_for_as_long_as_any() {
        let (cluster, permissions) = cluster();
        let (kept, caller, wide, narrow) =
            (KeptPermission::default(), caller("a"), prefix("k"), KeyRange::One("k1".into()));
        let ask = async || permissions.may_read_kept(&kept, &caller, &wide, &narrow).await;
        for _ in 0..10 {
            assert!(matches!(ask().await, ReadPermission::Permitted));
        }
        assert_eq!(asked(&cluster), 1);
        *cluster.outcome.lock() = Err(ApiError::PermissionDenied.into());
        assert!(matches!(ask().await, ReadPermission::Permitted));
        permissions.forget();
        assert!(matches!(ask().await, ReadPermission::Refused(_)), "a change counts at once");
        *cluster.outcome.lock() = Ok(());
        permissions.forget();
        assert!(matches!(ask().await, ReadPermission::Permitted));
        *cluster.outcome.lock() = Err(ApiError::PermissionDenied.into());
        sleep(PERMISSION_MAX - Duration::from_millis(1)).await;
        assert!(matches!(ask().await, ReadPermission::Permitted));
        sleep(Duration::from_millis(1)).await;
        assert!(matches!(ask().await, ReadPermission::Refused(_)), "a second after the question");
        permissions.forget();
        // A permission for a part is none for the whole.
        *cluster.outcome.lock() = Ok(());
        *cluster.denied.lock() = Some(wide.clone());
        assert!(matches!(ask().await, ReadPermission::Permitted));
        let other = permissions.may_read_kept(&kept, &caller, &wide, &KeyRange::One("k2".into())).await;
        assert!(matches!(other, ReadPermission::Permitted));
        *cluster.outcome.lock() = Err(ApiError::PermissionDenied.into());
        let other = permissions.may_read_kept(&kept, &caller, &wide, &KeyRange::One("k3".into())).await;
        assert!(matches!(other, ReadPermission::Refused(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_open_is_asked_about_before_its_permission_is_over() {
        let (cluster, permissions) = cluster();
        let ask = async || permissions.may_still_read_within(&caller("a"), &prefix("k"), &prefix("k")).await;
        assert!(matches!(ask().await, ReadPermission::Permitted));
        sleep(RENEW_AFTER - Duration::from_millis(1)).await;
        assert!(matches!(ask().await, ReadPermission::Permitted));
        assert_eq!(asked(&cluster), 1);
        *cluster.outcome.lock() = Err(ApiError::PermissionDenied.into());
        sleep(Duration::from_millis(1)).await;
        assert!(matches!(permissions.may_read(&caller("a"), &prefix("k")).await, ReadPermission::Permitted));
        assert!(matches!(ask().await, ReadPermission::Refused(_)), "before a second is over");
        assert_eq!(asked(&cluster), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_share_a_question_and_its_age_counts_from_the_question() {
        let (cluster, permissions) = cluster();
        cluster.may_answer.forget_permits(1000);
        let mut waiting: Vec<_> = (0..100)
            .map(|_| {
                let permissions = permissions.clone();
                async move { permissions.may_read(&caller("a"), &prefix("k")).await }.boxed()
            })
            .collect();
        for one in &mut waiting {
            assert!(one.now_or_never().is_none());
        }
        sleep(Duration::from_millis(900)).await;
        cluster.may_answer.add_permits(1000);
        let answers = futures::future::join_all(waiting).await;
        assert!(answers.iter().all(|permission| matches!(permission, ReadPermission::Permitted)));
        assert_eq!(asked(&cluster), 1);
        sleep(Duration::from_millis(100)).await;
        permissions.may_read(&caller("a"), &prefix("k")).await;
        assert_eq!(asked(&cluster), 2);
    }

    /// Cause to look for: a permission asked for before a change of roles, and answered after it, was kept for a second.
    #[tokio::test(start_paused = true)]
    async fn what_was_asked_before_a_change_does_not_count_after_it() {
        let (cluster, permissions) = cluster();
        cluster.may_answer.forget_permits(1000);
        let (caller, range) = (caller("a"), prefix("k"));
        let mut before = permissions.may_read(&caller, &range).boxed();
        assert!((&mut before).now_or_never().is_none());
        sleep(Duration::from_millis(1)).await;
        *cluster.outcome.lock() = Err(ApiError::PermissionDenied.into());
        permissions.forget();
        cluster.may_answer.add_permits(1000);
        let (_, after) = tokio::join!(before, permissions.may_read(&caller, &range));
        assert!(matches!(after, ReadPermission::Refused(_)), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_cluster_decides_nothing() {
        let (cluster, permissions) = cluster();
        cluster.may_answer.forget_permits(1000);
        assert!(matches!(permissions.may_read(&caller("a"), &prefix("k")).await, ReadPermission::Unknown(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_permission_for_a_wide_range_answers_for_all_within() {
        let (cluster, permissions) = cluster();
        let wide = prefix("k/");
        for name in ["k/1", "k/2", "k/3"] {
            let permission = permissions.may_read_within(&caller("a"), &wide, &KeyRange::One(name.into())).await;
            assert!(matches!(permission, ReadPermission::Permitted));
        }
        assert_eq!(asked(&cluster), 1);
        *cluster.denied.lock() = Some(wide.clone());
        let narrow = KeyRange::One("k/1".into());
        for questions in [3, 3] {
            let permission = permissions.may_read_within(&caller("b"), &wide, &narrow).await;
            assert!(matches!(permission, ReadPermission::Permitted));
            assert_eq!(asked(&cluster), questions, "the wide range is not asked about again");
        }
        *cluster.outcome.lock() = Err(ApiError::PermissionDenied.into());
        let permission = permissions.may_read_within(&caller("b"), &wide, &KeyRange::One("k/2".into())).await;
        assert!(matches!(permission, ReadPermission::Refused(_)));
        // A range that is not within says nothing of the other.
        let permission = permissions.may_read_within(&caller("a"), &wide, &KeyRange::One("j".into())).await;
        assert!(matches!(permission, ReadPermission::Refused(_)));
    }
}
