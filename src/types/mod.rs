//! The numbers and keys every room shares, one type for each kind, and the user who logs in.
//!
//! Values are parsed where a request enters; inside, a [`KeyRange`] or a [`Revision`] cannot be mistaken for
//! anything else. Read `range.rs` for the wire rule of keys and range ends.

mod credentials;
mod id;
mod range;
mod revision;

pub use credentials::Credentials;
pub use id::{ClusterId, LeaseId, LogIndex, LogPosition, MemberId, Term, WatchId};
pub use range::{Key, KeyRange};
pub use revision::{RecordId, Revision};

/// The etcd release whose API and behaviour this program follows; clients read it from `/version` and `Status`.
pub const API_VERSION: &str = "3.7.1";
