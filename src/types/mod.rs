//! The numbers and keys every room shares, one type for each kind.
//!
//! Values are parsed where a request enters; inside, a [`KeyRange`] or a [`Revision`] cannot be mistaken for
//! anything else. Read `range.rs` for the wire rule of keys and range ends. [`TcpSilence`] is what every TCP connection is
//! given, whichever room opens or accepts it.

mod endpoint;
mod id;
mod range;
mod revision;
mod tcp_silence;

pub use endpoint::{Endpoint, EndpointError};
pub use id::{ClusterId, LeaseId, LogIndex, LogPosition, MemberId, Term, WatchId};
pub use range::{Key, KeyRange};
pub use revision::{RecordId, Revision};
pub use tcp_silence::TcpSilence;

/// The etcd release whose API and behaviour this program follows; clients read it from `/version` and `Status`.
pub const API_VERSION: &str = "3.7.1";
