//! The cache over a simulated cluster: `cluster.rs` lags, loses progress requests, cuts streams and compacts; `simulation.rs`
//! has clients that check every answer against what the cluster had. `refused.rs` has callers whom the cluster refuses, `shared.rs`
//! caches that share their memory, `watched.rs` clients of a watch hub that reads the watches of replicas.

mod cluster;
mod hot_path;
mod refused;
mod shared;
mod simulation;
mod watched;
