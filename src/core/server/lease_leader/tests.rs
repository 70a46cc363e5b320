use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::super::renewals::{self, Renewals};
use super::*;
use crate::core::apply::LeaseFact;
use crate::core::lease::{Lessor, LessorConfig};
use crate::core::peer::CallFailure;

const SECOND: Duration = Duration::from_secs(1);

/// Members that call each other directly and apply everything at once.
struct TestCluster {
    members: Mutex<BTreeMap<MemberId, Arc<Member>>>,
    /// The calls and changes, in order.
    diary: watch::Sender<Vec<String>>,
    /// The one clock, in seconds.
    seconds: Arc<AtomicU64>,
}

struct Member {
    id: MemberId,
    cluster: Weak<TestCluster>,
    status: watch::Sender<RaftStatus>,
    clock: LeaseClock,
    renewals: Renewals,
    /// What a confirmation of the leadership comes to; none for never.
    confirmation: Mutex<Option<Result<(), ApiError>>>,
    /// What calls to this member come to instead of an answer.
    broken: Mutex<Option<CallError>>,
    /// Time a request may take, by the real clock.
    patience: Duration,
}

impl LeaderAccess for Member {
    fn member(&self) -> MemberId {
        self.id
    }

    fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.subscribe()
    }

    fn clock(&self) -> &LeaseClock {
        &self.clock
    }

    fn renewed(&self) {}

    async fn confirm(&self) -> Result<(), Failure> {
        let confirmation = *self.confirmation.lock();
        match confirmation {
            Some(confirmation) => Ok(confirmation?),
            None => {
                self.cluster.upgrade().expect("the test holds it").note(format!("{} asks in vain", self.id.0));
                std::future::pending().await
            }
        }
    }

    async fn clear_checkpoints(&self, leases: &[LeaseId], term: Term) -> Result<(), Failure> {
        let cluster = self.cluster.upgrade().expect("the test holds it");
        cluster.note(format!("{} clears {}", self.id.0, leases.len()));
        if self.status.borrow().term != term {
            return Err(ProposeError::NotLeader.into());
        }
        leases.iter().for_each(|&lease| cluster.checkpoint(lease, 0));
        Ok(())
    }

    async fn call(&self, to: MemberId, method: &'static str, body: Bytes) -> Result<Bytes, CallError> {
        let cluster = self.cluster.upgrade().expect("the test holds it");
        let leader = cluster.members.lock().get(&to).cloned().expect("a member");
        cluster.note(format!("{} calls {} {method}", self.id.0, to.0));
        if let Some(error) = leader.broken.lock().clone() {
            return Err(error);
        }
        answer(leader.as_ref(), method, body).await.map_err(|failure| {
            let status = Status::from(failure);
            CallError::Failed(CallFailure { code: status.code(), text: status.message().to_owned() })
        })
    }
}

impl TestCluster {
    /// Three members without a leader, with leases 1 to 9 of 100 s.
    fn new() -> Arc<Self> {
        Self::with_patience(60 * SECOND)
    }

    fn with_patience(patience: Duration) -> Arc<Self> {
        let cluster =
            Arc::new(Self { members: Mutex::default(), diary: watch::channel(Vec::new()).0, seconds: Arc::default() });
        for id in [1, 2, 3].map(MemberId) {
            let mut store = LeaseStore::new(2);
            let leases: Vec<_> = (1..10).map(|lease| store.grant(LeaseId(lease), 100).expect("new").lease).collect();
            let lessor = Lessor::new(LessorConfig::default(), leases);
            let seconds = cluster.seconds.clone();
            let now = move || Duration::from_secs(seconds.load(Ordering::Relaxed));
            let (renewals, inlet) = Renewals::channel();
            let member = Arc::new(Member {
                id,
                cluster: Arc::downgrade(&cluster),
                status: watch::channel(RaftStatus::default()).0,
                clock: LeaseClock::with_time(Arc::new(RwLock::new(store)), lessor, Box::new(now)),
                renewals,
                confirmation: Mutex::new(Some(Ok(()))),
                broken: Mutex::default(),
                patience,
            });
            #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
            tokio::spawn(renewals::run(member.clone(), inlet, CancellationToken::new()));
            cluster.members.lock().insert(id, member);
        }
        cluster
    }

