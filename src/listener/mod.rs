//! Accepting connections: sockets, per-core runtimes, HTTP/1 and HTTP/2 on one port.
//!
//! A connection arrives at the one accept loop (`accept.rs`), is handed to the serving thread with the fewest
//! connections (`worker.rs`) and stays there: HTTP/2 in Rust takes a lock per connection, so a connection that never
//! changes threads never waits for it. It is counted until its stream is gone (`counted.rs`), and as many as
//! [`ConnectionLimits`] (`connection_limits.rs`) allows are accepted. Its first byte says whether it speaks TLS (`first_bytes.rs`), and what does not
//! fit the socket is told so (`misdirected.rs`). It is read no faster than its requests are handled (`paced.rs`), and
//! ends when the client pings too often (`pings.rs`, which finds the frames by `frames.rs`). Each request carries the
//! [`ConnectionInfo`] of its connection in its extensions. The core and the proxy give a function that makes their service,
//! which is called once on each serving thread; their services read request bodies through `arriving.rs`, which bounds what
//! bodies hold before they have come whole; who collects a body of another kind counts it by `held.rs`. `outgoing.rs` bounds
//! what answers hold that are not taken (`unsent.rs` has the counts); what one turn of a connection writes is one
//! write (`net::Batched`); `head.rs` refuses heads of calls that no handler
//! should see. A connection that HTTP hands over leaves by `upgraded.rs`.

mod accept;
mod arriving;
mod connection_info;
mod connection_limits;
mod counted;
mod first_bytes;
mod frames;
#[cfg(fuzzing)]
pub mod fuzzing;
mod head;
mod held;
#[cfg(test)]
mod hot_path;
mod misdirected;
mod open_streams;
mod outgoing;
mod paced;
mod pings;
mod rejections;
mod socket;
#[cfg(test)]
mod tests;
mod unfinished;
mod unsent;
mod upgraded;
mod worker;

pub use accept::{Listening, OpenListener, Serving, answering, serve};
pub use arriving::{Arriving, CollectedBytes};
pub use connection_info::ConnectionInfo;
pub use connection_limits::ConnectionLimits;
pub use counted::{Counted, OpenConnection};
pub use head::refused_head;
pub use held::HeldBytes;
pub use socket::{ListenerError, Protection, Socket, bind, bind_port, bind_unix};
#[cfg(test)]
pub(crate) use upgraded::as_served;
pub use upgraded::plain_tcp;
pub use worker::{ListenerConfig, WorkerId};
