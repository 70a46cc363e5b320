//! What is written through one member is seen through every other.

use std::collections::BTreeSet;

use watershed::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use watershed::pb::etcdserverpb::{
    Compare, LeaseKeepAliveRequest, LeaseRevokeRequest, MemberListRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, WatchCreateRequest, request_op,
};

use super::story::{assert_equal, compact, get, grant, keep_alive, on_three, put, time_to_live, value};
use crate::harness::{Answers, Cluster, Watching, refused, soon, until};

#[test]
fn a_write_on_any_member_is_read_on_every_other() {
    on_three(&[], async |cluster: &mut Cluster| {
        for round in 0..5 {
            for writer in 0..3 {
                let written = format!("{round}-{writer}");
                let revision = put(&cluster.member(writer), "k", &written).await;
                for reader in 0..3 {
                    let answer = get(&cluster.member(reader), "k").await;
                    let kv = &answer.kvs[0];
                    assert_eq!((kv.value.as_ref(), kv.mod_revision), (written.as_bytes(), revision), "on {reader}");
                    assert_eq!(answer.header.expect("header").revision, revision);
                }
            }
        }
        assert_eq!(assert_equal(cluster).await, 16);
    });
}

#[test]
fn a_serializable_read_catches_up() {
    on_three(&[], async |cluster: &mut Cluster| {
        let revision = put(&cluster.member(0), "k", "v").await;
        for reader in 0..3 {
            let request = RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
            let kv = cluster.member(reader).kv();
            until("the write arrives", || {
                let (mut kv, request) = (kv.clone(), request.clone());
                async move {
                    let answer = kv.range(request).await.expect("range").into_inner();
                    let at = answer.header.expect("header").revision;
                    assert_eq!(answer.kvs.len(), usize::from(at >= revision), "the answer is of the revision it names");
                    (at >= revision).then_some(())
                }
            })
            .await;
        }
    });
}

#[test]
fn a_watch_on_each_member_sees_every_event() {
    on_three(&[], async |cluster: &mut Cluster| {
        let request = || WatchCreateRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
        let mut watches = Vec::new();
        for number in 0..3 {
            watches.push(Watching::create(&cluster.member(number), request()).await.0);
        }
        let mut expected = Vec::new();
        for number in 0..30 {
            let key = format!("k{}", number % 4);
            let revision = put(&cluster.member(number % 3), &key, &number.to_string()).await;
            expected.push(format!("+{key}={number}@{revision}"));
        }
        for watch in &mut watches {
            assert_eq!(watch.events(30).await, expected);
        }
        // And from the past.
        for number in 0..3 {
            let from = WatchCreateRequest { start_revision: 2, ..request() };
            let (mut watch, _) = Watching::create(&cluster.member(number), from).await;
            assert_eq!(watch.events(30).await, expected);
        }
    });
}

#[test]
fn a_watch_goes_on_at_another_member() {
    on_three(&[], async |cluster: &mut Cluster| {
        let mut next = 2;
        for round in 0..9 {
            let revision = put(&cluster.member((round + 1) % 3), "k", &round.to_string()).await;
            let request = WatchCreateRequest { key: "k".into(), start_revision: next, ..Default::default() };
            let (mut watch, _) = Watching::create(&cluster.member(round % 3), request).await;
            assert_eq!(watch.events(1).await, [format!("+k={round}@{revision}")]);
            next = revision + 1;
        }
    });
}

#[test]
fn a_lease_is_granted_kept_and_revoked_on_any_member() {
    on_three(&[], async |cluster: &mut Cluster| {
        for number in 0..3 {
            let client = cluster.member(number);
            let other = cluster.member((number + 1) % 3);
            let id = grant(&client, 60).await;
            let request = PutRequest { key: "leased".into(), lease: id, ..Default::default() };
            other.kv().put(request).await.expect("put");
            assert_eq!(keep_alive(&other, id).await, 60);
            assert_eq!(keep_alive(&client, id).await, 60);
            assert!((1..=60).contains(&time_to_live(&other, id).await));
            other.lease().lease_revoke(LeaseRevokeRequest { id }).await.expect("revoke");
            assert_eq!(value(&client, "leased").await, None);
            assert_eq!(time_to_live(&client, id).await, -1);
            assert!(keep_alive(&client, id).await <= 0, "a revoked lease");
        }
        assert_equal(cluster).await;
    });
}

