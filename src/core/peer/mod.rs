//! The connections between the members of a cluster.
//!
//! `transport.rs` is the way in: messages to send, calls to make, the list of peers to follow.
//! What arrives goes to the [`PeerReceiver`] that the wiring gives (`receiver.rs`).

mod config;
mod receiver;
mod transport;

pub use config::{Peer, PeerConfig, PeerLimits};
pub use receiver::{CallError, CallFailure, PeerReceiver, SnapshotSource};
pub use transport::{PeerQueue, PeerTransport};
