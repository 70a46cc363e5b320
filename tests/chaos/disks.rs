//! Disks that are full, slow or broken. These need root, and say so where they cannot run.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::stage::{Stage, run};
use crate::checkers::{Outcome, Request};
use crate::harness::until;
use crate::workload::Plan;

/// Room of the small disk: one segment of the log is 64 MB, and a second one is prepared.
const SMALL_DISK: &str = "size=220m";

/// A directory that is a small disk until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Puts the contents of a folder on a small disk in its place.
    fn at(folder: &Path) -> Result<Self, String> {
        let aside = folder.with_extension("aside");
        std::fs::rename(folder, &aside).map_err(|error| error.to_string())?;
        std::fs::create_dir(folder).map_err(|error| error.to_string())?;
        let mounted = tool(Command::new("mount").args(["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs"]).arg(folder));
        let disk = mounted.map(|()| Self(folder.to_owned()));
        tool(Command::new("cp").arg("-a").arg(aside.join(".")).arg(folder))?;
        disk
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut filler = std::fs::File::create(&path).expect("a file");
        while std::io::Write::write_all(&mut filler, &[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // At once even if a process still has files there.
        let _ = tool(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn tool(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let error = || format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.status.success().then_some(()).ok_or_else(error)
}

/// Starts the member again if it ended, and tells whether it had.
async fn revive(stage: &mut Stage, member: usize) -> bool {
    let ended = stage.cluster.ended(member);
    if ended {
        let output = stage.cluster.output(member);
        assert!(!output.contains("panicked"), "it panicked:\n{output}");
        stage.cluster.kill(member);
        stage.cluster.restart(member).await;
    }
    ended
}

/// A member without room stops, or serves on; the others go on, and with room again it is one of them.
#[test]
fn a_disk_is_full() {
    run("full-disk", &["--snapshot-count=100"], &Plan::default(), async |stage| {
        let member = stage.any().await;
        stage.kill(member);
        let disk = match SmallDisk::at(&stage.cluster.data_dir(member)) {
            Ok(disk) => disk,
            Err(reason) => {
                println!("chaos full-disk: not run here: {reason}");
                return stage.cluster.restart(member).await;
            }
        };
        stage.cluster.restart(member).await;
        stage.fault(format!("the disk of {member} is full"));
        let filler = disk.fill();
        let (id, client) = (stage.recorder().client(), stage.cluster.client());
        for number in 0..40 {
            let value = format!("{}{}", stage.recorder().value(), "x".repeat(20_000));
            let request = Request::Put { key: format!("big{}", number % 4), value, lease: 0, prev_kv: false };
            let _: Outcome = stage.recorder().send(id, u32::MAX, &client, request).await;
        }
        stage.writes(100).await;
        std::fs::remove_file(filler).expect("room again");
        let ended = revive(stage, member).await;
        println!("chaos full-disk: the member {}", if ended { "stopped" } else { "served on" });
        stage.cluster.until_ready(member).await;
        stage.writes(50).await;
        // Off the small disk before it goes.
        let folder = stage.cluster.data_dir(member);
        stage.cluster.kill(member);
        let back = folder.with_extension("back");
        tool(Command::new("cp").arg("-a").arg(&folder).arg(&back)).expect("copied");
        drop(disk);
        std::fs::remove_dir(&folder).expect("the empty mount point");
        std::fs::rename(back, &folder).expect("renamed");
        stage.cluster.restart(member).await;
    });
}

/// A member whose disk fails a sync stops at once; nothing of that write counts as durable.
#[test]
fn a_disk_fails() {
    run("failing-disk", &[], &Plan::default(), async |stage| {
        for _ in 0..stage.times() {
            let member = stage.any().await;
            let process = stage.cluster.process(member).id().to_string();
            let inject = "inject=fdatasync,fsync:error=EIO:when=1";
            let mut command = Command::new("strace");
            command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e", inject, "-p", &process]);
            let mut tracer = match command.stdin(Stdio::null()).stderr(Stdio::null()).spawn() {
                Ok(tracer) => tracer,
                Err(error) => {
                    println!("chaos failing-disk: not run here: strace: {error}");
                    return stage.fault("none");
                }
            };
            stage.fault(format!("the next fsync of {member} fails"));
            let mut refused = false;
            until("the member stops", || {
                refused |= tracer.try_wait().ok().flatten().is_some() && !stage.cluster.ended(member);
                let ended = stage.cluster.ended(member) || refused;
                async move { ended.then_some(()) }
            })
            .await;
            let _ = tracer.kill();
            let _ = tracer.wait();
            if refused {
                println!("chaos failing-disk: not run here: strace may not attach");
                return;
            }
            stage.writes(40).await;
            assert!(revive(stage, member).await);
            stage.writes(20).await;
        }
    });
}

/// One member writes at 1 MB/s.
#[test]
fn a_disk_is_slow() {
    run("slow-disk", &[], &Plan::default(), async |stage| {
        let member = stage.any().await;
        let device = std::fs::metadata(stage.cluster.path()).expect("metadata").dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let group = PathBuf::from(format!("/sys/fs/cgroup/blkio/watershed-{}", std::process::id()));
        let slow = || -> std::io::Result<()> {
            std::fs::create_dir(&group)?;
            std::fs::write(group.join("blkio.throttle.write_bps_device"), format!("{major}:{minor} 1048576"))?;
            let process = stage.cluster.process(member).id().to_string();
            std::fs::write(group.join("cgroup.procs"), process)
        };
        if let Err(error) = slow() {
            println!("chaos slow-disk: not run here: {error}");
            let _ = std::fs::remove_dir(&group);
            return stage.fault("none");
        }
        stage.fault(format!("{member} writes at 1 MB/s"));
        let (id, client) = (stage.recorder().client(), stage.cluster.client());
        for number in 0..60 {
            let value = format!("{}{}", stage.recorder().value(), "x".repeat(50_000));
            let request = Request::Put { key: format!("big{}", number % 4), value, lease: 0, prev_kv: false };
            let _: Outcome = stage.recorder().send(id, u32::MAX, &client, request).await;
        }
        stage.writes(100).await;
        let process = stage.cluster.process(member).id().to_string();
        std::fs::write("/sys/fs/cgroup/blkio/cgroup.procs", process).expect("fast again");
        // The kernel frees the group a moment after its last process left.
        tokio::time::timeout(
            Duration::from_secs(5),
            until("the group is empty", async || std::fs::remove_dir(&group).ok()),
        )
        .await
        .expect("removed");
    });
}