    fn member(&self, id: u64) -> Arc<Member> {
        self.members.lock()[&MemberId(id)].clone()
    }

    fn note(&self, what: String) {
        self.diary.send_modify(|diary| diary.push(what));
    }

    fn diary(&self) -> Vec<String> {
        self.diary.send_replace(Vec::new())
    }

    /// Waits until the diary has so many lines.
    async fn notes(&self, count: usize) {
        self.diary.subscribe().wait_for(|diary| diary.len() >= count).await.expect("the cluster exists");
    }

    fn pass(&self, seconds: u64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
    }

    fn checkpoint(&self, lease: LeaseId, remaining_ttl: i64) {
        for member in self.members.lock().values() {
            member.clock.store.write().checkpoint(lease, remaining_ttl);
            member.clock.apply_facts(&[LeaseFact::Checkpointed { lease, remaining_ttl }]);
        }
    }

    /// All members but those in `deaf` see the new leader.
    fn elect(&self, leader: u64, term: u64, deaf: &[u64]) {
        for member in self.members.lock().values().filter(|member| !deaf.contains(&member.id.0)) {
            let leads = member.id.0 == leader;
            member.clock.demote();
            if leads {
                member.clock.promote(Term(term), SECOND);
            }
            let leader = Some(MemberId(leader));
            let status = RaftStatus { leader, term: Term(term), is_leader: leads, reads_are_local: false };
            member.status.send_replace(status);
        }
    }
}

impl Member {
    async fn renew(&self, lease: i64) -> Result<Renewal, Status> {
        let renewed = self.renewals.renew(&[LeaseId(lease)], Instant::now() + self.patience).await?;
        Ok(renewed[0])
    }

    async fn time_to_live(&self, lease: i64) -> Result<i64, Status> {
        let request = LeaseTimeToLiveRequest { id: lease, keys: false };
        let body = request.encode_to_vec().into();
        let answer = ask(self, TIME_TO_LIVE, body, Instant::now() + self.patience).await?;
        Ok(LeaseTimeToLiveResponse::decode(answer).expect("readable").ttl)
    }
}

#[tokio::test]
async fn a_follower_asks_the_leader_once_for_many() {
    let cluster = TestCluster::new();
    cluster.elect(1, 5, &[]);
    let follower = cluster.member(2);
    let all = futures::future::join_all((1..=12).map(|lease| follower.renew(lease))).await;
    let known = all[..9].iter().filter(|renewal| matches!(renewal, Ok(Renewal::Renewed(100)))).count();
    let unknown = all[9..].iter().filter(|renewal| matches!(renewal, Ok(Renewal::Gone))).count();
    assert_eq!((known, unknown), (9, 3), "{all:?}");
    assert_eq!(cluster.diary(), ["2 calls 1 lease.renew"]);
    // What counts is the leader's deadline.
    cluster.pass(40);
    assert_eq!(cluster.member(1).renew(3).await.expect("renewed"), Renewal::Renewed(100));
    let left = [follower.time_to_live(3).await, follower.time_to_live(4).await, follower.time_to_live(99).await];
    assert_eq!(left.map(|ttl| ttl.expect("an answer")), [100, 60, -1]);
    assert_eq!(cluster.diary(), ["2 calls 1 lease.ttl"; 3]);
}

