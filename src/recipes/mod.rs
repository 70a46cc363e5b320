//! Lock and election: etcd's server-side recipes, written once over a small store interface.
//!
//! A request enters through [`LockService`] or [`ElectionService`] (the gRPC services), turns into plain KV and
//! lease operations on a [`RecipeStore`] and nothing else, so the same code runs inside a member and inside the
//! proxy, there with the tenant's prefix applied by the store. Both recipes are one queue: a key per lease under
//! `name/`, the lowest create revision is first. Start with `queue.rs`; `observe.rs` is the stream of
//! leaders.

mod election;
mod error;
mod lock;
mod observe;
mod queue;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use election::ElectionService;
pub use lock::LockService;
pub use store::RecipeStore;
