//! The replicated server.
//!
//! One way through: `server` turns a request into a typed one, `raft` orders it and `wal` makes it durable, `apply`
//! changes the state rooms, `watch` tells the world. `server/mod.rs` is the place to start reading.
//!
//! Inside the crate the name `core` hides the standard library's; write `std::…`.

pub mod alarm;
pub mod apply;
pub mod auth;
pub mod backend;
pub mod cluster;
pub mod lease;
pub mod mvcc;
pub mod peer;
pub mod raft;
pub mod reply;
pub mod server;
pub mod wal;
pub mod watch;
