use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prometheus::{Histogram, IntCounter};

use super::metrics::Metrics;
use super::request_spans::{RequestSpan, Tracing};
use super::rooms::NetworkMetrics;
use crate::pb::frame::{Messages, Part};

/// Names of the gRPC codes as the `grpc_code` label has them, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
// A name that is text would be parsed for each call.
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

const OK: i32 = 0;
const CANCELED: i32 = 1;
const RESOURCE_EXHAUSTED: i32 = 8;
const INTERNAL: i32 = 13;
const UNKNOWN: usize = 2;

/// One method as the labels of its metrics name it.
#[derive(Clone, Debug)]
pub struct GrpcMethod {
    /// `package.Service`.
    pub service: &'static str,
    /// `Name`.
    pub name: &'static str,
    /// `unary`, `client_stream`, `server_stream` or `bidi_stream`.
    pub kind: &'static str,
    /// Counts its calls that ended because a message of the client could not be read.
    pub unreadable: Option<IntCounter>,
}

const UNARY: &str = "unary";

/// The `grpc_server_*` metrics and the bytes of messages of one server; cheap to clone.
///
/// Each observation is a few atomic additions: the label values are resolved when the server starts.
#[derive(Clone, Debug)]
pub struct GrpcCalls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tracing: Option<Tracing>,
    methods: Vec<MethodMetrics>,
    bytes: NetworkMetrics,
}

#[derive(Debug)]
struct MethodMetrics {
    service: &'static str,
    name: &'static str,
    unary: bool,
    started: IntCounter,
    received: IntCounter,
    sent: IntCounter,
    handled: [IntCounter; CODES.len()],
    handling: Option<Histogram>,
    unreadable: Option<IntCounter>,
}

impl GrpcCalls {
    /// Registers the metrics; all codes of all methods exist with 0 from here on. `extensive` adds
    /// `grpc_server_handling_seconds`, as `--metrics=extensive` does.
    pub fn register(metrics: &Metrics, extensive: bool, methods: impl IntoIterator<Item = GrpcMethod>) -> Self {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let coded = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        let handling = extensive.then(|| {
            let buckets = vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
            let help = "Time from the start of a call to its end.";
            metrics.histogram_vec("grpc_server_handling_seconds", help, &labels, buckets)
        });
        let started = metrics.counter_vec("grpc_server_started_total", "Calls received.", &labels);
        let handled = metrics.counter_vec("grpc_server_handled_total", "Calls completed, by code.", &coded);
        let received = metrics.counter_vec("grpc_server_msg_received_total", "Messages received.", &labels);
        let sent = metrics.counter_vec("grpc_server_msg_sent_total", "Messages sent.", &labels);
        let row = |method: GrpcMethod| {
            let GrpcMethod { service, name, kind, unreadable } = method;
            let labels = [kind, service, name];
            MethodMetrics {
                service,
                name,
                unary: kind == UNARY,
                started: started.with_label_values(&labels),
                received: received.with_label_values(&labels),
                sent: sent.with_label_values(&labels),
                handled: CODES.map(|code| handled.with_label_values(&[kind, service, name, code])),
                handling: handling.as_ref().map(|handling| handling.with_label_values(&labels)),
                unreadable,
            }
        };
        let methods = methods.into_iter().map(row).collect();
        Self(Arc::new(Shared { tracing: None, methods, bytes: NetworkMetrics::register(metrics) }))
    }

    /// Exports a span for each call from here on. Called before the first one.
    pub fn traced(self, tracing: Option<Tracing>) -> Self {
        match Arc::try_unwrap(self.0) {
            Ok(shared) => Self(Arc::new(Shared { tracing, ..shared })),
            Err(shared) => Self(shared),
        }
    }

    /// A call of the method at this place of the list given to [`register`](Self::register) starts. Its headers may name
    /// a trace.
    pub fn start(&self, method: usize, headers: &HeaderMap) -> Call {
        let row = &self.0.methods[method];
        row.started.inc();
        let span = self.0.tracing.as_ref().map(|tracing| tracing.begin(row.service, row.name, headers));
        Call { shared: self.0.clone(), method, began: Instant::now(), open: true, span }
    }
}

/// One call, from its request to the end of its response. Dropped before that, it counts as canceled.
#[derive(Debug)]
pub struct Call {
    shared: Arc<Shared>,
    method: usize,
    began: Instant,
    open: bool,
    span: Option<RequestSpan>,
}

impl Call {
    fn method(&self) -> &MethodMetrics {
        &self.shared.methods[self.method]
    }

