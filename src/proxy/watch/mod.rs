//! The watch hub: many client watches, few upstream watches.
//!
//! Clients with the same credentials form a class (`hub.rs`). A class has a table of upstream watches (`ranges.rs`
//! decides which range each covers, and when several give way to one of their common prefix); each is kept alive by
//! a feed (`feed.rs`), which fills an event log that any number of client watches read through `eventlog`. Events
//! older than the log come over a private upstream watch (`history.rs`). `desk.rs` is the gRPC side, one service for
//! each serving thread. `upstream.rs` is all of the cluster that this room sees.
//!
//! Read `hub.rs` first; docs/design/eventlog.md tells the rules for starting, promoting and resuming.

mod desk;
mod events;
mod feed;
mod fence;
mod history;
mod hub;
mod metrics;
mod pace;
mod probe;
mod ranges;
#[cfg(test)]
mod tests;
mod trust;
mod upstream;

pub use desk::ProxyWatchService;
pub use hub::{WatchHub, WatchHubConfig};
pub use metrics::ProxyWatchMetrics;
