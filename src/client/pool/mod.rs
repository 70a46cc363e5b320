//! Upstream connections: several members, several lanes to each, and the rules for picking and trying again.
//!
//! A request enters at [`Pool`] (`dispatch.rs`), which asks `select.rs` for a member with a ready connection of its lane
//! and sends the bytes. `upstream_endpoint.rs` keeps connections ready in the background and has the state machine of an
//! endpoint; `dial.rs` opens byte streams, `connection.rs` is HTTP/2 on one of them, `probe.rs` checks that it answers,
//! `standing.rs` says what an endpoint is good for that does, and `cluster.rs` refuses endpoints of another cluster
//! (`one_cluster.rs` at the start); `health_check.rs` is a check without a pool. `body.rs` is the answer on its
//! way back, `deadline.rs` the time of a request that is sent again, `report.rs` the states of the endpoints for people. Requests and answers are bytes: all that is read of them is whether a read is serializable and the header of
//! its answer (`seen.rs`, `header.rs`). Every outcome, a lost connection included, is an answer with a gRPC status.

mod body;
mod cluster;
mod config;
mod connection;
mod deadline;
mod dial;
mod dispatch;
mod fault;
mod head;
mod header;
mod health_check;
#[cfg(test)]
mod health_tests;
mod one_cluster;
mod probe;
mod report;
mod seen;
mod select;
mod standing;
mod stream;
#[cfg(test)]
mod tests;
mod upstream_endpoint;
mod watch;

pub use body::UpstreamBody;
pub use cluster::{ClusterMismatch, UpstreamCluster};
pub use config::PoolConfig;
pub use deadline::Deadline;
#[cfg(test)]
pub(crate) use dial::Dialer;
pub use dispatch::{Pool, WeakPool};
pub use head::Head;
pub use header::{HEADER_BYTES_MAX, PeekedHeader, peek_header, peek_wrapped_header};
pub use health_check::health_check;
pub use one_cluster::check_one_cluster;
pub use report::{EndpointReport, EndpointState};
pub use seen::Seen;
pub use stream::UpstreamStream;
pub use watch::{UpstreamWatch, unframed};
