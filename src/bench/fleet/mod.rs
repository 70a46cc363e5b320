//! `bench fleet`: what proxies in levels in front of one cluster cost under a load that no test machine has.
//!
//! `costs.rs` holds what one operation costs, measured on a real machine, each with its command (`costs.json`; `measure.rs` takes them
//! anew). `model.rs` multiplies and adds: per level CPU, memory, bandwidth and latency, and where the first limit is. `check.rs`
//! runs small fleets and compares them with the model.

mod check;
mod costs;
mod measure;
mod model;
mod report;
mod run;

pub(super) use run::run;
