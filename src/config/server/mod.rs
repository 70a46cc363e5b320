//! The server's flags: etcd's names, variables, defaults and refusals.
//!
//! `raw.rs` mirrors the flags that mean something here, `unsupported.rs` lists those that are accepted without effect or
//! refused until their feature exists, `check.rs` turns the raw config into [`ServerConfig`], `cluster.rs` knows the
//! rules of `--initial-cluster`, `same_urls.rs` when two lists of URLs are one, `values.rs` the smaller values,
//! `peer_tls.rs` the files for TLS between members.

mod check;
mod cluster;
mod peer_tls;
mod raw;
mod same_urls;
mod unsupported;
mod values;

pub(super) use check::KEEPALIVE_MIN_TIME;
pub use check::{Notice, ServerConfig, ServerConfigError, parse_server_config};
pub use cluster::{InitialCluster, InitialState};
pub use peer_tls::PeerTlsFiles;
pub use raw::RawServerConfig;
pub use same_urls::{Resolve, same_urls};
pub use values::{AutoCompaction, IntegrityChecks, Quota};
