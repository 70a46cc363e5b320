//! Calls on one connection of a serving thread, client and server on one thread, for `benches/hot_paths.py`. What is counted has
//! the client in it.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use h2::client::SendRequest;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use super::answering;
use super::connection_info::Accepted;
use super::first_bytes::Stream;
use super::socket::Protection;
use super::worker::{self, Counts, ListenerConfig, NewConnection};
use crate::shutdown::Tasks;

const CALLS: usize = 1000;
/// Calls on their way at once.
const AT_ONCE: usize = 8;

async fn call(client: SendRequest<Bytes>) -> usize {
    let request = Request::post("http://member/etcdserverpb.KV/Range")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut body) = client.ready().await.unwrap().send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"\0\0\0\0\x05\x0a\x03foo"), true).unwrap();
    let mut answer = answer.await.unwrap().into_body();
    let mut bytes = 0;
    while let Some(data) = answer.data().await {
        let data = data.unwrap();
        answer.flow_control().release_capacity(data.len()).unwrap();
        bytes += data.len();
    }
    bytes
}

async fn calls(client: &SendRequest<Bytes>, count: usize) -> usize {
    let mut bytes = 0;
    for _ in 0..count / AT_ONCE {
        bytes += join_all((0..AT_ONCE).map(|_| call(client.clone()))).await.into_iter().sum::<usize>();
    }
    bytes
}

#[inline(never)]
fn counted(runtime: &Runtime, client: &SendRequest<Bytes>) -> usize {
    runtime.block_on(calls(client, CALLS))
}

/// A serving thread on the current runtime with one connection, and its client.
async fn served(tasks: &Tasks, stop: CancellationToken) -> SendRequest<Bytes> {
    let (connections, accepted) = mpsc::channel(1);
    let answer = Bytes::from(vec![b'v'; 256]);
    let service = answering(answer, async |answer: Bytes, _: Request<Incoming>| {
        Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "0")
            .body(Body::new(http_body_util::Full::new(answer)))
            .unwrap()
    });
    let counts = Counts { open: Arc::default(), unfinished_bytes: Arc::default(), unsent_bytes: Arc::default() };
    tasks.spawn(worker::run(accepted, service, ListenerConfig::default(), counts, stop));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(local), listener.accept());
    let (server, peer) = server.unwrap();
    let stream = Stream::Tcp(server.into_std().unwrap());
    let accepted = Accepted { listener: 0, local, peer };
    connections.send(NewConnection { stream, accepted, protection: Protection::Plain }).await.ok().unwrap();
    let (client, driver) = h2::client::handshake(client.unwrap()).await.unwrap();
    tasks.spawn(async move { drop((driver.await, connections)) });
    client
}

#[test]
fn call_on_a_connection() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (tasks, stop) = (Tasks::new(), CancellationToken::new());
    let client = runtime.block_on(async {
        let client = served(&tasks, stop.clone()).await;
        calls(&client, AT_ONCE).await;
        client
    });
    assert_eq!(counted(&runtime, &client), 256 * CALLS);
    stop.cancel();
    tasks.stop();
}
