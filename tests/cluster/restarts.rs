//! Members end in every way, and come back.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use tonic::Code;
use watershed::pb::etcdserverpb::{HashKvRequest, RangeRequest, WatchCreateRequest};

use super::story::{assert_equal, on_three, put, try_put, value};
use crate::checkers::check_all;
use crate::harness::{Cluster, Scrape, Watching, metric, until};
use crate::workload::{Load, Plan};

#[test]
fn writes_go_on_without_the_leader() {
    on_three(&[], async |cluster: &mut Cluster| {
        put(&cluster.client(), "before", "1").await;
        let leader = cluster.leader().await;
        cluster.kill(leader);
        put(&cluster.client(), "during", "2").await;
        let next = cluster.leader().await;
        assert_ne!(next, leader);
        for number in cluster.running() {
            assert_eq!(value(&cluster.member(number), "before").await.as_deref(), Some("1"));
            assert_eq!(value(&cluster.member(number), "during").await.as_deref(), Some("2"));
        }
        cluster.restart(leader).await;
        assert_eq!(value(&cluster.member(leader), "during").await.as_deref(), Some("2"));
        assert_equal(cluster).await;
    });
}

#[test]
fn a_majority_is_needed() {
    on_three(&[], async |cluster: &mut Cluster| {
        put(&cluster.client(), "k", "before").await;
        cluster.leader().await;
        cluster.kill_all(&[0, 1]);
        let alone = cluster.member(2);
        // Once this ended with DeadlineExceeded, as etcd answers what it never passed on. etcd's client repeats such a
        // call, and here the first one may have been passed on: it was applied twice.
        let refused = try_put(&alone, "k", "alone").await.expect_err("one of three acknowledged a write");
        // A member that has lost its leader before the call arrives never passes it on.
        let messages = ["etcdserver: request timed out", "etcdserver: no leader"];
        assert!(refused.code() == Code::Unavailable && messages.contains(&refused.message()), "{refused}");
        leaderless(cluster, 2).await;
        let refused = try_put(&alone, "k", "never").await.expect_err("a member without a leader acknowledged a write");
        assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: no leader"));
        let mut kv = alone.kv();
        let read = kv.range(RangeRequest { key: "k".into(), ..Default::default() });
        let refused = tokio::time::timeout(Duration::from_secs(3), read).await.map(|answer| answer.is_ok());
        assert_ne!(refused, Ok(true), "one of three answered a linearizable read");
        let local = RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
        let local = alone.kv().range(local).await.expect("its own state it may show").into_inner();
        assert_eq!(local.kvs[0].value, "before");
        cluster.spawn(0);
        cluster.restart(1).await;
        cluster.until_ready(0).await;
        put(&cluster.client(), "k", "after").await;
        assert_equal(cluster).await;
    });
}

// Cause: the hash waited for a quorum, and was refused without one, when it is needed to choose a member to go on with. A write
// that there is no room for was answered with what became of its alarm, as if it could have been done.
#[test]
fn a_member_that_is_left_alone_says_what_it_has_and_has_no_room_for() {
    on_three(&["--quota-backend-bytes=1000000"], async |cluster: &mut Cluster| {
        put(&cluster.client(), "k", "v").await;
        let before = cluster.end_states().await;
        cluster.kill_all(&[0, 1]);
        leaderless(cluster, 2).await;
        let alone = cluster.member(2);
        let hash = alone.maintenance().hash_kv(HashKvRequest { revision: 0 }).await.expect("a hash").into_inner();
        assert_eq!((hash.hash, hash.hash_revision), (before[2].hash, before[2].revision));
        let refused = try_put(&alone, "k", &"x".repeat(1_000_000)).await.expect_err("larger than the quota");
        let full = "etcdserver: mvcc: database space exceeded";
        assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, full));
    });
}

#[test]
fn a_write_given_up_before_there_is_a_leader_is_never_done() {
    on_three(&[], async |cluster: &mut Cluster| {
        cluster.leader().await;
        cluster.kill_all(&[0, 1]);
        leaderless(cluster, 2).await;
        let alone = cluster.member(2);
        tokio::select! {
            answer = try_put(&alone, "k", "given up") => panic!("without a leader: {answer:?}"),
            () = pending(cluster, 2, 1.0) => {}
        }
        pending(cluster, 2, 0.0).await;
        cluster.spawn(0);
        cluster.restart(1).await;
        cluster.until_ready(0).await;
        put(&cluster.client(), "later", "1").await;
        assert_eq!(value(&cluster.client(), "k").await, None);
        assert_equal(cluster).await;
    });
}

/// Waits until a member knows of no leader.
async fn leaderless(cluster: &Cluster, number: usize) {
    until("a member without a leader", async || {
        cluster.status(number).await.filter(|status| status.leader == 0).map(drop)
    })
    .await;
}

