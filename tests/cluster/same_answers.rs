//! What members answer does not depend on which one is asked, nor on how long it has been up.

use tonic::Status;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{
    AlarmRequest, CompactionRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, LeaseLeasesRequest,
    LeaseTimeToLiveRequest, MemberListRequest, PutRequest, RangeRequest, WatchCreateRequest,
};
use watershed::pb::mvccpb::Event;

use super::story::{assert_equal, on_three, put};
use crate::harness::{Cluster, Watching, is_stock};

/// Revisions at which the cluster is compacted: of a put, a deletion and a put.
const COMPACTIONS: [i64; 3] = [8, 13, 14];
/// Everything from the first key on.
const ALL: (&str, &str) = ("\0", "\0");

fn said(what: impl std::fmt::Debug) -> String {
    format!("{what:?}")
}

fn refused(status: Status) -> String {
    format!("{:?} {}", status.code(), status.message())
}

/// The answers of one member to everything one can read, without who answered and when.
async fn answers(client: &Client, leases: &[i64], newest: i64) -> Vec<(String, String)> {
    let mut answers = Vec::new();
    let (key, range_end) = (ALL.0.as_bytes(), ALL.1.as_bytes());
    for revision in -1..=newest + 1 {
        let request = RangeRequest {
            key: key.into(),
            range_end: range_end.into(),
            revision,
            serializable: true,
            ..Default::default()
        };
        let answer = client.kv().range(request).await;
        let answer = answer.map_or_else(refused, |answer| said((answer.get_ref().count, &answer.get_ref().kvs)));
        answers.push((format!("range at {revision}"), answer));
    }
    // The hash of a compaction is answered as it was computed, until the member is started again; as in etcd.
    for revision in (-1..newest + 2).filter(|revision| !COMPACTIONS.contains(revision)) {
        let answer = client.maintenance().hash_kv(HashKvRequest { revision }).await.map(tonic::Response::into_inner);
        let answer = answer.map(|answer| (answer.hash, answer.compact_revision, answer.hash_revision));
        answers.push((format!("hash at {revision}"), answer.map_or_else(refused, said)));
    }
    for start in 1..=newest {
        for prev_kv in [false, true] {
            let request = WatchCreateRequest {
                key: key.into(),
                range_end: range_end.into(),
                start_revision: start,
                prev_kv,
                ..Default::default()
            };
            let (mut watching, _) = Watching::create(client, request).await;
            let (mut events, mut ended): (Vec<Event>, _) = (Vec::new(), 0);
            let revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            while ended == 0 && events.last().is_none_or(|last| revision(last) < newest) {
                let answer = watching.next().await;
                ended = answer.compact_revision;
                events.extend(answer.events);
            }
            answers.push((format!("watch from {start}, {prev_kv}"), said((events, ended))));
        }
    }
    for &id in leases {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let answer = client.lease().lease_time_to_live(request).await.expect("a lease").into_inner();
        let keys = if is_stock() { answer.keys.len().to_string() } else { said(&answer.keys) };
        answers.push((format!("lease {id}"), said((answer.granted_ttl, keys))));
    }
    let listed = client.lease().lease_leases(LeaseLeasesRequest {}).await.expect("leases").into_inner().leases;
    let mut listed: Vec<i64> = listed.iter().map(|lease| lease.id).collect();
    if is_stock() {
        // Only its leader knows an order.
        listed.sort_unstable();
    }
    answers.push(("leases".to_owned(), said(listed)));
    let members = client.cluster().member_list(MemberListRequest { linearizable: false }).await.expect("members");
    answers.push(("members".to_owned(), said(&members.get_ref().members)));
    let alarms = client.maintenance().alarm(AlarmRequest::default()).await.expect("alarms");
    answers.push(("alarms".to_owned(), said(&alarms.get_ref().alarms)));
    answers
}

async fn assert_same(cluster: &Cluster, leases: &[i64], newest: i64, when: &str) {
    let expected = answers(&cluster.member(0), leases, newest).await;
    for number in 1..3 {
        for (expected, answer) in expected.iter().zip(answers(&cluster.member(number), leases, newest).await) {
            assert_eq!(*expected, answer, "members 0 and {number}, {when}");
        }
    }
}

// Cause: a watch from the compacted revision had its events from the event log while that had them, with what was there before.
#[test]
fn members_answer_alike_whenever_they_were_started() {
    on_three(&[], async |cluster: &mut Cluster| {
        let client = cluster.member(0);
        let mut leases = Vec::new();
        for ttl in [5000, 4000, 6000] {
            leases
                .push(client.lease().lease_grant(LeaseGrantRequest { ttl, id: 0 }).await.expect("grant").get_ref().id);
        }
        for round in 0..3 {
            for key in ["a", "b", "c"] {
                put(&client, key, &round.to_string()).await;
            }
            for (key, lease) in [("l1", leases[0]), ("l2", leases[0])] {
                let request = PutRequest { key: key.into(), lease, ..Default::default() };
                client.kv().put(request).await.expect("put");
            }
            let request = DeleteRangeRequest { key: "b".into(), ..Default::default() };
            client.kv().delete_range(request).await.expect("delete");
        }
        let newest = put(&client, "last", "v").await;
        assert_eq!(newest, 20);
        assert_equal(cluster).await;
        assert_same(cluster, &leases, newest, "before the compaction").await;
        let leader = cluster.leader().await;
        // After a clean end everything is read from the state, after a kill the log is applied
        // again.
        for (at, (step, cleanly)) in COMPACTIONS.into_iter().zip([(0, true), (1, true), (2, false)]) {
            let number = (leader + step) % 3;
            let request = CompactionRequest { revision: at, physical: true };
            cluster.member(leader).kv().compact(request).await.expect("compaction");
            assert_equal(cluster).await;
            assert_same(cluster, &leases, newest, "after a compaction").await;
            if cleanly {
                cluster.terminate(number).await;
            } else {
                cluster.kill(number);
            }
            cluster.restart(number).await;
            cluster.leader().await;
            assert_equal(cluster).await;
            assert_same(cluster, &leases, newest, "after a restart").await;
        }
    });
}