#[test]
fn keep_alives_of_one_stream_are_answered_in_their_order() {
    on_three(&[], async |cluster: &mut Cluster| {
        let leader = cluster.leader().await;
        let lease = grant(&cluster.member(leader), 60).await;
        for number in cluster.running() {
            // Many more than are renewed together; one in three names a lease that there is not.
            let ids: Vec<i64> = (0..1000).map(|at| if at % 3 == 0 { -1 - at } else { lease }).collect();
            let mut client = cluster.member(number).lease();
            let requests = tokio_stream::iter(ids.clone().into_iter().map(|id| LeaseKeepAliveRequest { id }));
            let mut answers = Answers::new(async move { client.lease_keep_alive(requests).await });
            for id in ids {
                let answer = soon("an answer", answers.message()).await.expect("no error").expect("it goes on");
                assert_eq!((answer.id, answer.ttl), (id, if id == lease { 60 } else { 0 }), "on {number}");
            }
            let end = soon("the end", answers.message()).await.expect("no error");
            assert_eq!(end, None, "on {number}");
        }
    });
}

#[test]
fn a_lease_ends_on_all_members() {
    on_three(&[], async |cluster: &mut Cluster| {
        let id = grant(&cluster.member(cluster.follower().await), 2).await;
        let request = PutRequest { key: "leased".into(), lease: id, ..Default::default() };
        cluster.member(0).kv().put(request).await.expect("put");
        for number in 0..3 {
            let client = cluster.member(number);
            until("the end of the lease", async || value(&client, "leased").await.is_none().then_some(())).await;
        }
        assert_equal(cluster).await;
    });
}

#[test]
fn one_of_many_transactions_wins() {
    on_three(&[], async |cluster: &mut Cluster| {
        for round in 0..10 {
            let key = format!("lock{round}");
            let attempts = (0..3).map(|number| {
                let client = cluster.member(number);
                let key = key.clone();
                async move {
                    let compare = Compare {
                        key: key.clone().into(),
                        target: CompareTarget::Version.into(),
                        result: CompareResult::Equal.into(),
                        target_union: Some(TargetUnion::Version(0)),
                        ..Default::default()
                    };
                    let value = number.to_string().into();
                    let put = PutRequest { key: key.into(), value, ..Default::default() };
                    let success = vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }];
                    let request = TxnRequest { compare: vec![compare], success, ..Default::default() };
                    client.kv().txn(request).await.expect("txn").into_inner().succeeded
                }
            });
            let won = futures::future::join_all(attempts).await;
            assert_eq!(won.iter().filter(|&&won| won).count(), 1, "{won:?}");
            let winner = won.iter().position(|&won| won).expect("one").to_string();
            for number in 0..3 {
                assert_eq!(value(&cluster.member(number), &key).await.as_ref(), Some(&winner));
            }
        }
    });
}

#[test]
fn a_compaction_counts_everywhere() {
    on_three(&[], async |cluster: &mut Cluster| {
        for number in 0..10 {
            put(&cluster.member(number % 3), "k", &number.to_string()).await;
        }
        compact(&cluster.member(1), 8).await;
        // A linearizable read first: afterwards each member has applied the compaction.
        for number in 0..3 {
            let client = cluster.member(number);
            get(&client, "k").await;
            let old = RangeRequest { key: "k".into(), revision: 7, ..Default::default() };
            let text = "etcdserver: mvcc: required revision has been compacted";
            refused(client.kv().range(old).await, tonic::Code::OutOfRange, text);
            let kept = RangeRequest { key: "k".into(), revision: 8, ..Default::default() };
            assert_eq!(client.kv().range(kept).await.expect("range").into_inner().kvs[0].mod_revision, 8);
            let request = WatchCreateRequest { key: "k".into(), start_revision: 3, ..Default::default() };
            let (mut watch, _) = Watching::create(&client, request).await;
            let answer = watch.next().await;
            assert_eq!((answer.canceled, answer.compact_revision), (true, 8));
        }
        assert_equal(cluster).await;
    });
}

#[test]
fn members_agree_on_who_they_are() {
    on_three(&[], async |cluster: &mut Cluster| {
        let leader = cluster.leader().await;
        let leader_id = cluster.id(leader).await;
        let (mut ids, mut clusters, mut lists) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for number in 0..3 {
            let status = cluster.until_status(number).await;
            assert_eq!(status.leader, leader_id);
            assert!(!status.is_learner);
            let header = status.header.expect("header");
            ids.insert(header.member_id);
            clusters.insert(header.cluster_id);
            let request = MemberListRequest { linearizable: true };
            let list = cluster.member(number).cluster().member_list(request).await.expect("list").into_inner();
            let members: Vec<_> = list.members.iter().map(|m| (m.id, m.name.clone(), m.peer_ur_ls.clone())).collect();
            let client_urls: Vec<_> = list.members.iter().flat_map(|member| member.client_ur_ls.clone()).collect();
            assert_eq!(client_urls.len(), 3, "{list:?}");
            lists.insert(members);
        }
        assert_eq!((ids.len(), clusters.len(), lists.len()), (3, 1, 1), "{lists:?}");
        assert!(lists.iter().flatten().all(|(id, _, _)| ids.contains(id)));
    });
}
