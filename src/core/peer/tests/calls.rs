use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tonic::Code;

use super::super::{CallError, CallFailure, PeerLimits};
use super::eventually;
use super::node::{A, B, Node, pair, patient};
use super::proxy::Proxy;
use crate::types::MemberId;

#[tokio::test]
async fn many_calls_at_once_get_their_own_answers() {
    let (a, b) = pair(patient()).await;
    let calls = (0..500_u32).map(|number| a.transport.call(B, "echo", number.to_string().into()));
    for (number, answer) in join_all(calls).await.into_iter().enumerate() {
        assert_eq!(answer.expect("answered"), format!("a {number}"));
    }
    // The other direction has its own connection.
    assert_eq!(b.transport.call(A, "echo", "x".into()).await.expect("answered"), "b x");
    assert_eq!(a.transport.call(B, "long", Bytes::new()).await.expect("answered").len(), 1 << 20);
}

#[tokio::test]
async fn an_error_arrives_unchanged() {
    let (a, _b) = pair(patient()).await;
    let error = a.transport.call(B, "none", "12345".into()).await.expect_err("refused");
    let expected = CallFailure { code: Code::FailedPrecondition, text: "etcdserver: no none, 5".into() };
    assert_eq!(error, CallError::Failed(expected));
    assert_eq!((error.code(), error.to_string()), (Code::FailedPrecondition, "etcdserver: no none, 5".into()));
}

#[tokio::test]
async fn a_call_without_answer_is_lost_not_unsent() {
    let (a, b) = pair(PeerLimits { call_timeout: Duration::from_millis(1500), ..patient() }).await;
    a.transport.call(B, "echo", Bytes::new()).await.expect("answered");
    let error = a.transport.call(B, "held", Bytes::new()).await.expect_err("never answered");
    assert_eq!(error, CallError::Lost(B));
    assert!(!error.is_unsent());
    assert_eq!(b.heard.calls_begun.load(Ordering::Relaxed), 2);
    a.transport.call(B, "echo", Bytes::new()).await.expect("the connection is still good");
}

#[tokio::test]
async fn a_break_fails_the_calls_on_their_way_at_once() {
    let (a, b) = (Node::start(A, patient()).await, Node::start(B, patient()).await);
    let proxy = Proxy::start(b.address).await;
    a.follow(B, proxy.address);
    b.follow(A, a.address);
    let calls = join_all((0..10).map(|_| a.transport.call(B, "held", Bytes::new())));
    let cut = async {
        eventually("all have begun", || b.heard.calls_begun.load(Ordering::Relaxed) == 10).await;
        proxy.cut();
    };
    let (answers, ()) = tokio::join!(calls, cut);
    assert!(answers.iter().all(|answer| *answer == Err(CallError::Lost(B))), "{answers:?}");
    a.transport.call(B, "echo", Bytes::new()).await.expect("answered on a new connection");
}

#[tokio::test]
async fn a_call_that_cannot_be_sent_says_so() {
    let a = Node::start(A, PeerLimits { call_connect_timeout: Duration::from_millis(50), ..patient() }).await;
    let unknown = a.transport.call(MemberId(0xd), "echo", Bytes::new()).await.expect_err("no such peer");
    assert_eq!((&unknown, unknown.code()), (&CallError::UnknownPeer(MemberId(0xd)), Code::Unavailable));
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    a.follow(B, closed);
    let error = a.transport.call(B, "echo", Bytes::new()).await.expect_err("nobody there");
    assert!(error == CallError::Unreachable(B) && error.is_unsent());
}

#[tokio::test]
async fn too_many_or_too_large_calls_are_refused() {
    let limits = PeerLimits { calls_max: 3, calls_served_max: 2, frame_bytes_max: 1000, ..patient() };
    let (a, b) = pair(limits).await;
    let large = a.transport.call(B, "echo", vec![0; 1000].into()).await;
    assert_eq!(large, Err(CallError::Refused(B)));
    let answer = a.transport.call(B, "long", Bytes::new()).await.expect_err("longer than a frame");
    assert_eq!(answer.code(), Code::ResourceExhausted);
    let held: Vec<_> = (0..2)
        .map(|_| {
            let transport = a.transport.clone();
            a.tasks.spawn(async move { transport.call(B, "held", Bytes::new()).await })
        })
        .collect();
    eventually("both have begun", || b.heard.calls_begun.load(Ordering::Relaxed) == 3).await;
    let third = a.transport.call(B, "echo", Bytes::new()).await.expect_err("B is busy");
    assert_eq!(third.to_string(), "etcdserver: too many requests");
    let transport = a.transport.clone();
    let fourth = join_all((0..2).map(|_| transport.call(B, "echo", Bytes::new()))).await;
    assert!(fourth.contains(&Err(CallError::Refused(B))), "{fourth:?}");
    for call in held {
        // Whoever gives up makes room again.
        call.abort();
        let _ = call.await;
    }
}
