use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use parking_lot::{Mutex, RwLock};
use prometheus::IntCounter;
use tracing::warn;

use super::caller::Caller;
use super::error::Failure;
use crate::core::mvcc::OperationCounts;
use crate::pb::methods::{METHODS, Method, MethodKind};
use crate::telemetry::{
    Call, DiskMetrics, GrpcCalls, GrpcMethod, LeaseMetrics, Metrics, MvccMetrics, OperationKind, ServerMetrics, Tracing,
};

/// Durations above which a request is named in the log.
#[derive(Clone, Copy, Debug)]
pub struct SlowRequests {
    /// Of applying an entry and of a read (`--warning-apply-duration`).
    pub apply: Duration,
    /// Of a unary call (`--warning-unary-request-duration`).
    pub unary: Duration,
}

/// The metrics of one member.
#[allow(missing_docs, reason = "each field is one room's metrics")]
#[derive(Clone, Debug)]
pub struct CoreMetrics {
    pub server: ServerMetrics,
    pub disk: DiskMetrics,
    pub mvcc: MvccMetrics,
    pub lease: LeaseMetrics,
    calls: GrpcCalls,
    /// For requests that name no client version, so that they cost no look-up by text.
    unary_requests: IntCounter,
    stream_requests: IntCounter,
    client_versions: ClientVersions,
    slow: SlowRequests,
}

const UNKNOWN_CLIENT: &str = "unknown";

/// The versions of clients that have series of their own.
#[derive(Clone, Debug, Default)]
struct ClientVersions(Arc<RwLock<HashSet<Box<str>>>>);

impl ClientVersions {
    /// Clients name their version before they are authenticated; those beyond this count under [`UNKNOWN_CLIENT`].
    const MAX: usize = 64;

    /// The label of a request whose client names `version`.
    fn label<'a>(&self, version: &'a str) -> &'a str {
        if self.0.read().contains(version) {
            return version;
        }
        if !is_version(version) {
            return UNKNOWN_CLIENT;
        }
        let mut known = self.0.write();
        if known.len() < Self::MAX {
            known.insert(version.into());
        }
        if known.contains(version) { version } else { UNKNOWN_CLIENT }
    }
}

/// Whether a text has the form of etcd's versions: `3.6` or `3.6.1`.
fn is_version(text: &str) -> bool {
    let is_number = |part: &str, digits_max: usize| {
        (1..=digits_max).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    let mut parts = text.splitn(3, '.');
    let (Some(major), Some(minor), patch) = (parts.next(), parts.next(), parts.next()) else { return false };
    is_number(major, 2) && is_number(minor, 3) && patch.is_none_or(|patch| is_number(patch, 3))
}

impl CoreMetrics {
    /// Makes and registers them.
    pub fn register(metrics: &Metrics, extensive: bool, slow: SlowRequests, tracing: Option<Tracing>) -> Self {
        let server = ServerMetrics::register(metrics);
        let method = |method: &Method| GrpcMethod {
            service: method.service,
            name: method.name,
            kind: method.kind.label(),
            unreadable: stream_label(method).map(|api| server.stream_failures.with_label_values(&["receive", api])),
        };
        Self {
            calls: GrpcCalls::register(metrics, extensive, METHODS.iter().map(method)).traced(tracing),
            disk: DiskMetrics::register(metrics),
            mvcc: MvccMetrics::register(metrics),
            lease: LeaseMetrics::register(metrics),
            unary_requests: server.client_requests.with_label_values(&["unary", UNKNOWN_CLIENT]),
            stream_requests: server.client_requests.with_label_values(&["stream", UNKNOWN_CLIENT]),
            server,
            client_versions: ClientVersions::default(),
            slow,
        }
    }

    /// Counts a request by the version its client names.
    pub fn client_request(&self, kind: MethodKind, version: Option<&str>) {
        let unary = kind == MethodKind::Unary;
        match version {
            None if unary => self.unary_requests.inc(),
            None => self.stream_requests.inc(),
            Some(version) => {
                let label = self.client_versions.label(version);
                self.server.client_requests.with_label_values(&[if unary { "unary" } else { "stream" }, label]).inc();
            }
        }
    }

    /// Counts the start of a call, and measures it until its end.
    pub fn start(&self, method: &'static Method, headers: &HeaderMap) -> Call {
        self.calls.start(METHODS.binary_search_by(|row| row.path.cmp(method.path)).unwrap_or_default(), headers)
    }

    /// Measures a range that was answered or refused.
    pub fn range_took(&self, success: bool, took: Duration) {
        self.server.range_duration.observe(usize::from(success), took);
    }

    /// Measures a proposal until the guard is dropped.
    pub(super) fn proposal(&self, operation: OperationKind) -> Timed<'_, fn() -> String> {
        Timed { metrics: self, operation, began: Instant::now(), success: false, read: None }
    }

    /// Measures a read until the guard is dropped; `describe` names it in the log if it was slow.
    pub(super) fn read<'a, D: Fn() -> String>(
        &'a self,
        caller: &'a Caller,
        operation: OperationKind,
        describe: D,
    ) -> Timed<'a, D> {
        Timed { metrics: self, operation, began: Instant::now(), success: false, read: Some((caller, describe)) }
    }

    /// Counts and logs what took longer than `--warning-apply-duration`.
    pub(super) fn warn_if_slow(
        &self,
        caller: Option<&Caller>,
        took: Duration,
        prefix: &'static str,
        describe: impl FnOnce() -> String,
    ) {
        static LOGGED: LogRate = LogRate::new();
        if took <= self.slow.apply {
            return;
        }
        self.server.slow_apply.inc();
        if LOGGED.admits() {
            let (expected, remote) = (self.slow.apply, caller.map(tracing::field::display));
            warn!(?took, "expected-duration" = ?expected, prefix, remote, request = describe(), "apply request took too long");
        }
    }

    /// Logs a unary call that took longer than `--warning-unary-request-duration`.
    pub(super) fn warn_if_slow_call(limit: Duration, call: &Call, method: &Method) {
        static LOGGED: LogRate = LogRate::new();
        if !call.is_unary() || call.elapsed() <= limit || !LOGGED.admits() {
            return;
        }
        warn!("time spent" = ?call.elapsed(), "response type" = method.path, "request stats");
    }

    /// The limit for [`warn_if_slow_call`](Self::warn_if_slow_call).
    pub(super) fn slow_call_limit(&self) -> Duration {
        self.slow.unary
    }

    /// Counts operations of the store.
    pub fn count_operations(&self, counts: &OperationCounts) {
        let mvcc = &self.mvcc;
        mvcc.ranges.inc_by(counts.ranges);
        mvcc.puts.inc_by(counts.puts);
        mvcc.deletes.inc_by(counts.deletes);
        mvcc.txns.inc_by(counts.txns);
        mvcc.put_bytes.add(counts.put_bytes as i64);
    }

    /// Counts the decision on the promotion of a learner; only the leader decides.
    pub(super) fn promoted<T>(&self, outcome: &Result<T, Failure>) {
        use crate::api_error::ApiError;
        match outcome {
            Ok(_) => self.server.learner_promote_successes.inc(),
            Err(Failure::Api(ApiError::NotLeader)) => {}
            Err(Failure::Api(error)) => self.server.learner_promote_failures.with_label_values(&[error.text()]).inc(),
            Err(_) => self.server.learner_promote_failures.with_label_values(&["other"]).inc(),
        }
    }
}

