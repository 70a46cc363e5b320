//! The shared event log: one append per revision, any number of watchers reading.
//!
//! Whoever applies changes owns an [`EventLog`] and appends each revision to it once, as a [`LogBatch`]. That is all
//! the writer ever does for watchers. Each serving thread has a watcher set ([`WatcherSetHandle`]) with the watchers of its
//! streams: a watcher is a cursor, never a queue. The watcher set wakes on an append, finds the groups of watchers that
//! want an event (`routes.rs`), encodes it once and queues the shared bytes for each stream. A stream that does not
//! drain stops its cursors; they go on from the log, or from [`History`] when the log has moved past them.
//!
//! `core::watch` owns one log for the whole store; `proxy::watch` one for each upstream watch. Both give the watcher set a
//! [`Source`] (log and history) for each watch their [`WatchAdmission`] admits. Start with `log.rs`, then `watcher_set.rs`, then
//! `watcher_set/deliver.rs` (events that are new) and `watcher_set/catch_up.rs` (events that were missed); `stream.rs` is the
//! gRPC side. docs/design/eventlog.md has the picture and the reasons.
//!
//! Import circle: `watcher_set.rs`, `watcher_set/unsynced.rs`: the links of a queue are in the cursors of the watcher set.

mod admission;
mod batch;
mod handle;
mod header_source;
mod history;
#[cfg(test)]
mod hot_path;
mod interval;
mod log;
mod permission;
mod routes;
mod send_queue;
mod source;
mod stream;
#[cfg(test)]
mod tests;
mod watcher_set;

pub use admission::{Admission, Admit, Decision, Refusal, WatchAdmission};
pub use batch::{EventKind, LogBatch, LogEvent};
pub use handle::WatcherSetHandle;
pub use header_source::HeaderSource;
pub use history::{History, HistoryBatch, HistoryError, HistoryRequest};
pub use log::EventLog;
pub use permission::WatchPermission;
pub use routes::Filters;
pub use send_queue::End;
pub use source::Source;
pub use stream::WatchStream;
pub use watcher_set::WatchLimits;