// Cause: the keys were copied and sorted on the thread that answers other members and sends heartbeats, with the leases
// locked.
#[test]
fn many_keys_are_listed_without_the_thread_of_the_calls() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build().expect("a runtime");
    runtime.block_on(async {
        let cluster = TestCluster::new();
        cluster.elect(1, 5, &[]);
        let leader = cluster.member(1);
        let keys = |count: usize| (0..count).map(|number| Bytes::from(format!("{number:08}"))).collect::<Vec<_>>();
        for (lease, count) in [(1, KEYS_AT_ONCE), (2, KEYS_AT_ONCE + 1)] {
            let mut store = leader.clock.store.write();
            keys(count).iter().for_each(|key| store.attach(key, LeaseId(lease)));
        }
        let list = async |id: i64, keys: bool| {
            let body = LeaseTimeToLiveRequest { id, keys }.encode_to_vec().into();
            let answered = answer(leader.as_ref(), TIME_TO_LIVE, body).await.expect("an answer");
            LeaseTimeToLiveResponse::decode(answered).expect("readable")
        };
        // The only other thread is busy: what needs none is answered all the same.
        let (release, held) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || held.recv().is_err());
        for (lease, with_keys, is_at_once) in [(1, true, true), (2, false, true), (2, true, false)] {
            let mut listing = Box::pin(list(lease, with_keys));
            let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(listing.as_mut().poll(cx))).await;
            assert_eq!(polled.is_ready(), is_at_once, "lease {lease}, keys: {with_keys}");
        }
        drop(release);
        assert!(busy.await.expect("it ends"));
        let listed = list(2, true).await;
        assert_eq!((listed.ttl, listed.granted_ttl), (101, 100));
        assert!(listed.keys == keys(KEYS_AT_ONCE + 1), "all of them, sorted");
        assert!(list(2, false).await.keys.is_empty());
    });
}

#[test]
fn a_lease_that_is_revoked_before_its_keys_are_listed_is_gone() {
    let store = RwLock::new(LeaseStore::new(2));
    let answer = LeaseTimeToLiveResponse { id: 7, ttl: 50, granted_ttl: 100, ..Default::default() };
    let answer = LeaseTimeToLiveResponse::decode(with_keys(answer, &store)).expect("readable");
    assert_eq!((answer.id, answer.ttl, answer.granted_ttl), (7, -1, 0));
}

#[tokio::test]
async fn a_lease_that_has_run_out_is_not_renewed() {
    let cluster = TestCluster::new();
    cluster.elect(1, 5, &[]);
    cluster.pass(102);
    assert_eq!(cluster.member(2).renew(1).await.expect("an answer"), Renewal::RunOut);
    assert_eq!(cluster.member(3).time_to_live(1).await.expect("an answer"), 0);
}

#[tokio::test]
async fn what_is_asked_follows_the_leader() {
    let cluster = TestCluster::new();
    cluster.elect(1, 5, &[]);
    *cluster.member(1).broken.lock() = Some(CallError::Unreachable(MemberId(1)));
    let follower = cluster.member(2);
    let (renewal, ()) = tokio::join!(follower.renew(1), async {
        cluster.notes(2).await;
        cluster.elect(3, 6, &[1]);
    });
    assert_eq!(renewal.expect("by the new leader"), Renewal::Renewed(100));
    let diary = cluster.diary();
    assert!(diary.len() > 2 && diary.last().is_some_and(|last| last == "2 calls 3 lease.renew"), "{diary:?}");
}

#[tokio::test]
async fn a_deposed_leader_that_does_not_know_it_renews_nothing() {
    let cluster = TestCluster::new();
    cluster.elect(1, 5, &[]);
    let old = cluster.member(1);
    *old.confirmation.lock() = None;
    cluster.pass(50);
    cluster.elect(2, 6, &[1]);
    let (renewal, ()) = tokio::join!(old.renew(1), async {
        cluster.notes(1).await;
        assert_eq!(old.clock.remaining(LeaseId(1), Term(5)), Ok(Some(51 * SECOND)), "not renewed there");
        cluster.elect(2, 6, &[]);
    });
    assert_eq!(renewal.expect("by the new leader"), Renewal::Renewed(100));
    assert_eq!(cluster.diary(), ["1 asks in vain", "1 calls 2 lease.renew"]);
}

