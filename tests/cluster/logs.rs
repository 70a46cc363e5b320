//! Log lines that scripts and etcd's own tests wait for, in etcd's words.

use watershed::pb::etcdserverpb::CompactionRequest;

use super::story::{on, on_three, put};
use crate::harness::{Cluster, until};

async fn until_said(cluster: &Cluster, number: usize, text: &str) {
    until(&format!("{text:?} in the log of a member"), || {
        std::future::ready(cluster.output(number).contains(text).then_some(()))
    })
    .await;
}

#[test]
fn members_say_what_etcd_says_when_they_connect_elect_and_compact() {
    on_three(&[], async |cluster: &mut Cluster| {
        for number in 0..3 {
            until_said(cluster, number, "established TCP streaming connection with remote peer").await;
            until_said(cluster, number, "peer became active").await;
            until_said(cluster, number, "elected leader").await;
        }
        let revision = put(&cluster.member(0), "k", "v").await;
        let request = CompactionRequest { revision, physical: true };
        cluster.member(0).kv().compact(request).await.expect("compaction");
        until_said(cluster, 0, "finished scheduled compaction").await;
        let leader = cluster.leader().await;
        until_said(cluster, leader, "became leader").await;
        cluster.kill(leader);
        let next = cluster.leader().await;
        until_said(cluster, next, "lost TCP streaming connection with remote peer").await;
        until_said(cluster, next, "peer became inactive").await;
        until_said(cluster, next, "became leader").await;
    });
}

// A member of another cluster was refused with a debug line, and the one that was refused told only the first reason for
// which it could not reach a peer: that nobody listened when it started.
#[test]
fn a_member_of_another_cluster_is_told_apart_on_both_sides() {
    on(1, &[], async |cluster: &mut Cluster| {
        cluster.kill(0);
        let foreign = cluster.prepare();
        cluster.introduce(foreign, &[0]);
        cluster.set_flags(foreign, &["--initial-cluster-state=new", "--initial-cluster-token=another"]);
        cluster.spawn(foreign);
        until_said(cluster, foreign, "peer cannot be reached").await;
        cluster.restart(0).await;
        let refused = "request sent was ignored by remote peer due to cluster ID mismatch";
        until_said(cluster, foreign, refused).await;
        until_said(cluster, 0, "request cluster ID mismatch").await;
        // It tries again every second on each lane; the log is not filled with it.
        put(&cluster.member(0), "k", "v").await;
        assert_eq!(cluster.output(foreign).matches(refused).count(), 1);
        assert_eq!(cluster.output(0).matches("request cluster ID mismatch").count(), 1);
    });
}
