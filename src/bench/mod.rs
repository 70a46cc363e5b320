//! The load generator: puts load on any etcd v3 endpoint and measures throughput, latency and cost.
//!
//! A command line enters at `app.rs` and is read by `args.rs`. `setup.rs` logs in and finds the leader; `unary.rs`
//! drives single requests (`requests.rs` makes them), `watch.rs` the fan-out to many watchers (`tally.rs` checks that
//! each saw each event once and in order), `keepalive.rs` lease streams, `compare.rs` two endpoints in turns; `measure.rs` runs one load. All of
//! them take their requests from a `Pace` (`pace.rs`: closed loop, or open loop measured from the planned time), run
//! on a few single-threaded runtimes (`threads.rs`) and speak raw gRPC (`wire.rs`, `scan.rs`), so that the generator is
//! not what is measured. `record.rs`, `timeline.rs` and `report.rs` hold the outcome, `server.rs` what it cost the servers.
//! `suite/` measures whole programs side by side, from the start of their processes to a table with floors;
//! `fleet/` computes what many proxies cost, and checks that on small fleets.
//! `tcp.rs` loads a TCP forwarder, such as the gateway.

mod app;
mod args;
mod compare;
mod fleet;
mod keepalive;
mod measure;
mod pace;
mod record;
mod report;
mod requests;
mod scan;
mod server;
mod setup;
mod statistics;
mod suite;
mod tally;
pub mod tcp;
mod threads;
mod timeline;
mod unary;
mod watch;
mod wire;

pub use app::run;
