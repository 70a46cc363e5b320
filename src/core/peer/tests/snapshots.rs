use std::time::Duration;

use bytes::Bytes;

use super::super::frame::{Batch, FrameReader, Kind};
use super::super::hello::{Hello, Purpose};
use super::super::snapshot::{Offer, Refused, SnapshotId};
use super::super::{PeerDialer, PeerLimits, dial};
use super::node::{A, B, CLUSTER, Node, pair, patient};
use super::proxy::{Link, Proxy};
use super::{eventually, soon};
use crate::core::raft::Lane;
use crate::types::{LogIndex, LogPosition, Term};
use tokio::io::AsyncWriteExt;

/// Bytes that differ from place to place.
fn db_snapshot(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(length as u64);
    (0..length).map(|_| random.u8(..)).collect()
}

async fn through_proxy(limits: PeerLimits) -> (Node, Proxy, Node) {
    let (a, b) = (Node::start(A, limits.clone()).await, Node::start(B, limits).await);
    let proxy = Proxy::start(b.address).await;
    a.follow(B, proxy.address);
    b.follow(A, a.address);
    (a, proxy, b)
}

#[tokio::test]
async fn a_db_snapshot_arrives_whole_with_its_rewritten_message() {
    let (mut a, mut b) = pair(patient()).await;
    // Shorter than a chunk, exactly some chunks, and more than is written between two syncs.
    for length in [1, 1000, 4 * 256 * 1024, 40_000_001] {
        let db_snapshot = db_snapshot(length);
        a.heard.db_snapshot.lock().clone_from(&db_snapshot);
        a.send(B, Lane::Snapshot, "message");
        let (from, message, received) = soon(b.db_snapshots.recv()).await.expect("runs");
        assert_eq!((from, message), (A, Bytes::from_static(b"rewritten message")));
        assert!(received == db_snapshot, "{length} bytes");
        assert_eq!(soon(a.sent.recv()).await, Some((B, true)));
        assert!(b.files().is_empty(), "nothing is left: {:?}", b.files());
    }
    assert_eq!(a.metrics.snapshot_send_success.with_label_values(&["b"]).get(), 4);
    assert_eq!(b.metrics.snapshot_receive_success.with_label_values(&["a"]).get(), 4);
    assert_eq!(a.metrics.snapshot_send_inflights.with_label_values(&["b"]).get(), 0);
    eventually("none on its way", || b.metrics.snapshot_receive_inflights.with_label_values(&["a"]).get() == 0).await;
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_stopped() {
    let (mut a, proxy, mut b) = through_proxy(patient()).await;
    let db_snapshot = db_snapshot(12 << 20);
    a.heard.db_snapshot.lock().clone_from(&db_snapshot);
    let before = proxy.forwarded();
    proxy.cut_after(3 << 20);
    a.send(B, Lane::Snapshot, "message");
    for _ in 0..2 {
        let connections = proxy.connections();
        eventually("it comes back", || proxy.connections() > connections).await;
        proxy.cut_after(3 << 20);
    }
    let (_, _, received) = soon(b.db_snapshots.recv()).await.expect("runs");
    assert!(received == db_snapshot);
    assert_eq!(soon(a.sent.recv()).await, Some((B, true)));
    // What was on its way in buffers at each cut is sent again, not more.
    let repeated = proxy.forwarded() - before - db_snapshot.len() as u64;
    assert!(repeated < 6 << 20, "{repeated} bytes were sent twice");
    assert!(b.files().is_empty(), "{:?}", b.files());
}

// Cause: a transfer was given up after 8 connections, whatever they had brought.
#[tokio::test]
async fn a_transfer_that_makes_progress_is_not_given_up() {
    let (mut a, proxy, mut b) = through_proxy(patient()).await;
    let db_snapshot = db_snapshot(24 << 20);
    a.heard.db_snapshot.lock().clone_from(&db_snapshot);
    for cut in 0..20 {
        let at = proxy.forwarded() + (1 << 20);
        proxy.cut_after(1 << 20);
        if cut == 0 {
            a.send(B, Lane::Snapshot, "message");
        }
        eventually("it is cut", || proxy.forwarded() >= at).await;
    }
    let (_, _, received) = soon(b.db_snapshots.recv()).await.expect("runs");
    assert!(received == db_snapshot);
    assert_eq!(soon(a.sent.recv()).await, Some((B, true)));
}

#[tokio::test]
async fn an_aborted_transfer_is_given_up_and_leaves_no_file() {
    let limits = PeerLimits {
        snapshot_attempts: 3,
        snapshot_resume_window: Duration::from_millis(50),
        handshake_timeout: Duration::from_secs(5),
        ..patient()
    };
    let (mut a, proxy, mut b) = through_proxy(limits).await;
    let db_snapshot = db_snapshot(4 << 20);
    a.heard.db_snapshot.lock().clone_from(&db_snapshot);
    for _ in 0..20 {
        a.send(B, Lane::Snapshot, "message");
        eventually("it begins", || !b.files().is_empty()).await;
        proxy.set(Link::Refused);
        proxy.cut();
        match soon(a.sent.recv()).await {
            Some((B, false)) => {}
            // The cut came too late.
            Some((B, true)) => drop(soon(b.db_snapshots.recv()).await),
            other => panic!("{other:?}"),
        }
        eventually("the part is removed", || b.files().is_empty()).await;
        proxy.set(Link::Open);
    }
    let failures = a.metrics.snapshot_send_failures.with_label_values(&["b"]).get();
    assert!(failures > 0, "some were really cut");
    while b.db_snapshots.try_recv().is_ok() {}
    a.send(B, Lane::Snapshot, "message");
    assert!(soon(b.db_snapshots.recv()).await.expect("runs").2 == db_snapshot, "and the next one arrives");
}

#[tokio::test]
async fn a_second_snapshot_waits_for_the_end_of_the_first() {
    let (mut a, mut b) = pair(patient()).await;
    let (first, second) = (db_snapshot(3 << 20), db_snapshot(2 << 20));
    a.heard.db_snapshot.lock().clone_from(&first);
    a.send(B, Lane::Snapshot, "first");
    // Dropped: the end of the first tells raft that it may ask again.
    a.send(B, Lane::Snapshot, "dropped");
    assert!(soon(b.db_snapshots.recv()).await.expect("runs").2 == first);
    assert_eq!(soon(a.sent.recv()).await, Some((B, true)));
    a.heard.db_snapshot.lock().clone_from(&second);
    a.send(B, Lane::Snapshot, "second");
    let (_, message, received) = soon(b.db_snapshots.recv()).await.expect("runs");
    assert!(received == second && message == "rewritten second");
    assert_eq!(soon(a.sent.recv()).await, Some((B, true)));
}

#[tokio::test]
async fn what_the_receiver_cannot_take_is_refused_for_good() {
    let (mut a, b) = pair(PeerLimits { snapshot_bytes_max: 1000, ..patient() }).await;
    *a.heard.db_snapshot.lock() = db_snapshot(1001);
    a.send(B, Lane::Snapshot, "too large");
    assert_eq!(soon(a.sent.recv()).await, Some((B, false)));
    *a.heard.db_snapshot.lock() = db_snapshot(500);
    std::fs::remove_dir_all(b.heard.room.path().join("incoming")).expect("removed");
    a.send(B, Lane::Snapshot, "no room");
    assert_eq!(soon(a.sent.recv()).await, Some((B, false)));
    a.heard.db_snapshot.lock().clear();
    a.send(B, Lane::Snapshot, "no db snapshot");
    assert_eq!(soon(a.sent.recv()).await, Some((B, false)));
}

#[tokio::test]
async fn a_rate_bounds_a_transfer_and_leaves_the_other_lanes_alone() {
    let limits = PeerLimits { snapshot_rate: Some(4 << 20), ..patient() };
    let (mut a, mut b) = pair(limits).await;
    let db_snapshot = db_snapshot(4 << 20);
    a.heard.db_snapshot.lock().clone_from(&db_snapshot);
    a.send(B, Lane::Snapshot, "message");
    eventually("it begins", || !b.files().is_empty()).await;
    a.send_until_heard(&mut b, Lane::Append, b"meanwhile").await;
    assert!(b.db_snapshots.try_recv().is_err(), "an entry overtakes the db snapshot");
    assert!(soon(b.db_snapshots.recv()).await.expect("runs").2 == db_snapshot);
    assert_eq!(soon(a.sent.recv()).await, Some((B, true)));
}

#[tokio::test]
async fn leftovers_are_removed_at_the_start() {
    let room = tempfile::tempdir().expect("a directory");
    let incoming = room.path().join("incoming");
    std::fs::create_dir_all(&incoming).expect("made");
    for name in ["a-1-1.part", "a-2-1.snap", "a-3-1.image", "somebody.else"] {
        std::fs::write(incoming.join(name), "x").expect("written");
    }
    let b = Node::start_with(CLUSTER, B, patient(), room).await;
    assert_eq!(b.files(), ["somebody.else"]);
}

/// A sender that does not keep to the rules.
struct Forger {
    io: Box<dyn crate::net::ByteStream>,
    frames: FrameReader,
}

impl Forger {
    async fn connect(b: &Node) -> Self {
        let hello = Hello { cluster: CLUSTER, from: A, to: B, purpose: Purpose::Snapshot, urls: vec![] };
        let dialed =
            dial::dial_any(&[format!("http://{}", b.address)], hello, &PeerDialer::default(), super::PATIENCE).await;
        let dialed = dialed.unwrap_or_else(|error| panic!("{error}"));
        Self { io: dialed.io, frames: FrameReader::new(&dialed.first, 1 << 20) }
    }

    async fn send(&mut self, fill: impl FnOnce(&mut Batch)) {
        let mut batch = Batch::default();
        fill(&mut batch);
        self.io.write_all_buf(&mut batch).await.expect("sent");
    }

    /// The next answer that matters; none at the end of the connection.
    async fn hear(&mut self) -> Option<(Kind, Bytes)> {
        loop {
            while let Some(frame) = self.frames.take().expect("well formed") {
                if frame.kind != Kind::Alive {
                    return Some((frame.kind, frame.payload));
                }
            }
            soon(self.frames.fill(&mut self.io)).await.ok()?;
        }
    }
}

fn offer(size_bytes: u64) -> Offer {
    let position = LogPosition { index: LogIndex(1), term: Term(1) };
    Offer { transfer: 1, db_snapshot: SnapshotId { position, size_bytes, digest: [0; 32] }, message: Bytes::new() }
}

#[tokio::test]
async fn a_wrong_digest_is_noticed() {
    let mut b = Node::start(B, patient()).await;
    b.follow(A, "127.0.0.1:1".parse().expect("an address"));
    let mut forger = Forger::connect(&b).await;
    forger.send(|batch| offer(3).push(batch)).await;
    assert_eq!(forger.hear().await, Some((Kind::Resume, Bytes::from_static(&[0; 8]))));
    forger.send(|batch| batch.push(Kind::Chunk, &[0; 8], &Bytes::from_static(b"abc"))).await;
    forger.send(|batch| batch.push(Kind::End, &[], &Bytes::new())).await;
    let (kind, payload) = forger.hear().await.expect("an answer");
    assert_eq!(kind, Kind::Refuse);
    let expected = Refused { may_retry: false, reason: "digest of the db snapshot is wrong".into() };
    assert_eq!(Refused::parse(&payload), expected);
    assert!(b.db_snapshots.try_recv().is_err() && b.files().is_empty());
}

#[tokio::test]
async fn a_transfer_out_of_order_is_ended() {
    let mut b = Node::start(B, PeerLimits { snapshot_resume_window: Duration::ZERO, ..patient() }).await;
    b.follow(A, "127.0.0.1:1".parse().expect("an address"));
    let cases: [&dyn Fn(&mut Batch); 6] = [
        // A gap, too much, the end too early, a second offer, a raft message, an offer that is too short.
        &|batch| batch.push(Kind::Chunk, &1_u64.to_le_bytes(), &Bytes::from_static(b"a")),
        &|batch| batch.push(Kind::Chunk, &[0; 8], &Bytes::from_static(b"abcd")),
        &|batch| batch.push(Kind::End, &[], &Bytes::new()),
        &|batch| offer(3).push(batch),
        &|batch| batch.push(Kind::Message, &[], &Bytes::new()),
        &|batch| batch.push(Kind::Chunk, &[0; 3], &Bytes::new()),
    ];
    for (number, case) in cases.into_iter().enumerate() {
        let mut forger = Forger::connect(&b).await;
        forger.send(|batch| offer(3).push(batch)).await;
        assert_eq!(forger.hear().await.expect("an answer").0, Kind::Resume, "case {number}");
        forger.send(case).await;
        assert_eq!(forger.hear().await, None, "case {number}");
    }
    eventually("all are counted", || b.metrics.received_failures.with_label_values(&["a"]).get() == 6).await;
    eventually("no part is left", || b.files().is_empty()).await;
    assert!(b.db_snapshots.try_recv().is_err() && b.messages.try_recv().is_err());
}
