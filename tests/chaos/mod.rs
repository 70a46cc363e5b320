//! Real processes under real faults, and the checkers over what the clients saw.
//!
//! Every test is a scenario: a fresh cluster under recorded load, faults drawn from a seed, then everything is healed,
//! progress is required, and the whole history is checked. `cargo test` runs each scenario once and short; `just chaos`
//! runs rounds of them (`WATERSHED_CHAOS_ROUNDS`, `WATERSHED_CHAOS_SEED`). A failure prints the seed and keeps data
//! directories, logs and `history.json`. Read `stage.rs` first.

mod cached;
mod disks;
mod failover;
mod kills;
mod members;
mod partitions;
mod pauses;
mod resources;
mod stage;
