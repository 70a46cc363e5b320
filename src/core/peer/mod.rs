//! The connections between the members of a cluster.
//!
//! `transport.rs` is the way in: messages to send, calls to make, the list of peers to follow. Everything runs on one
//! thread of its own. `peer_set.rs` decides who is a peer and who may connect, without any connection. `link.rs` is what waits for one peer, `lanes.rs` keeps its connections up, `outgoing.rs` moves
//! frames on a dialled connection and `incoming.rs` on an accepted one; `hello.rs` is the handshake before, `frame.rs`
//! the bytes. Db snapshots travel by `snapshot_send.rs` and `snapshot_receive.rs`, requests by `calls.rs`.
//!
//! What arrives goes to the [`PeerReceiver`] that the wiring gives (`receiver.rs`). The wire format is drawn in
//! `docs/design/peer-protocol.md`.
//!
//! Import circle: `transport.rs`, `lanes.rs`, `incoming.rs`, `snapshot_receive.rs`, `snapshot_send.rs`: the transport starts
//! the tasks of a connection, and each of them works with what all connections share, which the transport owns.

mod calls;
mod config;
mod dial;
mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hello;
mod incoming;
mod lanes;
mod link;
mod outgoing;
mod peer_set;
mod queue;
mod receiver;
mod snapshot;
mod snapshot_receive;
mod snapshot_send;
#[cfg(test)]
mod tests;
mod transport;

pub use config::{Peer, PeerConfig, PeerDialer, PeerLimits, PeerTls};
pub use dial::{DialError, connect_url};
pub use hello::{Greeting, Hello, PEER_PATH, Purpose, Refusal, answer};
pub use peer_set::{PeerChanges, PeerSet};
pub use receiver::{CallError, CallFailure, PeerReceiver, SnapshotSource};
pub use transport::{PeerQueue, PeerTransport};
