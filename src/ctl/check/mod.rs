//! `check perf` and `check datascale`: whether a cluster keeps up with a load, and what an amount of data costs it.
//!
//! Each is a file; `load.rs` sends the puts of both and sums them up, `memory.rs` reads a member's memory.

mod datascale;
mod load;
mod memory;
mod perf;

pub(super) use datascale::run as datascale;
pub(super) use perf::run as perf;
