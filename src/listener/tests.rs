use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::body::Body;

use super::{ConnectionInfo, Counted, ListenerConfig, Protection, Serving, answering, bind, plain_tcp, serve};
use crate::net::testing::Authority;
use crate::net::{ClientTls, ServerTls};
use crate::shutdown::Tasks;

type Infos = mpsc::Sender<Arc<ConnectionInfo>>;

/// Serves this many listeners; hands on what each request says of its connection.
fn start(listeners: usize, protection: Protection, tasks: &Tasks) -> (Serving, mpsc::Receiver<Arc<ConnectionInfo>>) {
    start_at("127.0.0.1:0", listeners, protection, tasks)
}

/// The same, each at this address.
fn start_at(
    address: &str,
    listeners: usize,
    protection: Protection,
    tasks: &Tasks,
) -> (Serving, mpsc::Receiver<Arc<ConnectionInfo>>) {
    let socket = |_| bind(address.parse().unwrap()).unwrap().speaking(protection.clone());
    let sockets = (0..listeners).map(socket).collect();
    let (infos, received) = mpsc::channel(8);
    let service = answering(infos, async |infos: Infos, request: Request<Incoming>| {
        infos.send(request.extensions().get::<Arc<ConnectionInfo>>().unwrap().clone()).await.unwrap();
        Response::new(Body::empty())
    });
    let handshake_timeout = std::time::Duration::from_secs(1);
    let config = ListenerConfig { serving_threads: 1, handshake_timeout, ..ListenerConfig::default() };
    (serve(sockets, config, move |_| service.clone(), tasks).unwrap(), received)
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
}

async fn connect(address: SocketAddr) -> (TcpStream, SocketAddr) {
    let stream = TcpStream::connect(address).await.unwrap();
    let local = stream.local_addr().unwrap();
    (stream, local)
}

#[tokio::test]
async fn requests_carry_the_addresses_of_their_connection() {
    let tasks = Tasks::new();
    let (serving, mut infos) = start(2, Protection::Plain, &tasks);
    for (number, &address) in serving.addresses().iter().enumerate() {
        let (mut stream, client) = connect(address).await;
        ask(&mut stream).await;
        ask(&mut stream).await;
        let (first, second) = (infos.recv().await.unwrap(), infos.recv().await.unwrap());
        assert!(Arc::ptr_eq(&first, &second), "one for each connection");
        assert_eq!((first.listener, first.local, first.peer), (number, address, client));
        assert!(first.certificates.is_empty() && first.sni.is_none());
    }
    serving.finish().await;
}

#[tokio::test]
async fn a_listener_for_both_families_knows_clients_by_their_address_of_ipv4() {
    // Cause: logs had `[::ffff:127.0.0.1]`, where etcd has 127.0.0.1.
    let tasks = Tasks::new();
    let (serving, mut infos) = start_at("[::]:0", 1, Protection::Plain, &tasks);
    let (mut stream, client) = connect((Ipv4Addr::LOCALHOST, serving.addresses()[0].port()).into()).await;
    ask(&mut stream).await;
    let info = infos.recv().await.unwrap();
    assert_eq!((info.peer, info.local), (client, stream.peer_addr().unwrap()));
    drop(stream);
    serving.finish().await;
}

#[tokio::test]
async fn requests_carry_what_the_client_showed_in_the_tls_handshake() {
    let (tasks, authority) = (Tasks::new(), Authority::new());
    let tls = ServerTls::mutual(authority.identity("localhost"), &authority.authorities()).unwrap();
    let (serving, mut infos) = start(1, Protection::Tls(tls), &tasks);
    let client = ClientTls::verifying(Some(authority.identity("a client")), &authority.authorities()).unwrap();
    let (stream, address) = connect(serving.addresses()[0]).await;
    ask(&mut client.connect("localhost", stream).await.unwrap()).await;
    let info = infos.recv().await.unwrap();
    assert_eq!((info.peer, info.sni.as_deref(), info.certificates.len()), (address, Some("localhost"), 1));
    serving.finish().await;
}

