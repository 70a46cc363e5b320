use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Code;

const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// Stands between a proxy and its member: passes every stream of gRPC on, keeps every request, and ends watches as it is told.
pub struct Between {
    /// Where the proxy finds it.
    pub endpoint: String,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

/// One request; the body is what has come of it.
#[derive(Clone, Debug)]
pub struct Passed {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// Whether all of it is there.
    pub ended: bool,
}

#[derive(Default)]
struct Shared {
    calls: Mutex<Vec<Arc<Mutex<Passed>>>>,
    /// What ends the open watch streams.
    end: watch::Sender<Option<Code>>,
    /// What the next watch streams are answered with, and how many of them.
    refusals: Mutex<Option<(Code, usize)>>,
}

impl Between {
    /// In front of this member.
    pub async fn start(member: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = listener.local_addr().expect("an address").to_string();
        let (shared, member, mut tasks) = (Arc::<Shared>::default(), member.to_owned(), JoinSet::new());
        let kept = shared.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (member, shared) = (member.clone(), kept.clone());
                // How it ends concerns the proxy and the member.
                connections.spawn(async move { drop(connection(socket, &member, &shared).await) });
            }
        });
        Self { endpoint, shared, _tasks: tasks }
    }

    /// All requests so far.
    pub fn calls(&self) -> Vec<Passed> {
        self.shared.calls.lock().iter().map(|call| call.lock().clone()).collect()
    }

    /// Ends all open watch streams with this code, and refuses so many of those that come next with it.
    pub fn end_watches(&self, code: Code, refused: usize) {
        *self.shared.refusals.lock() = Some((code, refused));
        self.shared.end.send_replace(Some(code));
    }

    /// How many watch streams are still to be refused.
    pub fn refusals_left(&self) -> usize {
        self.shared.refusals.lock().map_or(0, |(_, left)| left)
    }
}

impl Shared {
    fn refusal(&self) -> Option<Code> {
        let mut refusals = self.refusals.lock();
        let (code, left) = refusals.as_mut().filter(|(_, left)| *left > 0)?;
        *left -= 1;
        Some(*code)
    }
}

async fn connection(socket: TcpStream, member: &str, shared: &Arc<Shared>) -> Result<(), h2::Error> {
    let mut proxy = h2::server::handshake(socket).await?;
    let socket = TcpStream::connect(member).await.map_err(|_| h2::Error::from(Reason::REFUSED_STREAM))?;
    let (member, driver) = h2::client::handshake(socket).await?;
    let mut streams: JoinSet<()> = JoinSet::new();
    streams.spawn(driver.map(drop));
    while let Some(request) = proxy.accept().await {
        let (request, respond) = request?;
        streams.spawn(stream(request, respond, member.clone(), shared.clone()).map(drop));
    }
    Ok(())
}

/// Passes one request on, and its answer back.
async fn stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    member: SendRequest<Bytes>,
    shared: Arc<Shared>,
) -> Result<(), h2::Error> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let (is_watch, mut end) = (path == WATCH, shared.end.subscribe());
    if let Some(code) = is_watch.then(|| shared.refusal()).flatten() {
        respond.send_response(refused(code), true)?;
        return Ok(());
    }
    let call = Arc::new(Mutex::new(Passed { path, headers: head.headers.clone(), body: Vec::new(), ended: false }));
    shared.calls.lock().push(call.clone());
    let (answer, sender) = member.ready().await?.send_request(Request::from_parts(head, ()), false)?;
    let there = pump(body, sender, |data| {
        let mut call = call.lock();
        match data {
            Some(data) => call.body.extend_from_slice(data),
            None => call.ended = true,
        }
    });
    let back = async {
        let told = async {
            if !is_watch || end.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            end.borrow().unwrap_or(Code::Ok)
        };
        tokio::pin!(told);
        let head = tokio::select! {
            head = answer => head?,
            code = &mut told => return respond.send_response(refused(code), true).map(drop),
        };
        let (head, mut body) = head.into_parts();
        let ends = body.is_end_stream();
        let mut sender = respond.send_response(Response::from_parts(head, ()), ends)?;
        loop {
            let data = tokio::select! {
                data = body.data() => data,
                code = &mut told => return sender.send_trailers(status(code)),
            };
            let Some(data) = data else { break };
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            sender.send_data(data, false)?;
        }
        match body.trailers().await? {
            Some(trailers) => sender.send_trailers(trailers),
            None if ends => Ok(()),
            None => sender.send_data(Bytes::new(), true),
        }
    };
    tokio::select! {
        // A broken half breaks the other; an answer may end before its request.
        outcome = async { there.await?; std::future::pending().await } => outcome,
        outcome = back => outcome,
    }
}

/// Moves a body, and shows it; none is its end.
async fn pump(
    mut body: RecvStream,
    mut sender: SendStream<Bytes>,
    mut shown: impl FnMut(Option<&Bytes>),
) -> Result<(), h2::Error> {
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        shown(Some(&data));
        sender.send_data(data, false)?;
    }
    shown(None);
    sender.send_data(Bytes::new(), true)
}

fn status(code: Code) -> HeaderMap {
    let text = HeaderValue::from_static("ended by the test");
    let code = HeaderValue::from(code as i32);
    HeaderMap::from_iter([
        (http::HeaderName::from_static("grpc-status"), code),
        (http::HeaderName::from_static("grpc-message"), text),
    ])
}

fn refused(code: Code) -> Response<()> {
    let mut response = Response::new(());
    *response.headers_mut() = status(code);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}
