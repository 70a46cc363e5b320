use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use moka::sync::Cache;
use prometheus::IntCounterVec;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use super::credentials::Identity;
use super::read_question::{Members, Question, is_refusal};
use super::shared_question::{Answer, InFlight, Part, Permitted, SharedQuestion};
use crate::api_error::ApiError;
use crate::client::{Channel, Pool};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;
use crate::types::KeyRange;

/// How long the cluster may take to decide: as long as it may for its revision in the range cache, since a range that is answered
/// there waits for both.
const QUESTION_MAX: Duration = Duration::from_secs(2);
/// How long a caller that may not read the whole of a wide range is not asked about that one again.
const NARROW_MAX: Duration = Duration::from_secs(10);
/// How long a question that nobody has is remembered.
const UNUSED_MAX: Duration = Duration::from_secs(10);
/// Memory for questions, and for refused wide ranges; the least recently used ones give way.
const TABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;

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
/// The cluster is asked with the caller's own credentials by a linearizable read that returns nothing. Callers with the same question
/// share it; one is in flight at a time.
///
/// A caller is permitted only by an answer to a question that was asked after the caller came, or less than
/// [`PERMISSION_MAX`](super::PERMISSION_MAX) before it is told. So a caller that comes after a permission was revoked is told that it
/// may read for less than that time after the revocation, however long answers take. A refusal counts for callers that came before it
/// was asked for and is not kept, so that a permission that was just granted counts at once.
///
/// A permission that is used is asked for again in the background before its time is over, so that callers rarely wait; one that nobody
/// uses is not.
#[derive(Clone)]
pub struct ReadPermissions {
    inner: Arc<Inner>,
}

struct Inner {
    members: Arc<dyn Members>,
    questions: Cache<Question, Arc<SharedQuestion>>,
    /// Ranges that contain more than the caller may read.
    too_wide: Cache<Question, ()>,
    /// Counts the changes of users, roles or permissions that are known of; what was asked before the last one does not count.
    changes: Arc<AtomicU64>,
    asked: IntCounterVec,
    runtime: Handle,
    tasks: Tasks,
}

/// The question of one caller about one wide range, where a look at its answer costs next to nothing.
#[derive(Debug, Default)]
pub struct KeptPermission(OnceLock<Arc<SharedQuestion>>);

