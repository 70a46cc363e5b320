//! Members end without warning.

use std::os::unix::process::ExitStatusExt;

use super::stage::{is_long, run, run_on};
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

#[test]
fn two_of_five_are_killed() {
    run_on(5, "two-of-five", &[], &Plan { per_member: 1, ..Plan::default() }, async |stage| {
        for _ in 0..stage.times() {
            let leader = stage.cluster.leader().await;
            let other = (leader + stage.random.usize(1..5)) % 5;
            stage.fault(format!("kill {leader} and {other}"));
            stage.cluster.kill_all(&[leader, other]);
            stage.writes(40).await;
            stage.cluster.spawn(leader);
            stage.cluster.restart(other).await;
            stage.cluster.until_ready(leader).await;
            stage.writes(20).await;
        }
    });
}

/// A thousand requests per second in a long run; a build that is not optimised gets fewer.
#[test]
fn members_are_restarted_one_after_the_other() {
    let plan = Plan { requests_per_second: if is_long() { 1000 } else { 200 }, ..Plan::default() };
    run("rolling-restart", &[], &plan, async |stage| {
        for number in 0..3 {
            stage.fault(format!("restart {number}"));
            let status = stage.cluster.terminate(number).await;
            assert!(status.success() || status.signal() == Some(15), "{status:?}");
            stage.writes(50).await;
            stage.cluster.restart(number).await;
            stage.writes(50).await;
        }
    });
}
