//! Partitions and bad links between members.

use std::time::Duration;

use super::stage::run;
use crate::harness::is_stock;
use crate::workload::Plan;

#[test]
fn one_direction_is_lost() {
    run("one-way", &[], &Plan::default(), async |stage| {
        for _ in 0..stage.times() {
            let leader = stage.cluster.leader().await;
            let deaf = stage.random.bool();
            stage.fault(format!("the leader {leader} is {}", if deaf { "deaf" } else { "mute" }));
            for other in (0..3).filter(|&other| other != leader) {
                let (from, to) = if deaf { (other, leader) } else { (leader, other) };
                stage.cluster.network.link(from, to, |link| link.held = true);
            }
            stage.last(1500..4000).await;
            stage.cluster.network.heal();
            stage.writes(30).await;
        }
    });
}

#[test]
fn a_member_is_isolated() {
    run("isolate", &[], &Plan::default(), async |stage| {
        for round in 0..stage.times() {
            // The leader first: the rest must go on without it.
            let alone = if round == 0 { stage.cluster.leader().await } else { stage.any().await };
            let cut = stage.random.bool();
            stage.fault(format!("isolate {alone}, {}", if cut { "connections reset" } else { "bytes held" }));
            stage.cluster.network.around(&[alone], |link| if cut { link.cut = true } else { link.held = true });
            stage.writes(40).await;
            stage.last(0..2000).await;
            stage.cluster.network.heal();
            stage.writes(30).await;
        }
    });
}

#[test]
fn nobody_hears_anybody() {
    run("full-partition", &[], &Plan::default(), async |stage| {
        for _ in 0..stage.times() {
            stage.fault("everybody is alone");
            stage.cluster.network.around(&[0], |link| link.held = true);
            stage.cluster.network.around(&[1], |link| link.held = true);
            stage.last(1000..3000).await;
            stage.cluster.network.heal();
            stage.writes(40).await;
        }
    });
}

#[test]
fn the_network_is_bad() {
    run("bad-network", &[], &Plan::default(), async |stage| {
        for _ in 0..stage.times() {
            let (delay, rate) = (stage.time(5..120), stage.random.u64(50_000..500_000));
            // Stock peers have no checksum of their own on the wire.
            let flips = (!is_stock()).then(|| stage.random.u64(5_000..50_000));
            stage.fault(format!("delay {delay:?}, {rate} bytes per second, a bit flipped every {flips:?} bytes"));
            for member in 0..3 {
                stage.cluster.network.around(&[member], |link| {
                    link.delay = delay / (1 + member as u32);
                    link.bytes_per_second = Some(rate);
                    link.flip_every_bytes = flips;
                });
            }
            stage.last(2000..4000).await;
            stage.cluster.network.heal();
            stage.writes(40).await;
        }
    });
}

#[test]
fn links_come_and_go() {
    run("flapping", &[], &Plan::default(), async |stage| {
        for _ in 0..stage.times() * 6 {
            let (from, to) = (stage.random.usize(0..3), stage.random.usize(0..3));
            let cut = stage.random.bool();
            if from != to {
                stage.fault(format!("{from} to {to}: {}", if cut { "reset" } else { "held" }));
                stage.cluster.network.link(from, to, |link| if cut { link.cut = true } else { link.held = true });
            }
            stage.last(20..400).await;
            stage.cluster.network.heal();
            stage.last(20..400).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    });
}
