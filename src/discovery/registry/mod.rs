//! Bootstrap of a cluster by a token in another etcd cluster (etcd's v3 discovery).
//!
//! The registry is a few keys below `/_etcd/registry/TOKEN/` (`keys.rs`): how many members there will be, and an entry of each. A
//! member that begins writes its entry and waits until there are enough (`join.rs`).

mod error;
mod join;
mod keys;

pub use error::RegistryError;
pub use join::join_cluster;
