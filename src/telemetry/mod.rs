//! Log set-up and the metrics registry.
//!
//! A process sets logging up once with [`init_logging`] and makes one [`Metrics`]; rooms get the struct of their
//! metrics (`rooms.rs` holds those of the core under etcd's names) and never see the registry. Text leaves through
//! [`Metrics::render`]. Start with `log.rs` for the line format, with `metrics.rs` for how a room adds its own;
//! `request_spans.rs` exports a span for each call that `grpc.rs` counts.

mod clock;
mod durations;
mod grpc;
mod log;
mod metrics;
mod operation;
mod process;
mod request_spans;
mod rooms;

pub use clock::unix_seconds;
pub use durations::Durations;
pub use grpc::{Call, GrpcCalls, GrpcMethod, RequestBody, ResponseBody};
pub use log::{LogConfig, LogError, LogFormat, LogLevel, LogOutput, LogRotation, init_logging};
pub use metrics::{Counted, Metrics, TEXT_CONTENT_TYPE, exponential_buckets, raise_to};
pub use operation::OperationKind;
pub use request_spans::{Tracing, TracingConfig};
pub use rooms::{DiskMetrics, LeaseMetrics, MvccMetrics, PeerMetrics, ServerMetrics, WatchMetrics};
