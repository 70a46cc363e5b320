use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prometheus::{Histogram, IntCounter};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::pb::methods::{METHODS, Method, MethodKind};
use crate::telemetry::{
    DiskMetrics, GrpcKind, GrpcMetrics, LeaseMetrics, MethodMetrics, Metrics, MvccMetrics, ServerMetrics,
};

/// The metrics of one member.
#[derive(Clone, Debug)]
pub struct CoreMetrics {
    /// The server and consensus.
    pub server: ServerMetrics,
    /// Log and state on disk.
    pub disk: DiskMetrics,
    /// The store.
    pub mvcc: MvccMetrics,
    /// Leases.
    pub lease: LeaseMetrics,
    calls: Arc<[MethodMetrics]>,
    /// The versions clients usually name, so that a request costs no look-up by text.
    unary_requests: IntCounter,
    stream_requests: IntCounter,
    range_duration: Histogram,
}

/// Compression flag and length in front of each gRPC message.
const MESSAGE_PREFIX_BYTES: usize = 5;
const UNKNOWN_CLIENT: &str = "unknown";

impl CoreMetrics {
    /// Makes and registers them.
    pub fn register(metrics: &Metrics, extensive: bool) -> Self {
        let grpc = GrpcMetrics::register(metrics, extensive);
        let calls = METHODS.iter().map(|method| grpc.method(method.service, method.name, kind(method.kind))).collect();
        let server = ServerMetrics::register(metrics);
        Self {
            disk: DiskMetrics::register(metrics),
            mvcc: MvccMetrics::register(metrics),
            lease: LeaseMetrics::register(metrics),
            calls,
            unary_requests: server.client_requests.with_label_values(&["unary", UNKNOWN_CLIENT]),
            stream_requests: server.client_requests.with_label_values(&["stream", UNKNOWN_CLIENT]),
            range_duration: server.range_duration.with_label_values(&["true"]),
            server,
        }
    }

    /// Counts a request by the version its client names.
    pub fn client_request(&self, kind: MethodKind, version: Option<&str>) {
        let unary = kind == MethodKind::Unary;
        match version {
            None if unary => self.unary_requests.inc(),
            None => self.stream_requests.inc(),
            // The label comes from outside: only what looks like a version makes a series of its own.
            Some(version) => {
                let plausible =
                    version.len() <= 16 && version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
                let label = if plausible { version } else { UNKNOWN_CLIENT };
                self.server.client_requests.with_label_values(&[if unary { "unary" } else { "stream" }, label]).inc();
            }
        }
    }

    /// A range was answered from the store.
    pub fn range_took(&self, took: Duration) {
        self.range_duration.observe(took.as_secs_f64());
    }

    /// A call came in.
    pub fn start(&self, method: &'static Method) -> Call {
        let number = METHODS.binary_search_by(|row| row.path.cmp(method.path)).unwrap_or_default();
        self.calls[number].started();
        Call { calls: self.calls.clone(), number, kind: method.kind, began: Instant::now() }
    }
}

fn kind(kind: MethodKind) -> GrpcKind {
    match kind {
        MethodKind::Unary => GrpcKind::Unary,
        MethodKind::ClientStream => GrpcKind::ClientStream,
        MethodKind::ServerStream => GrpcKind::ServerStream,
        MethodKind::BidiStream => GrpcKind::BidiStream,
    }
}

/// One call under way.
pub struct Call {
    calls: Arc<[MethodMetrics]>,
    number: usize,
    kind: MethodKind,
    began: Instant,
}

impl Call {
    /// The call was answered with this code.
    pub fn finish(&self, code: Code) {
        self.calls[self.number].handled(code as i32, self.began.elapsed());
    }

    /// Counts the messages in one piece of a streamed answer; the codec hands out whole messages only.
    fn sent(&self, mut data: &[u8]) {
        while let Some((prefix, rest)) = data.split_at_checked(MESSAGE_PREFIX_BYTES) {
            self.calls[self.number].sent();
            let length = prefix[1..].iter().fold(0usize, |length, &byte| length << 8 | usize::from(byte));
            data = rest.get(length..).unwrap_or_default();
        }
    }

    /// Counts the call when its answer is complete.
    pub fn follow(self, response: Response<Body>) -> Response<Body> {
        if let Some(status) = Status::from_header_map(response.headers()) {
            self.finish(status.code());
            return response;
        }
        if self.kind == MethodKind::Unary {
            // An answer without a status in its headers carries a message, and then ends well.
            let call = &self.calls[self.number];
            call.received();
            call.sent();
            self.finish(Code::Ok);
            return response;
        }
        response.map(|body| Body::new(Followed { body, call: Some(self) }))
    }
}

/// A streamed answer that counts its call when it ends.
struct Followed {
    body: Body,
    call: Option<Call>,
}

impl Followed {
    fn ended(&mut self, trailers: Option<&HeaderMap>) {
        if let Some(call) = self.call.take() {
            let status = trailers.and_then(Status::from_header_map);
            call.finish(status.map_or(Code::Ok, |status| status.code()));
        }
    }
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => match frame.trailers_ref() {
                Some(trailers) => self.ended(Some(trailers)),
                None => {
                    if let (Some(call), Some(data)) = (&self.call, frame.data_ref()) {
                        call.sent(data);
                    }
                }
            },
            Some(Err(status)) => {
                if let Some(call) = self.call.take() {
                    call.finish(status.code());
                }
            }
            None => self.ended(None),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // The client left before the end.
        if let Some(call) = self.call.take() {
            call.finish(Code::Cancelled);
        }
    }
}
