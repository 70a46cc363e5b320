use anyhow::Context;
use tracing::warn;

use crate::config::{InitialCluster, InitialDiscovery, ServerConfig};
use crate::core::cluster::member_id;
use crate::core::server::Layout;
use crate::discovery::{JoinError, SrvError, find_members, join_cluster, peer_urls};

/// The cluster that was found is complete without this member.
#[derive(Debug, thiserror::Error)]
#[error("the cluster is complete without this member")]
pub(super) struct Surplus {
    /// Of its members.
    pub(super) peer_urls: Vec<String>,
}

/// The members that a member without data begins with: those of `--initial-cluster`, or those that are found.
///
/// # Errors
/// Also [`Surplus`], with what was found.
pub(super) async fn initial_cluster(config: &ServerConfig) -> anyhow::Result<InitialCluster> {
    let initial = &config.initial;
    let Some(discovery) = &config.discovery else { return Ok(initial.clone()) };
    if Layout::new(&config.data_dir, &config.wal_dir).wal.exists() {
        warn!("discovery is not asked for: the member has data, and knows its cluster");
        return Ok(initial.clone());
    }
    let own_urls = initial.own_urls();
    match discovery {
        InitialDiscovery::Srv(srv) => {
            let found = find_members(srv, &initial.name, own_urls).await.map_err(|error| match &error {
                SrvError::NotAmongThem { found, .. } => surplus(found, &error),
                _ => error.into(),
            });
            let found = found.with_context(|| format!("--discovery-srv={}", srv.domain))?;
            Ok(initial.found(&found)?.with_names_to_come())
        }
        InitialDiscovery::Registry(registry) => {
            let entry: Vec<_> = own_urls.iter().map(|url| format!("{}={url}", initial.name)).collect();
            let own = member_id(own_urls, &initial.token);
            let found = join_cluster(registry, own, &entry.join(",")).await.map_err(|error| match &error {
                JoinError::Full { cluster, .. } => surplus(cluster, &error),
                _ => error.into(),
            });
            // etcd's text.
            let found = found.with_context(|| format!("--{}: failed to join discovery cluster", registry.flag()))?;
            initial.found(&found).with_context(|| format!("--{}: discovery: invalid URL", registry.flag()))
        }
    }
}

/// An error that says what `error` says.
fn surplus(cluster: &str, error: &impl std::error::Error) -> anyhow::Error {
    anyhow::Error::new(Surplus { peer_urls: peer_urls(cluster) }).context(error.to_string())
}
