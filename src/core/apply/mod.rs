//! Committed entries become state.
//!
//! `applier.rs` is the total function (state, entry) -> (state, outcome, facts): no clock, no chance, no I/O. It owns
//! the writable side of the state rooms. `task.rs` is the thread around it: it takes batches from raft, publishes
//! the state once per batch, tells the watchers and only then answers. `underway.rs` knows who waits for which
//! request, and when one is lost; `installs.rs` holds states from elsewhere until consensus installs them; `cost.rs` is
//! what a write counts for against the quota, `describe.rs` how a request is named in metrics and logs.

mod applier;
mod cost;
mod describe;
mod installs;
mod outcome;
mod task;
mod underway;

pub use applier::{AppliedRequest, Applier, ApplierConfig, Batch, LeaseFact, open_leases};
pub use cost::{LEASE_COST_BYTES, exceeds, put_cost, txn_cost};
pub use describe::{describe_range, describe_request, describe_txn, operation_of};
pub use installs::Installs;
pub use outcome::{Applied, ApplyError, Outcome};
pub use task::{ApplyConfig, ApplyHandle, ApplyInlet, ApplyObserver, ApplyQueue, ApplyTask, CompactionPace};
pub use underway::{Fate, Underway, Waiters};