/// The name of a streaming method in `etcd_network_server_stream_failures_total`.
fn stream_label(method: &Method) -> Option<&'static str> {
    match (method.service, method.name) {
        ("etcdserverpb.Watch", "Watch") => Some("watch"),
        ("etcdserverpb.Lease", "LeaseKeepAlive") => Some("lease-keepalive"),
        _ => None,
    }
}

/// A request in progress. Dropped without [`succeed`](Self::succeed) it counts as failed.
pub(super) struct Timed<'a, D: Fn() -> String> {
    metrics: &'a CoreMetrics,
    operation: OperationKind,
    began: Instant,
    success: bool,
    /// Who asked, and for what.
    read: Option<(&'a Caller, D)>,
}

impl<D: Fn() -> String> Timed<'_, D> {
    pub(super) fn succeed(mut self) {
        self.success = true;
    }
}

impl<D: Fn() -> String> Drop for Timed<'_, D> {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        self.metrics.server.request_duration.observe(self.operation.row(self.success), took);
        if let Some((caller, describe)) = &self.read {
            let prefix = if self.operation == OperationKind::Range { "read-only range " } else { "read-only txn " };
            self.metrics.warn_if_slow(Some(*caller), took, prefix, describe);
        }
    }
}

/// Bounds the log lines of one kind: the first hundred of each second, then each hundredth.
struct LogRate(Mutex<Option<(Instant, u32)>>);

impl LogRate {
    const LINES: u32 = 100;

    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn admits(&self) -> bool {
        self.admits_at(Instant::now())
    }

    fn admits_at(&self, now: Instant) -> bool {
        let mut second = self.0.lock();
        let (since, lines) = second.unwrap_or((now, 0));
        let (since, lines) = if now - since >= Duration::from_secs(1) { (now, 0) } else { (since, lines) };
        *second = Some((since, lines + 1));
        lines < Self::LINES || lines % Self::LINES == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_requests_cannot_fill_the_log() {
        let rate = LogRate::new();
        let start = Instant::now();
        let admitted = |at: Duration| (0..10_000).filter(|_| rate.admits_at(start + at)).count();
        assert_eq!(admitted(Duration::ZERO), 199);
        assert_eq!(admitted(Duration::from_millis(999)), 100);
        assert_eq!(admitted(Duration::from_secs(1)), 199);
    }

    #[test]
    fn clients_cannot_make_series_without_bound() {
        // Cause: every text of up to 16 digits and dots in a header made a series, before any authentication.
        let registry = Metrics::default();
        let slow = SlowRequests { apply: Duration::ZERO, unary: Duration::ZERO };
        let metrics = CoreMetrics::register(&registry, false, slow, None);
        let counts = || registry.values(|name| name == "etcd_server_client_requests_total");
        let none = counts().len();
        for version in
            ["", ".", "3", "3.", ".6", "3.6.", "3.6.0.1", "3.6.0-rc.1", "123.4", "3.1234", "3.6.1234", "+3.6"]
        {
            metrics.client_request(MethodKind::Unary, Some(version));
        }
        assert_eq!(counts().len(), none);
        for version in ["3.6", "3.5.21"] {
            metrics.client_request(MethodKind::BidiStream, Some(version));
        }
        assert_eq!(counts().len(), none + 2);
        for number in 0..1000 {
            metrics.client_request(MethodKind::Unary, Some(&format!("{}.{}", number / 500 + 10, number % 500)));
        }
        assert_eq!(counts().len(), none + ClientVersions::MAX);
        // The first versions still count under their own labels, and no request is lost.
        metrics.client_request(MethodKind::BidiStream, Some("3.6"));
        let counts = counts();
        assert_eq!(counts[r#"etcd_server_client_requests_total{client_api_version="3.6",type="stream"}"#], 2.0);
        assert_eq!(counts.values().sum::<f64>(), 1015.0);
    }
}
