use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::testing::{self, Authority};
use super::{
    AllowedNames, Alpn, Authorities, ClientAuth, ClientTls, ClientTlsConfig, Dialed, Identity, IdentityFiles, Rejected,
    ServerAuth, ServerIdentity, ServerTls, ServerTlsConfig, TlsError, TlsPeer, TlsPolicy,
};

/// One handshake; what the server learnt of the client, and the server's certificate.
async fn handshake(server: &ServerTls, client: &ClientTls, host: &str) -> (TlsPeer, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialling = async {
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.connect(host, stream).await.unwrap()
    };
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        server.accept(stream, None).await.unwrap()
    };
    let (dialled, (_accepted, peer)) = tokio::join!(dialling, accepting);
    let shown = dialled.certificates()[0].to_vec();
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
    let client = ClientTls::verifying(Some(identity()), &authority.authorities()).unwrap();
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

/// What a client with this certificate gets from a server that wants one of `authority`: nothing, or why not as each side
/// says it.
async fn refusal(server: &ServerTls, client: &ClientTls) -> Option<(String, String)> {
    let (dialled, accepted) = attempt(server, client, "localhost").await;
    match (dialled, accepted) {
        (Ok(_), Ok(_)) => None,
        (dialled, Err(rejected)) => {
            // In TLS 1.3 the client learns it when it reads.
            let said = match dialled {
                Ok(mut stream) => stream.read(&mut [0; 1]).await.expect_err("refused"),
                Err(error) => error,
            };
            Some((said.to_string(), rejected.reason))
        }
        (Err(error), Ok(_)) => panic!("{error}"),
    }
}

async fn attempt(
    server: &ServerTls,
    client: &ClientTls,
    host: &str,
) -> (std::io::Result<Dialed<TcpStream>>, Result<TlsPeer, Rejected>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialling = async {
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut stream = client.connect(host, stream).await?;
        // What the server says after the handshake, such as tickets, has to be read.
        let _ = stream.write_all(b"x").await;
        std::io::Result::Ok(stream)
    };
    let accepting = async {
        let (stream, address) = listener.accept().await.unwrap();
        let (mut stream, peer) = server.accept(stream, Some(address.ip())).await?;
        let _ = stream.read(&mut [0; 1]).await;
        let _ = stream.write_all(b"y").await;
        Ok(peer)
    };
    let (mut dialled, accepted) = tokio::join!(dialling, accepting);
    if let (Ok(dialled), Ok(_)) = (&mut dialled, &accepted) {
        let _ = dialled.read(&mut [0; 1]).await;
    }
    (dialled, accepted)
}

#[tokio::test]
async fn only_verified_certificates_are_served_and_both_sides_learn_why() {
    let (ours, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("ca"), ours.pem()).unwrap();
    std::fs::write(path("crl"), ours.revoke(&[77]).0).unwrap();
    let files = |name: &str, signed| testing::write(folder.path(), name, signed);
    let config = ServerTlsConfig {
        clients: ClientAuth::File(path("ca")),
        revocations: Some(path("crl")),
        ..ServerTlsConfig::new(ServerIdentity::Files(files("server", ours.sign("localhost"))))
    };
    let ended = |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let serial = |params: &mut rcgen::CertificateParams| params.serial_number = Some(77.into());
    let for_servers = |params: &mut rcgen::CertificateParams| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    };
    let unverified = "tls: failed to verify certificate: x509: ";
    let cases = [
        ("none", None, Some(("certificate required", "tls: client didn't provide a certificate".to_owned()))),
        ("good", Some(ours.sign("client")), None),
        (
            "other",
            Some(other.sign("client")),
            Some(("unknown certificate authority", format!("{unverified}certificate signed by unknown authority"))),
        ),
        (
            "expired",
            Some(ours.sign_with(&["client"], ended)),
            Some(("expired certificate", format!("{unverified}certificate has expired or is not yet valid"))),
        ),
        (
            "revoked",
            Some(ours.sign_with(&["client"], serial)),
            Some(("revoked certificate", format!("{unverified}certificate is revoked"))),
        ),
        (
            "for-servers",
            Some(ours.sign_with(&["client"], for_servers)),
            Some(("unsupported certificate", format!("{unverified}certificate specifies an incompatible key usage"))),
        ),
    ];
    let server = ServerTls::new(&config).unwrap();
    for (name, signed, expected) in cases {
        let identity = signed.map(|signed| files(name, signed));
        let client =
            ClientTlsConfig { servers: ServerAuth::File(path("ca")), identity, ..ClientTlsConfig::new(Alpn::H2) };
        let client = ClientTls::new(&client).unwrap();
        let expected = expected.map(|(client, server)| (format!("remote error: tls: {client}"), server));
        assert_eq!(refusal(&server, &client).await, expected, "{name}");
    }
}

