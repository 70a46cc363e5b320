//! A part of the key space that looks like a whole one.
//!
//! `keys.rs` adds the prefix to keys and ranges and strips it, `rewrite.rs` does so for whole messages. A tenant's
//! request enters at `dispatch.rs`, which takes exactly one message (`message.rs`) and hands it to the tenant's [`View`]
//! (`view.rs`): that rewrites it (`kv.rs`, `lease.rs`), runs lock and election on the tenant's own keys (`store.rs`) and
//! refuses what reaches beyond, or changes something though it may not (`effect.rs`). `ownership.rs` knows whose a lease is, `room.rs` takes room for what is put, `response_memory.rs` bounds the answers that are held to be
//! rewritten. Requests go upstream as they were decoded and encoded here, never as the bytes that came.

mod dispatch;
mod effect;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(test)]
mod hot_path;
mod keys;
mod kv;
mod lease;
mod message;
mod ownership;
mod response_memory;
mod rewrite;
mod room;
mod store;
#[cfg(test)]
mod tests;
mod view;

pub use keys::Namespace;
pub(super) use message::{PREFIX_BYTES, no_decompressor, one_message};
pub use ownership::KnownLeases;
pub use response_memory::ResponseMemory;
pub use view::Rights;
pub(super) use view::View;
pub(super) use view::clean_headers;
