use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use super::read_question::Members;
use super::shared_question::RENEW_AFTER;
use super::{Identity, KeptPermission, PERMISSION_MAX, ReadPermission, ReadPermissions};
use crate::api_error::ApiError;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;
use crate::types::KeyRange;

/// Decides each question with `outcome` when it comes, and answers once it may.
struct Cluster {
    outcome: Mutex<Result<(), Status>>,
    /// The error of the next question alone.
    once: Mutex<Option<Status>>,
    denied: Mutex<Option<KeyRange>>,
    may_answer: Arc<Semaphore>,
    /// How long answers take besides.
    takes: Mutex<Duration>,
    questions: AtomicUsize,
}

impl Members for Arc<Cluster> {
    fn may_read(&self, _: HeaderMap, range: KeyRange) -> BoxFuture<'static, Result<(), Status>> {
        self.questions.fetch_add(1, Ordering::SeqCst);
        let denied = self.denied.lock().as_ref() == Some(&range);
        let outcome = if denied { Err(ApiError::PermissionDenied.into()) } else { self.outcome.lock().clone() };
        let outcome = self.once.lock().take().map_or(outcome, Err);
        let (may_answer, takes) = (self.may_answer.clone(), *self.takes.lock());
        async move {
            let _turn = may_answer.acquire().await;
            if !takes.is_zero() {
                sleep(takes).await;
            }
            outcome
        }
        .boxed()
    }
}

impl Cluster {
    fn refuse(&self) {
        *self.outcome.lock() = Err(ApiError::PermissionDenied.into());
    }

    fn permit(&self) {
        *self.outcome.lock() = Ok(());
    }

    fn takes(&self, milliseconds: u64) {
        *self.takes.lock() = Duration::from_millis(milliseconds);
    }
}

