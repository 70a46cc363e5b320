//! Lock and election.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tonic::{Code, Request};
use watershed::pb::etcdserverpb::RangeRequest;
use watershed::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use watershed::pb::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest};
use watershed::pb::v3lockpb::{LockRequest, UnlockRequest};

use crate::harness::{Answers, Deployment, PATIENCE, client, prefix, refused, soon, until};
use crate::on_every_target;

on_every_target! {
    a_lock_goes_round,
    a_waiter_that_gives_up_leaves_no_key,
    hundreds_wait_for_one_lock,
    refused_locks,
    an_election_goes_round,
    refused_elections,
}

fn lock(lease: i64) -> LockRequest {
    LockRequest { name: "L".into(), lease }
}

async fn keys(deployment: &Deployment, of: &'static str) -> Vec<String> {
    let answer = deployment.range(prefix(of)).await;
    answer.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

/// Drives a request that has to wait until its key is the second in the queue.
async fn until_queued<T: Debug>(
    deployment: &Deployment,
    of: &'static str,
    waiting: &mut (impl Future<Output = T> + Unpin),
) {
    let queued = until("the second waits", async || (keys(deployment, of).await.len() == 2).then_some(()));
    tokio::select! {
        answer = waiting => panic!("not its turn: {answer:?}"),
        () = queued => {}
    }
}

async fn a_lock_goes_round(deployment: &mut Deployment) {
    let leases = [deployment.grant(60).await, deployment.grant(60).await];
    let first = deployment.client.lock().lock(lock(leases[0])).await.expect("free").into_inner();
    assert_eq!(first.key, format!("L/{:x}", leases[0]).as_bytes());
    let revision = first.header.expect("header").revision;
    let again = deployment.client.lock().lock(lock(leases[0])).await.expect("held").into_inner();
    assert_eq!((again.key, again.header.expect("header").revision), (first.key.clone(), revision));

    let mut locks = deployment.client.lock();
    let mut second = Box::pin(locks.lock(lock(leases[1])));
    until_queued(deployment, "L/", &mut second).await;
    deployment.client.lock().unlock(UnlockRequest { key: first.key }).await.expect("unlock");
    let second = soon("the second's turn", second).await.expect("lock").into_inner();
    assert_eq!(second.key, format!("L/{:x}", leases[1]).as_bytes());
    deployment.client.lock().unlock(UnlockRequest { key: second.key.clone() }).await.expect("unlock");
    deployment.client.lock().unlock(UnlockRequest { key: second.key }).await.expect("a missing key is fine");

    let own = deployment.client.lock().lock(lock(0)).await.expect("free").into_inner();
    let hex = std::str::from_utf8(&own.key[2..]).expect("hex");
    let lease = deployment.time_to_live(i64::from_str_radix(hex, 16).expect("hex")).await;
    assert_eq!((lease.granted_ttl, lease.keys), (60, vec![own.key]));
}

async fn a_waiter_that_gives_up_leaves_no_key(deployment: &mut Deployment) {
    let leases = [deployment.grant(60).await, deployment.grant(60).await];
    let held = deployment.client.lock().lock(lock(leases[0])).await.expect("free").into_inner();
    let held = String::from_utf8_lossy(&held.key).into_owned();
    // By deadline, which the client and the server both know.
    let mut request = Request::new(lock(leases[1]));
    request.set_timeout(Duration::from_millis(300));
    let status = soon("the deadline", deployment.client.lock().lock(request)).await.expect_err("not its turn");
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    until("the key is gone", async || (keys(deployment, "L/").await == [held.clone()]).then_some(())).await;
    // By going away.
    let mut locks = deployment.client.lock();
    {
        let mut waiting = Box::pin(locks.lock(lock(leases[1])));
        until_queued(deployment, "L/", &mut waiting).await;
    }
    until("the key is gone", async || (keys(deployment, "L/").await == [held.clone()]).then_some(())).await;
}

/// `LOCK_WAITERS=5000` measures more; the times are printed.
async fn hundreds_wait_for_one_lock(deployment: &mut Deployment) {
    let waiters: usize = std::env::var("LOCK_WAITERS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let lease = deployment.grant(60).await;
    let first = deployment.client.lock().lock(lock(lease)).await.expect("free").into_inner();
    let count = async || {
        let request = RangeRequest { count_only: true, ..prefix("L/") };
        Some(deployment.client.kv().range(request).await.ok()?.into_inner().count as usize)
    };
    let reached = async |wanted: usize| {
        let mut seen = (usize::MAX, Instant::now());
        loop {
            let now = count().await.unwrap_or(seen.0);
            if now == wanted {
                return;
            }
            if now != seen.0 {
                seen = (now, Instant::now());
            }
            assert!(seen.1.elapsed() < PATIENCE, "{now} in the queue and not {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let begun = Instant::now();
    let clients: Vec<_> = (0..1 + waiters / 500).map(|_| client(&deployment.endpoint)).collect();
    let mut waiting = JoinSet::new();
    for number in 0..waiters {
        let client = clients[number % clients.len()].clone();
        waiting.spawn(async move { client.lock().lock(lock(0)).await.map(|answer| answer.into_inner().key) });
    }
    reached(waiters + 1).await;
    let queued = begun.elapsed();

    // The lock goes on to one of them, and only to one.
    let begun = Instant::now();
    deployment.client.lock().unlock(UnlockRequest { key: first.key }).await.expect("unlock");
    let second = soon("somebody's turn", waiting.join_next()).await.expect("waiters").expect("a task").expect("a lock");
    let handed = begun.elapsed();
    let oldest = RangeRequest {
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        limit: 1,
        ..prefix("L/")
    };
    assert_eq!(deployment.range(oldest).await.kvs[0].key, second);

    // All go away at once, and their places with them.
    let begun = Instant::now();
    drop((waiting, clients));
    reached(1).await;
    eprintln!("{waiters} waiters: queued in {queued:?}, next one in {handed:?}, gone in {:?}", begun.elapsed());
}

async fn refused_locks(deployment: &mut Deployment) {
    let answer = deployment.client.lock().lock(lock(4711)).await;
    refused(answer, Code::Unknown, "etcdserver: requested lease not found");
    let answer = deployment.client.lock().unlock(UnlockRequest::default()).await;
    refused(answer, Code::Unknown, "etcdserver: key is not provided");
}

async fn an_election_goes_round(deployment: &mut Deployment) {
    let leases = [deployment.grant(60).await, deployment.grant(60).await];
    let campaign = |lease, value: &'static str| CampaignRequest { name: "E".into(), lease, value: value.into() };
    let mut election = deployment.client.election();
    let mut observer = deployment.client.election();
    let mut seen = Answers::new(async move { observer.observe(LeaderRequest { name: "E".into() }).await });
    let mut next = async || {
        let answer = soon("a leader", seen.message()).await.expect("no error").expect("goes on");
        String::from_utf8_lossy(&answer.kv.expect("kv").value).into_owned()
    };
    let first = election.campaign(campaign(leases[0], "one")).await.expect("free").into_inner();
    let leader = first.leader.expect("leader");
    let header = first.header.expect("header");
    let expected = LeaderKey {
        name: "E".into(),
        key: format!("E/{:x}", leases[0]).into(),
        rev: header.revision,
        lease: leases[0],
    };
    assert_eq!(leader, expected);
    assert_eq!(next().await, "one");

    election.proclaim(ProclaimRequest { leader: Some(leader.clone()), value: "uno".into() }).await.expect("leads");
    assert_eq!(next().await, "uno");
    let kv = election.leader(LeaderRequest { name: "E".into() }).await.expect("leader").into_inner().kv.expect("kv");
    assert_eq!((kv.value.as_ref(), kv.lease), (b"uno".as_ref(), leases[0]));

    let mut other = deployment.client.election();
    let mut second = Box::pin(other.campaign(campaign(leases[1], "two")));
    until_queued(deployment, "E/", &mut second).await;
    election.resign(ResignRequest { leader: Some(leader.clone()) }).await.expect("resign");
    let second = soon("the second's turn", second).await.expect("wins").into_inner();
    assert_eq!(second.leader.expect("leader").lease, leases[1]);
    assert_eq!(next().await, "two");
    election.resign(ResignRequest { leader: Some(leader) }).await.expect("twice is fine");
    assert_eq!(keys(deployment, "E/").await.len(), 1);
}

async fn refused_elections(deployment: &mut Deployment) {
    let mut election = deployment.client.election();
    let answer = election.leader(LeaderRequest { name: "E".into() }).await;
    refused(answer, Code::Unknown, "election: no leader");
    let missing = "\"leader\" field must be provided";
    refused(election.proclaim(ProclaimRequest::default()).await, Code::Unknown, missing);
    refused(election.resign(ResignRequest::default()).await, Code::Unknown, missing);
    let nobody = LeaderKey { name: "E".into(), key: "E/1".into(), rev: 5, lease: deployment.grant(60).await };
    let answer = election.proclaim(ProclaimRequest { leader: Some(nobody.clone()), value: "x".into() }).await;
    refused(answer, Code::Unknown, "election: not leader");
    election.resign(ResignRequest { leader: Some(nobody) }).await.expect("nothing to resign from is fine");
    let answer = election.campaign(CampaignRequest { name: "E".into(), lease: 4711, value: "".into() }).await;
    refused(answer, Code::Unknown, "etcdserver: requested lease not found");
}
