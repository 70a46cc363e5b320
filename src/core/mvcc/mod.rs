//! The multi-version store: keys in memory, their history in the backend.
//!
//! Owns the index of all keys and the order of revisions. `core::apply` is the only writer: it calls [`Store`] with
//! each committed request, submits the [`Written::changes`] to the backend, hands [`Written::events`] to the watch
//! side and [`Written::lease_moves`] to the leases, and publishes once per batch. Everybody else reads through
//! [`StoreReader`]; a [`Snapshot`] is one consistent state and blocks no one.
//!
//! Read `view.rs` first (what a state is and how it is read at a revision), then `record.rs` and `index.rs` (what it
//! is made of), `crate::tree` (the copy-on-write tree under both), `store.rs` and `write.rs` (changing it). `range.rs`, `long_range.rs`,
//! `stream.rs` and `compare.rs` answer requests, `check.rs` refuses malformed ones beforehand, `compaction.rs`,
//! `hash.rs`, `catch_up.rs` and `open.rs` are what their names say; `holds.rs` keeps hashes and compactions apart.
//! docs/design/mvcc.md describes the design.

mod catch_up;
mod check;
mod compaction;
mod compare;
mod error;
mod hash;
mod hash_cache;
mod holds;
#[cfg(test)]
mod hot_path;
mod index;
mod long_range;
mod open;
mod pins;
mod range;
mod reader;
mod record;
mod store;
mod stream;
#[cfg(test)]
mod tests;
mod view;
mod write;

pub use catch_up::{HistoryBatch, HistoryRequest};
pub use check::{
    check_delete_range, check_put, check_range, check_range_stream, check_txn, is_read_only, is_serializable,
};
pub use compaction::{Compaction, Progress, compacted_at};
pub use error::MvccError;
pub use hash::CompactionHash;
pub use hash_cache::HashKv;
pub use long_range::LongRange;
pub use pins::Pin;
pub use range::Extent;
pub use reader::{Snapshot, StoreReader};
pub use store::{EventKind, LeaseMove, LeaseView, OperationCounts, RevisionEvents, Store, StoreEvent, Written};
pub use stream::RangeStream;
pub use write::TxnAnswer;
