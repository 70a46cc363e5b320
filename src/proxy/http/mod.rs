//! What the proxy's port answers that is not gRPC: health, readiness, version, metrics.
//!
//! `routes.rs` has the paths; `probe.rs` asks the cluster, `fetch.rs` gets a page from a member.

mod fetch;
mod probe;
mod routes;

pub(super) use probe::linearizable_read;
pub(super) use routes::Pages;
