//! What the ports of core, proxy and gateway answer beside the etcd API.
//!
//! `page.rs` has the plain HTTP answers that are the same everywhere (refusals, health),
//! `checks.rs` the parameters and the text of `/livez` and `/readyz`, `health.rs` the gRPC health service. Which paths a
//! port has, and what a check does, is for the room of the port.

mod checks;
mod health;
mod page;

pub use checks::{CheckQuery, CheckReport};
pub use health::HealthService;
pub use page::{JSON, Page, TEXT, health_json, nosniff, not_found, page, redirected, refused_method, text};
