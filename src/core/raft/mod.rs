//! Consensus: what is proposed here comes back committed, in one order, on every member.
//!
//! `node.rs` is the logic without threads, disk, network or clock: ticks, proposals, peers' messages and "persisted"
//! notices go in; messages, groups to persist and committed entries come out (`step.rs`). `log.rs` is the log tail the
//! library reads; `check.rs` refuses messages it would panic at; `reads.rs` batches linearizable reads; `members.rs` and
//! `peer.rs` are the words for membership changes and for what goes to peers. `driver.rs` is the raft thread's work without
//! its channel and its clock, `wal_driver.rs` that of the thread that makes groups durable: one `fdatasync` for as many as
//! wait, while the next group fills. `task.rs` and `wal_writer.rs` are the threads, loops around them; `handle.rs` is the
//! inbox of the raft thread, and the way in that the server uses. A member that is alone writes on the raft thread.
//!
//! The simulator calls the same drivers. `planted.rs` is how it breaks them on purpose.
//!
//! The library's own message types stay in this module.
//!
//! Import circle: `node.rs`, `node/window.rs`: the second is the part of `RaftNode` that bounds what is in flight to a
//! member; the first has its `Window` as a field and shows its bounds.

mod check;
mod driver;
mod handle;
mod log;
mod members;
mod node;
mod peer;
mod planted;
mod reads;
mod step;
mod task;
#[cfg(test)]
mod tests;
mod wal_driver;
mod wal_writer;

pub use check::{PeerMessage, snapshot_message};
pub use driver::{CommitSink, GroupWriter, RaftDriver};
pub use handle::{Proposal, ProposeError, RaftHandle, RaftInbox, RaftStatus};
pub use log::LogTail;
pub use members::{ChangeKind, MembersDecision, ProposedChange, bootstrap_entries, members_entry};
pub use node::RaftNode;
pub use peer::{Lane, Outbound, PeerProgress, PeerSink, RaftDetails, RefusedMessage, Replication};
pub(crate) use planted::is_planted;
pub use planted::{PlantedFault, plant};
pub use step::{Committed, CommittedKind, NodeConfig, PersistGroup, RaftError, Step, Stepped};
pub use task::{RaftTask, TaskConfig};
pub use wal_driver::{PersistError, WalDriver, WalJob};
pub use wal_writer::{WalObserver, WalWriter};
