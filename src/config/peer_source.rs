use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::discovery::RawSrv;
use super::error::ConfigError;
use super::golang::GoDuration;
use super::member_registry::{MemberRegistry, RawMemberRegistry};
use crate::net::{Alpn, ClientTlsConfig};

/// Pause between two looks at the members of a cluster.
const INTERVAL: Duration = Duration::from_secs(10);

/// Flags of gateway and proxy in front of a cluster whose members have registered.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Discovery")]
pub struct RawPeerSource {
    /// Where members register.
    #[command(flatten)]
    pub registry: RawMemberRegistry,
    /// Pause between two looks at the members of the cluster that --discovery or --discovery-token stands for.
    #[arg(long, default_value = "10s", value_name = "DURATION")]
    pub discovery_interval: GoDuration,
    /// Authorities whose certificates the peer ports of those members have; those of the system unless given.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub peer_trusted_ca_file: String,
    /// Certificate shown to the peer ports.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub peer_cert_file: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub peer_key_file: String,
}

/// A cluster that is found by its peer ports, which tell who its members are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSourceConfig {
    /// Whose ports are asked first.
    pub first: FirstPeers,
    /// TLS with peer ports that have https.
    pub tls: ClientTlsConfig,
    /// Pause between two looks.
    pub interval: Duration,
    /// The id of the cluster where it is known; that of the first peer that answers otherwise.
    pub cluster_id: Option<String>,
    /// Where its members are kept for the next start.
    pub kept: Option<KeptClusterConfig>,
}

/// A cluster that was found complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompleteCluster {
    /// Of its members.
    pub peer_urls: Vec<String>,
    /// Its id where it is known.
    pub id: Option<String>,
}

/// Where a surplus member keeps who the members are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptClusterConfig {
    /// In its data directory.
    pub file: PathBuf,
    /// Which registry and token they were found by.
    pub registry: String,
}

impl KeptClusterConfig {
    /// The place of etcd 2.
    pub fn new(data_dir: &Path, registry: &MemberRegistry) -> Self {
        Self { file: data_dir.join("proxy").join("cluster"), registry: registry.fingerprint() }
    }
}

/// The peers that are asked first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPeers {
    /// Those that have registered.
    Registered(Box<MemberRegistry>),
    /// Those at these URLs.
    Known(Vec<String>),
}

impl PeerSourceConfig {
    /// With the usual interval.
    pub fn known(cluster: CompleteCluster, tls: Option<ClientTlsConfig>, kept: Option<KeptClusterConfig>) -> Self {
        let tls = tls.unwrap_or_else(|| ClientTlsConfig::new(Alpn::Http1));
        let CompleteCluster { peer_urls, id } = cluster;
        Self { first: FirstPeers::Known(peer_urls), tls, interval: INTERVAL, cluster_id: id, kept }
    }
}

impl RawPeerSource {
    /// None without a registry.
    pub(super) fn checked(&self, srv: &RawSrv) -> Result<Option<PeerSourceConfig>, ConfigError> {
        let raw = self;
        let wrong = |flag, reason: String| ConfigError::Value { flag, reason };
        let Some(registry) = raw.registry.checked()? else { return Ok(None) };
        if !srv.discovery_srv.is_empty() {
            let flag = if registry.flag() == "discovery" {
                "discovery-srv, --discovery"
            } else {
                "discovery-srv, --discovery-token"
            };
            return Err(wrong(flag, "choose one source of endpoints".to_owned()));
        }
        if raw.discovery_interval.0.is_zero() {
            return Err(wrong("discovery-interval", "must be >0".to_owned()));
        }
        let (ca, cert, key) = (&raw.peer_trusted_ca_file, &raw.peer_cert_file, &raw.peer_key_file);
        let tls = ClientTlsConfig::from_flags(ca, cert, key, false)
            .map_err(|reason| wrong("peer-cert-file, --peer-key-file", reason))?;
        let tls = tls.unwrap_or_else(|| ClientTlsConfig::new(Alpn::Http1));
        let first = FirstPeers::Registered(Box::new(registry));
        let interval = raw.discovery_interval.0;
        Ok(Some(PeerSourceConfig { first, tls, interval, cluster_id: None, kept: None }))
    }
}
