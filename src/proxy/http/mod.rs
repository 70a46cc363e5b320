//! What the proxy's port answers that is not gRPC: health, readiness, version, metrics, its own state for people.
//!
//! `routes.rs` has the paths; `probe.rs` asks the cluster, `fetch.rs` gets a page from a member, `status.rs` is what the
//! status page and `ctl proxy status` show.

mod fetch;
mod probe;
mod routes;
mod status;

pub(super) use probe::linearizable_read;
pub(super) use routes::Pages;
pub use routes::{Listeners, PageListeners};
pub(super) use status::StatusReport;