/// Sends plain bytes; what comes back until the other side closes.
async fn answer_to(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let (mut stream, _) = connect(address).await;
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn who_speaks_the_wrong_protocol_is_told_so() {
    let (tasks, authority) = (Tasks::new(), Authority::new());
    let tls = ServerTls::mutual(authority.identity("localhost"), &authority.authorities()).unwrap();
    let (serving, _infos) = start(1, Protection::Tls(tls), &tasks);
    let text = "client sent a plain request to a port that speaks TLS: use an https endpoint";
    let answer = String::from_utf8(answer_to(serving.addresses()[0], b"GET / HTTP/1.1\r\n\r\n").await).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n") && answer.ends_with(&format!("\r\n\r\n{text}\n")),
        "{answer}"
    );
    let answer = answer_to(serving.addresses()[0], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(&answer[..9], [0, 0, 0, 4, 0, 0, 0, 0, 0], "SETTINGS");
    let (head, debug) = answer[9..].split_at(17);
    assert_eq!((head[2] as usize, head[3], head[16], debug), (8 + text.len(), 7, 12, text.as_bytes()), "GOAWAY");
    serving.finish().await;

    let (serving, _infos) = start(1, Protection::Plain, &tasks);
    let client = ClientTls::verifying(None, &authority.authorities()).unwrap();
    let (stream, _) = connect(serving.addresses()[0]).await;
    let error = client.connect("localhost", stream).await.map(drop).unwrap_err();
    assert_eq!(error.to_string(), "tls: first record does not look like a TLS handshake");
    serving.finish().await;
}

#[tokio::test]
async fn one_port_may_speak_both() {
    let (tasks, authority) = (Tasks::new(), Authority::new());
    let tls = ServerTls::mutual(authority.identity("localhost"), &authority.authorities()).unwrap();
    let (serving, mut infos) = start(1, Protection::Both(tls), &tasks);
    let (mut plain, _) = connect(serving.addresses()[0]).await;
    ask(&mut plain).await;
    assert!(!infos.recv().await.unwrap().is_tls());
    let client = ClientTls::verifying(Some(authority.identity("x")), &authority.authorities()).unwrap();
    let (stream, _) = connect(serving.addresses()[0]).await;
    ask(&mut client.connect("localhost", stream).await.unwrap()).await;
    assert!(infos.recv().await.unwrap().is_tls());
    serving.finish().await;
}

#[tokio::test]
async fn unix_sockets_serve_with_tls_and_without() {
    let (tasks, authority) = (Tasks::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("localhost:1");
    let tls = ServerTls::mutual(authority.identity("localhost"), &authority.authorities()).unwrap();
    let socket = super::bind_unix(&path).unwrap().speaking(Protection::Both(tls));
    let (infos, mut received) = mpsc::channel(8);
    let service = answering(infos, async |infos: Infos, request: Request<Incoming>| {
        infos.send(request.extensions().get::<Arc<ConnectionInfo>>().unwrap().clone()).await.unwrap();
        Response::new(Body::empty())
    });
    let config = ListenerConfig { serving_threads: 1, ..ListenerConfig::default() };
    let serving = serve(vec![socket], config, move |_| service.clone(), &tasks).unwrap();
    let endpoint: crate::net::Endpoint = format!("unix://{}", path.display()).parse().unwrap();
    let dialer = crate::net::TcpDialer {
        silence: crate::net::TcpSilence::MEMBER,
        address_time: crate::net::AddressTime::Unbounded,
        from: None,
    };
    let client = ClientTls::verifying(Some(authority.identity("x")), &authority.authorities()).unwrap();
    for tls in [None, Some(&client)] {
        let stream = dialer.connect_endpoint(&endpoint, 0).await.unwrap();
        ask(&mut crate::net::secure(&endpoint, stream, tls, crate::net::Alpn::Http1).await.unwrap()).await;
        let info = received.recv().await.unwrap();
        assert_eq!((info.is_tls(), info.peer.port()), (tls.is_some(), 0));
    }
    serving.finish().await;
    tasks.finish(std::time::Duration::from_secs(5)).await;
    assert!(!path.exists(), "the file is removed");
}

// A silent client must neither keep others waiting nor stay.
#[tokio::test]
async fn silent_clients_are_disconnected_and_keep_nobody_waiting() {
    let (tasks, authority) = (Tasks::new(), Authority::new());
    let tls = ServerTls::mutual(authority.identity("localhost"), &authority.authorities()).unwrap();
    let (serving, mut infos) = start(1, Protection::Tls(tls), &tasks);
    let mut silent = Vec::new();
    for beginning in [&b""[..], b"\x16", b"\x16\x03\x01\x01\x00\x01\x00"] {
        let (mut stream, _) = connect(serving.addresses()[0]).await;
        stream.write_all(beginning).await.unwrap();
        silent.push(stream);
    }
    let client = ClientTls::verifying(Some(authority.identity("x")), &authority.authorities()).unwrap();
    let (stream, _) = connect(serving.addresses()[0]).await;
    ask(&mut client.connect("localhost", stream).await.unwrap()).await;
    infos.recv().await.unwrap();
    for stream in &mut silent {
        // An alert may come first.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    serving.finish().await;
}

/// Greets the client of a connection that HTTP has handed over, and keeps the connection until the client closes it.
async fn keep(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    stream.write_all(b"x").await.unwrap();
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

/// A connection that HTTP has handed over.
async fn handed_over(address: SocketAddr, path: &str) -> TcpStream {
    let (mut stream, _) = connect(address).await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nx") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
    }
    stream
}

// A connection was counted until HTTP handed it over: web sockets used descriptors beyond the limit.
#[tokio::test]
async fn connections_that_http_has_handed_over_count_until_they_end() {
    let tasks = Tasks::new();
    let service = answering(tasks.clone(), async |tasks: Tasks, mut request: Request<Incoming>| {
        if !request.headers().contains_key("upgrade") {
            return Response::new(Body::empty());
        }
        let is_taken_out = request.uri().path() == "/taken-out";
        let upgrade = hyper::upgrade::on(&mut request);
        tasks.spawn(async move {
            let upgraded = upgrade.await.unwrap();
            if is_taken_out {
                let (stream, open, _) = plain_tcp(upgraded).unwrap();
                keep(Counted::new(stream, open)).await;
            } else {
                keep(TokioIo::new(upgraded)).await;
            }
        });
        Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "x")
            .body(Body::empty())
            .unwrap()
    });
    let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = ListenerConfig { serving_threads: 1, connections_max: 2, ..ListenerConfig::default() };
    let serving = serve(vec![socket], config, move |_| service.clone(), &tasks).unwrap();
    let address = serving.addresses()[0];
    let socket = handed_over(address, "/").await;
    let taken_out = handed_over(address, "/taken-out").await;
    assert_eq!(serving.open_connections(), 2);
    let mut accepted = Vec::new();
    for ending in [socket, taken_out] {
        // The kernel has accepted it.
        let (mut waiting, _) = connect(address).await;
        assert_eq!(serving.open_connections(), 2);
        drop(ending);
        ask(&mut waiting).await;
        accepted.push(waiting);
    }
    serving.finish().await;
}