#[tokio::test]
async fn names_in_certificates_are_checked_on_both_sides() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    std::fs::write(&ca, authority.pem()).unwrap();
    let sign = |name: &str| authority.sign_with(&["localhost", "127.0.0.1"], testing::named(name));
    let files = |name: &str| testing::write(folder.path(), name, sign(name));
    let names = |name: &str| AllowedNames::CommonNames(vec![name.to_owned()]);
    let server = |allowed| {
        let identity = ServerIdentity::Files(files("server"));
        let clients = ClientAuth::File(ca.clone());
        ServerTls::new(&ServerTlsConfig { clients, allowed, ..ServerTlsConfig::new(identity) }).unwrap()
    };
    let client = |allowed| {
        let (servers, identity) = (ServerAuth::File(ca.clone()), Some(files("client")));
        ClientTls::new(&ClientTlsConfig { servers, identity, allowed, ..ClientTlsConfig::new(Alpn::H2) }).unwrap()
    };
    let (dialled, peer) = attempt(&server(names("client")), &client(names("server")), "localhost").await;
    assert_eq!((dialled.is_ok(), peer.unwrap().common_name.as_deref()), (true, Some("client")));
    let failed = "client certificate authentication failed";
    let bad = "remote error: tls: bad certificate";
    let refused = refusal(&server(names("x")), &client(AllowedNames::Any)).await;
    assert_eq!(refused, Some((bad.into(), failed.into())));
    let refused = refusal(&server(AllowedNames::Any), &client(names("x"))).await;
    assert_eq!(refused, Some((failed.into(), bad.into())));
    let refused = refusal(&server(AllowedNames::HostNames(vec!["a.b".into()])), &client(AllowedNames::Any)).await;
    assert_eq!(refused, Some((bad.into(), failed.into())));
    let (dialled, _) = attempt(&server(AllowedNames::Any), &client(AllowedNames::Any), "127.0.0.2").await;
    let text = "tls: failed to verify certificate: x509: certificate is valid for localhost, 127.0.0.1, not 127.0.0.2";
    assert_eq!(dialled.map(drop).unwrap_err().to_string(), text);
}

