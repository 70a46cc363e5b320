//! How the members of a cluster that begins register themselves and find each other: the side of these members.
//!
//! Two protocols of etcd do the same. A token (`token.rs`, etcd's v3 discovery) is a few keys in an etcd v3 cluster (`keys.rs`):
//! how many members there will be, and an entry of each. A URL (`url.rs`) answers the v2 keys API for the same two things. A
//! member writes its entry and waits until there are enough (`join.rs`); the first ones are the cluster (`registered.rs`).

mod asking;
mod error;
mod join;
mod keys;
mod registered;
mod token;
mod url;

pub use error::JoinError;
pub use join::join_cluster;
pub(in crate::discovery) use join::{Looks, Registry};
pub use keys::RegistryKeys;
pub use registered::peer_urls;
