//! Watches through a proxy in front of three members.

use std::path::Path;

use watershed::client::Client;
use watershed::pb::etcdserverpb::{CompactionRequest, WatchCreateRequest};

use super::story::{on_three, put, try_put};
use crate::harness::{Cluster, Process, Watching, client, free_port, until};

/// A proxy in front of all members.
async fn proxy(cluster: &Cluster) -> (Process, Client) {
    let endpoint = format!("127.0.0.1:{}", free_port());
    let members: Vec<&str> = (0..3).map(|number| cluster.endpoint(number)).collect();
    let args = ["grpc-proxy".to_owned(), "start".to_owned()];
    let flags = [format!("--endpoints={}", members.join(",")), format!("--listen-addr={endpoint}")];
    let args: Vec<String> = args.into_iter().chain(flags).collect();
    let process = Process::start(Path::new(env!("CARGO_BIN_EXE_watershed")), &args, cluster.path(), "proxy");
    let client = client(&endpoint);
    until("the proxy", || async { try_put(&client, "ready", "").await.ok() }).await;
    (process, client)
}

fn key(key: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.into(), ..Default::default() }
}

async fn compact(client: &Client, revision: i64) {
    client.kv().compact(CompactionRequest { revision, physical: false }).await.expect("compaction");
}

#[test]
fn a_compaction_on_one_member_counts_for_the_next_watch_of_the_proxy() {
    // The proxy's log of a live watch never heard of compactions. Nor may the member that the proxy happens to ask lag
    // behind the one that acknowledged the compaction.
    on_three(&[], async |cluster: &mut Cluster| {
        let (_process, client) = proxy(cluster).await;
        let (mut live, _) = Watching::create(&client, key("k")).await;
        for round in 0..20 {
            put(&cluster.member(round % 3), "k", "1").await;
            let newest = put(&cluster.member((round + 1) % 3), "k", "2").await;
            compact(&cluster.member((round + 2) % 3), newest).await;
            let past = WatchCreateRequest { start_revision: newest - 1, ..key("k") };
            let (mut watching, created) = Watching::create(&client, past).await;
            assert!(!created.canceled, "{created:?}");
            let answer = watching.next().await;
            assert_eq!((answer.canceled, answer.compact_revision), (true, newest), "in round {round}: {answer:?}");
            assert_eq!(live.events(2).await.last(), Some(&format!("+k=2@{newest}")));
        }
    });
}

#[test]
fn quiet_watches_outlive_compactions_and_the_loss_of_each_member() {
    // Their upstream watches stood where they were created, behind the compaction.
    on_three(&[], async |cluster: &mut Cluster| {
        let (_process, client) = proxy(cluster).await;
        let (mut quiet, _) = Watching::create(&client, key("quiet")).await;
        let (mut silent, _) = Watching::create(&client, key("silent")).await;
        for lost in 0..3 {
            let other = cluster.member((lost + 1) % 3);
            let mut newest = 0;
            for number in 0..50 {
                newest = put(&other, "busy", &number.to_string()).await;
            }
            compact(&client, newest).await;
            cluster.kill(lost);
            let remaining = cluster.running();
            let leader = cluster.leader_of(&remaining).await;
            let revision = put(&cluster.member(leader), "quiet", "1").await;
            assert_eq!(quiet.events(1).await, [format!("+quiet=1@{revision}")], "without member {lost}");
            cluster.restart(lost).await;
        }
        let revision = put(&cluster.member(0), "silent", "1").await;
        assert_eq!(silent.events(1).await, [format!("+silent=1@{revision}")]);
    });
}
