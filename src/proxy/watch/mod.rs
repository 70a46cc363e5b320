//! The watch hub: many client watches, few upstream watches.
//!
//! Clients with the same credentials form a group (`group.rs`) with a table of upstream watches (`ranges.rs` decides which
//! range each covers, and when several give way to one of their common prefix). Each upstream watch is kept alive by a
//! broadcast (`broadcast.rs`, `broadcast_handle.rs`), which fills an event log that any number of client watches read
//! through `eventlog`. Where the range cache has a replica of the range, the broadcast reads the watch of that. `admission.rs` decides where a client watch reads and from which revision (`read_index.rs`), and
//! whether it may (`permission.rs`; `open_permissions.rs` where the proxy reads as a user of its own); tasks ask the cluster for
//! all who wait ([`Turns`](crate::client::Turns)). Events older than the log come over a private upstream watch (`history.rs`).
//! `service.rs` is the gRPC side, one service for each serving thread; `hub.rs` is what all of them share; `upstream.rs`
//! is all of the cluster that this room sees.
//!
//! Read `admission.rs` first; docs/design/eventlog.md has the rules for starting, promoting and resuming.

mod admission;
mod broadcast;
mod broadcast_handle;
mod config;
mod events;
mod group;
mod history;
mod hub;
mod member_versions;
mod metrics;
mod no_leader;
mod open_permissions;
mod permission;
mod progress_schedule;
mod ranges;
mod read_index;
mod service;
mod status;
#[cfg(test)]
pub(super) mod tests;
mod upstream;

pub use config::WatchHubConfig;
pub use hub::{HubReader, WatchHub};
pub(super) use member_versions::MemberVersions;
pub use metrics::ProxyWatchMetrics;
pub use service::ProxyWatchService;
pub(super) use upstream::{Members, ReplicaWatches, Subscription, Upstream, UpstreamStream};
