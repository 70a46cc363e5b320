//! Leases: what was granted, and when it runs out.
//!
//! Two halves that do not know each other. [`LeaseStore`] is replicated state: which leases exist and which keys hang
//! on them. Only `core::apply` changes it, with what the log says, so it is the same on every member. [`Lessor`] is
//! the leader's clock: deadlines in memory, moved by keep-alives, asked now and then which leases have run out.
//! Every member feeds it with grants and revokes as they are applied, but only a promoted one knows deadlines. It does
//! no waiting of its own; every call is told the time.
//!
//! A lease that runs out is not gone: the leader proposes its revocation, apply takes it out of the store and deletes
//! its keys, and tells the lessor.
//!
//! Read `store.rs` first, then `lessor.rs`; `wheel.rs` is the timer under it.

mod error;
mod lessor;
mod store;
#[cfg(test)]
mod tests {
    mod leadership;
}
mod wheel;

pub use error::{LeaseError, RenewError};
pub use lessor::{DueCheckpoint, Lessor, LessorConfig, Renewed};
pub use store::{Granted, Lease, LeaseStore, Revoked, TTL_MAX_SECONDS};
