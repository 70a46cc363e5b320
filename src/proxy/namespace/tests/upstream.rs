//! An upstream that records the bytes it gets, and a client that sends any bytes.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use parking_lot::Mutex;
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

pub(super) use super::lawful::{ALARM, Call, KEEP_ALIVE, PUT, STATUS, TXN, WATCH, frames_of};
use crate::client::{Channel, Endpoint, Pool, PoolConfig, framed};
use crate::listener::{ListenerConfig, bind, serve};
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, RangeRequest, RangeResponse,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse, WatchRequest, WatchResponse, request_op, response_op,
    watch_request,
};
use crate::pb::mvccpb::KeyValue;
use crate::proxy::{
    KeepAliveBroadcasts, KnownLeases, MessageLimits, Namespace, PageListeners, ProxyService, ResponseMemory, Tenant,
    TenantUpstream, Tenants, UpstreamPools, WorkerParts, proxy_calls,
};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// Marks the calls of the client; it passes as metadata.
const FROM_CLIENT: &str = "x-from-client";
/// The namespace of every test.
pub(super) const NAMESPACE: &str = "t/";
/// Where its markers are.
pub(super) const MARKERS: &str = "\0watershed/lease/742f/";
/// A lease of the namespace from the start.
pub(super) const OWN_LEASE: i64 = 7;

/// For what has an end.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// A frame of any flag around any bytes.
pub(super) fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut out = vec![flag];
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    out
}

/// The bytes as gzip in one stored block.
pub(super) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    let length = data.len() as u16;
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 1];
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&(!length).to_le_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(&(!crc).to_le_bytes());
    out.extend_from_slice(&u32::from(length).to_le_bytes());
    out
}

/// A proxy with a namespace, in front of an upstream that records.
pub(super) struct Setup {
    proxy: SendRequest<Bytes>,
    calls: Arc<Mutex<Vec<Call>>>,
    tasks: Tasks,
}

/// What a client got.
#[derive(Debug)]
pub(super) struct Answer {
    /// None while a stream has no end.
    pub(super) code: Option<Code>,
    pub(super) text: String,
    pub(super) body: Vec<u8>,
}

impl Setup {
    pub(super) async fn start() -> Self {
        Self::start_in(NAMESPACE).await
    }

