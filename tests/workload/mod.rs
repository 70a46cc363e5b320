//! Clients that load a cluster and record what they ask and see, as a [`History`](crate::checkers::History).
//!
//! [`Load`] starts them: writers and readers on each member and over all of them, lease holders, a client that compacts,
//! and watchers that move from member to member. Read `load.rs` first. `wire.rs` turns the requests of a history into
//! those of the API, and answers back.

mod lease;
mod load;
mod recorder;
mod traffic;
mod watcher;
mod wire;

pub use load::{Load, Plan};
pub use recorder::Recorder;
