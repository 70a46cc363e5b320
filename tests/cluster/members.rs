//! Members come and go while the cluster serves.

use std::cell::Cell;

use tonic::Code;
use watershed::pb::etcdserverpb::{
    MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, RangeRequest,
};

use super::story::{assert_equal, on_three, put, try_put, value};
use crate::harness::{Cluster, Process, client, free_port, metric, own_binary, until};

/// Adds a prepared member through the API; answers with its id.
pub async fn add(cluster: &Cluster, number: usize, is_learner: bool) -> u64 {
    let request = MemberAddRequest { peer_ur_ls: vec![cluster.peer_url(number)], is_learner };
    let cluster = cluster.member(0);
    until("the member is added", || {
        let (mut client, request) = (cluster.cluster(), request.clone());
        async move {
            match client.member_add(request).await {
                Ok(answer) => Some(answer.into_inner().member.expect("the member").id),
                // Members must have been connected for a while first.
                Err(status) if status.code() == Code::Unavailable => None,
                Err(status) => panic!("{status:?}"),
            }
        }
    })
    .await
}

async fn promote(cluster: &Cluster, id: u64) {
    // What was not answered in time may be done all the same.
    let (asked, done) = (Cell::new(false), "etcdserver: can only promote a learner member");
    until("the learner is promoted", async || {
        match cluster.member(0).cluster().member_promote(MemberPromoteRequest { id }).await {
            Ok(_) => Some(()),
            Err(status) if asked.get() && status.message() == done => Some(()),
            Err(status) => {
                let text = "etcdserver: can only promote a learner member which is in sync with leader";
                assert!(status.message() == text || status.code() == Code::Unavailable, "{status:?}");
                asked.set(true);
                None
            }
        }
    })
    .await;
}

async fn remove(cluster: &Cluster, on: usize, id: u64) {
    let asked = Cell::new(false);
    until("the member is removed", async || {
        match cluster.member(on).cluster().member_remove(MemberRemoveRequest { id }).await {
            Ok(_) => Some(()),
            Err(status) if asked.get() && status.code() == Code::NotFound => Some(()),
            Err(status) if status.code() == Code::Unavailable => {
                asked.set(true);
                None
            }
            Err(status) => panic!("{status:?}"),
        }
    })
    .await;
}

async fn ids(cluster: &Cluster, on: usize) -> Vec<(u64, bool)> {
    let request = MemberListRequest { linearizable: true };
    let list = cluster.member(on).cluster().member_list(request).await.expect("list").into_inner();
    list.members.iter().map(|member| (member.id, member.is_learner)).collect()
}

#[test]
fn a_learner_joins_is_promoted_and_takes_a_place() {
    on_three(&[], async |cluster: &mut Cluster| {
        for number in 0..50 {
            put(&cluster.member(0), &format!("k{number}"), "v").await;
        }
        let new = cluster.prepare();
        let id = add(cluster, new, true).await;
        cluster.introduce(new, &[0, 1, 2]);
        cluster.spawn(new);
        let learner = cluster.member(new);
        until("the learner has the data", async || {
            let request = RangeRequest { key: "k49".into(), serializable: true, ..Default::default() };
            let answer = learner.kv().range(request).await.ok()?.into_inner();
            (answer.kvs.len() == 1).then_some(())
        })
        .await;
        let status = cluster.until_status(new).await;
        assert!(status.is_learner);
        assert!(ids(cluster, 0).await.contains(&(id, true)));
        promote(cluster, id).await;
        cluster.until_ready(new).await;
        let mut promotions = 0.0;
        for number in 0..3 {
            let promoted = metric(cluster.endpoint(number), "etcd_server_learner_promote_successes").await;
            promotions += promoted.expect("a counter");
        }
        assert_eq!(promotions, 1.0, "counted by the leader alone");
        for number in 0..4 {
            assert!(ids(cluster, number).await.contains(&(id, false)), "on {number}");
        }
        put(&cluster.member(new), "by the new one", "v").await;
        // Four members live without one, whichever it is.
        cluster.kill(1);
        put(&cluster.member(cluster.leader().await), "without one", "v").await;
        cluster.restart(1).await;
        assert_equal(cluster).await;
    });
}

