//! Watershed: a coordination store that speaks the etcd v3 API, with the access tier in the same binary.
//!
//! Rooms, from the outside in: `cmd` wires a process together from `config`; `core` is the replicated server;
//! `proxy` and `gateway` are the access tier, which works in front of any etcd v3 cluster and knows nothing of
//! `core`; `client` and `discovery` reach clusters; `eventlog` is the watch machinery that `core` and `proxy`
//! share, `json` the API as JSON over HTTP, `tree` the ordered map under the store; `recipes` holds lock and election;
//! `listener` accepts connections and `net` opens them; `ctl`, `bench` and `utl` are the tools.
//! ARCHITECTURE.md has the picture, `tests/architecture.rs` holds who may import whom.

// For the simulated disk of `tests/`, which the log's own tests use as well.
#[cfg(test)]
extern crate self as watershed;

pub mod api_error;
pub mod bench;
pub mod bolt;
pub mod client;
pub mod cmd;
pub mod config;
pub mod core;
pub mod ctl;
pub mod discovery;
pub mod eventlog;
pub mod gateway;
pub mod json;
pub mod listener;
pub mod net;
pub mod pages;
pub mod pb;
pub mod proxy;
pub mod recipes;
pub mod registry;
pub mod shutdown;
pub mod telemetry;
pub mod tree;
pub mod types;
pub mod utl;
