//! What the operator wrote, turned into what the rooms receive.
//!
//! Arguments and variables enter through [`parse_flags`], which understands the flag syntax etcd's users know, and
//! become a `Raw…Config`, one per mode. `TryFrom` turns that into the config the rooms get: the only place that
//! checks. Read `flags.rs` for the syntax, then `server/` for the biggest example.

mod duration;
mod flags;
mod gateway;
mod log;
mod proxy;
mod server;
mod url;

pub use duration::GoDuration;
pub use flags::{FlagError, Parsed, Variables, parse_flags};
pub use gateway::{GatewayConfig, GatewayConfigError, RawGatewayConfig, parse_gateway_config};
pub use log::RawLogConfig;
pub use proxy::{Advertise, ProxyConfig, ProxyConfigError, RawProxyConfig, UpstreamPings, parse_proxy_config};
pub use server::{
    AutoCompaction, InitialCluster, InitialState, IntegrityChecks, Notice, PeerTlsFiles, Quota, RawServerConfig,
    Resolve, ServerConfig, ServerConfigError, parse_server_config, same_urls,
};
pub use url::{ListenUrl, UrlError, check_peer_urls};
