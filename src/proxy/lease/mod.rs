//! Lease keep-alives of all clients on one upstream stream for each identity and serving thread.
//!
//! A client's stream (`stream.rs`) reads requests and asks its hub (`hub.rs`, found in `hubs.rs` by identity), which
//! keeps a table of lease id and waiters (`table.rs`), sends each id once however many wait for it, and hands the
//! member's answer, unchanged, to all of them. There is no task and no timer for a lease: an answer leaves when the
//! member's arrives, and not before.

mod hub;
mod hubs;
mod slot;
mod stream;
mod table;
#[cfg(test)]
mod tests;

pub(super) use hubs::LeaseHubs;
pub(super) use stream::{Gate, Verdict, admit, keep_alive};
