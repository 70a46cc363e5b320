//! The watch hub: many client watches, few upstream watches.
//!
//! Clients with the same credentials form a group (`hub.rs`). A group has a table of upstream watches (`ranges.rs`
//! decides which range each covers, and when several give way to one of their common prefix); each is kept alive by
//! a broadcast (`broadcast.rs`), which fills an event log that any number of client watches read through `eventlog`. Events
//! older than the log come over a private upstream watch (`history.rs`). `service.rs` is the gRPC side, one service for
//! each serving thread. `upstream.rs` is all of the cluster that this room sees.
//!
//! Read `hub.rs` first; docs/design/eventlog.md tells the rules for starting, promoting and resuming.

mod broadcast;
mod events;
mod history;
mod hub;
mod metrics;
mod pace;
mod probe;
mod ranges;
mod read_index;
mod service;
#[cfg(test)]
mod tests;
mod trust;
mod upstream;

pub use hub::{WatchHub, WatchHubConfig};
pub use metrics::ProxyWatchMetrics;
pub use service::ProxyWatchService;
