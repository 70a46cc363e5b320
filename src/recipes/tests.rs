use std::time::Duration;

use futures::StreamExt;
use tonic::{Code, Request, Status};

use super::testing::FakeStore;
use super::{ElectionService, LockService};
use crate::pb::v3electionpb::election_server::Election;
use crate::pb::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest};
use crate::pb::v3lockpb::lock_server::Lock;
use crate::pb::v3lockpb::{LockRequest, UnlockRequest};
use crate::shutdown::Tasks;

fn locks() -> (FakeStore, LockService<FakeStore>) {
    let store = FakeStore::new();
    (store.clone(), LockService::new(store, Tasks::new()))
}

fn elections() -> (FakeStore, ElectionService<FakeStore>) {
    let store = FakeStore::new();
    (store.clone(), ElectionService::new(store, Tasks::new()))
}

fn lock_request(lease: i64) -> Request<LockRequest> {
    Request::new(LockRequest { name: "L".into(), lease })
}

fn campaign(lease: i64, value: &'static str) -> Request<CampaignRequest> {
    Request::new(CampaignRequest { name: "E".into(), lease, value: value.into() })
}

fn code_and_text<T>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.err().expect("an error");
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn a_free_lock_is_taken_under_the_hex_of_the_lease() {
    let (store, locks) = locks();
    store.add_lease(257);
    store.add_lease(-257);
    let first = locks.lock(lock_request(257)).await.expect("free").into_inner();
    assert_eq!(first.key, "L/101");
    assert_eq!(first.header.expect("header").revision, 2);

    let again = locks.lock(lock_request(257)).await.expect("already held").into_inner();
    assert_eq!((again.key, store.revision()), (first.key, 2), "same lease, same place, nothing written");

    let empty = locks.lock(Request::new(LockRequest { name: "".into(), lease: -257 })).await.expect("free");
    assert_eq!(empty.into_inner().key, "/-101");
}

#[tokio::test]
async fn without_a_lease_one_of_a_minute_is_granted() {
    let (store, locks) = locks();
    let lock = locks.lock(lock_request(0)).await.expect("free").into_inner();
    assert_eq!(store.leases(), [1000]);
    assert_eq!(lock.key, "L/3e8");
}

#[tokio::test]
async fn an_unknown_lease_is_an_unknown_error() {
    let (_, locks) = locks();
    let error = code_and_text(locks.lock(lock_request(7)).await);
    assert_eq!(error, (Code::Unknown, "etcdserver: requested lease not found".into()));
}

#[tokio::test]
async fn waiters_follow_in_order_of_arrival() {
    let (store, locks) = locks();
    for lease in 1..=3 {
        store.add_lease(lease);
    }
    locks.lock(lock_request(1)).await.expect("free");
    let service = locks.clone();
    let second = tokio_spawn(async move { service.lock(lock_request(2)).await });
    store.until_keys(&["L/1", "L/2"]).await;
    let service = locks.clone();
    let third = tokio_spawn(async move { service.lock(lock_request(3)).await });
    store.until_keys(&["L/1", "L/2", "L/3"]).await;
    assert!(!second.is_finished() && !third.is_finished());

    locks.unlock(Request::new(UnlockRequest { key: "L/1".into() })).await.expect("unlocks");
    let got = second.await.expect("joins").expect("its turn").into_inner();
    assert_eq!((got.key, got.header.expect("header").revision), ("L/2".into(), 5));
    assert!(!third.is_finished());
    locks.unlock(Request::new(UnlockRequest { key: "L/2".into() })).await.expect("unlocks");
    assert_eq!(third.await.expect("joins").expect("its turn").into_inner().key, "L/3");
}

