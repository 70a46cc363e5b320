//! The gRPC and HTTP faces of the core, and the member behind them.
//!
//! `member.rs` opens the data directory and starts every part of a member; `bootstrap.rs` finds out who a member without
//! data is, if need be by asking others over `peer_http.rs`, and `recover.rs` opens the files; `core.rs` is what all services share:
//! propose, linearizable read, headers. `route.rs` takes a request to its service, one file per service. `error.rs`
//! alone turns the rooms' errors into statuses. Time enters at `lease_clock.rs` and `auto_compaction.rs`.

mod auth;
mod auto_compaction;
mod bootstrap;
mod checkpoint;
mod checks;
mod cluster;
mod core;
mod debug_vars;
mod error;
mod force;
mod gauges;
mod hand_over;
mod health;
mod http;
mod integrity;
mod join;
mod kv;
mod lease;
mod lease_clock;
mod lease_leader;
mod long_answer;
mod maintenance;
mod member;
mod metrics;
mod observer;
mod peer;
mod peer_calls;
mod peer_http;
mod peers;
mod quota;
mod recipe_store;
mod reconfigure;
mod recover;
mod renewals;
mod route;
mod snapshot;
mod transfer;
mod version;
mod watch;

pub use self::bootstrap::Bootstrap;
pub use self::core::{Core, Limits, Published};
pub use self::gauges::refresh_gauges;
pub use self::http::{BrowserRules, HttpFace};
pub use self::member::{Failed, Member, StartError};
pub use self::metrics::{CoreMetrics, SlowRequests};
pub use self::peer::PeerFace;
pub use self::peer_calls::answer_peer;
pub use self::peer_http::RunningCluster;
pub use self::recipe_store::CoreRecipeStore;
pub use self::recover::{Disks, Layout, Opened, Opening, RecoverError, open as recover, stored_members};
pub use self::renewals::Renewals;
pub use self::route::Router;
pub use self::watch::{WatchContext, WatchService};
