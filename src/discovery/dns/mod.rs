//! Endpoints from DNS SRV records.
//!
//! `resolver.rs` asks: SRV records of a service, addresses of a host, each with the time its answer may be used.
//! `service.rs` has the names that are asked and decides between records with and without TLS. `certificates.rs` does
//! the TLS handshake that says whether an endpoint is what it claims to be. `records.rs` puts them together, once
//! ([`find_endpoints`]) or as a source that is asked again ([`SrvRecords`]). [`find_members`]
//! is for a cluster that begins.

mod certificates;
mod error;
mod members;
mod records;
mod resolver;
mod service;

pub use error::{SrvError, Unanswered};
pub use members::find_members;
pub use records::{SrvRecords, find_endpoints};
