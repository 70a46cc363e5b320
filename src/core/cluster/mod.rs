//! Members: who belongs to the cluster, under which id, reachable where.
//!
//! `member.rs` is one member and its stored JSON; `store.rs` is the set of them, changed only by apply, one row per
//! member in the `members` table; `id.rs` computes member and cluster ids as etcd does.

mod id;
mod member;
mod store;

pub use id::{cluster_id, member_id};
pub use member::Member;
pub use store::{CLUSTER_VERSION, ClusterError, ClusterStore, STORAGE_VERSION};
