//! The shared event log: one append per revision, any number of watchers reading.
//!
//! Whoever applies changes owns an [`EventLog`] and appends each revision to it once, as a [`LogBatch`]. That is all
//! the writer ever does for watchers. Each serving thread has a shard ([`ShardHandle`]) with the watchers of its
//! streams: a watcher is a cursor, never a queue. The shard wakes on an append, finds the groups of watchers that
//! want an event (`routes.rs`), encodes it once and queues the shared bytes for each stream. A stream that does not
//! drain stops its cursors; they go on from the log, or from [`History`] when the log has moved past them.
//!
//! `core::watch` owns one log for the whole store; `proxy::watch` one for each upstream watch. Both give the shard a
//! [`Source`] (log and history) for each watch their [`Desk`] admits. Start with `log.rs`, then `shard.rs`, then
//! `shard/deliver.rs` (events that are new) and `shard/catch_up.rs` (events that were missed); `stream.rs` is the
//! gRPC side. docs/design/eventlog.md has the picture and the reasons.

mod batch;
mod history;
mod hub;
mod interval;
mod log;
mod origin;
mod outbox;
mod routes;
mod shard;
mod source;
mod stream;
#[cfg(test)]
mod tests;

pub use batch::{EventKind, LogBatch, LogEvent};
pub use history::{History, HistoryBatch, HistoryError, HistoryRequest};
pub use hub::ShardHandle;
pub use log::EventLog;
pub use origin::Origin;
pub use outbox::End;
pub use routes::Filters;
pub use shard::WatchLimits;
pub use source::Source;
pub use stream::{Admission, Decision, Desk, Refusal, Ruling, WatchStream};