    /// With clients that see this namespace.
    pub(super) async fn start_in(namespace: &'static str) -> Self {
        let (calls, tasks) = (Arc::new(Mutex::new(Vec::new())), Tasks::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream: Endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
        let (stop, log, inner) = (tasks.stop_signal(), calls.clone(), tasks.clone());
        tasks.spawn(async move {
            while let Some(Ok((socket, _))) = stop.run_until_cancelled(listener.accept()).await {
                let (stop, log, tasks) = (stop.clone(), log.clone(), inner.clone());
                inner.spawn(async move { stop.run_until_cancelled(connection(socket, log, tasks)).await });
            }
        });
        let proxy = proxy(&upstream, namespace, &tasks);
        let socket = TcpStream::connect((proxy.host(), proxy.port())).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (proxy, driver) = h2::client::handshake(socket).await.unwrap();
        let stop = tasks.stop_signal();
        tasks.spawn(async move { stop.run_until_cancelled(driver).await });
        Self { proxy, calls, tasks }
    }

    /// What the upstream got so far, without what the proxy asks for itself: whether the member answers, its version.
    pub(super) fn calls(&self) -> Vec<Call> {
        let own = |call: &Call| {
            call.path == "/grpc.health.v1.Health/Check"
                || (call.path == "/etcdserverpb.Maintenance/Status" && !call.headers.contains_key(FROM_CLIENT))
        };
        self.calls.lock().iter().filter(|call| !own(call)).cloned().collect()
    }

    /// The calls of one method.
    pub(super) fn calls_of(&self, path: &str) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.path == path).collect()
    }

    /// Sends a body in these pieces and ends it. Waits for the end of the answer, or until it is `enough`, at most for
    /// `limit`.
    pub(super) async fn send(
        &self,
        path: &str,
        headers: &[(&'static str, &'static str)],
        pieces: &[Bytes],
        limit: Duration,
        enough: impl Fn(&Answer) -> bool,
    ) -> Answer {
        let mut request = Request::post(format!("http://proxy{path}"))
            .header("content-type", "application/grpc")
            .header(FROM_CLIENT, "1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = Answer { code: None, text: String::new(), body: Vec::new() };
        let mut proxy = self.proxy.clone().ready().await.unwrap();
        let (head, mut body) = proxy.send_request(request.body(()).unwrap(), false).unwrap();
        let talk = async {
            for piece in pieces {
                body.send_data(piece.clone(), false).ok()?;
            }
            body.send_data(Bytes::new(), true).ok()?;
            let (head, mut stream) = head.await.ok()?.into_parts();
            answer.end(&head.headers);
            while let Some(Ok(data)) = stream.data().await {
                let _ = stream.flow_control().release_capacity(data.len());
                answer.body.extend_from_slice(&data);
                if enough(&answer) {
                    return None;
                }
            }
            answer.end(&stream.trailers().await.ok()??);
            Some(())
        };
        let _ = tokio::time::timeout(limit, talk).await;
        answer
    }

    /// Opens calls one after the other that send `bytes` and no end, `calls_max` at most, until the first of them is answered. Returns how
    /// many were open then.
    pub(super) async fn until_answered(&self, path: &str, bytes: &Bytes, calls_max: usize) -> (usize, Answer) {
        let (mut open, mut answers) = (Vec::new(), FuturesUnordered::new());
        for _ in 0..calls_max {
            let request = Request::post(format!("http://proxy{path}")).header("content-type", "application/grpc");
            let mut proxy = self.proxy.clone().ready().await.unwrap();
            let (head, mut body) = proxy.send_request(request.body(()).unwrap(), false).unwrap();
            answers.push(async move {
                let mut answer = Answer { code: None, text: String::new(), body: Vec::new() };
                let (head, mut stream) = head.await.unwrap().into_parts();
                answer.end(&head.headers);
                while let Some(Ok(data)) = stream.data().await {
                    answer.body.extend_from_slice(&data);
                }
                if let Ok(Some(trailers)) = stream.trailers().await {
                    answer.end(&trailers);
                }
                answer
            });
            let mut rest = bytes.clone();
            while !rest.is_empty() {
                body.reserve_capacity(rest.len());
                // None and an error: the call is answered already.
                let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await else { break };
                if body.send_data(rest.split_to(room.min(rest.len())), false).is_err() {
                    break;
                }
            }
            open.push(body);
            if let Some(Some(answer)) = answers.next().now_or_never() {
                return (open.len(), answer);
            }
        }
        let first = tokio::time::timeout(LIMIT, answers.next()).await.expect("one is answered");
        (open.len(), first.expect("calls are open"))
    }

    /// One body in one piece.
    pub(super) async fn unary(&self, path: &str, headers: &[(&'static str, &'static str)], body: &[u8]) -> Answer {
        let answer = self.send(path, headers, &[Bytes::copy_from_slice(body)], LIMIT, never).await;
        assert!(answer.code.is_some(), "{path} is answered");
        answer
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl Answer {
    fn end(&mut self, headers: &HeaderMap) {
        if let Some(status) = tonic::Status::from_header_map(headers) {
            (self.code, self.text) = (Some(status.code()), status.message().to_owned());
        }
    }
}

/// Waits for the end of the answer.
pub(super) fn never(_: &Answer) -> bool {
    false
}

fn proxy(server: &Endpoint, namespace: &'static str, tasks: &Tasks) -> Endpoint {
    let tenants = Tenants::everybody(Tenant::new("", Namespace::new(namespace), tasks));
    let pool = PoolConfig::new(vec![server.clone()]);
    let metrics = Metrics::new();
    let upstream = TenantUpstream::for_tests(UpstreamPools::new(pool.clone()), &metrics, tasks);
    let calls = proxy_calls(&metrics);
    let worker_tasks = tasks.clone();
    let leases = KeepAliveBroadcasts::new(Channel::new(Pool::new(pool.clone(), tasks)), tasks.clone());
    let make = move |worker| {
        ProxyService::new(
            worker,
            WorkerParts {
                pool: Pool::new(pool.clone(), &worker_tasks),
                tenants: tenants.clone(),
                upstream: upstream.clone(),
                page_listeners: PageListeners::all(),
                leases: leases.clone(),
                permissions: None,
                limits: MessageLimits::default(),
                health_pool: Pool::new(pool.clone(), &worker_tasks),
                paused: tokio::sync::watch::channel(false).1,
                self_member: None,
                response_memory: ResponseMemory::new(1 << 30),
                known_leases: KnownLeases::default(),
                profiles: None,
                metrics: metrics.clone(),
                calls: calls.clone(),
                tasks: worker_tasks.clone(),
            },
        )
    };
    let config = ListenerConfig { serving_threads: 1, ..ListenerConfig::default() };
    let serving = serve(vec![bind("127.0.0.1:0".parse().unwrap()).unwrap()], config, make, tasks).unwrap();
    serving.addresses()[0].to_string().parse().unwrap()
}

async fn connection(socket: TcpStream, log: Arc<Mutex<Vec<Call>>>, tasks: Tasks) {
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (parts, body) = request.into_parts();
        let index = {
            let mut log = log.lock();
            let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
            log.push(Call { path, headers: parts.headers, body: Vec::new(), ended: false });
            log.len() - 1
        };
        tasks.spawn(stream(body, respond, log.clone(), index));
    }
}

async fn stream(
    mut body: h2::RecvStream,
    mut respond: h2::server::SendResponse<Bytes>,
    log: Arc<Mutex<Vec<Call>>>,
    index: usize,
) -> Option<()> {
    let path = log.lock()[index].path.clone();
    let is_stream = path == WATCH || path == KEEP_ALIVE;
    let head = || Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut send = if is_stream { Some(respond.send_response(head(), false).ok()?) } else { None };
    let mut answered = 0;
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        let call = {
            let mut log = log.lock();
            log[index].body.extend_from_slice(&data);
            log[index].clone()
        };
        let Some(send) = &mut send else { continue };
        let (frames, _) = call.frames();
        for (number, (_, message)) in frames.iter().enumerate().skip(answered) {
            send.send_data(stream_answer(&path, number, message)?, false).ok()?;
        }
        answered = frames.len();
    }
    if !body.is_end_stream() {
        return None;
    }
    log.lock()[index].ended = true;
    let mut send = match send {
        Some(send) => send,
        None => {
            let call = log.lock()[index].clone();
            let mut send = respond.send_response(head(), false).ok()?;
            send.send_data(unary_answer(&call), false).ok()?;
            send
        }
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    send.send_trailers(trailers).ok()
}

fn header() -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 1, member_id: 1, revision: 1, raft_term: 1 })
}

