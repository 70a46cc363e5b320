//! Whole-program tests by feature. One binary: linking everything once is enough.

#[path = "../harness/mod.rs"]
mod harness;

#[path = "../crash/mod.rs"]
mod crash;

mod bad_input;
mod compaction;
mod ctl;
mod floods;
mod http;
mod kv;
mod lease;
mod long_range;
mod maintenance;
mod metrics;
mod namespace;
mod pings;
mod public_client;
mod range;
mod recipes;
mod scale;
mod startup;
mod txn;
mod watch;