fn cluster() -> (Arc<Cluster>, ReadPermissions) {
    let cluster = Arc::new(Cluster {
        outcome: Mutex::new(Ok(())),
        once: Mutex::default(),
        denied: Mutex::new(None),
        may_answer: Arc::new(Semaphore::new(1000)),
        takes: Mutex::new(Duration::ZERO),
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

/// Begins a call.
fn begun<F: Future<Output = ReadPermission> + Send>(call: F) -> std::pin::Pin<Box<F>> {
    let mut call = Box::pin(call);
    assert!((&mut call).now_or_never().is_none(), "it waits");
    call
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
    cluster.refuse();
    sleep(PERMISSION_MAX - Duration::from_millis(1)).await;
    assert!(matches!(ask().await, ReadPermission::Permitted));
    sleep(Duration::from_millis(1)).await;
    assert!(matches!(ask().await, ReadPermission::Refused(status) if status.code() == Code::PermissionDenied));
    cluster.permit();
    assert!(matches!(ask().await, ReadPermission::Permitted), "granted a moment ago");
    *cluster.outcome.lock() = Err(ApiError::InvalidAuthToken.into());
    assert!(matches!(ask().await, ReadPermission::Permitted));
    permissions.forget();
    assert!(matches!(ask().await, ReadPermission::Refused(status) if status.code() == Code::Unauthenticated));
    *cluster.outcome.lock() = Err(Status::unavailable("nobody"));
    assert!(matches!(ask().await, ReadPermission::Unknown(_)));
}

/// Cause: any change of users while a member decided was taken for a refusal, and ended the watches of whoever was asked about.
#[tokio::test(start_paused = true)]
async fn a_change_of_users_during_a_question_refuses_nobody() {
    let (cluster, permissions) = cluster();
    let ask = async || permissions.may_still_read_within(&caller("a"), &prefix("k"), &prefix("k")).await;
    let old = || Some(ApiError::AuthOldRevision.into());
    *cluster.once.lock() = old();
    assert!(matches!(ask().await, ReadPermission::Permitted));
    assert_eq!(asked(&cluster), 2);
    // A token that is older than the change stays so.
    *cluster.outcome.lock() = Err(ApiError::AuthOldRevision.into());
    permissions.forget();
    assert!(matches!(ask().await, ReadPermission::Refused(_)));
    assert_eq!(asked(&cluster), 4);
    // What is said the second time counts.
    (*cluster.once.lock(), *cluster.outcome.lock()) = (old(), Err(Status::unavailable("nobody")));
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
    cluster.refuse();
    assert!(matches!(ask().await, ReadPermission::Permitted));
    permissions.forget();
    assert!(matches!(ask().await, ReadPermission::Refused(_)), "a change counts at once");
    cluster.permit();
    permissions.forget();
    assert!(matches!(ask().await, ReadPermission::Permitted));
    cluster.refuse();
    sleep(PERMISSION_MAX - Duration::from_millis(1)).await;
    assert!(matches!(ask().await, ReadPermission::Permitted));
    sleep(Duration::from_millis(1)).await;
    assert!(matches!(ask().await, ReadPermission::Refused(_)), "a second after the question");
    permissions.forget();
    // A permission for a part is none for the whole.
    cluster.permit();
    *cluster.denied.lock() = Some(wide.clone());
    assert!(matches!(ask().await, ReadPermission::Permitted));
    let other = permissions.may_read_kept(&kept, &caller, &wide, &KeyRange::One("k2".into())).await;
    assert!(matches!(other, ReadPermission::Permitted));
    cluster.refuse();
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
    cluster.refuse();
    sleep(Duration::from_millis(1)).await;
    assert!(matches!(ask().await, ReadPermission::Refused(_)), "before a second is over");
    assert_eq!(asked(&cluster), 2);
    let other = permissions.may_read(&caller("a"), &prefix("k")).await;
    assert!(matches!(other, ReadPermission::Refused(_)), "a refusal ends the permission at once");
}

#[tokio::test(start_paused = true)]
async fn callers_share_a_question_and_its_age_counts_from_the_question() {
    let (cluster, permissions) = cluster();
    cluster.takes(100);
    let (caller, range) = (caller("a"), prefix("k"));
    let calls: Vec<_> = (0..100).map(|_| begun(permissions.may_read(&caller, &range))).collect();
    let answers = join_all(calls).await;
    assert!(answers.iter().all(|permission| matches!(permission, ReadPermission::Permitted)));
    assert_eq!(asked(&cluster), 1);
    cluster.refuse();
    sleep(PERMISSION_MAX - Duration::from_millis(100)).await;
    assert!(matches!(permissions.may_read(&caller, &range).await, ReadPermission::Refused(_)));
    assert_eq!(asked(&cluster), 2);
}

// Cause: a question was given up after a second, and its answer held for a second after it was asked: where the cluster took as long,
// nobody was permitted anything.
#[tokio::test(start_paused = true)]
async fn an_answer_that_took_longer_than_it_holds_is_for_those_who_waited() {
    let (cluster, permissions) = cluster();
    cluster.takes(1500);
    let (caller, range, start) = (caller("a"), prefix("k"), Instant::now());
    let first = begun(permissions.may_read(&caller, &range));
    sleep(Duration::from_millis(500)).await;
    let later: Vec<_> = (0..10).map(|_| begun(permissions.may_read(&caller, &range))).collect();
    assert!(matches!(first.await, ReadPermission::Permitted));
    assert_eq!(start.elapsed(), Duration::from_millis(1500));
    // Who came during the question is told by the next one.
    for permission in join_all(later).await {
        assert!(matches!(permission, ReadPermission::Permitted), "{permission:?}");
    }
    assert_eq!((start.elapsed(), asked(&cluster)), (Duration::from_secs(3), 2));
    // Nothing is left of it, and nobody asks by himself.
    cluster.refuse();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(asked(&cluster), 2);
    assert!(matches!(permissions.may_read(&caller, &range).await, ReadPermission::Refused(_)));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_for_those_who_came_before_it_was_asked_for() {
    let (cluster, permissions) = cluster();
    cluster.takes(100);
    cluster.refuse();
    let (caller, range) = (caller("a"), prefix("k"));
    let first = begun(permissions.may_read(&caller, &range));
    sleep(Duration::from_millis(50)).await;
    cluster.permit();
    let (first, second) = tokio::join!(first, permissions.may_read(&caller, &range));
    assert!(matches!(first, ReadPermission::Refused(_)), "{first:?}");
    assert!(matches!(second, ReadPermission::Permitted), "granted before the call: {second:?}");
}

#[tokio::test(start_paused = true)]
async fn a_permission_in_use_is_renewed_in_the_background_and_an_idle_one_is_not() {
    for takes in [1, 100, 400] {
        let (cluster, permissions) = cluster();
        cluster.takes(takes);
        let (kept, caller, wide) = (KeptPermission::default(), caller("a"), prefix("k"));
        let narrow = KeyRange::One("k1".into());
        let read = || permissions.may_read_kept(&kept, &caller, &wide, &narrow);
        assert!(matches!(read().await, ReadPermission::Permitted));
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            sleep(Duration::from_millis(10)).await;
            let told = read().now_or_never();
            assert!(matches!(told, Some(ReadPermission::Permitted)), "nobody waits: {told:?} with {takes} ms");
            let other = permissions.may_read_within(&caller, &wide, &wide).now_or_never();
            assert!(matches!(other, Some(ReadPermission::Permitted)), "the same question: {other:?}");
        }
        let questions = asked(&cluster);
        let most = 2 + 10_000 / (takes.max(700 - 2 * takes.min(350)) as usize);
        assert!(
            questions <= most,
            "{questions} questions, one at a time and none before it is needed, with {takes} ms"
        );
        sleep(Duration::from_secs(60)).await;
        assert!(asked(&cluster) <= questions + 1, "nobody reads");
        drop(begun(read()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_leaves_the_permission_its_time() {
    let (cluster, permissions) = cluster();
    let read = async || permissions.may_read(&caller("a"), &prefix("k")).await;
    assert!(matches!(read().await, ReadPermission::Permitted));
    *cluster.outcome.lock() = Err(Status::unavailable("nobody"));
    for pause in [RENEW_AFTER, PERMISSION_MAX - RENEW_AFTER - Duration::from_millis(1)] {
        sleep(pause).await;
        assert!(matches!(read().await, ReadPermission::Permitted));
    }
    assert_eq!(asked(&cluster), 2, "asked again once");
}

/// What ended with the runtime or the process must not leave callers behind that wait.
#[tokio::test(start_paused = true)]
async fn a_question_that_is_stopped_leaves_nobody_waiting() {
    let (cluster, tasks) = (cluster().0, Tasks::new());
    cluster.may_answer.forget_permits(1000);
    let permissions = ReadPermissions::with_members(Arc::new(cluster.clone()), &Metrics::new(), &tasks);
    let (caller, range) = (caller("a"), prefix("k"));
    let calls = [(); 2].map(|()| begun(permissions.may_read(&caller, &range)));
    sleep(Duration::from_millis(1)).await;
    tasks.stop();
    for permission in join_all(calls).await {
        assert!(matches!(permission, ReadPermission::Unknown(_)), "{permission:?}");
    }
}

/// Cause to look for: a permission asked for before a change of roles, and answered after it, was kept for a second.
#[tokio::test(start_paused = true)]
async fn what_was_asked_before_a_change_does_not_count_after_it() {
    let (cluster, permissions) = cluster();
    cluster.may_answer.forget_permits(1000);
    let (caller, range) = (caller("a"), prefix("k"));
    let before = begun(permissions.may_read(&caller, &range));
    sleep(Duration::from_millis(1)).await;
    cluster.refuse();
    permissions.forget();
    cluster.may_answer.add_permits(1000);
    let (_, after) = tokio::join!(before, permissions.may_read(&caller, &range));
    assert!(matches!(after, ReadPermission::Refused(_)), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_cluster_decides_nothing() {
    let (cluster, permissions) = cluster();
    cluster.may_answer.forget_permits(1000);
    let start = Instant::now();
    assert!(matches!(permissions.may_read(&caller("a"), &prefix("k")).await, ReadPermission::Unknown(_)));
    assert_eq!(start.elapsed(), Duration::from_secs(2), "as long as for the revision");
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
    cluster.refuse();
    let permission = permissions.may_read_within(&caller("b"), &wide, &KeyRange::One("k/2".into())).await;
    assert!(matches!(permission, ReadPermission::Refused(_)));
    // A range that is not within says nothing of the other.
    let permission = permissions.may_read_within(&caller("a"), &wide, &KeyRange::One("j".into())).await;
    assert!(matches!(permission, ReadPermission::Refused(_)));
}

/// A cluster in which one permission is revoked, and that decides and answers at random times.
struct Revoking {
    revoked_at: Instant,
    asked_at: Mutex<Vec<Instant>>,
}

impl Members for Arc<Revoking> {
    fn may_read(&self, _: HeaderMap, _: KeyRange) -> BoxFuture<'static, Result<(), Status>> {
        self.asked_at.lock().push(Instant::now());
        let slow = if fastrand::bool() { 50 } else { 1900 };
        let [decides, answers] = [(); 2].map(|()| Duration::from_millis(fastrand::u64(..=slow / 2)));
        let this = self.clone();
        async move {
            sleep(decides).await;
            let permitted = Instant::now() < this.revoked_at;
            sleep(answers).await;
            if permitted { Ok(()) } else { Err(ApiError::PermissionDenied.into()) }
        }
        .boxed()
    }
}

/// Callers of all kinds come at random times: who comes after the revocation is told that it may read for less than a second after
/// it, and no question is asked that nobody has.
async fn is_revoked_within_a_second(seed: u64) {
    fastrand::seed(seed);
    let start = Instant::now();
    let revoked_at = start + Duration::from_millis(fastrand::u64(1000..5000));
    let cluster = Arc::new(Revoking { revoked_at, asked_at: Mutex::default() });
    let permissions = ReadPermissions::with_members(Arc::new(cluster.clone()), &Metrics::new(), &Tasks::new());
    let (kept, caller, wide, narrow) =
        (KeptPermission::default(), caller("a"), prefix("k"), KeyRange::One("k1".into()));
    let call = async |at: Duration, kind: u8| {
        sleep(at).await;
        let came_at = Instant::now();
        let told = match kind {
            0 => permissions.may_read_kept(&kept, &caller, &wide, &narrow).await,
            1 => permissions.may_read_within(&caller, &wide, &narrow).await,
            _ => permissions.may_still_read_within(&caller, &wide, &wide).await,
        };
        let told_at = Instant::now();
        match told {
            ReadPermission::Permitted if came_at >= revoked_at => {
                let late = told_at - revoked_at;
                assert!(late < PERMISSION_MAX, "seed {seed}: permitted {late:?} after it was revoked");
            }
            ReadPermission::Refused(_) => assert!(told_at >= revoked_at, "seed {seed}"),
            ReadPermission::Permitted => {}
            ReadPermission::Unknown(status) => panic!("seed {seed}: {status}"),
        }
        // Two questions each; the range itself is asked about when the wide one was refused.
        assert!(told_at - came_at <= Duration::from_secs(8), "seed {seed}");
        (came_at, told_at)
    };
    let calls = (0..fastrand::u64(1..200)).map(|_| (Duration::from_millis(fastrand::u64(..10_000)), fastrand::u8(..3)));
    let calls: Vec<_> = calls.map(|(at, kind)| call(at, kind)).collect();
    let calls = join_all(calls).await;
    sleep(Duration::from_secs(60)).await;
    for asked_at in &*cluster.asked_at.lock() {
        let is_wanted = calls.iter().any(|(came_at, told_at)| came_at <= asked_at && asked_at <= told_at);
        assert!(is_wanted, "seed {seed}: asked {:?} after the start, when nobody wanted to know", *asked_at - start);
    }
}

#[test]
fn whoever_comes_after_a_revocation_is_refused_within_a_second() {
    for seed in 0..300 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(is_revoked_within_a_second(seed));
    }
}
