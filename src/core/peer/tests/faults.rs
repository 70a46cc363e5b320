use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::PeerLimits;
use super::eventually;
use super::node::{A, B, Node, patient};
use super::proxy::{Link, Proxy};
use crate::core::raft::Lane;

/// A talks to B through the proxy, B to A directly.
async fn through_proxy(limits: PeerLimits) -> (Node, Proxy, Node) {
    let (a, b) = (Node::start(A, limits.clone()).await, Node::start(B, limits).await);
    let proxy = Proxy::start(b.address).await;
    a.follow(B, proxy.address);
    b.follow(A, a.address);
    (a, proxy, b)
}

/// Limits under which silence is noticed soon.
fn alert() -> PeerLimits {
    PeerLimits {
        silence_max: Duration::from_millis(400),
        ping_interval: Duration::from_millis(50),
        ..PeerLimits::default()
    }
}

#[tokio::test]
async fn a_cut_connection_comes_back() {
    let (a, proxy, mut b) = through_proxy(patient()).await;
    for _ in 0..5 {
        a.send_until_heard(&mut b, Lane::Control, b"control").await;
        a.send_until_heard(&mut b, Lane::Append, b"append").await;
        let (lost, unreachable) =
            (a.metrics.disconnected.with_label_values(&["a", "b"]).get(), a.heard.unreachable.load(Ordering::Relaxed));
        proxy.cut();
        eventually("the loss is seen", || a.metrics.disconnected.with_label_values(&["a", "b"]).get() > lost).await;
        eventually("raft is told", || a.heard.unreachable.load(Ordering::Relaxed) > unreachable).await;
    }
    eventually("active again", || a.transport.active_since(B).is_some()).await;
}

#[tokio::test]
async fn a_silent_link_is_noticed_and_replaced() {
    let (a, proxy, mut b) = through_proxy(alert()).await;
    for lane in [Lane::Control, Lane::Append] {
        a.send_until_heard(&mut b, lane, b"before").await;
        // Nobody closes anything: only the missing answers tell.
        proxy.stall_present();
        a.send_until_heard(&mut b, lane, b"after").await;
    }
    // One connection of each lane, however many were left half open.
    eventually("each lane is back", || b.transport.shared.accepted_connections() == 3).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_stuck_peer_holds_little_memory() {
    let limits = PeerLimits { append_bytes_max: 1 << 20, control_bytes_max: 1 << 16, ..patient() };
    let (a, proxy, mut b) = through_proxy(limits).await;
    a.send_until_heard(&mut b, Lane::Append, b"before").await;
    a.send_until_heard(&mut b, Lane::Control, b"before").await;
    proxy.set(Link::Stalled);
    let link = a.transport.shared.link(B);
    let unreachable = a.heard.unreachable.load(Ordering::Relaxed);
    for number in 0..10_000_u32 {
        let mut bytes = vec![0; 10_000];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        a.send(B, Lane::Append, bytes.clone());
        a.send(B, Lane::Control, bytes);
        assert!(link.append.bytes() <= 1 << 20 && link.control.bytes() <= 1 << 16);
    }
    assert!(a.metrics.sent_failures.with_label_values(&["b"]).get() > 10_000, "100 MB of each do not fit");
    assert!(a.heard.unreachable.load(Ordering::Relaxed) > unreachable, "raft is told");
    proxy.set(Link::Open);
    // The newest control message survives; the last append does not, but later ones arrive.
    let newest = 9_999_u32.to_le_bytes();
    while b.hear().await[..4] != newest {}
    a.send_until_heard(&mut b, Lane::Append, b"after").await;
}

#[tokio::test]
async fn a_falsified_byte_ends_the_connection_and_arrives_nowhere() {
    let (a, proxy, mut b) = through_proxy(patient()).await;
    a.send_until_heard(&mut b, Lane::Append, b"before").await;
    let failures = b.metrics.received_failures.with_label_values(&["a"]);
    let foul = || failures.get();
    let mut seen = foul();
    for offset in [3_000, 20_000, 50_001] {
        proxy.flip_after(offset);
        let whole = vec![0x55; 100_000];
        while foul() == seen {
            a.send(B, Lane::Append, whole.clone());
            tokio::task::yield_now().await;
            while let Ok((_, bytes)) = b.messages.try_recv() {
                assert!(bytes == whole || bytes.as_ref() == b"after" || bytes.as_ref() == b"before");
            }
        }
        seen = foul();
        a.send_until_heard(&mut b, Lane::Append, b"after").await;
    }
    while let Ok((_, bytes)) = b.messages.try_recv() {
        assert!(bytes.iter().all(|&byte| byte == 0x55) || bytes.as_ref() == b"after");
    }
}

#[tokio::test]
async fn a_slow_link_is_not_a_silent_one() {
    let (a, proxy, mut b) = through_proxy(alert()).await;
    a.send_until_heard(&mut b, Lane::Append, b"before").await;
    let connections = proxy.connections();
    // Some three seconds on the way, many times the silence that is allowed.
    proxy.pace(Duration::from_millis(25));
    a.send(B, Lane::Append, vec![7; 2 << 20]);
    loop {
        let heard = b.hear().await;
        if heard.len() == 2 << 20 {
            break;
        }
    }
    assert_eq!(proxy.connections(), connections, "no lane had to reconnect");
}
