//! The write-ahead log: raft's entries and hard states, in etcd's format on disk.
//!
//! `core::raft`'s writer thread appends entries and hard states to a buffer and syncs once per group; after that
//! the group is durable. At start the log is read from the position of the stored state on. docs/design/wal.md draws the
//! file and describes how a torn end is distinguished from corruption.
//!
//! Start with `record.rs` (the bytes), then `log.rs` (writing) and `recover.rs` (reading); `replay.rs` holds the
//! rules a log has to obey, `disk.rs` the files behind a trait, `prepare.rs` the thread that
//! writes the zeroes of the next segment.
//!
//! Import circle: `disk.rs`, `prepare.rs`: a disk starts the thread that makes its next file, and that thread works through the same
//! disk.

mod disk;
mod error;
mod log;
mod prepare;
mod reader;
mod record;
mod recover;
mod replay;
mod segment;
#[cfg(test)]
mod tests;

pub use disk::{FsDisk, FsFile, WalDisk, WalFile};
pub use error::WalError;
pub use log::Wal;
pub use prepare::Preparing;
pub use record::{HardState, WalEntry, WalEntryKind, WalMetadata, WalSnapshot};
pub use recover::{Recovered, TornTail};
pub use replay::Keep;