#[tokio::test]
async fn a_waiter_in_the_middle_may_leave_without_letting_the_next_one_in() {
    let (store, locks) = locks();
    for lease in 1..=3 {
        store.add_lease(lease);
    }
    locks.lock(lock_request(1)).await.expect("free");
    let service = locks.clone();
    let second = tokio_spawn(async move { service.lock(lock_request(2)).await });
    store.until_keys(&["L/1", "L/2"]).await;
    let service = locks.clone();
    let third = tokio_spawn(async move { service.lock(lock_request(3)).await });
    store.until_keys(&["L/1", "L/2", "L/3"]).await;

    second.abort();
    store.until_keys(&["L/1", "L/3"]).await;
    assert!(!third.is_finished(), "the first still holds it");
    locks.unlock(Request::new(UnlockRequest { key: "L/1".into() })).await.expect("unlocks");
    third.await.expect("joins").expect("its turn");
}

// Cause: the transaction that joins a queue held a sorted range over the queue, which every member ran while it applied:
// with 2,600 waiters apply took longer than the request timeout.
#[tokio::test]
async fn joining_walks_over_nothing_in_a_transaction() {
    let (store, locks) = locks();
    let (elections, mut keys) = (ElectionService::new(store.clone(), Tasks::new()), Vec::new());
    let mut waiting = Vec::new();
    for lease in 1..=5 {
        store.add_lease(lease);
        let (locks, elections) = (locks.clone(), elections.clone());
        waiting.push(tokio_spawn(async move {
            elections.campaign(campaign(lease, "v")).await.expect("wins");
            locks.lock(lock_request(lease)).await.expect("its turn");
        }));
        keys.push(format!("E/{lease}"));
        let mut expected: Vec<&str> = keys.iter().map(String::as_str).collect();
        expected.push("L/1");
        store.until_keys(&expected).await;
    }
    assert_eq!(store.walks(), 0);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

// Cause: a waiter left its queue by one transaction, and when that failed its place stayed until its lease ended.
#[tokio::test(start_paused = true)]
async fn a_place_is_left_although_the_store_refuses_for_a_while() {
    let (store, locks) = locks();
    store.add_lease(1);
    store.add_lease(2);
    locks.lock(lock_request(1)).await.expect("free");
    let service = locks.clone();
    let second = tokio_spawn(async move { service.lock(lock_request(2)).await });
    store.until_keys(&["L/1", "L/2"]).await;
    store.refuse_txns(9);
    second.abort();
    store.until_keys(&["L/1"]).await;
    // Pauses of 50 ms that double up to 2 s, each shortened by up to a half.
    let refused = store.refused();
    assert_eq!(refused.len(), 9);
    for (pair, longest) in refused.windows(2).zip([50, 100, 200, 400, 800, 1_600, 2_000, 2_000]) {
        let (pause, longest) = (pair[1] - pair[0], Duration::from_millis(longest));
        assert!((longest / 2..=longest + Duration::from_millis(2)).contains(&pause), "{refused:?}");
    }
}

#[tokio::test]
async fn a_deadline_leaves_the_queue() {
    let (store, locks) = locks();
    store.add_lease(1);
    store.add_lease(2);
    locks.lock(lock_request(1)).await.expect("free");
    let mut request = lock_request(2);
    request.set_timeout(Duration::from_millis(20));
    let error = code_and_text(locks.lock(request).await);
    assert_eq!(error, (Code::DeadlineExceeded, "context deadline exceeded".into()));
    store.until_keys(&["L/1"]).await;
}

#[tokio::test]
async fn a_place_lost_while_waiting_is_an_expired_session() {
    let (store, locks) = locks();
    store.add_lease(1);
    store.add_lease(2);
    locks.lock(lock_request(1)).await.expect("free");
    let service = locks.clone();
    let second = tokio_spawn(async move { service.lock(lock_request(2)).await });
    store.until_keys(&["L/1", "L/2"]).await;
    for key in ["L/2", "L/1"] {
        locks.unlock(Request::new(UnlockRequest { key: key.into() })).await.expect("deletes");
    }
    let error = code_and_text(second.await.expect("joins"));
    assert_eq!(error, (Code::Unknown, "mutex: session is expired".into()));
}

#[tokio::test]
async fn unlock_wants_a_key_but_not_an_existing_one() {
    let (_, locks) = locks();
    locks.unlock(Request::new(UnlockRequest { key: "missing".into() })).await.expect("fine");
    let error = code_and_text(locks.unlock(Request::new(UnlockRequest::default())).await);
    assert_eq!(error, (Code::Unknown, "etcdserver: key is not provided".into()));
}

#[tokio::test]
async fn the_callers_credentials_reach_the_store() {
    let (store, locks) = locks();
    store.add_lease(1);
    let mut request = lock_request(1);
    request.metadata_mut().insert("token", "locked-out".parse().expect("ascii"));
    let error = code_and_text(locks.lock(request).await);
    assert_eq!(error, (Code::Unknown, "etcdserver: permission denied".into()));
}

#[tokio::test]
async fn a_campaign_wins_when_the_leader_resigns() {
    let (store, elections) = elections();
    store.add_lease(1);
    store.add_lease(2);
    let first = elections.campaign(campaign(1, "one")).await.expect("free").into_inner();
    let leader = first.leader.expect("leader");
    assert_eq!(leader, LeaderKey { name: "E".into(), key: "E/1".into(), rev: 2, lease: 1 });

    let service = elections.clone();
    let second = tokio_spawn(async move { service.campaign(campaign(2, "two")).await });
    store.until_keys(&["E/1", "E/2"]).await;
    elections.resign(Request::new(ResignRequest { leader: Some(leader.clone()) })).await.expect("resigns");
    let second = second.await.expect("joins").expect("wins").into_inner();
    assert_eq!(second.header.expect("header").revision, 3, "the header is that of the campaign's transaction");
    assert_eq!(second.leader.expect("leader").rev, 3);
    elections.resign(Request::new(ResignRequest { leader: Some(leader) })).await.expect("twice is fine");
}

#[tokio::test]
async fn a_second_campaign_of_one_lease_proclaims() {
    let (store, elections) = elections();
    store.add_lease(1);
    let first = elections.campaign(campaign(1, "one")).await.expect("free").into_inner();
    let again = elections.campaign(campaign(1, "two")).await.expect("leads").into_inner();
    assert_eq!(again.leader, first.leader);
    let kv = elections.leader(leader_of("E")).await.expect("a leader").into_inner().kv.expect("kv");
    assert_eq!((kv.value.as_ref(), kv.lease), (b"two".as_ref(), 1));
}

#[tokio::test]
async fn who_cannot_proclaim_does_not_keep_the_key() {
    // Cause: the key of the campaign before stayed, so that the candidate led although it was told that it does not.
    let (store, elections) = elections();
    store.add_lease(1);
    elections.campaign(campaign(1, "one")).await.expect("free");
    store.refuse_value("two");
    elections.campaign(campaign(1, "two")).await.expect_err("refused");
    store.until_keys(&[]).await;
}

#[tokio::test]
async fn a_candidate_whose_key_is_lost_does_not_lead() {
    let (store, elections) = elections();
    store.add_lease(1);
    store.add_lease(2);
    let leader = elections.campaign(campaign(1, "one")).await.expect("free").into_inner().leader;
    let service = elections.clone();
    let second = tokio_spawn(async move { service.campaign(campaign(2, "two")).await });
    store.until_keys(&["E/1", "E/2"]).await;
    let lost = LeaderKey { key: "E/2".into(), rev: 3, ..Default::default() };
    elections.resign(Request::new(ResignRequest { leader: Some(lost) })).await.expect("deletes");
    elections.resign(Request::new(ResignRequest { leader })).await.expect("resigns");
    let error = code_and_text(second.await.expect("joins"));
    assert_eq!(error, (Code::Unknown, "election: not leader".into()));
}

#[tokio::test]
async fn refusals_have_etcds_texts() {
    let (_, elections) = elections();
    let unknown = |text: &str| (Code::Unknown, text.to_owned());
    assert_eq!(code_and_text(elections.leader(leader_of("E")).await), unknown("election: no leader"));
    let missing = "\"leader\" field must be provided";
    assert_eq!(code_and_text(elections.resign(Request::new(ResignRequest::default())).await), unknown(missing));
    assert_eq!(code_and_text(elections.proclaim(Request::new(ProclaimRequest::default())).await), unknown(missing));
    let leader = LeaderKey { key: "E/1".into(), rev: 5, lease: 1, ..Default::default() };
    let proclaim = ProclaimRequest { leader: Some(leader), value: "x".into() };
    assert_eq!(code_and_text(elections.proclaim(Request::new(proclaim)).await), unknown("election: not leader"));
}

#[tokio::test]
async fn observers_see_leaders_and_what_they_proclaim() {
    let (store, elections) = elections();
    store.add_lease(1);
    store.add_lease(2);
    let mut seen = elections.observe(leader_of("E")).await.expect("opens").into_inner();
    let mut next = async || {
        let kv = seen.next().await.expect("goes on").expect("no error").kv.expect("kv");
        (kv.key, kv.value)
    };
    let leader = elections.campaign(campaign(1, "one")).await.expect("free").into_inner().leader;
    assert_eq!(next().await, ("E/1".into(), "one".into()));
    let proclaim = ProclaimRequest { leader: leader.clone(), value: "uno".into() };
    elections.proclaim(Request::new(proclaim)).await.expect("leads");
    assert_eq!(next().await, ("E/1".into(), "uno".into()));

    let service = elections.clone();
    let second = tokio_spawn(async move { service.campaign(campaign(2, "two")).await });
    store.until_keys(&["E/1", "E/2"]).await;
    elections.resign(Request::new(ResignRequest { leader })).await.expect("resigns");
    second.await.expect("joins").expect("wins");
    assert_eq!(next().await, ("E/2".into(), "two".into()));
}

// Cause: the store was asked in the poll of the stream, so that a request of a client that took no more answers stopped halfway; behind
// a namespace it kept its tenant's turn.
#[tokio::test(start_paused = true)]
async fn what_an_observer_asks_goes_on_while_nobody_listens() {
    let (store, elections) = elections();
    store.answer_ranges(false);
    let mut seen = elections.observe(leader_of("E")).await.expect("opens").into_inner();
    assert!(futures::poll!(seen.next()).is_pending());
    let steps = async {
        store.until_ranges(1).await;
        store.answer_ranges(true);
        store.until_ranges(0).await;
    };
    tokio::time::timeout(Duration::from_secs(1), steps).await.expect("asked and answered");
}

#[tokio::test]
async fn an_observer_ends_with_its_client_and_with_the_process() {
    let (store, tasks) = (FakeStore::new(), Tasks::new());
    let elections = ElectionService::new(store.clone(), tasks.clone());
    store.answer_ranges(false);
    let left = elections.observe(leader_of("E")).await.expect("opens").into_inner();
    let mut stays = elections.observe(leader_of("E")).await.expect("opens").into_inner();
    store.until_ranges(2).await;
    drop(left);
    tasks.stop();
    let error = code_and_text(stays.next().await.expect("an item"));
    assert_eq!(error, (Code::Unavailable, "etcdserver: server stopped".into()));
    assert!(tasks.finish(Duration::from_secs(10)).await, "no task is left");
}

#[tokio::test]
async fn observers_without_permission_get_an_error() {
    let (_, elections) = elections();
    let mut request = leader_of("E");
    request.metadata_mut().insert("token", "locked-out".parse().expect("ascii"));
    let mut seen = elections.observe(request).await.expect("opens").into_inner();
    let error = code_and_text(seen.next().await.expect("an item"));
    assert_eq!(error, (Code::Unknown, "etcdserver: permission denied".into()));
    assert!(seen.next().await.is_none(), "and ends");
}

fn leader_of(name: &'static str) -> Request<LeaderRequest> {
    Request::new(LeaderRequest { name: name.into() })
}

/// A task the test holds the handle of, so that it can be watched and aborted.
#[allow(clippy::disallowed_methods, reason = "the test waits for it itself")]
fn tokio_spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::spawn(task)
}
