//! Upstream connections: several members, several lanes to each, and the rules for picking and trying again.
//!
//! A request enters at [`Pool`] (`dispatch.rs`), which asks `select.rs` for a member, takes a connection of its lane
//! from `member.rs`, which opens it when needed (`connection.rs`), and sends the bytes. `body.rs` is the answer on its
//! way back. Nothing here decodes a message: requests and answers are bytes, and every outcome, a lost connection
//! included, is an answer with a gRPC status.

mod body;
mod connection;
mod dispatch;
mod fault;
mod member;
mod probe;
mod select;
mod stream;
#[cfg(test)]
mod tests;
mod watch;

pub use body::UpstreamBody;
pub use dispatch::{Head, Pool, PoolConfig};
pub use stream::UpstreamStream;
pub use watch::{UpstreamWatch, framed, unframed};
