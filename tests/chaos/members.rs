//! Members that are far behind, or new.

use tonic::Code;
use watershed::pb::etcdserverpb::{MemberAddRequest, MemberPromoteRequest, MemberRemoveRequest};

use super::stage::{Stage, run};
use crate::harness::until;
use crate::workload::Plan;

const SMALL_LOG: [&str; 2] = ["--snapshot-count=40", "--snapshot-catchup-entries=10"];

#[test]
fn a_follower_needs_a_snapshot() {
    run("snapshot", &SMALL_LOG, &Plan::default(), async |stage| {
        for round in 0..stage.times() {
            let follower = stage.cluster.follower().await;
            if round % 2 == 0 {
                stage.kill(follower);
                stage.writes(150).await;
                stage.cluster.restart(follower).await;
            } else {
                stage.fault(format!("isolate {follower}"));
                stage.cluster.network.around(&[follower], |link| link.cut = true);
                stage.writes(150).await;
                stage.cluster.network.heal();
            }
            stage.writes(30).await;
        }
    });
}

/// The member that is asked about the others.
async fn leader_of_rest(stage: &Stage, without: usize) -> usize {
    let rest: Vec<usize> = stage.cluster.running().into_iter().filter(|&number| number != without).collect();
    stage.cluster.leader_of(&rest).await
}

#[test]
fn a_member_is_replaced() {
    run("replace", &SMALL_LOG, &Plan::default(), async |stage| {
        let lost = stage.any().await;
        let id = stage.cluster.id(lost).await;
        stage.kill(lost);
        std::fs::remove_dir_all(stage.cluster.data_dir(lost)).expect("its disk is gone");
        let asked = leader_of_rest(stage, lost).await;
        let cluster = stage.cluster.member(asked);
        until("the lost one is removed", async || {
            match cluster.cluster().member_remove(MemberRemoveRequest { id }).await {
                Ok(_) => Some(()),
                Err(status) if status.code() == Code::Unavailable => None,
                // An attempt without an answer had its effect.
                Err(status) if status.code() == Code::NotFound => Some(()),
                Err(status) => panic!("{status:?}"),
            }
        })
        .await;
        stage.fault("a new member");
        let new = stage.cluster.prepare();
        let request = MemberAddRequest { peer_ur_ls: vec![stage.cluster.peer_url(new)], is_learner: true };
        let id = until("the new one is added", async || match cluster.cluster().member_add(request.clone()).await {
            Ok(answer) => Some(answer.into_inner().member.expect("the member").id),
            Err(status) if status.code() == Code::Unavailable => None,
            Err(status) => panic!("{status:?}"),
        })
        .await;
        let rest: Vec<usize> = stage.cluster.running();
        stage.cluster.introduce(new, &rest);
        stage.cluster.spawn(new);
        until("the new one is promoted", async || {
            cluster.cluster().member_promote(MemberPromoteRequest { id }).await.ok().map(|_| ())
        })
        .await;
        stage.cluster.until_ready(new).await;
        stage.writes(50).await;
        // The new one counts: with it, one of the old ones may go.
        let old = rest[0];
        stage.kill(old);
        stage.writes(30).await;
        stage.cluster.restart(old).await;
    });
}