// Cause: the library refuses any certificate of an authority as that of a client or server; openssl makes self-signed
// ones so, and etcd takes them.
#[tokio::test]
async fn a_self_signed_certificate_is_trusted_where_it_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let self_signed = |name: &str, change: fn(&mut rcgen::CertificateParams)| {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        testing::named(name)(&mut params);
        change(&mut params);
        let key = rcgen::KeyPair::generate().unwrap();
        testing::write(folder.path(), name, (params.self_signed(&key).unwrap().pem(), key.serialize_pem()))
    };
    let ended = |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let for_servers = |params: &mut rcgen::CertificateParams| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    };
    let shown = self_signed("server", for_servers);
    let clients = [
        ("client", self_signed("client", |_| {}), None),
        ("ended", self_signed("ended", ended), Some("certificate has expired or is not yet valid")),
        ("for-servers", self_signed("for-servers", for_servers), Some("incompatible key usage")),
        ("unlisted", self_signed("unlisted", |_| {}), Some("x509: ")),
    ];
    let listed = clients[..3].iter().map(|(_, files, _)| std::fs::read_to_string(&files.certificates).unwrap());
    std::fs::write(folder.path().join("ca"), listed.collect::<String>()).unwrap();
    let server = ServerTls::new(&ServerTlsConfig {
        clients: ClientAuth::File(folder.path().join("ca")),
        ..ServerTlsConfig::new(ServerIdentity::Files(shown.clone()))
    });
    let server = server.unwrap();
    let client = |trusted: &IdentityFiles, identity: &IdentityFiles| {
        let servers = ServerAuth::File(trusted.certificates.clone());
        let config = ClientTlsConfig { servers, identity: Some(identity.clone()), ..ClientTlsConfig::new(Alpn::H2) };
        ClientTls::new(&config).unwrap()
    };
    for (name, files, refused) in &clients {
        let (_, peer) = attempt(&server, &client(&shown, files), "localhost").await;
        match (peer, refused) {
            (Ok(peer), None) => assert_eq!(peer.common_name.as_deref(), Some(*name)),
            (Err(rejected), Some(text)) => assert!(rejected.reason.contains(text), "{name}: {}", rejected.reason),
            (peer, _) => panic!("{name}: {peer:?}"),
        }
    }
    let good = &clients[0].1;
    let text = |dialled: std::io::Result<Dialed<TcpStream>>| dialled.map(drop).unwrap_err().to_string();
    let (dialled, _) = attempt(&server, &client(&shown, good), "elsewhere").await;
    assert!(text(dialled).contains("x509: certificate is valid for localhost, not elsewhere"));
    let (dialled, _) = attempt(&server, &client(good, good), "localhost").await;
    assert!(text(dialled).contains("failed to verify certificate"));
}

// etcd refuses a member whose certificate is for other addresses than the one it comes from.
#[tokio::test]
async fn a_certificate_may_be_bound_to_an_address() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    std::fs::write(&ca, authority.pem()).unwrap();
    let identity = ServerIdentity::Files(testing::write(folder.path(), "server", authority.sign("localhost")));
    let clients = ClientAuth::File(ca.clone());
    let server = ServerTlsConfig { clients, checks_addresses: true, ..ServerTlsConfig::new(identity) };
    let server = ServerTls::new(&server).unwrap();
    for (names, refused) in [
        (&["127.0.0.1"][..], None),
        (&["localhost"], None),
        (&[], None),
        (&["127.0.0.2", "localhost"], None),
        (&["127.0.0.2"], Some("x509: certificate is valid for 127.0.0.2, not 127.0.0.1")),
        (&["nowhere.invalid"], Some("tls: \"127.0.0.1\" does not match any of DNSNames [\"nowhere.invalid\"]")),
    ] {
        let (servers, signed) = (ServerAuth::File(ca.clone()), authority.sign_with(names, |_| {}));
        let identity = Some(testing::write(folder.path(), "client", signed));
        let client = ClientTlsConfig { servers, identity, ..ClientTlsConfig::new(Alpn::H2) };
        let (_, peer) = attempt(&server, &ClientTls::new(&client).unwrap(), "localhost").await;
        assert_eq!(peer.err().map(|rejected| rejected.reason).as_deref(), refused, "{names:?}");
    }
}

