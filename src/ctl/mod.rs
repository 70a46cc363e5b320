//! The command-line client: etcdctl's commands, flags, output and exit codes.
//!
//! A command line enters at `app.rs`, which finds the command in the tree (`tree.rs` is data, `command.rs` reads,
//! `help.rs` explains), reads its flags (`flags.rs`: the rules of Go's pflag) and the global options with their
//! variables (`options.rs`), and hands a `Session` to one function per command: `kv.rs`, `watch.rs`, `lease.rs`,
//! `cluster.rs`, `proxy.rs` and `gateway.rs` (by `own_status.rs`), `downgrade.rs`, `snapshot.rs`, `concurrency.rs`, `auth.rs`, `role.rs`, `check/`, `mirror.rs`. Words
//! become requests in `requests.rs` and `txn.rs`, answers become text in `print/`; both are plain functions.
//! `golang.rs` holds the notations that etcdctl inherits from Go.

mod app;
mod auth;
mod check;
mod cluster;
mod command;
mod completion;
mod concurrency;
mod debug;
mod downgrade;
mod exec;
mod failure;
mod flags;
mod gateway;
mod golang;
mod help;
mod kv;
mod lease;
mod mirror;
mod options;
mod own_status;
mod print;
mod program;
mod proxy;
mod requests;
mod role;
mod session;
mod snapshot;
mod terminal;
mod tree;
mod txn;
mod watch;

pub use app::run;
pub use program::Program;
