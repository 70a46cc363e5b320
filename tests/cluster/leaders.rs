//! Changes of leadership: a leader that stops transfers it first, and leases keep their time.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use tonic::Code;
use watershed::client::{Client, ClientConfig};
use watershed::pb::etcdserverpb::{AlarmRequest, LeaseKeepAliveRequest, MoveLeaderRequest, PutRequest};
use watershed::pb::v3electionpb::{CampaignRequest, LeaderRequest};

use super::story::{assert_equal, get, grant, on_three, put, time_to_live, value};
use crate::harness::{Answers, Cluster, soon, until};

/// How many times a member wrote that another one has taken over.
fn handed_over(cluster: &Cluster) -> usize {
    let files =
        std::fs::read_dir(cluster.path()).expect("the folder of the cluster").map(|file| file.expect("a file").path());
    let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.map(|log| std::fs::read_to_string(log).expect("a log").matches("leadership is handed over").count()).sum()
}

#[test]
fn a_leader_that_is_terminated_hands_over_first() {
    on_three(&[], async |cluster: &mut Cluster| {
        put(&cluster.member(0), "k", "v").await;
        let mut transfers = 0;
        // It waits for its successor for half a second only, which may be too short on a busy machine.
        for round in 0..20 {
            let leader = cluster.leader().await;
            let old = cluster.id(leader).await;
            let term = cluster.until_status(leader).await.raft_term;
            let before = handed_over(cluster);
            let ended = cluster.terminate(leader).await;
            assert_eq!(ended.signal(), Some(15), "{ended:?}");
            let next = cluster.leader().await;
            let status = cluster.until_status(next).await;
            assert!(status.leader != old, "round {round}: {status:?}");
            put(&cluster.member(cluster.running()[0]), "k", &round.to_string()).await;
            // Not by an election timeout: it waited until its successor led, and one election was enough.
            transfers += usize::from(handed_over(cluster) == before + 1 && status.raft_term == term + 1);
            cluster.restart(leader).await;
            if transfers == 3 {
                break;
            }
        }
        assert_eq!(transfers, 3);
        assert_equal(cluster).await;
    });
}

#[test]
fn no_write_fails_while_the_lead_moves() {
    on_three(&[], async |cluster: &mut Cluster| {
        let moves = std::cell::Cell::new(0);
        let writes = futures::future::join_all((0..3).map(async |number| {
            let client = cluster.member(number);
            let mut written = 0;
            while moves.get() < 10 || written < 100 {
                put(&client, &format!("through {number}"), "v").await;
                written += 1;
            }
            let found = get(&client, &format!("through {number}")).await;
            assert_eq!(found.kvs[0].version, written, "each write once");
        }));
        let moving = async {
            while moves.get() < 10 {
                let leader = cluster.leader().await;
                let target_id = cluster.id((leader + 1) % 3).await;
                let mut maintenance = cluster.member(leader).maintenance();
                // Refused when another member leads by now.
                if maintenance.move_leader(MoveLeaderRequest { target_id }).await.is_ok() {
                    moves.set(moves.get() + 1);
                }
            }
        };
        tokio::join!(writes, moving);
        assert_equal(cluster).await;
    });
}

#[test]
fn a_write_that_is_lost_with_the_leader_is_done_once_by_the_next() {
    on_three(&[], async |cluster: &mut Cluster| {
        let leader = cluster.leader().await;
        let others: Vec<usize> = cluster.running().into_iter().filter(|&number| number != leader).collect();
        let key = |number: usize| format!("through {number}");
        cluster.pause(leader);
        // Sent on to a process that does not run, which finds them when it does again, and leads no more by then.
        let clients = others.iter().map(|&number| (cluster.member(number), key(number)));
        let writes = clients.map(async |(client, key)| put(&client, &key, "v").await);
        futures::future::join_all(writes).await;
        cluster.resume(leader);
        assert_equal(cluster).await;
        for &number in &others {
            let found = get(&cluster.member(leader), &key(number)).await;
            assert_eq!(found.kvs[0].version, 1, "written once");
        }
    });
}

/// The lease of [`keep`], in seconds.
const KEPT: i64 = 5;

/// Keeps a lease alive on any of these members, for so long. False when it ended because this was asked for too late;
/// `asked` is when the last renewal was.
async fn keep(cluster: &Cluster, numbers: &[usize], id: i64, time: Duration, asked: &mut Instant) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < time {
        let mut renewed = 0;
        for &number in numbers {
            let now = Instant::now();
            let mut lease = cluster.member(number).lease();
            let requests = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
            let mut answers = Answers::new(async move { lease.lease_keep_alive(requests).await });
            if let Ok(Ok(Some(answer))) = tokio::time::timeout(Duration::from_millis(800), answers.message()).await {
                if answer.ttl <= 0 && is_over(*asked) {
                    return false;
                }
                assert!(answer.ttl > 0, "the lease is gone on {number} after {:?}", begun.elapsed());
                *asked = now;
                renewed += 1;
            }
        }
        // The pace of a client; an unreachable leader sets its own.
        tokio::time::sleep(Duration::from_millis(if renewed > 0 { 200 } else { 20 })).await;
    }
    true
}

