use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::super::hello::{Greeting, Hello, Purpose};
use super::super::{Peer, PeerLimits, Refusal};
use super::node::{A, B, Node, pair, patient};
use super::{eventually, soon};
use crate::core::raft::Lane;
use crate::types::{ClusterId, MemberId};

#[tokio::test]
async fn messages_keep_their_order_on_each_lane() {
    let (a, mut b) = pair(patient()).await;
    // Of all lengths that take different ways: copied, written in place, longer than one read.
    let lengths = [0, 1, 100, 20_000, 300_000];
    for round in 0..20_u32 {
        for number in 0..50_u32 {
            for (lane, mark) in [(Lane::Control, 0_u8), (Lane::Append, 1)] {
                let length = lengths[(round + number) as usize % lengths.len()];
                let length = if lane == Lane::Control { length % 1000 } else { length };
                let mut bytes = vec![mark; 5 + length];
                bytes[1..5].copy_from_slice(&(round * 50 + number).to_le_bytes());
                a.send(B, lane, bytes);
            }
        }
        let mut next = [round * 50; 2];
        for _ in 0..100 {
            let (from, bytes) = soon(b.messages.recv()).await.expect("runs");
            assert_eq!(from, A);
            let number = u32::from_le_bytes(bytes[1..5].try_into().expect("four bytes"));
            let expected = &mut next[usize::from(bytes[0])];
            assert_eq!(number, *expected, "on lane {}", bytes[0]);
            assert!(bytes[5..].iter().all(|&byte| byte == bytes[0]));
            *expected += 1;
        }
    }
    assert_eq!(a.metrics.sent_failures.with_label_values(&["b"]).get(), 0);
    assert!(a.metrics.sent_bytes.with_label_values(&["b"]).get() > 1_000_000);
    assert!(b.metrics.received_bytes.with_label_values(&["a"]).get() > 1_000_000);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn what_is_sent_before_the_peer_is_up_arrives() {
    let a = Node::start(A, patient()).await;
    let mut b = Node::start(B, patient()).await;
    a.follow(B, b.address);
    a.send(B, Lane::Control, "vote");
    // B does not know A yet and refuses it; A comes back.
    eventually("B refuses A", || b.metrics.refused.with_label_values(&["unknown-member"]).get() > 0).await;
    assert!(b.messages.is_empty(), "nothing of a stranger arrives");
    b.follow(A, a.address);
    assert_eq!(b.hear().await, "vote");
    eventually("A is active", || a.transport.active_since(B).is_some()).await;
    assert_eq!(a.metrics.active.with_label_values(&["a", "b"]).get(), 1);
}

#[tokio::test]
async fn all_urls_are_tried() {
    let (a, mut b) = pair(patient()).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    // One that nobody listens on, one that belongs to somebody else, one that is no URL.
    let urls =
        vec![format!("http://{closed}"), format!("http://{}", a.address), "?".into(), format!("http://{}", b.address)];
    a.transport.set_peers(vec![], BTreeSet::new());
    a.transport.set_peers(vec![Peer { id: B, urls }], BTreeSet::new());
    a.send(B, Lane::Append, "entry");
    assert_eq!(b.hear().await, "entry");
    assert!(a.metrics.refused.with_label_values(&["wrong-member"]).get() > 0, "A met itself on the way");
}

#[tokio::test]
async fn a_changed_url_is_followed() {
    let (a, mut b) = pair(patient()).await;
    a.send_until_heard(&mut b, Lane::Append, b"old").await;
    // The same member on another port: the old one is gone.
    b.stop().await;
    let mut b = Node::start(B, patient()).await;
    b.follow(A, a.address);
    a.follow(B, b.address);
    a.send_until_heard(&mut b, Lane::Append, b"new").await;
}

#[tokio::test]
async fn strangers_are_refused_and_counted() {
    let mut b = Node::start(B, patient()).await;
    b.transport.set_peers(vec![], BTreeSet::from([MemberId(0xdead)]));
    let cases = [
        (ClusterId(0xbad), A, B, "wrong-cluster"),
        (super::node::CLUSTER, A, MemberId(0xbb), "wrong-member"),
        (super::node::CLUSTER, A, B, "unknown-member"),
        (super::node::CLUSTER, MemberId(0xdead), B, "removed"),
    ];
    for (cluster, from, to, reason) in cases {
        let stranger = Node::start_in(cluster, from, patient()).await;
        stranger.follow(to, b.address);
        stranger.send(to, Lane::Control, "let me in");
        stranger.send(to, Lane::Append, "let me in");
        eventually(reason, || b.metrics.refused.with_label_values(&[reason]).get() >= 3).await;
        let told = || stranger.heard.removed.load(std::sync::atomic::Ordering::Relaxed);
        if reason == "removed" {
            eventually("the removed member is told", || told() > 0).await;
        } else {
            assert_eq!(told(), 0, "{reason}");
        }
        stranger.stop().await;
    }
    assert!(b.messages.try_recv().is_err(), "nothing of them arrived");
    b.stop().await;
}

#[tokio::test]
async fn a_member_that_is_removed_loses_its_connections() {
    let (a, mut b) = pair(patient()).await;
    a.send_until_heard(&mut b, Lane::Append, b"before").await;
    b.transport.set_peers(vec![], BTreeSet::from([A]));
    eventually("A is told", || a.heard.removed.load(std::sync::atomic::Ordering::Relaxed) > 0).await;
    while b.messages.try_recv().is_ok() {}
    a.send(B, Lane::Append, "after");
    let refused = || b.metrics.refused.with_label_values(&["removed"]).get();
    let seen = refused();
    eventually("A tries again", || refused() > seen + 3).await;
    assert!(b.messages.try_recv().is_err(), "nothing more of A arrives");
    assert_eq!(b.transport.active_since(A), None);
}

#[tokio::test]
async fn a_forged_message_ends_its_connection_only() {
    let (a, mut b) = pair(patient()).await;
    a.send_until_heard(&mut b, Lane::Append, b"first").await;
    a.send(B, Lane::Append, "forged");
    eventually("it is counted", || b.metrics.received_failures.with_label_values(&["a"]).get() == 1).await;
    a.send_until_heard(&mut b, Lane::Append, b"second").await;
    assert_eq!(b.metrics.received_failures.with_label_values(&["a"]).get(), 1);
}

#[tokio::test]
async fn a_stop_ends_everything() {
    let (a, mut b) = pair(patient()).await;
    a.send_until_heard(&mut b, Lane::Control, b"up").await;
    let call = a.transport.clone();
    let waiting = a.tasks.spawn(async move { call.call(B, "held", bytes::Bytes::new()).await });
    eventually("the call is there", || b.heard.calls_begun.load(std::sync::atomic::Ordering::Relaxed) == 1).await;
    let transport = a.transport.clone();
    a.stop().await;
    assert_eq!(waiting.await.expect("no panic"), Err(super::super::CallError::Stopped));
    assert_eq!(transport.call(B, "echo", bytes::Bytes::new()).await, Err(super::super::CallError::Stopped));
    b.stop().await;
}

#[tokio::test]
async fn an_idle_link_stays_up() {
    // Many times the silence that is allowed passes; pings fill it.
    let limits = PeerLimits { ping_interval: Duration::from_millis(5), ..patient() };
    let (a, mut b) = pair(limits).await;
    a.send_until_heard(&mut b, Lane::Control, b"up").await;
    let trips = || a.metrics.round_trip.with_label_values(&["b"]).get_sample_count();
    eventually("pings come back", || trips() > 50).await;
    assert_eq!(a.metrics.disconnected.with_label_values(&["a", "b"]).get(), 0);
}

/// A member as the lists have it.
fn listed(node: &Node, id: MemberId) -> Peer {
    Peer { id, urls: vec![format!("http://{}", node.address)] }
}

#[tokio::test]
async fn a_member_that_is_not_in_the_list_yet_is_an_unlisted_peer() {
    let (mut a, mut b) = (Node::start(A, patient()).await, Node::start(B, patient()).await);
    a.transport.set_peers(vec![listed(&a, A), listed(&b, B)], BTreeSet::new());
    a.send(B, Lane::Control, "vote");
    assert_eq!(b.hear().await, "vote");
    b.send_until_heard(&mut a, Lane::Append, b"answer").await;
    eventually("calls of an unlisted peer are refused", || {
        b.metrics.refused.with_label_values(&["unknown-member"]).get() > 0
    })
    .await;
    // Another list without it does not end what it has begun; the one that has it makes it a member like any other.
    b.transport.set_peers(vec![], BTreeSet::new());
    a.send_until_heard(&mut b, Lane::Append, b"still").await;
    b.transport.set_peers(vec![listed(&a, A)], BTreeSet::new());
    eventually("calls are answered", || b.transport.shared.accepted_connections() == 3).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn an_unlisted_peer_that_was_removed_goes() {
    let (a, mut b) = (Node::start(A, patient()).await, Node::start(B, patient()).await);
    a.transport.set_peers(vec![listed(&a, A), listed(&b, B)], BTreeSet::new());
    a.send_until_heard(&mut b, Lane::Append, b"before").await;
    b.transport.set_peers(vec![], BTreeSet::from([A]));
    eventually("A is told", || a.heard.removed.load(std::sync::atomic::Ordering::Relaxed) > 0).await;
    assert_eq!(b.transport.active_since(A), None);
}

#[tokio::test]
async fn there_is_room_for_few_unlisted_peers() {
    let b = Node::start(B, patient()).await;
    let unlisted_urls = || Some(vec!["http://127.0.0.1:1".to_owned()]);
    let greeting = |id| Greeting { from: MemberId(id), purpose: Purpose::Control, unlisted_urls: unlisted_urls() };
    let judged = |id| {
        let (from, urls) = (MemberId(id), unlisted_urls().unwrap_or_default());
        let hello = Hello { cluster: super::node::CLUSTER, from, to: B, purpose: Purpose::Control, urls };
        b.transport.judge(hello.request("b").expect("valid").headers())
    };
    for id in 100..132 {
        assert_eq!(judged(id), Ok(greeting(id)));
        b.transport.accept(greeting(id), tokio::io::duplex(64).0, Bytes::new());
    }
    assert_eq!(judged(132), Err(Refusal::UnknownMember));
    assert_eq!(judged(100), Ok(greeting(100)), "it may come back");
    b.transport.set_peers(vec![Peer { id: MemberId(100), urls: vec![] }], BTreeSet::new());
    assert_eq!(judged(132), Ok(greeting(132)), "members do not count");
    b.stop().await;
}
