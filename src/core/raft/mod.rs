//! Consensus: what is proposed here comes back committed, in one order, on every member.
//!
//! `node.rs` is the logic without threads, disk or clock: ticks, proposals and "persisted" notices go in, groups to
//! persist and committed entries come out. `log.rs` is the log tail the library reads. `task.rs` is the thin shell:
//! the raft thread with its inbox, and the handle the server uses. `wal_writer.rs` is the thread that makes groups
//! durable, one `fdatasync` each, while the next group fills.
//!
//! The library's own message types stay in this room.

mod log;
mod node;
mod task;
#[cfg(test)]
mod tests;
mod wal_writer;

pub use log::LogTail;
pub use node::{Committed, CommittedKind, NodeConfig, PersistGroup, RaftError, RaftNode, Step, bootstrap_entry};
pub use task::{CommitSink, ProposeError, RaftHandle, RaftInbox, RaftStatus, RaftTask, TaskConfig};
pub use wal_writer::{PersistError, WalObserver, WalWriter};
