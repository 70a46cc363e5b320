//! Who sends a request, and what that caller may read.
//!
//! `credentials.rs` reads the credentials of a request: those who carry the same ones may share upstream streams; `caller.rs`
//! adds what its connection says. `proxy_user.rs` is the user that the proxy itself may be for the cluster.
//! `read_permissions.rs` asks the cluster whether a caller may read a range, before it gets anything that was read with other
//! credentials than its own, or that was read a while ago: `read_question.rs` is the question, `shared_question.rs` what callers that
//! have the same one share of it.

mod caller;
mod credentials;
mod proxy_user;
mod read_permissions;
mod read_question;
mod shared_question;
#[cfg(test)]
mod tests;

pub use caller::Caller;
pub use credentials::Identity;
pub use proxy_user::ProxyUser;
pub use read_permissions::{KeptPermission, ReadPermission, ReadPermissions};
#[cfg(test)]
pub(in crate::proxy) use read_question::Members;
pub use shared_question::PERMISSION_MAX;
