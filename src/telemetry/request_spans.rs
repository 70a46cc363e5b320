//! Export of request spans to an OpenTelemetry collector, by OTLP over gRPC.
//!
//! Finished spans go into a bounded queue that a thread of the library empties; with a slow or dead collector, spans are
//! dropped and requests go on. Off, a request costs the test of an option.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::KeyValue;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer as _, TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter};

/// Bound of one attempt to send spans.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last spans may take when the program stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Where request spans go, and which of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracingConfig {
    /// `host:port` of the collector, without TLS as in etcd.
    pub address: String,
    /// The same for all members.
    pub service_name: String,
    /// Different for each member; none if empty.
    pub instance_id: String,
    /// Of a million requests whose client does not say whether to sample.
    pub samples_per_million: u32,
}

/// A running export; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tracing {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
}

impl Tracing {
    /// Starts the export. Called on a tokio runtime, which keeps the connection to the collector; a collector that is not
    /// there is not an error.
    ///
    /// # Errors
    /// When the address is none.
    pub fn start(config: &TracingConfig) -> Result<Self, ExporterBuildError> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(format!("http://{}", config.address))
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let mut resource = Resource::builder().with_service_name(config.service_name.clone());
        if !config.instance_id.is_empty() {
            resource = resource.with_attribute(KeyValue::new("service.instance.id", config.instance_id.clone()));
        }
        let root = match config.samples_per_million {
            0 => Sampler::AlwaysOff,
            rate => Sampler::TraceIdRatioBased(f64::from(rate) / 1e6),
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Exporter { inner: exporter, failing: AtomicBool::new(false) })
            .with_resource(resource.build())
            .with_sampler(Sampler::ParentBased(Box::new(root)))
            .build();
        Ok(Self { tracer: provider.tracer("watershed"), provider })
    }

    /// A request begins; the trace is the one its headers name.
    pub(super) fn begin(&self, service: &'static str, method: &'static str, headers: &HeaderMap) -> RequestSpan {
        let parent = TraceContextPropagator::new().extract(&Headers(headers));
        let attributes = [
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", service),
            KeyValue::new("rpc.method", method),
        ];
        let builder = self.tracer.span_builder(format!("{service}/{method}")).with_kind(SpanKind::Server);
        RequestSpan(Box::new(builder.with_attributes(attributes).start_with_context(&self.tracer, &parent)))
    }

    /// Sends what is left and ends, within a second.
    pub async fn finish(self) {
        let stopped = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(STOP_TIMEOUT));
        let _ = tokio::time::timeout(2 * STOP_TIMEOUT, stopped).await;
    }
}

/// The span of one request; dropped, it ends without a code.
#[derive(Debug)]
pub(super) struct RequestSpan(Box<Span>);

impl RequestSpan {
    /// The request ends with this gRPC code.
    pub fn end(mut self, code: i32) {
        self.0.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(code)));
        // Of a server's codes, those that are no fault of the client: Unknown, DeadlineExceeded, Unimplemented, Internal,
        // Unavailable, DataLoss.
        if matches!(code, 2 | 4 | 12 | 13 | 14 | 15) {
            self.0.set_status(Status::error(""));
        }
        self.0.end();
    }
}

/// Trace context in the headers of a request.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Logs once when spans cannot be sent, and once when they can again.
#[derive(Debug)]
struct Exporter {
    inner: opentelemetry_otlp::SpanExporter,
    failing: AtomicBool,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let sent = self.inner.export(batch).await;
        match (&sent, self.failing.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(%error, spans, "request spans cannot be exported, they are dropped"),
            (Ok(()), true) => tracing::info!("request spans are exported again"),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