#[test]
fn a_removed_member_ends_and_the_rest_goes_on() {
    on_three(&[], async |cluster: &mut Cluster| {
        put(&cluster.client(), "k", "v").await;
        let leader = cluster.leader().await;
        let removed = (leader + 1) % 3;
        let id = cluster.id(removed).await;
        remove(cluster, leader, id).await;
        cluster.until_ended(removed).await;
        cluster.kill(removed);
        assert_eq!(ids(cluster, leader).await.len(), 2);
        put(&cluster.member(leader), "k", "without it").await;
        // Started again it ends again, and the others go on. On a busy machine they may elect another leader by
        // themselves, but not each time.
        let mut elections = 0;
        loop {
            let term = cluster.until_status(leader).await.raft_term;
            cluster.spawn(removed);
            cluster.until_ended(removed).await;
            cluster.kill(removed);
            if cluster.until_status(leader).await.raft_term == term {
                break;
            }
            elections += 1;
            assert!(elections < 5, "an election each time");
        }
        assert_equal(cluster).await;
    });
}

#[test]
fn a_lost_member_is_replaced() {
    on_three(&["--snapshot-count=50", "--snapshot-catchup-entries=10"], async |cluster: &mut Cluster| {
        for number in 0..200 {
            put(&cluster.member(0), &format!("k{}", number % 20), &number.to_string()).await;
        }
        let lost = 2;
        let id = cluster.id(lost).await;
        cluster.kill(lost);
        std::fs::remove_dir_all(cluster.data_dir(lost)).expect("its disk is gone");
        cluster.leader_of(&[0, 1]).await;
        remove(cluster, 0, id).await;
        let new = cluster.prepare();
        let id = add(cluster, new, true).await;
        cluster.introduce(new, &[0, 1]);
        cluster.spawn(new);
        promote(cluster, id).await;
        cluster.until_ready(new).await;
        assert_eq!(value(&cluster.member(new), "k19").await.as_deref(), Some("199"));
        // Now one of the old ones may go.
        cluster.kill(0);
        let client = cluster.member(new);
        until("a write with the new one", async || {
            let attempt = try_put(&client, "k", "v");
            tokio::time::timeout(std::time::Duration::from_secs(2), attempt).await.ok()?.ok()
        })
        .await;
        cluster.restart(0).await;
        assert_equal(cluster).await;
    });
}

/// The gateway gets one endpoint and the interval; none of the members it ends with was named to it.
#[test]
fn a_gateway_follows_members_that_are_replaced() {
    on_three(&[], async |cluster: &mut Cluster| {
        let (listen, pages) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let args = [
            "gateway".to_owned(),
            "start".to_owned(),
            format!("--endpoints={}", cluster.endpoint(0)),
            format!("--listen-addr={listen}"),
            format!("--metrics-addr={pages}"),
            "--endpoints-auto-sync-interval=100ms".to_owned(),
        ];
        let _gateway = Process::start(&own_binary(), &args, cluster.path(), "gateway");
        let through = client(&listen);
        until("a write", async || try_put(&through, "k", "1").await.ok()).await;
        let new = cluster.prepare();
        add(cluster, new, false).await;
        cluster.introduce(new, &[0, 1, 2]);
        cluster.spawn(new);
        cluster.until_ready(new).await;
        until("the endpoint is there", async || {
            let name = format!("watershed_gateway_endpoint_up{{endpoint=\"{}\"}}", cluster.endpoint(new));
            metric(&pages, &name).await
        })
        .await;
        let old = cluster.id(0).await;
        until("the member is removed", async || {
            cluster.member(1).cluster().member_remove(MemberRemoveRequest { id: old }).await.ok()
        })
        .await;
        // By the list of those that are left, before they become fewer: nothing else says that it was read since.
        until("the endpoint is gone", async || {
            let listed = metric(&pages, "watershed_discovery_endpoints{source=\"member list\"}").await;
            listed.filter(|listed| *listed == 3.0)
        })
        .await;
        cluster.kill(0);
        until("a write", async || try_put(&through, "k", "2").await.ok()).await;
        cluster.kill(1);
        until("a write", async || try_put(&through, "k", "3").await.ok()).await;
        assert_eq!(metric(&pages, "watershed_discovery_endpoints{source=\"static list\"}").await, Some(1.0));
    });
}
