use std::net::SocketAddr;

use super::super::dial::{DialError, dial_any};
use super::super::hello::{Hello, Purpose};
use super::super::{PeerDialer, PeerTls};
use super::node::{A, B, CLUSTER, Node, patient};
use super::soon;
use crate::core::raft::Lane;
use crate::net::testing::Authority;
use crate::net::{ClientTls, ServerTls};

/// What a member at `name` shows, when it trusts `trusted`.
fn member(authority: &Authority, name: &str, trusted: &Authority) -> PeerTls {
    PeerTls {
        accepting: ServerTls::mutual(authority.identity(name), &trusted.authorities()).expect("usable"),
        dialling: ClientTls::verifying(Some(authority.identity(name)), &trusted.authorities()).expect("usable"),
    }
}

async fn dial(address: SocketAddr, tls: &PeerTls) -> Result<(), DialError> {
    let hello = Hello { cluster: CLUSTER, from: A, to: B, purpose: Purpose::Control, urls: vec![] };
    let urls = [format!("https://{address}")];
    soon(dial_any(&urls, hello, &PeerDialer { tls: Some(tls.clone()), local_address: None }, super::PATIENCE))
        .await
        .map(drop)
}

#[tokio::test]
async fn members_of_one_authority_talk() {
    let authority = Authority::new();
    let mut a = Node::start_tls(A, patient(), member(&authority, "127.0.0.1", &authority)).await;
    let mut b = Node::start_tls(B, patient(), member(&authority, "127.0.0.1", &authority)).await;
    a.follow_tls(B, b.address);
    b.follow_tls(A, a.address);
    for lane in [Lane::Control, Lane::Append] {
        a.send(B, lane, vec![1; 200_000]);
        assert_eq!(b.hear().await.len(), 200_000);
    }
    b.send(A, Lane::Append, "confirmed");
    assert_eq!(a.hear().await, "confirmed");
    assert_eq!(a.transport.call(B, "echo", "x".into()).await.expect("answered"), "a x");
    let db_snapshot = vec![5; 3 << 20];
    a.heard.db_snapshot.lock().clone_from(&db_snapshot);
    a.send(B, Lane::Snapshot, "message");
    assert!(soon(b.db_snapshots.recv()).await.expect("runs").2 == db_snapshot);
    assert_eq!(soon(a.sent.recv()).await, Some((B, true)));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn whoever_cannot_prove_its_identity_is_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let good = member(&ours, "127.0.0.1", &ours);
    let mut b = Node::start_tls(B, patient(), good.clone()).await;
    b.follow_tls(A, "127.0.0.1:1".parse().expect("an address"));
    dial(b.address, &good).await.expect("the right certificate is taken");
    let anonymous =
        PeerTls { dialling: ClientTls::verifying(None, &ours.authorities()).expect("usable"), ..good.clone() };
    let cases = [
        ("no certificate", anonymous),
        ("certificate of another authority", member(&theirs, "127.0.0.1", &ours)),
        ("the dialling side trusts another authority", member(&ours, "127.0.0.1", &theirs)),
    ];
    let served = b.metrics.received_bytes.with_label_values(&["a"]).get();
    for (what, tls) in cases {
        let error = dial(b.address, &tls).await.expect_err(what);
        assert!(matches!(error, DialError::Io(_) | DialError::Http(_)), "{what}: {error}");
    }
    // Without TLS there is nobody on this port.
    let hello = Hello { cluster: CLUSTER, from: A, to: B, purpose: Purpose::Control, urls: vec![] };
    let plain =
        soon(dial_any(&[format!("http://{}", b.address)], hello, &PeerDialer::default(), super::PATIENCE)).await;
    assert!(plain.is_err());
    assert!(b.messages.try_recv().is_err());
    assert_eq!(b.metrics.received_bytes.with_label_values(&["a"]).get(), served);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let b = Node::start_tls(B, patient(), member(&authority, "somewhere.else", &authority)).await;
    b.follow_tls(A, "127.0.0.1:1".parse().expect("an address"));
    let error = dial(b.address, &member(&authority, "127.0.0.1", &authority)).await.expect_err("wrong name");
    assert!(error.to_string().ends_with("certificate is valid for somewhere.else, not 127.0.0.1"), "{error}");
}
