//! The server's flags: etcd's names, variables, defaults and refusals.
//!
//! `raw.rs` mirrors the flags that have an effect, `check.rs` turns the raw config into [`ServerConfig`], `cluster.rs` knows the
//! rules of `--initial-cluster`, `default_host.rs` what is advertised unless told, `discovery.rs` what stands in its place, `same_urls.rs` when two lists of URLs are one, `values.rs` the smaller values,
//! `auth.rs` how users log in, `tls.rs` TLS of all listeners and between members, `notice.rs` what is logged about flags once logging runs.

mod auth;
mod check;
mod cluster;
mod default_host;
mod discovery;
mod notice;
mod raw;
mod same_urls;
#[cfg(test)]
mod setups;
mod tls;
mod values;

pub use auth::{AuthConfig, TokenConfig};
pub(super) use check::KEEPALIVE_MIN_TIME;
pub use check::{REQUEST_BYTES_MAX, ServerConfig, parse_server_config};
pub use cluster::{InitialCluster, InitialState};
pub use discovery::{Fallback, InitialDiscovery};
pub use notice::Notice;
#[cfg(test)]
pub(super) use raw::RawServerConfig;
pub use same_urls::{Resolve, same_urls};
pub use tls::{PeerTlsConfig, TlsConfig};
pub(super) use tls::{YEARS_MAX, identity};
pub use values::{AutoCompaction, FeatureGates, IntegrityChecks, Quota};
