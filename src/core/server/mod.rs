//! The gRPC and HTTP services of the core, and the member that they belong to.
//!
//! `member.rs` opens the data directory and starts every part of a member: `bootstrap.rs` decides on the ids of a member
//! without data, if need be by asking others (`remote_cluster.rs`), and `recover.rs` opens the files. `parts.rs` lists the
//! parts, above all `proposer.rs` (writes), `read_index.rs` (linearizable reads), `published.rs` (alarms and members) and
//! `member_info.rs` (ids, headers); `services.rs` gives each service the parts that it needs. A request enters at
//! `route.rs`, which passes it to its service, one file per service; `caller.rs` is the caller of a request. `error.rs` alone turns the
//! rooms' errors into statuses. Time enters at `lease_clock.rs`, at
//! `lease_expiry.rs`, which is a loop around `lease_driver.rs`, and at `auto_compaction.rs`.

mod auth;
mod authenticator;
mod auto_compaction;
mod bootstrap;
mod caller;
mod checks;
mod cluster;
mod corruption_check;
mod debug_vars;
mod error;
mod force_new_cluster;
mod gauges;
mod http;
mod jwt_files;
mod kv;
mod leader_transfer;
mod lease;
mod lease_clock;
mod lease_driver;
mod lease_expiry;
mod lease_leader;
mod limits;
mod long_answer;
mod maintenance;
mod member;
mod member_info;
mod metrics;
mod observer;
mod on_thread;
mod parts;
mod password_threads;
mod peer_port;
mod peer_receiver;
mod peer_rpc;
mod peer_snapshots;
mod proposer;
mod publish;
mod published;
mod quota;
mod read_index;
mod recipe_store;
mod reconfigure;
mod recover;
mod remote_cluster;
mod renewals;
mod route;
mod services;
mod snapshot;
mod version;
mod wal_compaction;
mod watch;

pub use self::bootstrap::Bootstrap;
pub use self::caller::Caller;
pub use self::corruption_check::{ComparedMember, answer as answer_comparison, check_compactions, check_state};
pub use self::error::{Failed, Failure, RecoverError};
pub use self::http::HttpHandler;
pub use self::lease_clock::{LeaseClock, checkpoint_request};
pub use self::lease_driver::LeaseDriver;
pub use self::lease_leader::{LeaderAccess, RENEW, Renewal, answer as answer_as_leader, read_renewed, renewals_body};
pub use self::member::{Member, StartError};
pub use self::metrics::{CoreMetrics, SlowRequests};
pub use self::peer_port::PeerHandler;
pub use self::peer_snapshots::{ReceivedSnapshot, SnapshotError, write_db_snapshot};
pub use self::read_index::ReadIndex;
pub use self::recover::{Disks, Layout, Opened, Opening, open as recover, stored_members};
pub use self::remote_cluster::RunningCluster;
pub use self::route::{Router, Traffic};
pub use self::services::ServiceBuilder;
pub use self::wal_compaction::WalCompaction;
pub use self::watch::WatchContext;
