//! The v3 client: endpoints, retry, streams.
//!
//! [`Client`] is the way in for the tools and the tests: one type that hands out the generated clients of every
//! service over a [`Channel`], which connects when it is first used, spreads requests over the endpoints and fails
//! over. A configured user is logged in, and again before its token ends (`token_lifetime.rs`) or when it is no longer accepted
//! (`login.rs`), by one task for all who wait (`turns.rs`). Under it lies the [`Pool`] (`pool/`), which moves bytes and is what the proxy uses directly. Read
//! `method.rs` for what may be sent twice, then `pool/dispatch.rs`. `followed_range.rs` keeps the pairs of a range current.
//! `page.rs` gets a page over HTTP/1.1, for what an endpoint tells beside the API.
//!
//! Import circle: `pool/connection.rs`, `pool/probe.rs`: a connection checks that its endpoint answers, and a check is
//! a call on it.

mod channel;
mod config;
mod connect;
mod error;
mod followed_range;
mod login;
#[cfg(test)]
mod login_tests;
mod method;
mod page;
mod pool;
#[cfg(test)]
pub(crate) mod testing;
mod token_lifetime;
mod turns;

pub use crate::pb::frame::framed;
pub use channel::{Carried, Channel, SharedLogin};
pub use config::{ClientConfig, KeepAlive};
pub use connect::Client;
pub use error::ClientError;
pub use followed_range::{FollowedRange, follow_range};
pub use method::{Lane, Method};
pub use page::{PAGE_DIALER, http_answer_on, http_page, http_page_on};
pub use pool::{
    ClusterMismatch, EndpointReport, EndpointState, HEADER_BYTES_MAX, Head, PeekedHeader, Pool, PoolConfig, Seen,
    UpstreamBody, UpstreamCluster, UpstreamStream, UpstreamWatch, WeakPool, check_one_cluster, health_check,
    peek_header, peek_wrapped_header, unframed,
};
pub use turns::{Turn, Turns};

pub use crate::net::{Endpoint, EndpointError};
pub use crate::types::Credentials;
