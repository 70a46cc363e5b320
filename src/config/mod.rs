//! Configuration: flags, variables and files, parsed and checked for the rooms that use them.
//!
//! Arguments and variables enter through `flags.rs`, which understands the flag syntax etcd's users know, or from the file of `--config-file` (`file/`), and become a
//! `Raw…Config`, one per mode; its `TryFrom` gives the config the rooms get and is the only place that checks. A flag of
//! etcd that has no effect is in the one table of `unsupported.rs` instead. Errors are in `error.rs`, the notations of Go in
//! `golang.rs`. Read `flags.rs` first, then `server/` for the biggest example.

mod asked_cluster;
mod discovery;
mod error;
mod file;
mod flag_type;
mod flags;
mod gateway;
mod gateway_address;
pub mod golang;
mod log;
mod member_registry;
mod namespace_flag;
mod peer_source;
mod proxy;
mod proxy_user;
mod registry;
mod removed;
mod route;
mod server;
mod surplus;
mod tenants;
#[cfg(test)]
mod tests;
mod unsupported;
mod url;

pub use asked_cluster::{AskedCluster, AskedFor};
pub use discovery::{RawSrv, SrvConfig};
pub use error::{ConfigError, FlagWords, UrlError, WrongFlag};
pub use flags::{Parsed, Source, Variables, parse_flags};
pub use gateway::{
    Balance, ConnectionLimits, GatewayConfig, GatewayFile, HealthCheckConfig, HealthCheckKind, OnEject, ProxyProtocol,
    parse_gateway_config,
};
pub use gateway_address::GatewayAddress;
pub use golang::GoDuration;
pub use member_registry::{HttpProxy, MemberRegistry, TokenRegistry, UrlRegistry};
pub use peer_source::{CompleteCluster, FirstPeers, KeptClusterConfig, PeerSourceConfig};
pub use proxy::{
    Advertise, ProxyConfig, RangeCacheConfig, ResolverConfig, TenantsConfig, UpstreamPings, parse_proxy_config,
};
pub use proxy_user::{ProxyUserConfig, RawProxyUser};
pub use registry::{RegistryConfig, parse_registry_config};
pub use removed::removed_flag;
pub use route::{NameMatch, RouteConfig, RouteMatch};
pub use server::{
    AuthConfig, AutoCompaction, Fallback, FeatureGates, InitialCluster, InitialDiscovery, InitialState,
    IntegrityChecks, Notice, PeerTlsConfig, Quota, REQUEST_BYTES_MAX, Resolve, ServerConfig, TlsConfig, TokenConfig,
    parse_server_config, same_urls,
};
pub use tenants::{
    CompactRight, ListenerFacts, TenantConfig, TenantCredentials, TenantLimits, TenantMatch, read_tenants_file,
};
pub use unsupported::{FlagKind, Mode, Support, UnsupportedFlag, unsupported_flags};
pub use url::{ListenAddress, ListenUrl, check_peer_urls};
