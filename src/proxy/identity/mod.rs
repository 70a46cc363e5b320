//! Who sends a request, and what that caller may read.
//!
//! `credentials.rs` reads the credentials of a request: those who carry the same ones may share upstream streams.
//! `read_permissions.rs` asks the cluster whether a caller may read a range, before it gets anything that was read with other
//! credentials than its own, or that was read a while ago.

mod credentials;
mod read_permissions;

pub use credentials::Identity;
pub use read_permissions::{PERMISSION_MAX, ReadPermission, ReadPermissions};
