use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};

use super::metrics::Metrics;

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

/// Which sides of a method stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcKind {
    /// Neither.
    Unary,
    /// The client.
    ClientStream,
    /// The server.
    ServerStream,
    /// Both.
    BidiStream,
}

impl GrpcKind {
    fn label(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ClientStream => "client_stream",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// The `grpc_server_*` metrics. Made once; [`method`](Self::method) gives each service its cheap handles.
#[derive(Clone, Debug)]
pub struct GrpcMetrics {
    started: IntCounterVec,
    handled: IntCounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    handling: Option<HistogramVec>,
}

impl GrpcMetrics {
    /// Registers the counters; `extensive` adds `grpc_server_handling_seconds`, as `--metrics=extensive` does.
    pub fn register(metrics: &Metrics, extensive: bool) -> Self {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let coded = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        let handling = extensive.then(|| {
            let buckets = vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
            let help = "Time from the start of a call to its end.";
            metrics.histogram_vec("grpc_server_handling_seconds", help, &labels, buckets)
        });
        Self {
            started: metrics.counter_vec("grpc_server_started_total", "Calls that came in.", &labels),
            handled: metrics.counter_vec("grpc_server_handled_total", "Calls that ended, by code.", &coded),
            received: metrics.counter_vec("grpc_server_msg_received_total", "Messages that came in.", &labels),
            sent: metrics.counter_vec("grpc_server_msg_sent_total", "Messages that went out.", &labels),
            handling,
        }
    }

    /// The handles of one method, for example `method("etcdserverpb.KV", "Range", GrpcKind::Unary)`. All its codes
    /// exist with 0 from here on.
    pub fn method(&self, service: &str, method: &str, kind: GrpcKind) -> MethodMetrics {
        let labels = [kind.label(), service, method];
        MethodMetrics {
            started: self.started.with_label_values(&labels),
            received: self.received.with_label_values(&labels),
            sent: self.sent.with_label_values(&labels),
            handled: CODES.map(|code| self.handled.with_label_values(&[kind.label(), service, method, code])),
            handling: self.handling.as_ref().map(|handling| handling.with_label_values(&labels)),
        }
    }
}

/// The counters of one method; each call is one atomic addition.
#[derive(Clone, Debug)]
pub struct MethodMetrics {
    started: IntCounter,
    received: IntCounter,
    sent: IntCounter,
    handled: [IntCounter; CODES.len()],
    handling: Option<Histogram>,
}

impl MethodMetrics {
    /// A call came in.
    pub fn started(&self) {
        self.started.inc();
    }

    /// A message came in.
    pub fn received(&self) {
        self.received.inc();
    }

    /// A message went out.
    pub fn sent(&self) {
        self.sent.inc();
    }

    /// A call ended with this gRPC code, by number; an unheard-of one counts as `Unknown`. `took` is only looked at
    /// when metrics are extensive.
    pub fn handled(&self, code: i32, took: Duration) {
        let at = usize::try_from(code).ok().filter(|&at| at < CODES.len()).unwrap_or(2);
        self.handled[at].inc();
        if let Some(handling) = &self.handling {
            handling.observe(took.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_exist_before_their_first_use() {
        let metrics = Metrics::default();
        let range = GrpcMetrics::register(&metrics, false).method("etcdserverpb.KV", "Range", GrpcKind::Unary);
        range.handled(5, Duration::ZERO);
        range.handled(99, Duration::ZERO);
        let text = metrics.render();
        let line = |code: &str| {
            format!(
                "grpc_server_handled_total{{grpc_code=\"{code}\",grpc_method=\"Range\",\
                 grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}} "
            )
        };
        assert!(text.contains(&(line("NotFound") + "1\n")), "{text}");
        assert!(text.contains(&(line("Unknown") + "1\n")));
        assert!(text.contains(&(line("OK") + "0\n")));
        assert!(!text.contains("handling_seconds"));
    }
}
