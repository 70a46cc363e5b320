//! Database images in bbolt's format, version 2: what etcd calls a snapshot.
//!
//! A writer that streams a new image of sorted rows to anyone, in two passes over them and without seeking, and a
//! reader that trusts nothing it reads. etcd's own tools take the images: `etcdutl snapshot status`, `restore` and
//! `hashkv`. Used by `core::backend`, which has the rows, and by `ctl`, which looks at image files.
//!
//! Start with `format.rs` (the pages), then `plan.rs` and `writer.rs`; `reader.rs` and `status.rs` go the other way.

mod error;
mod format;
mod plan;
mod reader;
mod status;
#[cfg(test)]
mod tests;
mod writer;

pub use error::BoltError;
pub use plan::{ImagePlan, ImageSource, Visit};
pub use reader::{BoltImage, VisitRow};
pub use status::{ImageStatus, status};
