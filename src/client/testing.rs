//! A scripted member for tests: records what it receives and answers, or fails, as told.

use std::sync::Arc;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request, Response};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};

use super::Endpoint;
use crate::shutdown::Tasks;

/// What a member received.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// What a member does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// One framed message and status OK.
    Message(Vec<u8>),
    /// Only a status, with one header of the member's own.
    Status(i32, &'static str),
    /// RST_STREAM with this reason.
    Reset(Reason),
    /// The connection dies without a word.
    Cut,
}

/// A member that follows a script.
pub(crate) struct FakeMember {
    pub(crate) endpoint: Endpoint,
    received: Arc<Mutex<Vec<Received>>>,
    tasks: Tasks,
}

impl FakeMember {
    pub(crate) async fn start(script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let tasks = Tasks::new();
        let (stop, log, script) = (tasks.stop_signal(), received.clone(), Arc::new(script));
        let inner = tasks.clone();
        tasks.spawn(async move {
            loop {
                let (socket, _) = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap(),
                    () = stop.cancelled() => return,
                };
                let serve = connection(socket, script.clone(), log.clone(), inner.clone());
                let stop = stop.clone();
                inner.spawn(async move {
                    tokio::select! { () = serve => {}, () = stop.cancelled() => {} }
                });
            }
        });
        Self { endpoint, received, tasks }
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().clone()
    }

    pub(crate) fn stop(&self) {
        self.tasks.stop();
    }
}

async fn connection(
    socket: TcpStream,
    script: Arc<impl Fn(&Received) -> Reply + Send + Sync + 'static>,
    log: Arc<Mutex<Vec<Received>>>,
    tasks: Tasks,
) {
    let cut = tokio_util::sync::CancellationToken::new();
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = cut.cancelled() => return,
        };
        let Some(Ok((request, respond))) = accepted else { return };
        tasks.spawn(stream(request, respond, script.clone(), log.clone(), cut.clone()));
    }
}

async fn stream(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    script: Arc<impl Fn(&Received) -> Reply + Send + Sync + 'static>,
    log: Arc<Mutex<Vec<Received>>>,
    cut: tokio_util::sync::CancellationToken,
) {
    let (parts, mut body) = request.into_parts();
    let mut bytes = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
    }
    let received = Received { path: parts.uri.path().to_owned(), headers: parts.headers, body: bytes };
    log.lock().push(received.clone());
    match script(&received) {
        Reply::Message(message) => {
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            send.send_data(message.into(), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            trailers.insert("x-trailer", "kept".parse().unwrap());
            send.send_trailers(trailers).unwrap();
        }
        Reply::Status(code, message) => {
            let head = Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", code)
                .header("grpc-message", message)
                .header("x-member", "own")
                .body(())
                .unwrap();
            respond.send_response(head, true).unwrap();
        }
        Reply::Reset(reason) => respond.send_reset(reason),
        Reply::Cut => {
            cut.cancel();
            // Dropped earlier, the stream would still say goodbye with a reset.
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        }
    }
}
