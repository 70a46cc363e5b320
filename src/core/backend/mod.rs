//! Checkpointed state on disk: the tables of etcd's database, kept in redb at `member/snap/db`.
//!
//! `apply` submits what each batch of log entries changed; that is visible at once from an overlay in memory. A
//! checkpoint thread writes the overlay in one durable commit together with the log position it reaches, so that a
//! start needs the last checkpoint and the log behind it. The disk is never waited for by the write path.
//!
//! Start with `change.rs` (what goes in), then `store.rs` (the overlay over the database) and `database.rs` (the
//! file); `install.rs` puts a whole other state in place, `disk.rs` holds the files behind a trait. docs/design/backend.md draws the tables and lists what happens when something fails.

mod change;
mod checkpointer;
mod database;
mod db_snapshot;
mod defragment;
mod disk;
mod error;
mod install;
mod load;
mod overlay;
mod row;
mod scrub;
mod store;
#[cfg(test)]
mod tests;
mod totals;
mod wake;

pub use change::{Change, ChangeSet, LogPosition, Table};
pub use checkpointer::Checkpointer;
pub use database::StateFileKind;
pub use db_snapshot::{DbSnapshot, DbSnapshotSummary};
pub use defragment::Defragmented;
pub use disk::{FsStateDisk, StateDisk};
pub use error::BackendError;
pub use install::Prepared;
pub use scrub::ScrubCursor;
pub use store::Backend;
