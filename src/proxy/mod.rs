//! The L7 gRPC proxy: many clients in, few streams out, in front of any etcd v3 cluster.
//!
//! A request enters at [`ProxyService`] (`service.rs`), one for each serving thread, and finds its [`Tenant`] (`tenants/`). For a
//! tenant that sees the whole key space it passes as bytes; for any other `namespace/` rewrites its keys. `http/` is
//! what the port answers beside gRPC, `cache/` answers ranges from replicas that a watch keeps current, `identity/` says whose requests may share an upstream stream and what a caller may
//! read, `compaction.rs` tells watches of compactions, `limits/` how much a tenant may use, `message_limits.rs` bounds the messages of clients, `revision_tracking.rs` notes the newest revision that a connection was sent, which no later answer may be older
//! than. The cluster is reached through [`client`](crate::client) alone.

mod answer;
mod cache;
mod cluster_health;
mod compaction;
mod endpoints;
mod http;
mod identity;
mod lease;
mod limits;
mod members;
mod message_limits;
mod namespace;
mod registration;
mod revision_tracking;
mod service;
mod tenants;
mod watch;

pub use cache::{CacheBudget, CacheConfig, CacheMetrics, CacheParts, CacheReads, RangeCache};
pub use cluster_health::pause_without_cluster;
pub use endpoints::UpstreamPools;
pub use http::{Listeners, PageListeners};
pub use identity::{Caller, Identity, KeptPermission, PERMISSION_MAX, ProxyUser, ReadPermission, ReadPermissions};
pub use lease::KeepAliveBroadcasts;
pub use limits::{Limits, TenantMetrics, Turns};
pub use members::SelfMember;
pub use message_limits::MessageLimits;
#[cfg(fuzzing)]
pub use namespace::fuzzing;
pub use namespace::{KnownLeases, Namespace, ResponseMemory, Rights};
pub use registration::{RegisteredProxies, Registration};
pub use service::{ProxyService, WorkerParts, proxy_calls};
pub use tenants::{AgreedCompaction, Tenant, TenantCache, TenantRule, TenantSet, TenantUpstream, TenantUser, Tenants};
pub use watch::{HubReader, ProxyWatchMetrics, ProxyWatchService, WatchHub, WatchHubConfig};
