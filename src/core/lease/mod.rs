//! Leases: what was granted, and when it expires.
//!
//! Two independent halves. [`LeaseStore`] is replicated state: which leases exist and which keys are attached to them.
//! Only `core::apply` changes it, from the log, so it is the same on every member. [`Lessor`] keeps the leader's
//! deadlines in memory: keep-alives extend them, and the leader asks it periodically which leases have expired. Every
//! member updates it with grants and revokes as they are applied, but only a promoted one has deadlines. It does not
//! wait; every call gets the time as an argument.
//!
//! An expired lease still exists: the leader proposes its revocation, apply removes it from the store, deletes its keys
//! and updates the lessor.
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
pub use lessor::{DueCheckpoint, Lessor, LessorConfig, Renewed, UnsortedLeases};
pub use store::{Granted, Lease, LeaseStore, Revoked, TTL_MAX_SECONDS};
