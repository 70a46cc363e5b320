//! Who sends a request, and what that caller may read.
//!
//! `credentials.rs` reads the credentials of a request: those who carry the same ones may share upstream streams; `caller.rs`
//! adds what its connection says. `proxy_user.rs` is the user that the proxy itself may be for the cluster.
//! `read_permissions.rs` asks the cluster whether a caller may read a range, before it gets anything that was read with other
//! credentials than its own, or that was read a while ago.

mod caller;
mod credentials;
mod proxy_user;
mod read_permissions;

pub use caller::Caller;
pub use credentials::Identity;
pub use proxy_user::ProxyUser;
#[cfg(test)]
pub(in crate::proxy) use read_permissions::Members;
pub use read_permissions::{KeptPermission, PERMISSION_MAX, ReadPermission, ReadPermissions};
