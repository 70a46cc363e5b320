//! `watershed discovery serve`: answers the discovery URL protocol on top of any etcd v3 cluster.
//!
//! Members of a cluster that is about to start look each other up under a token: the size of the cluster, and the peer URLs of
//! those that have come. The protocol is that of etcd 2 to 3.5 (`--discovery`), the keys are those that etcd's v3 discovery
//! (`--discovery-token`) has in the same cluster (`discovery::RegistryKeys`), so that members of both kinds find each other. Nothing is kept in this
//! process: indexes of the protocol are revisions of the cluster, and any number of these can run side by side.
//!
//! A request enters in `service.rs`, `path.rs` says what it is about, `store.rs` asks the cluster, and `node.rs` has the forms of
//! the answers.

mod node;
mod path;
mod service;
mod store;
mod stored;

pub use service::{RunningRegistry, start};