fn unary_answer(call: &Call) -> Bytes {
    let message = call.frames().0.into_iter().next().unwrap_or_default().1;
    match call.path.as_str() {
        "/etcdserverpb.KV/Range" => framed(&range_answer(&RangeRequest::decode(message).unwrap_or_default())),
        // One that reads alone: the proxy looks for several leases so.
        TXN => {
            let request = TxnRequest::decode(message).unwrap_or_default();
            let responses = request.success.iter().filter_map(|operation| match &operation.request {
                Some(request_op::Request::RequestRange(range)) => {
                    Some(ResponseOp { response: Some(response_op::Response::ResponseRange(range_answer(range))) })
                }
                _ => None,
            });
            framed(&TxnResponse { header: header(), succeeded: true, responses: responses.collect() })
        }
        "/etcdserverpb.Lease/LeaseGrant" => {
            let request = LeaseGrantRequest::decode(message).unwrap_or_default();
            let id = if request.id == 0 { 99 } else { request.id };
            framed(&LeaseGrantResponse { header: header(), id, ttl: 60, ..Default::default() })
        }
        // The header is the first field of every other answer.
        _ => framed(&RangeResponse { header: header(), ..Default::default() }),
    }
}

/// Of a store that has nothing but the mark of the namespace's lease.
fn range_answer(request: &RangeRequest) -> RangeResponse {
    let marker = format!("{MARKERS}{OWN_LEASE:016x}");
    let kv = KeyValue { key: marker.into(), ..Default::default() };
    let kvs: Vec<_> = (request.key == kv.key).then_some(kv).into_iter().collect();
    RangeResponse { header: header(), count: kvs.len() as i64, kvs, more: false }
}

fn stream_answer(path: &str, number: usize, message: &Bytes) -> Option<Bytes> {
    if path == KEEP_ALIVE {
        let id = LeaseKeepAliveRequest::decode(message.clone()).ok()?.id;
        return Some(framed(&LeaseKeepAliveResponse { header: header(), id, ttl: 60 }));
    }
    let mut answer = WatchResponse { header: header(), watch_id: number as i64, ..Default::default() };
    match WatchRequest::decode(message.clone()).ok()?.request_union? {
        watch_request::RequestUnion::CreateRequest(create) => {
            answer.created = true;
            if create.watch_id != 0 {
                answer.watch_id = create.watch_id;
            }
        }
        watch_request::RequestUnion::CancelRequest(cancel) => {
            (answer.canceled, answer.watch_id) = (true, cancel.watch_id);
        }
        watch_request::RequestUnion::ProgressRequest(_) => answer.watch_id = -1,
    }
    Some(framed(&answer))
}
