use tokio::net::{TcpListener, TcpStream};

use super::testing::Authority;
use super::{Authorities, ClientTls, Identity, IdentityFiles, ServerTls, TlsError, TlsPeer};

/// One handshake; what the server learnt of the client, and the server's certificate.
async fn handshake(server: &ServerTls, client: &ClientTls, host: &str) -> (TlsPeer, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialling = async {
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.connect(host, stream).await.unwrap()
    };
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        server.accept(stream).await.unwrap()
    };
    let (dialled, (_accepted, peer)) = tokio::join!(dialling, accepting);
    let shown = dialled.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    (peer, shown)
}

#[tokio::test]
async fn a_changed_certificate_is_shown_from_the_next_handshake_on() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let files = IdentityFiles { certificates: folder.path().join("crt"), key: folder.path().join("key") };
    let (certificate, key) = authority.sign("localhost");
    std::fs::write(&files.certificates, &certificate).unwrap();
    std::fs::write(&files.key, key).unwrap();
    let identity = || Identity::from_files(files.clone()).unwrap();
    let server = ServerTls::mutual(identity(), &authority.authorities()).unwrap();
    let client = ClientTls::new(Some(identity()), &authority.authorities()).unwrap();
    let (peer, before) = handshake(&server, &client, "localhost").await;
    assert_eq!((peer.certificates[0].to_vec(), peer.sni.as_deref()), (before.clone(), Some("localhost")));

    let (certificate, key) = authority.sign("localhost");
    std::fs::write(&files.certificates, certificate).unwrap();
    let (peer, without_its_key) = handshake(&server, &client, "localhost").await;
    assert_eq!((&without_its_key, peer.certificates[0].to_vec()), (&before, before.clone()));
    std::fs::write(&files.key, key).unwrap();
    let (peer, after) = handshake(&server, &client, "localhost").await;
    assert_ne!(after, before);
    assert_eq!(peer.certificates[0].to_vec(), after);

    std::fs::remove_file(&files.key).unwrap();
    assert_eq!(handshake(&server, &client, "localhost").await.1, after);
}

#[test]
fn unusable_texts_are_named() {
    let authority = Authority::new();
    let (certificate, key) = authority.sign("localhost");
    let text = |certificates: &str, key: &str, authorities: &str| {
        let made = Authorities::from_pem(authorities.as_bytes())
            .and_then(|authorities| {
                let identity = Identity::from_pem(certificates.as_bytes(), key.as_bytes())?;
                ServerTls::mutual(identity, &authorities)
            })
            .map(drop);
        made.map_err(|error: TlsError| error.to_string()).expect_err("unusable")
    };
    let ours = authority.pem();
    assert_eq!(text("", &key, &ours), "certificate cannot be read: no certificate in it");
    assert_eq!(text(&certificate, &key, ""), "authorities cannot be read: no certificate in it");
    assert!(text(&certificate, "", &ours).starts_with("key cannot be read: "));
    assert!(text(&ours, &key, &ours).starts_with("certificate cannot be used: "), "key of another");
}
