//! Consensus: what is proposed here comes back committed, in one order, on every member.
//!
//! `node.rs` is the logic without threads, disk, network or clock: ticks, proposals, peers' messages and "persisted"
//! notices go in; messages, groups to persist and committed entries come out (`step.rs`). `log.rs` is the log tail the
//! library reads; `check.rs` refuses messages it would panic at; `reads.rs` batches linearizable reads; `members.rs` and
//! `peer.rs` are the words for membership changes and for what goes to peers. `task.rs` is the thin shell: the raft
//! thread; `handle.rs` its inbox, and the way in that the server uses. `wal_writer.rs` is the thread that makes groups
//! durable, one `fdatasync` for as many as wait, while the next group fills; a member that is alone does it on the raft
//! thread.
//!
//! The library's own message types stay in this room.

mod check;
mod handle;
mod log;
mod members;
mod node;
mod peer;
mod reads;
mod step;
mod task;
#[cfg(test)]
mod tests;
mod wal_writer;

pub use check::{PeerMessage, snapshot_message};
pub use handle::{Proposal, ProposeError, RaftHandle, RaftInbox, RaftStatus};
pub use log::LogTail;
pub use members::{ChangeKind, MembersDecision, ProposedChange, bootstrap_entries, members_entry};
pub use node::RaftNode;
pub use peer::{Lane, NoPeers, Outbound, PeerProgress, PeerSink, RefusedMessage};
pub use reads::ReadQueue;
pub use step::{Committed, CommittedKind, NodeConfig, PersistGroup, RaftError, Step, Stepped};
pub use task::{CommitSink, RaftTask, TaskConfig};
pub use wal_writer::{PersistError, WalObserver, WalWriter};
