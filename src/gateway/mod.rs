//! The TCP gateway: accepts connections, of TCP or of a unix socket, and moves their bytes to a live endpoint.
//!
//! A connection (`stream.rs`) enters at the accept loop (`accept.rs`, on a `listener.rs`), which gives it to the serving thread with the fewest
//! (`worker.rs`); there it stays. With `--route` its first bytes (`first_bytes.rs`) say which endpoints it may go to
//! (`routes.rs`). The thread dials an endpoint (`dial.rs`, with `shortage.rs` for what is not the endpoint's fault) that the balancer chose (`upstreams.rs` by
//! `balance.rs`, among what `upstream.rs`, `check.rs`, `probe.rs` and `loops.rs` know of each) and then runs a `Pump` (`pump.rs`), two `Flow`s (`flow.rs`) that move bytes without
//! holding memory while they are idle. [`Gateway::start`] wires that together, [`EndpointLists`] changes the endpoints of a gateway that runs; `hot_restart.rs` passes the listening
//! sockets to the next process. Read `flow.rs` first: all
//! bytes go through it.

mod accept;
mod balance;
mod cause;
mod check;
mod client;
mod dial;
mod endpoint_lists;
mod error;
mod first_bytes;
mod flow;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(test)]
mod hot_path;
mod hot_restart;
mod http;
mod limits;
mod listener;
mod loop_questions;
mod loops;
mod metrics;
mod pool;
mod probe;
mod proxy_protocol;
mod pump;
mod routes;
mod shortage;
mod sources;
mod start;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod upstream;
mod upstreams;
mod worker;

pub use endpoint_lists::EndpointLists;
pub use error::GatewayError;
pub use hot_restart::{Handover, Predecessor};
pub use metrics::GatewayMetrics;
pub use start::Gateway;
