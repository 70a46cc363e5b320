//! Watching the store: the event log of a member and the history behind it.
//!
//! The room above hands [`CoreWatch::append`] the events of each applied batch, after their revisions are published
//! and before their writers are answered. Everything else (cursors, routing, streams) is `eventlog`; `history.rs`
//! reads for it what has left the log, from the store. Read `log.rs` first.

mod history;
mod log;

pub use log::CoreWatch;
