//! Who sends a request, and what that caller may read.
//!
//! `credentials.rs` reads the credentials of a request: those who carry the same ones may share upstream streams.

mod credentials;

pub use credentials::Identity;
