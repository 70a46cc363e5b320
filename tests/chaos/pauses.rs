//! Processes stop and go on as if nothing had happened.

use super::stage::run;
use crate::workload::Plan;

/// A leader that was away while another was elected must not answer from what it knew.
#[test]
fn the_leader_pauses() {
    run("pause-leader", &[], &Plan::default(), async |stage| {
        for _ in 0..stage.times() {
            let leader = stage.cluster.leader().await;
            stage.pause(leader);
            stage.last(1000..5000).await;
            stage.resume(leader);
            stage.writes(30).await;
        }
    });
}

#[test]
fn a_follower_pauses() {
    run("pause-follower", &[], &Plan::default(), async |stage| {
        for _ in 0..stage.times() {
            let follower = stage.cluster.follower().await;
            stage.pause(follower);
            stage.last(300..3000).await;
            stage.resume(follower);
            stage.writes(30).await;
        }
    });
}
