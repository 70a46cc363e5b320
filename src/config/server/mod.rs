//! The server's flags: etcd's names, variables, defaults and refusals.
//!
//! `raw.rs` mirrors the flags that have an effect, `check.rs` turns the raw config into [`ServerConfig`], `cluster.rs` knows the
//! rules of `--initial-cluster`, `same_urls.rs` when two lists of URLs are one, `values.rs` the smaller values,
//! `auth.rs` how users log in, `peer_tls.rs` the files for TLS between members, `notice.rs` what is logged about flags once logging runs.

mod auth;
mod check;
mod cluster;
mod notice;
mod peer_tls;
mod raw;
mod same_urls;
mod values;

pub use auth::{AuthConfig, TokenConfig};
pub(super) use check::KEEPALIVE_MIN_TIME;
pub use check::{ServerConfig, parse_server_config};
pub use cluster::{InitialCluster, InitialState};
pub use notice::Notice;
pub use peer_tls::PeerTlsFiles;
#[cfg(test)]
pub(super) use raw::RawServerConfig;
pub use same_urls::{Resolve, same_urls};
pub use values::{AutoCompaction, IntegrityChecks, Quota};