// Cause: a resumed session shows no certificate, so a list that changed since would count for new sessions only.
#[tokio::test]
async fn lists_and_authorities_that_changed_count_for_resumed_sessions() {
    let (authority, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("ca"), authority.pem()).unwrap();
    std::fs::write(path("crl"), authority.revoke(&[]).0).unwrap();
    let identity = ServerIdentity::Files(testing::write(folder.path(), "server", authority.sign("localhost")));
    let config = ServerTlsConfig {
        clients: ClientAuth::File(path("ca")),
        revocations: Some(path("crl")),
        ..ServerTlsConfig::new(identity)
    };
    let server = ServerTls::new(&config).unwrap();
    let serial = |params: &mut rcgen::CertificateParams| params.serial_number = Some(77.into());
    let identity = testing::write(folder.path(), "client", authority.sign_with(&["client"], serial));
    let identity = || Identity::from_files(identity.clone()).unwrap();
    let client = ClientTls::verifying(Some(identity()), &authority.authorities()).unwrap();
    assert!(!attempt(&server, &client, "localhost").await.0.unwrap().is_resumed());
    let (dialled, peer) = attempt(&server, &client, "localhost").await;
    assert!(dialled.unwrap().is_resumed(), "sessions are resumed");
    assert_eq!(peer.unwrap().certificates.len(), 1, "the certificate is remembered");
    let reason = async || attempt(&server, &client, "localhost").await.1.err().map(|rejected| rejected.reason);
    std::fs::write(path("crl"), authority.revoke(&[77]).1).unwrap();
    assert_eq!(reason().await.as_deref(), Some("tls: failed to verify certificate: x509: certificate is revoked"));
    // A list that cannot be read leaves the last one.
    std::fs::write(path("crl"), "nonsense").unwrap();
    assert!(reason().await.is_some());
    std::fs::remove_file(path("crl")).unwrap();
    assert!(reason().await.is_some());
    std::fs::write(path("crl"), authority.revoke(&[]).0).unwrap();
    assert_eq!(reason().await, None);
    std::fs::write(path("ca"), other.pem()).unwrap();
    assert_eq!(
        reason().await.as_deref(),
        Some("tls: failed to verify certificate: x509: certificate signed by unknown authority")
    );
}

#[tokio::test]
async fn versions_that_are_not_shared_are_named() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let identity = ServerIdentity::Files(testing::write(folder.path(), "server", authority.sign("localhost")));
    let policy = |min: &str, max: &str, suites: &str| TlsPolicy::parse(min, max, suites).unwrap();
    let server =
        |policy| ServerTls::new(&ServerTlsConfig { policy, ..ServerTlsConfig::new(identity.clone()) }).unwrap();
    let client = |policy| {
        let config = ClientTlsConfig { servers: ServerAuth::Skip, policy, ..ClientTlsConfig::new(Alpn::H2) };
        ClientTls::new(&config).unwrap()
    };
    let refused = refusal(&server(policy("TLS1.3", "", "")), &client(policy("", "TLS1.2", ""))).await;
    let texts = ("remote error: tls: protocol version not supported", "tls: client offered only unsupported versions");
    assert_eq!(refused, Some((texts.0.into(), texts.1.into())));
    let (chacha, aes) = ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256");
    let refused = refusal(&server(policy("", "TLS1.2", chacha)), &client(policy("", "TLS1.2", aes))).await;
    let texts = ("remote error: tls: handshake failure", "tls: no cipher suite supported by both client and server");
    assert_eq!(refused, Some((texts.0.into(), texts.1.into())));
    assert_eq!(refusal(&server(policy("", "TLS1.2", chacha)), &client(policy("", "", chacha))).await, None);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let error = |certificate: &str, key: &str| {
        let files = testing::write(folder.path(), "it", (certificate.to_owned(), key.to_owned()));
        let error = Identity::from_files(files).expect_err("unusable").to_string();
        error.replace(folder.path().to_str().unwrap(), "DIR")
    };
    let (certificate, key) = authority.sign("localhost");
    let (_, other) = authority.sign("localhost");
    assert_eq!(error("", &key), "certificate DIR/it.crt cannot be read: no certificate in it");
    let mismatch = "tls: private key does not match public key (certificate DIR/it.crt, key DIR/it.key)";
    assert_eq!(error(&certificate, &other), mismatch);
    assert_eq!(error(&certificate, "nonsense"), "key DIR/it.key cannot be read: no private key in PEM form in it");
    let encrypted =
        "key DIR/it.key is encrypted, which is not supported: write it without a password, as by `openssl pkey`";
    let pkcs8 = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let old = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n";
    assert_eq!((error(&certificate, &pkcs8).as_str(), error(&certificate, old).as_str()), (encrypted, encrypted));
    let nowhere = IdentityFiles { certificates: "/nowhere/a.crt".into(), key: "/nowhere/a.key".into() };
    let error = Identity::from_files(nowhere).expect_err("no file").to_string();
    assert_eq!(error, "open /nowhere/a.crt: no such file or directory");
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
    assert!(text(&ours, &key, &ours).starts_with("tls: private key does not match public key"), "key of another");
}
