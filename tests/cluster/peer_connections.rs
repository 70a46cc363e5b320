//! Which thread reads the connections between members.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{read_dir, read_link, read_to_string};
use std::path::Path;

use super::story::on_three;
use crate::harness::{Cluster, is_stock, until};

/// Connections of a follower that each of two peers opens: control messages, entries, calls.
const ACCEPTED: usize = 6;

type Inode = u64;

// Cause: connections that peers had opened stayed with the serving thread of the listener that accepted them, because the
// transport looked for the bare socket and the listener had wrapped it. Each read woke one thread and then another one.
#[test]
fn connections_of_peers_are_read_by_one_thread() {
    if is_stock() {
        return;
    }
    on_three(&[], async |cluster: &mut Cluster| {
        for number in 0..3 {
            let process = Path::new("/proc").join(cluster.process(number).id().to_string());
            let peer_port = cluster.listens_peer(number).port();
            let client_port: u16 =
                cluster.endpoint(number).rsplit_once(':').expect("a port").1.parse().expect("a number");
            until("all connections of peers in one poll set", async || {
                let (polls, local_ports) = (polls(&process), local_ports());
                let (mut accepted, mut dialled) = (Vec::new(), Vec::new());
                for (socket, poll) in polls {
                    match local_ports.get(&socket) {
                        Some(port) if *port == peer_port => accepted.push(poll),
                        Some(port) if *port != client_port => dialled.push(poll),
                        _ => {}
                    }
                }
                let all: BTreeSet<_> = accepted.iter().chain(&dialled).collect();
                (accepted.len() >= ACCEPTED && !dialled.is_empty() && all.len() == 1).then_some(())
            })
            .await;
        }
    });
}

/// The poll set (epoll(7)) that each socket of a process is in; there is one for each runtime.
fn polls(process: &Path) -> BTreeMap<Inode, String> {
    let mut polls = BTreeMap::new();
    for file in read_dir(process.join("fd")).into_iter().flatten().flatten() {
        if !read_link(file.path()).is_ok_and(|link| link.ends_with("anon_inode:[eventpoll]")) {
            continue;
        }
        let name = file.file_name().into_string().expect("a number");
        for line in read_to_string(process.join("fdinfo").join(&name)).unwrap_or_default().lines() {
            let inode = line.split_once(" ino:").and_then(|(_, rest)| rest.split(' ').next());
            polls.extend(
                inode.and_then(|inode| Inode::from_str_radix(inode, 16).ok()).map(|inode| (inode, name.clone())),
            );
        }
    }
    polls
}

/// The local port of each established connection.
fn local_ports() -> BTreeMap<Inode, u16> {
    const ESTABLISHED: &str = "01";
    let table = read_to_string("/proc/net/tcp").expect("the kernel's list");
    let connections = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = u16::from_str_radix(fields[1].split_once(':')?.1, 16).ok()?;
        (fields[3] == ESTABLISHED).then_some((fields[9].parse().ok()?, port))
    });
    connections.collect()
}
