//! Committed entries become state.
//!
//! `applier.rs` is the total function (state, entry) -> (state, outcome, facts): no clock, no chance, no I/O. It owns
//! the writable side of the state rooms. `driver.rs` is the apply thread's work: it publishes the state once per batch, tells
//! the watchers and only then answers; `task.rs` is the thread, a loop around it that takes batches from raft; the raft thread
//! of a member that is alone and has nothing else to do applies a batch of one or two itself. `pending_requests.rs` knows who waits for which
//! request, and when one is lost, `proposal.rs` when it is proposed again; `prepared_snapshots.rs` holds snapshots received from the leader until consensus installs them; `cost.rs` is
//! what a write counts for against the quota, `permission.rs` what it may only be done with, `describe.rs` how a request is named in metrics and logs.

mod applier;
mod cost;
mod describe;
mod driver;
#[cfg(test)]
mod hot_path;
mod operation;
mod outcome;
mod pending_requests;
mod permission;
mod prepared_snapshots;
mod proposal;
mod task;
#[cfg(test)]
mod testing;

pub use applier::{AppliedRequest, Applier, ApplierConfig, Batch, LeaseFact, open_leases};
pub use cost::{LEASE_COST_BYTES, exceeds, put_cost, txn_cost};
pub use describe::{describe_range, describe_request, describe_txn};
pub use driver::{ApplyDriver, ApplyHandle, ApplyObserver, ApplyProgress};
pub use operation::{Applied, CompactionInForce, GrantedLease, Login, Operation, Proposable};
pub use outcome::{ApplyError, Outcome};
pub use pending_requests::{PendingRequests, ProposalOutcome, SharedPendingRequests};
pub use permission::{check_lease_writes, check_range_permission, check_txn_permission};
pub use prepared_snapshots::PreparedSnapshots;
pub use proposal::{PROPOSE_PAUSE, ProposalDriver, ProposalEnd, ProposalStep};
pub use task::{ApplyConfig, ApplyInlet, ApplyQueue, ApplyTask, CompactionPace};
