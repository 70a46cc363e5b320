//! One file per subcommand: the only wiring.
//!
//! [`run`] looks at the first arguments and hands the rest to a mode; each mode reads its own flags. Exit codes: 0
//! after a clean end, 1 for anything else, unless a mode documents more.

pub mod bench;
mod changed_file;
pub mod ctl;
pub mod dev;
pub mod discovery;
mod dispatch;
#[cfg(feature = "failpoints")]
mod failpoints;
pub mod gateway;
pub mod grpc_proxy;
mod initial_cluster;
mod process;
mod reload;
pub mod server;
mod sources;
mod tenants;
mod usage;
pub mod utl;

pub use dispatch::run;
