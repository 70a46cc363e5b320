//! The members of the cluster, their ids and URLs, and the cluster version.
//!
//! `store.rs` is the set of members and of the ids that were removed, changed only by apply, one row each; raft's
//! voters and learners follow from it. `decide.rs` holds the rules by which every member accepts or refuses a
//! membership change that is in the log, `change.rs` the content of such a change. `member.rs` is one member and its stored
//! JSON, `id.rs` computes member and cluster ids as etcd does, `version.rs` the cluster version.

mod change;
mod decide;
mod id;
mod member;
mod store;
mod version;

pub use change::{AddContext, DEFAULT_MAX_LEARNERS, MembersAction, MembershipError};
pub use id::{added_member_id, cluster_id, member_id};
pub use member::Member;
pub use store::{ClusterError, ClusterRows, ClusterStore, STORAGE_VERSION};
pub use version::ClusterVersion;