/// Waits until a member has so many proposals under way.
async fn pending(cluster: &Cluster, number: usize, count: f64) {
    until("pending proposals", async || {
        let pending = metric(cluster.endpoint(number), "etcd_server_proposals_pending").await?;
        (pending == count).then_some(())
    })
    .await;
}

#[test]
fn a_follower_catches_up_from_the_log() {
    on_three(&[], async |cluster: &mut Cluster| {
        let follower = cluster.follower().await;
        cluster.kill(follower);
        let client = cluster.client();
        for number in 0..200 {
            put(&client, &format!("k{}", number % 20), &number.to_string()).await;
        }
        cluster.restart(follower).await;
        assert_eq!(value(&cluster.member(follower), "k19").await.as_deref(), Some("199"));
        let request = WatchCreateRequest { key: "k0".into(), start_revision: 2, ..Default::default() };
        let (mut watch, _) = Watching::create(&cluster.member(follower), request).await;
        assert_eq!(watch.events(10).await.len(), 10, "the events it was away for");
        assert_equal(cluster).await;
    });
}

#[test]
fn a_follower_catches_up_from_a_snapshot() {
    let flags = ["--snapshot-count=50", "--snapshot-catchup-entries=10"];
    on_three(&flags, async |cluster: &mut Cluster| {
        let follower = cluster.follower().await;
        put(&cluster.client(), "gone", "1").await;
        let mut written = 0;
        // The log is cut once in a second, behind what has been saved by then.
        let last = loop {
            cluster.kill(follower);
            let client = cluster.client();
            for number in written..written + 400 {
                put(&client, &format!("k{}", number % 20), &number.to_string()).await;
            }
            written += 400;
            let last = put(&client, "last", "x").await;
            cluster.restart(follower).await;
            let newest = (written - 1).to_string();
            assert_eq!(value(&cluster.member(follower), "k19").await, Some(newest));
            if snapshots_sent(cluster).await > 0.0 {
                break last;
            }
            assert!(written < 8000, "the log alone must not have been enough");
        };
        let behind = cluster.member(follower);
        assert_eq!(value(&behind, "gone").await.as_deref(), Some("1"));
        // A watch across the snapshot sees all history that is not compacted.
        let request = WatchCreateRequest { key: "k0".into(), start_revision: 2, ..Default::default() };
        let (mut watch, _) = Watching::create(&behind, request).await;
        assert_eq!(watch.events(written / 20).await.len(), written / 20);
        assert_eq!(assert_equal(cluster).await, last);
        // And it stays a full member.
        put(&behind, "k", "v").await;
        cluster.kill(follower);
        cluster.restart(follower).await;
        assert_equal(cluster).await;
    });
}

/// Snapshots that members sent one another, all of them together.
async fn snapshots_sent(cluster: &Cluster) -> f64 {
    let mut sent = 0.0;
    for number in cluster.running() {
        sent += Scrape::of(cluster.endpoint(number), "/metrics").await.sum("etcd_network_snapshot_send_success", "");
    }
    sent
}

#[test]
fn killing_all_at_once_loses_nothing_acknowledged() {
    on_three(&[], async |cluster: &mut Cluster| {
        for round in 0..3 {
            let client = cluster.client();
            let mut told = Vec::new();
            for number in 0..60 {
                let key = format!("{round}/{number}");
                told.push((key.clone(), put(&client, &key, "v").await));
            }
            cluster.kill_all(&[0, 1, 2]);
            for number in 0..3 {
                cluster.spawn(number);
            }
            for number in 0..3 {
                cluster.until_ready(number).await;
            }
            for number in 0..3 {
                let all = RangeRequest {
                    key: format!("{round}/").into(),
                    range_end: format!("{round}0").into(),
                    ..Default::default()
                };
                let kvs = cluster.member(number).kv().range(all).await.expect("range").into_inner().kvs;
                let found = |(key, revision): &(String, i64)| {
                    kvs.iter().any(|kv| kv.key == key.as_bytes() && kv.mod_revision == *revision)
                };
                assert!(told.iter().all(found), "round {round}, member {number}: {} of {}", kvs.len(), told.len());
            }
        }
        assert_equal(cluster).await;
    });
}

#[test]
fn a_rolling_restart_under_load_loses_nothing() {
    on_three(&[], async |cluster: &mut Cluster| {
        let load = Load::start(cluster, 7, &Plan::default());
        for number in 0..3 {
            load.writes(150).await;
            let status = cluster.terminate(number).await;
            // It transfers leadership, closes everything and ends by the signal, as a stock member does.
            assert!(status.success() || status.signal() == Some(15), "{status:?}");
            load.writes(50).await;
            cluster.restart(number).await;
        }
        load.writes(150).await;
        let history = load.finish(cluster).await;
        history.save(&cluster.path().join("history.json")).expect("saved");
        let checked = check_all(&history).unwrap_or_else(|violation| panic!("{violation}"));
        println!("rolling restart: {checked:?}");
        assert!(checked.events > 1000 && checked.leases > 0, "{checked:?}");
        assert_equal(cluster).await;
    });
}
