//! Lease keep-alives of all clients on one upstream stream for each identity, whichever serving threads they are on.
//!
//! A client's stream (`stream.rs`) reads requests and asks its broadcast (`broadcast.rs`, found in `broadcasts.rs` by identity), which
//! keeps a table of lease id and waiters (`table.rs`), sends each id once however many wait for it, and hands the
//! member's answer, unchanged, to all of them. There is no task and no timer for a lease: an answer leaves when the
//! member's arrives, and not before.

mod broadcast;
mod broadcasts;
mod client_stream;
mod stream;
mod table;
#[cfg(test)]
mod tests;

pub use broadcasts::KeepAliveBroadcasts;
pub(super) use stream::{LeaseOwnership, Owner, admit, keep_alive};
