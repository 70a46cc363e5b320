//! The command-line client: etcdctl's commands, flags, output and exit codes.
//!
//! A command line enters at `app.rs`, which finds the command (`command.rs`: the whole tree as data), reads its flags
//! (`flags.rs`: the rules of Go's pflag) and the global options with their variables (`options.rs`), and hands a
//! `Session` to one function per command: `kv.rs`, `watch.rs`, `lease.rs`, `cluster.rs`,
//! `snapshot.rs`, `concurrency.rs`. Words become requests in `requests.rs` and `txn.rs`, answers become text in
//! `print/`; both are plain functions. `go.rs` holds the notations that etcdctl inherits from Go.

mod app;
mod cluster;
mod command;
mod concurrency;
mod exec;
mod failure;
mod flags;
mod golang;
mod kv;
mod lease;
mod options;
mod print;
mod requests;
mod session;
mod snapshot;
mod txn;
mod watch;

pub use app::run;
pub use command::Program;