#[tokio::test]
async fn a_confirmation_from_another_term_is_none() {
    let cluster = TestCluster::new();
    cluster.elect(1, 5, &[]);
    let member = cluster.member(1);
    // Led in term 5, was deposed and leads in term 7: its deadlines are those of term 5 still.
    member.status.send_modify(|status| status.term = Term(7));
    let refused = answer(member.as_ref(), RENEW, renewals_body([LeaseId(1)])).await;
    assert!(matches!(refused, Err(Failure::Api(ApiError::LeaderChanged))), "{refused:?}");
    let refused = member.clock.renew(&[LeaseId(1)], Term(7));
    assert_eq!(refused, Err(RenewError::NotPrimary));
}

#[tokio::test]
async fn a_checkpoint_is_cleared_before_the_answer() {
    let cluster = TestCluster::new();
    cluster.elect(1, 5, &[]);
    cluster.checkpoint(LeaseId(4), 30);
    let follower = cluster.member(3);
    assert_eq!(follower.renew(4).await.expect("renewed"), Renewal::Renewed(100));
    assert_eq!(cluster.diary(), ["3 calls 1 lease.renew", "1 clears 1"]);
    cluster.elect(2, 6, &[]);
    assert_eq!(follower.time_to_live(4).await.expect("an answer"), 101);
    cluster.checkpoint(LeaseId(5), 30);
    cluster.elect(3, 7, &[]);
    assert_eq!(follower.time_to_live(5).await.expect("an answer"), 31);
}

#[tokio::test]
async fn without_a_leader_the_error_is_etcds() {
    let cluster = TestCluster::with_patience(Duration::from_millis(200));
    let failed = cluster.member(1).renew(1).await.expect_err("nobody leads");
    assert_eq!((failed.code(), failed.message()), (Code::Unavailable, "etcdserver: no leader"));
    cluster.elect(2, 5, &[]);
    *cluster.member(2).broken.lock() = Some(CallError::Lost(MemberId(2)));
    let failed = cluster.member(1).time_to_live(1).await.expect_err("the leader does not answer");
    assert_eq!((failed.code(), failed.message()), (Code::Unavailable, "etcdserver: request timed out"));
}

#[tokio::test]
async fn errors_of_the_leader_pass_unchanged() {
    let cluster = TestCluster::new();
    cluster.elect(2, 5, &[]);
    let denied = CallFailure { code: Code::PermissionDenied, text: "etcdserver: permission denied".to_owned() };
    *cluster.member(2).broken.lock() = Some(CallError::Failed(denied));
    let failed = cluster.member(1).renew(1).await.expect_err("denied");
    assert_eq!((failed.code(), failed.message()), (Code::PermissionDenied, "etcdserver: permission denied"));
    assert_eq!(cluster.diary(), ["1 calls 2 lease.renew"], "asked once");
}

#[tokio::test]
async fn a_leader_still_taking_over_is_waited_for() {
    let cluster = TestCluster::new();
    cluster.elect(1, 5, &[]);
    let leader = cluster.member(1);
    leader.clock.demote();
    let follower = cluster.member(2);
    let (renewal, ()) = tokio::join!(follower.renew(1), async {
        cluster.notes(2).await;
        leader.clock.promote(Term(5), SECOND);
    });
    assert_eq!(renewal.expect("in the end"), Renewal::Renewed(100));
}

#[test]
fn requests_of_peers_are_bounded() {
    let body = renewals_body((0..=RENEWALS_MAX as i64).map(LeaseId));
    assert!(matches!(read_renewals(body), Err(Failure::Api(ApiError::RequestTooLarge))));
    assert!(read_renewals(Bytes::from_static(&[5, 8])).is_err(), "cut off");
    assert_eq!(read_renewals(renewals_body([LeaseId(-7), LeaseId(0)])).expect("readable"), [-7, 0].map(LeaseId));
}