/// Whether a lease may have ended that was renewed for the last time then.
fn is_over(asked: Instant) -> bool {
    asked.elapsed() >= Duration::from_secs(KEPT.unsigned_abs())
}

// What is left of a lease was recorded every 300 s only, so a shorter one began anew under the next leader.
#[test]
fn a_lease_that_nobody_renews_goes_on_under_the_next_leader() {
    on_three(&[], async |cluster: &mut Cluster| {
        let leader = cluster.leader().await;
        let id = grant(&cluster.member(leader), 8).await;
        until("most of the lease is over", async || {
            (time_to_live(&cluster.member(leader), id).await <= 2).then_some(())
        })
        .await;
        cluster.kill(leader);
        let next = cluster.leader().await;
        let left = time_to_live(&cluster.member(next), id).await;
        // Half of it was recorded, and a new leader adds an election timeout.
        assert!(left <= 6, "{left} s left");
    });
}

#[test]
fn a_paused_leader_ends_no_lease_that_others_keep() {
    // Its deadlines pass while it is away; when it wakes up it must not act on them.
    on_three(&[], async |cluster: &mut Cluster| {
        let mut attempts = 0;
        // On a busy machine those who keep the lease may be late.
        while !paused_leader(cluster).await {
            attempts += 1;
            assert!(attempts < 5, "the lease was never kept in time");
        }
        assert_equal(cluster).await;
    });
}

/// False when the lease was not kept in time.
async fn paused_leader(cluster: &Cluster) -> bool {
    let leader = cluster.leader().await;
    let mut asked = Instant::now();
    let id = grant(&cluster.member(leader), KEPT).await;
    let request = PutRequest { key: "leased".into(), lease: id, ..Default::default() };
    cluster.member(leader).kv().put(request).await.expect("put");
    let others: Vec<usize> = cluster.running().into_iter().filter(|&number| number != leader).collect();
    cluster.pause(leader);
    let kept = keep(cluster, &others, id, Duration::from_secs(8), &mut asked).await;
    cluster.resume(leader);
    if !kept || !keep(cluster, &others, id, Duration::from_secs(3), &mut asked).await {
        return false;
    }
    for number in cluster.running() {
        let found = value(&cluster.member(number), "leased").await;
        let left = time_to_live(&cluster.member(number), id).await;
        if is_over(asked) {
            return false;
        }
        assert_eq!((found.as_deref(), left > 0), (Some(""), true), "{left} s on {number}");
    }
    until("the end of a lease nobody keeps", async || {
        value(&cluster.member(leader), "leased").await.is_none().then_some(())
    })
    .await;
    true
}

// Cause: only watches ended without a leader; the answers of an election and of a keep-alive stream were silent for ever.
#[test]
fn streams_that_want_a_leader_end_at_a_member_that_is_cut_off() {
    on_three(&[], async |cluster: &mut Cluster| {
        let follower = cluster.follower().await;
        let lease = grant(&cluster.member(follower), 600).await;
        let config = ClientConfig::new([cluster.endpoint(follower).parse().expect("an endpoint")]);
        let strict = Client::connect(ClientConfig { require_leader: true, ..config }).expect("client");
        let campaign = CampaignRequest { name: "E".into(), lease, value: "first".into() };
        strict.election().campaign(campaign).await.expect("free");
        let mut election = strict.election();
        let mut seen = Answers::new(async move { election.observe(LeaderRequest { name: "E".into() }).await });
        soon("the leader", seen.message()).await.expect("no error").expect("goes on");
        let (requests, asked) = tokio::sync::mpsc::channel(1);
        requests.send(LeaseKeepAliveRequest { id: lease }).await.expect("taken");
        let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
        let mut leases = strict.lease();
        let mut kept = Answers::new(async move { leases.lease_keep_alive(asked).await });
        soon("a renewal", kept.message()).await.expect("no error").expect("goes on");
        cluster.network.around(&[follower], |link| link.cut = true);
        let refused = soon("the end of the observation", seen.message()).await.expect_err("no leader");
        assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: no leader"));
        let refused = soon("the end of the stream", kept.message()).await.expect_err("no leader");
        assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: no leader"));
        drop(requests);
    });
}

// Cause: alarms were listed from what the asked member had: `alarm disarm` found none at a member that was behind, and
// lifted none.
#[test]
fn alarms_are_not_listed_by_a_member_that_is_cut_off() {
    on_three(&[], async |cluster: &mut Cluster| {
        let follower = cluster.follower().await;
        let list = async || cluster.member(follower).maintenance().alarm(AlarmRequest::default()).await;
        list().await.expect("with a quorum");
        cluster.network.around(&[follower], |link| link.cut = true);
        soon("a refusal", list()).await.expect_err("without");
        cluster.network.heal();
        until("a list", async || list().await.ok()).await;
    });
}