    /// Whether both sides send one message.
    pub fn is_unary(&self) -> bool {
        self.method().unary
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The call ends with this gRPC code, by number; an unknown one counts as `Unknown`.
    pub fn finish(mut self, code: i32) {
        self.close(code);
    }

    fn close(&mut self, code: i32) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        if let Some(span) = self.span.take() {
            span.end(code);
        }
        let method = self.method();
        if method.unary {
            // As in etcd's library: one message each way for every call, whatever its outcome.
            method.received.inc();
            method.sent.inc();
        }
        let at = usize::try_from(code).ok().filter(|&at| at < CODES.len()).unwrap_or(UNKNOWN);
        method.handled[at].inc();
        if let Some(unreadable) = &method.unreadable
            && matches!(code, RESOURCE_EXHAUSTED | INTERNAL)
        {
            unreadable.inc();
        }
        if let Some(handling) = &method.handling {
            handling.observe(self.began.elapsed().as_secs_f64());
        }
    }

    /// Counts the messages of the request as they are read.
    pub fn request<B>(&self, body: B) -> RequestBody<B> {
        RequestBody { body, counted: Some((self.shared.clone(), self.method)), messages: Messages::default() }
    }

    /// Counts the messages of the response as they are sent, and the call once its trailers are sent. A unary response
    /// without a status in its headers is successful.
    pub fn response<B>(mut self, response: Response<B>) -> Response<ResponseBody<B>> {
        if let Some(code) = status_code(response.headers()) {
            self.close(code);
        } else if self.is_unary() {
            self.close(OK);
        }
        response.map(|body| ResponseBody { body, call: self, messages: Messages::default() })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.close(CANCELED);
    }
}

fn status_code(headers: &HeaderMap) -> Option<i32> {
    let status = headers.get(&GRPC_STATUS)?;
    Some(status.to_str().ok().and_then(|status| status.parse().ok()).unwrap_or(UNKNOWN as i32))
}

/// How many messages begin in this piece, and how many bytes of messages it holds. A message begins when its length is
/// known.
fn count(messages: &mut Messages, mut data: &[u8]) -> (u64, u64) {
    let (mut begun, mut bytes) = (0, 0);
    while !data.is_empty() {
        let (taken, part) = messages.next(data);
        match part {
            Part::Begin(_) => begun += 1,
            Part::Message => bytes += taken as u64,
            Part::Prefix => {}
        }
        data = &data[taken..];
    }
    (begun, bytes)
}

/// The body of a request whose messages are counted.
#[derive(Debug)]
pub struct RequestBody<B> {
    body: B,
    counted: Option<(Arc<Shared>, usize)>,
    messages: Messages,
}

impl<B> RequestBody<B> {
    /// Of a call that has no metrics.
    pub fn uncounted(body: B) -> Self {
        Self { body, counted: None, messages: Messages::default() }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let (Some((shared, method)), Some(Ok(frame))) = (&this.counted, &frame)
            && let Some(data) = frame.data_ref()
        {
            let (begun, bytes) = count(&mut this.messages, data);
            shared.bytes.client_received_bytes.inc_by(bytes);
            let method = &shared.methods[*method];
            if !method.unary {
                method.received.inc_by(begun);
            }
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

/// The body of a response whose messages are counted, and with it the end of a streaming call.
#[derive(Debug)]
pub struct ResponseBody<B> {
    body: B,
    call: Call,
    messages: Messages,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        let ended = match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let (begun, bytes) = count(&mut this.messages, data);
                    this.call.shared.bytes.client_sent_bytes.inc_by(bytes);
                    if !this.call.is_unary() {
                        this.call.method().sent.inc_by(begun);
                    }
                }
                frame.trailers_ref().map(|trailers| status_code(trailers).unwrap_or(OK))
            }
            Some(Err(_)) => Some(UNKNOWN as i32),
            None => Some(OK),
        };
        if let Some(code) = ended {
            this.call.close(code);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> GrpcMethod {
        GrpcMethod { service: "etcdserverpb.KV", name: "Range", kind: UNARY, unreadable: None }
    }

    #[test]
    fn codes_exist_before_their_first_use() {
        let metrics = Metrics::default();
        let calls = GrpcCalls::register(&metrics, false, [range()]);
        let start = || calls.start(0, &HeaderMap::new());
        start().finish(5);
        start().finish(99);
        // The client reset the stream before there was an answer.
        drop(start());
        let text = metrics.render();
        let line = |code: &str| {
            format!(
                "grpc_server_handled_total{{grpc_code=\"{code}\",grpc_method=\"Range\",\
                 grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}} "
            )
        };
        assert!(text.contains(&(line("NotFound") + "1\n")), "{text}");
        assert!(text.contains(&(line("Unknown") + "1\n")));
        assert!(text.contains(&(line("Canceled") + "1\n")));
        assert!(text.contains(&(line("OK") + "0\n")));
        assert!(!text.contains("handling_seconds"));
    }

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let wire = [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[1, 0, 0, 0, 2], b"de"].concat();
        for piece in 1..=wire.len() {
            let mut messages = Messages::default();
            let found = wire.chunks(piece).map(|data| count(&mut messages, data));
            let sum = found.fold((0, 0), |sum, found| (sum.0 + found.0, sum.1 + found.1));
            assert_eq!(sum, (3, 5), "pieces of {piece}");
        }
    }
}
