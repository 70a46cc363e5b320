//! The gRPC and HTTP services of the core, and the member that they belong to.
//!
//! `member.rs` opens the data directory and starts every part of a member; `bootstrap.rs` finds out who a member without
//! data is, if need be by asking others over `remote_cluster.rs`, and `recover.rs` opens the files; `core.rs` is what all services share:
//! propose, linearizable read, headers. `route.rs` takes a request to its service, one file per service. `error.rs`
//! alone turns the rooms' errors into statuses. Time enters at `lease_clock.rs` and `auto_compaction.rs`.

mod auth;
mod auto_compaction;
mod bootstrap;
mod checks;
mod cluster;
mod core;
mod corruption_check;
mod debug_vars;
mod error;
mod force_new_cluster;
mod gauges;
mod health;
mod http;
mod kv;
mod leader_transfer;
mod lease;
mod lease_clock;
mod lease_leader;
mod long_answer;
mod maintenance;
mod member;
mod metrics;
mod move_leader;
mod observer;
mod peer_port;
mod peer_receiver;
mod peer_rpc;
mod publish;
mod quota;
mod recipe_store;
mod reconfigure;
mod recover;
mod remote_cluster;
mod renewals;
mod route;
mod snapshot;
mod version;
mod wal_compaction;
mod watch;

pub use self::bootstrap::Bootstrap;
pub use self::core::{Core, Limits, Published};
pub use self::gauges::refresh_gauges;
pub use self::http::{BrowserRules, HttpHandler};
pub use self::member::{Failed, Member, StartError};
pub use self::metrics::{CoreMetrics, SlowRequests};
pub use self::peer_port::PeerHandler;
pub use self::peer_rpc::answer_peer;
pub use self::recipe_store::CoreRecipeStore;
pub use self::recover::{Disks, Layout, Opened, Opening, RecoverError, open as recover, stored_members};
pub use self::remote_cluster::RunningCluster;
pub use self::renewals::Renewals;
pub use self::route::Router;
pub use self::watch::{WatchContext, WatchService};
