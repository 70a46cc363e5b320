//! Checks recorded histories against the promises of the etcd API.
//!
//! A [`History`] is what clients asked and saw, with times of one monotonic or logical clock. [`explain`] looks for an
//! order of the writes that a sequential store could have taken and that agrees with every answer and with real
//! time; it answers with an [`Explanation`], the authoritative list of events. The other checks compare with that:
//! [`check_watch`] the guarantees of each watch, [`check_leases`] that no lease ended early, [`check_end_states`] that
//! the members are equal. [`check_all`] runs them over one history. Read `history.rs` first, then `linear.rs`.
//!
//! The checkers know nothing of processes or of the simulator: both record the same history.

mod end_state;
mod history;
mod lease;
mod linear;
mod model;
mod violation;
mod watch;
mod wire;

pub use end_state::{MemberState, check_end_states};
pub use history::{
    Body, Compare, CompareTarget, Comparison, Event, History, Kv, Nanos, Operation, Outcome, RangeQuery, Request,
    WatchAnswer, WatchMessage, WatchRecord,
};
pub use lease::check_leases;
pub use linear::{Cause, Explanation, explain, explain_trusting_watches};
pub use model::{Change, Effect, Store};
pub use violation::{Rule, Violation};
pub use watch::check_watch;
pub use wire::text;

/// What a checked history held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Operations of clients.
    pub operations: usize,
    /// Of these, the ones whose outcome the client never learned.
    pub unknown: usize,
    /// Of the unknown ones, those that took effect.
    pub unknown_applied: usize,
    /// Revisions explained.
    pub revisions: usize,
    /// Watches checked.
    pub watches: usize,
    /// Events these received.
    pub events: usize,
    /// Leases checked.
    pub leases: usize,
}

impl std::ops::AddAssign for Checked {
    fn add_assign(&mut self, other: Self) {
        self.operations += other.operations;
        self.unknown += other.unknown;
        self.unknown_applied += other.unknown_applied;
        self.revisions += other.revisions;
        self.watches += other.watches;
        self.events += other.events;
        self.leases += other.leases;
    }
}

/// Runs every check over one history.
///
/// # Errors
/// The first broken promise.
pub fn check_all(history: &History) -> Result<Checked, Violation> {
    let mut explanation = match explain(history) {
        // With many writes of unknown outcome there are too many orders, few of which the watches agree with.
        Err(violation) if violation.rule == Rule::Undecided => {
            explain_trusting_watches(history).map_err(|_| violation)?
        }
        explained => explained?,
    };
    let events = match check_watches(history, &explanation) {
        Ok(events) => events,
        // Writes of unknown outcome may have come in another order, one that the watches agree with.
        Err(violation) => {
            explanation = explain_trusting_watches(history).map_err(|_| violation)?;
            check_watches(history, &explanation)?
        }
    };
    let leases = check_leases(history, &explanation)?;
    Ok(Checked {
        operations: history.operations.len(),
        unknown: history.operations.iter().filter(|operation| operation.outcome == Outcome::Unknown).count(),
        unknown_applied: explanation.unknown_applied(),
        revisions: explanation.causes.len(),
        watches: history.watches.len(),
        events,
        leases,
    })
}

fn check_watches(history: &History, explanation: &Explanation) -> Result<usize, Violation> {
    history.watches.iter().map(|watch| check_watch(watch, history, explanation)).sum()
}
