//! Members run out of something.

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::net::TcpStream;

use super::stage::run;
use crate::workload::Plan;

fn pid(process: u32) -> Option<Pid> {
    i32::try_from(process).ok().and_then(Pid::from_raw)
}

/// The most descriptors a process may ever allow itself.
fn hard_limit(process: u32) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).expect("its limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("the limit of open files");
    line.split_whitespace().nth(4)?.parse().ok()
}

#[test]
fn descriptors_run_out() {
    run("descriptors", &[], &Plan::default(), async |stage| {
        for _ in 0..stage.times() {
            let member = stage.any().await;
            let process = stage.cluster.process(member).id();
            let open = std::fs::read_dir(format!("/proc/{process}/fd")).expect("its descriptors").count() as u64;
            // The hard limit stays, or it could not be raised again.
            let scarce = Rlimit { current: Some(open + 3), maximum: hard_limit(process) };
            let before = prlimit(pid(process), Resource::Nofile, scarce).expect("its limit is lowered");
            stage.fault(format!("{member} may open three more files"));
            let mut connections = Vec::new();
            for _ in 0..40 {
                // The kernel accepts them; the member cannot.
                let connection = TcpStream::connect(stage.cluster.endpoint(member));
                connections.extend(tokio::time::timeout(std::time::Duration::from_secs(1), connection).await);
            }
            stage.last(500..2000).await;
            assert!(!stage.cluster.ended(member), "it ended: {}", stage.cluster.output(member));
            prlimit(pid(process), Resource::Nofile, before).expect("its limit is raised");
            drop(connections);
            stage.cluster.until_ready(member).await;
            stage.writes(30).await;
        }
    });
}
