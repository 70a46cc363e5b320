use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::body::Body;

use super::{ConnectionInfo, ListenerConfig, Serving, answering, bind, serve};
use crate::net::testing::Authority;
use crate::net::{ClientTls, ServerTls};
use crate::shutdown::Tasks;

type Infos = mpsc::Sender<Arc<ConnectionInfo>>;

/// Serves this many listeners; hands on what each request says of its connection.
fn start(listeners: usize, tls: Option<ServerTls>, tasks: &Tasks) -> (Serving, mpsc::Receiver<Arc<ConnectionInfo>>) {
    let sockets = (0..listeners).map(|_| bind("127.0.0.1:0".parse().unwrap()).unwrap()).collect();
    let (infos, received) = mpsc::channel(8);
    let service = answering(infos, async |infos: Infos, request: Request<Incoming>| {
        infos.send(request.extensions().get::<Arc<ConnectionInfo>>().unwrap().clone()).await.unwrap();
        Response::new(Body::empty())
    });
    let config = ListenerConfig { serving_threads: 1, tls, ..ListenerConfig::default() };
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
    let (serving, mut infos) = start(2, None, &tasks);
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
async fn requests_carry_what_the_client_showed_in_the_tls_handshake() {
    let (tasks, authority) = (Tasks::new(), Authority::new());
    let tls = ServerTls::mutual(authority.identity("localhost"), &authority.authorities()).unwrap();
    let (serving, mut infos) = start(1, Some(tls), &tasks);
    let client = ClientTls::new(Some(authority.identity("a client")), &authority.authorities()).unwrap();
    let (stream, address) = connect(serving.addresses()[0]).await;
    ask(&mut client.connect("localhost", stream).await.unwrap()).await;
    let info = infos.recv().await.unwrap();
    assert_eq!((info.peer, info.sni.as_deref(), info.certificates.len()), (address, Some("localhost"), 1));
    serving.finish().await;
}
