//! A cluster of three that begins with a db snapshot, and a member that joins it.

use std::process::Command;

use prost::bytes::Bytes;
use sha2::{Digest, Sha256};
use watershed::pb::etcdserverpb::{CompactionRequest, HashKvRequest, SnapshotRequest};

use super::members::add;
use super::story::{assert_equal, on_three, put, value};
use crate::harness::{Cluster, server_binary, until};

async fn hash(cluster: &Cluster, number: usize, revision: i64) -> Option<u32> {
    let answer = cluster.member(number).maintenance().hash_kv(HashKvRequest { revision }).await;
    answer.ok().map(|answer| answer.into_inner().hash)
}

/// Restores member `number` from `snapshot`, as an operator does.
fn restore(cluster: &Cluster, number: usize, snapshot: &std::path::Path) {
    let members: Vec<String> = (0..3).map(|number| format!("n{}={}", number + 1, cluster.peer_url(number))).collect();
    let output = Command::new(server_binary())
        .args(["utl", "snapshot", "restore"])
        .arg(snapshot)
        .arg("--data-dir")
        .arg(cluster.data_dir(number))
        .args(["--name", &format!("n{}", number + 1), "--initial-cluster", &members.join(",")])
        .args(["--initial-cluster-token", "restored", "--initial-advertise-peer-urls", &cluster.peer_url(number)])
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("restored snapshot"), "{said}");
}

// The log of a restored member holds no entries that lead to its state: one that joins must be sent the state.
#[test]
fn three_members_go_on_from_a_snapshot_and_a_fourth_gets_it_all() {
    on_three(&[], async |cluster: &mut Cluster| {
        for number in 0..20 {
            put(&cluster.client(), &format!("k{}", number % 7), &format!("v{number}")).await;
        }
        let mut kv = cluster.member(0).kv();
        kv.compact(CompactionRequest { revision: 9, physical: true }).await.expect("compacted");
        let mut stream = cluster.member(0).maintenance().snapshot(SnapshotRequest {}).await.expect("sent").into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = stream.message().await.expect("sent") {
            bytes.extend_from_slice(&piece.blob);
        }
        let snapshot = cluster.path().join("saved.db");
        std::fs::write(&snapshot, &bytes).expect("a disk");
        let digest: Bytes = Sha256::digest(&bytes[..bytes.len() - 32]).to_vec().into();
        assert_eq!(&bytes[bytes.len() - 32..], &digest[..]);
        let before = hash(cluster, 0, 21).await.expect("a hash");
        cluster.kill_all(&[0, 1, 2]);
        for number in 0..3 {
            std::fs::remove_dir_all(cluster.data_dir(number)).expect("a disk");
            restore(cluster, number, &snapshot);
            cluster.spawn(number);
        }
        for number in 0..3 {
            cluster.until_ready(number).await;
            assert_eq!(hash(cluster, number, 21).await, Some(before), "member {number}");
        }
        assert_eq!(value(&cluster.client(), "k5").await.as_deref(), Some("v19"));
        put(&cluster.client(), "after", "the restore").await;
        let joins = cluster.prepare();
        add(cluster, joins, false).await;
        cluster.introduce(joins, &[0, 1, 2]);
        cluster.spawn(joins);
        cluster.until_ready(joins).await;
        until("the new member has the restored state", async || {
            (hash(cluster, joins, 21).await == Some(before)).then_some(())
        })
        .await;
        assert_equal(cluster).await;
    });
}
