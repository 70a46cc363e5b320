//! Database snapshots in bbolt's format, version 2: what etcd calls a snapshot.
//!
//! A writer that streams a new db snapshot of sorted rows to anyone, in two passes over them and without seeking, and a
//! reader that trusts nothing it reads. etcd's own tools take the db snapshots: `etcdutl snapshot status`, `restore` and
//! `hashkv`. Used by `core::backend`, which has the rows, and by `ctl`, which looks at db snapshot files.
//!
//! Start with `format.rs` (the pages), then `plan.rs` and `writer.rs`; `reader.rs` and `status.rs` go the other way.

mod error;
mod format;
mod plan;
mod reader;
mod status;
#[cfg(test)]
mod tests;
mod writer;

pub use error::BoltError;
pub use plan::{SnapshotPlan, SnapshotRows, Visit};
pub use reader::{BoltFile, VisitRow};
pub use status::{SnapshotStatus, status};