/// What a permission is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// One answer.
    Once,
    /// Something that stays open for as long as the caller may read; who has it asks again and again.
    Open,
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
        Self::over(members, Arc::default(), asked, Handle::current(), tasks)
    }

    /// Of callers that are all one user, whatever they send: the cluster is asked as that user, through `channel`. Both
    /// [forget](Self::forget) together.
    pub(in crate::proxy) fn of_user(&self, channel: Channel, tasks: &Tasks) -> Self {
        let Inner { changes, asked, runtime, .. } = &*self.inner;
        Self::over(Arc::new(channel), changes.clone(), asked.clone(), runtime.clone(), tasks)
    }

    fn over(
        members: Arc<dyn Members>,
        changes: Arc<AtomicU64>,
        asked: IntCounterVec,
        runtime: Handle,
        tasks: &Tasks,
    ) -> Self {
        let questions = Cache::builder().time_to_idle(UNUSED_MAX).max_capacity(TABLE_BYTES_MAX);
        let too_wide = Cache::builder().time_to_live(NARROW_MAX).max_capacity(TABLE_BYTES_MAX);
        let inner = Inner {
            members,
            questions: questions.weigher(|question: &Question, _: &_| question.bytes()).build(),
            too_wide: too_wide.weigher(|question: &Question, (): &()| question.bytes()).build(),
            changes,
            asked,
            runtime,
            tasks: tasks.clone(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Whether `caller` may read `range`, a range of the cluster's keys. Dropping the future is safe.
    pub async fn may_read(&self, caller: &Identity, range: &KeyRange) -> ReadPermission {
        self.decide(&self.inner.shared(Question::new(caller, range)), Use::Once).await
    }

    /// The same for callers of one wide range that contains `range`: whoever may read all of `wide` is asked about nothing
    /// else, so that any number of ranges within it cost one question.
    pub async fn may_read_within(&self, caller: &Identity, wide: &KeyRange, range: &KeyRange) -> ReadPermission {
        self.decide_within(&self.inner.shared(Question::new(caller, wide)), range, Use::Once).await
    }

    /// The same for something that is open for as long as the caller may read: asked at least ten times a second, it tells of
    /// a revoked permission within [`PERMISSION_MAX`](super::PERMISSION_MAX) where the cluster answers within 0.3 s, else in 0.1 s and
    /// the time of three answers.
    pub async fn may_still_read_within(&self, caller: &Identity, wide: &KeyRange, range: &KeyRange) -> ReadPermission {
        self.decide_within(&self.inner.shared(Question::new(caller, wide)), range, Use::Open).await
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
        if kept.0.get().is_some_and(|wide| wide.is_permitted(self.inner.changes())) {
            return ReadPermission::Permitted;
        }
        let wide = kept.0.get_or_init(|| self.inner.shared(Question::new(caller, wide)));
        // Boxed: it is large, and once a second.
        Box::pin(self.decide_within(wide, range, Use::Once)).await
    }

    /// Users, roles or permissions have changed: nothing that was decided before counts any more.
    pub fn forget(&self) {
        self.inner.changes.fetch_add(1, Ordering::SeqCst);
        self.inner.too_wide.invalidate_all();
    }

    async fn decide_within(&self, wide: &Arc<SharedQuestion>, range: &KeyRange, used: Use) -> ReadPermission {
        let question = &wide.question;
        if question.range == *range {
            return self.decide(wide, used).await;
        }
        if question.range.covers(range) && !self.inner.too_wide.contains_key(question) {
            match self.decide(wide, used).await {
                ReadPermission::Refused(status) if status.code() == Code::PermissionDenied => {
                    self.inner.too_wide.insert(question.clone(), ());
                }
                permission => return permission,
            }
        }
        self.decide(&self.inner.shared(Question::new(&question.caller, range)), used).await
    }

    async fn decide(&self, shared: &Arc<SharedQuestion>, used: Use) -> ReadPermission {
        let changes = self.inner.changes();
        // Who comes during a question waits for the next one, unless the permission is new enough when it comes.
        let mut is_next = false;
        loop {
            let now = Instant::now();
            if let Some(permitted) = shared.permitted(changes, now) {
                match (permitted.is_old(now), used) {
                    (false, _) => return ReadPermission::Permitted,
                    (true, Use::Once) => {
                        if permitted.takes_renewal() {
                            drop(self.inner.ask(shared));
                        }
                        return ReadPermission::Permitted;
                    }
                    (true, Use::Open) => {}
                }
            }
            let (in_flight, is_own) = self.inner.ask(shared);
            match in_flight.await {
                Ok(Err(status)) if !is_refusal(&status) => return ReadPermission::Unknown(status),
                Ok(Err(status)) if is_own || is_next => return ReadPermission::Refused(status),
                Ok(Ok(_)) if is_own || is_next => return ReadPermission::Permitted,
                Ok(_) => is_next = true,
                Err(_) => return ReadPermission::Unknown(ApiError::Stopped.into()),
            }
        }
    }
}

impl Inner {
    fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    fn shared(&self, question: Question) -> Arc<SharedQuestion> {
        self.questions.get_with_by_ref(&question, || Arc::new(SharedQuestion::new(question.clone())))
    }

    /// The question in flight, and whether it was begun by this.
    fn ask(self: &Arc<Self>, shared: &Arc<SharedQuestion>) -> (InFlight, bool) {
        let (asking, in_flight) = match shared.take_part() {
            Part::Joined(in_flight) => return (in_flight, false),
            Part::Begun(asking, in_flight) => (asking, in_flight),
        };
        let (this, stop) = (self.clone(), self.tasks.stop_signal());
        // On the runtime that has the connections.
        let _runtime = self.runtime.enter();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                answer = this.answer(asking.question()) => asking.finish(answer),
            }
        });
        (in_flight, true)
    }

    /// What the cluster answers.
    async fn answer(&self, question: &Question) -> Answer {
        let (asked_at, changes) = (Instant::now(), self.changes());
        let Question { caller, range } = question.clone();
        let ask = || self.members.may_read(caller.metadata(), range.clone());
        let asking = async {
            match ask().await {
                // Users or roles changed while a member decided, which says nothing of this caller. Of a token that is older than the
                // change the member says so again.
                Err(status) if ApiError::from_text(status.message()) == Some(ApiError::AuthOldRevision) => ask().await,
                outcome => outcome,
            }
        };
        let outcome = timeout(QUESTION_MAX, asking).await;
        let late = |_| Err(Status::unavailable("no member has decided on the permission in time"));
        let outcome = outcome.unwrap_or_else(late);
        let label = match &outcome {
            Ok(()) => "permitted",
            Err(status) if is_refusal(status) => "refused",
            Err(_) => "unknown",
        };
        self.asked.with_label_values(&[label]).inc();
        outcome.map(|()| Arc::new(Permitted::new(asked_at, changes)))
    }
}
