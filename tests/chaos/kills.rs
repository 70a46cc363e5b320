//! Members end without warning.

use super::stage::run;
use crate::workload::Plan;

#[test]
fn the_leader_is_killed() {
    run("kill-leader", &[], &Plan::default(), async |stage| {
        for _ in 0..stage.times() {
            let leader = stage.cluster.leader().await;
            stage.kill(leader);
            stage.writes(40).await;
            stage.cluster.restart(leader).await;
            stage.writes(20).await;
        }
    });
}

#[test]
fn a_follower_is_killed() {
    run("kill-follower", &[], &Plan::default(), async |stage| {
        for _ in 0..stage.times() {
            let follower = stage.cluster.follower().await;
            stage.kill(follower);
            stage.last(0..800).await;
            stage.cluster.restart(follower).await;
            stage.writes(20).await;
        }
    });
}

#[test]
fn all_are_killed() {
    run("kill-all", &[], &Plan::default(), async |stage| {
        for _ in 0..stage.times() {
            stage.fault("kill all");
            stage.cluster.kill_all(&[0, 1, 2]);
            (0..3).for_each(|number| stage.cluster.spawn(number));
            for number in 0..3 {
                stage.cluster.until_ready(number).await;
            }
            stage.writes(40).await;
        }
    });
}

#[test]
fn leases_end_no_earlier_when_the_leader_changes() {
    let plan = Plan { leases: 9, requests_per_second: 150, ..Plan::default() };
    run("leases", &[], &plan, async |stage| {
        for _ in 0..stage.times() {
            stage.last(800..2500).await;
            let leader = stage.cluster.leader().await;
            if stage.random.bool() {
                stage.kill(leader);
                stage.writes(20).await;
                stage.cluster.restart(leader).await;
            } else {
                stage.pause(leader);
                stage.last(1500..4000).await;
                stage.resume(leader);
            }
        }
        stage.last(2000..3000).await;
    });
}
