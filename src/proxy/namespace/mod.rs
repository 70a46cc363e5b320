//! A part of the key space that looks like a whole one.
//!
//! `keys.rs` maps keys and ranges in and out, `rewrite.rs` does so for whole messages. A tenant's request enters at
//! [`View`] (`view.rs`), which takes exactly one message (`message.rs`), rewrites it (`kv.rs`, `lease.rs`), runs lock
//! and election on the tenant's own keys (`store.rs`) and refuses what reaches beyond. `ownership.rs` knows whose a
//! lease is. Requests go upstream as they were decoded and encoded here, never as the bytes that came.
//! [`View`] (`view.rs`), which rewrites it (`kv.rs`, `lease.rs`), runs lock and election on the tenant's own keys
//! (`store.rs`) and refuses what reaches beyond. `ownership.rs` knows whose a lease is, `room.rs` bounds the
//! answers that are held to be rewritten.

mod keys;
mod kv;
mod lease;
mod message;
mod ownership;
mod rewrite;
mod room;
mod store;
#[cfg(test)]
mod tests;
mod view;

pub use keys::Namespace;
pub(super) use message::no_decompressor;
pub use room::AnswerRoom;
pub(super) use view::View;
