//! The real program: single members, clusters, gateways and proxies, as processes on loopback.
//!
//! One test program for all of them: it is linked once, and its tests, which mostly wait, share the threads that
//! `.cargo/config.toml` gives them; `harness/share.rs` bounds how many processes run at once. README.md says which suite
//! answers which question.

#[path = "../chaos/mod.rs"]
mod chaos;
#[allow(dead_code, unused_imports, reason = "another test program uses the rest")]
#[path = "../checkers/mod.rs"]
mod checkers;
#[path = "../cluster/mod.rs"]
mod cluster;
#[path = "../crash/mod.rs"]
mod crash;
#[path = "../features/mod.rs"]
mod features;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../proxy/mod.rs"]
mod proxy;
#[path = "../soak/mod.rs"]
mod soak;
#[path = "../workload/mod.rs"]
mod workload;

// Where a file that the unit tests share finds it.
use watershed::pb;
