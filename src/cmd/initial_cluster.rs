use anyhow::Context;
use tracing::warn;

use crate::config::{
    CompleteCluster, Fallback, InitialCluster, InitialDiscovery, KeptClusterConfig, MemberRegistry, ServerConfig,
};
use crate::core::cluster::member_id;
use crate::core::server::{Disks, Layout};
use crate::discovery::{JoinError, KeptCluster, SrvError, find_members, join_cluster, peer_urls};

/// The cluster that was found is complete without this member.
#[derive(Debug, thiserror::Error)]
#[error("the cluster is complete without this member")]
pub(super) struct Surplus {
    pub(super) cluster: CompleteCluster,
}

/// The members that a member without data begins with: those of `--initial-cluster`, or those that are found.
///
/// # Errors
/// Also [`Surplus`], with what was found.
pub(super) async fn initial_cluster(config: &ServerConfig) -> anyhow::Result<InitialCluster> {
    let initial = &config.initial;
    let Some(discovery) = &config.discovery else { return Ok(initial.clone()) };
    if Layout::new(&config.data_dir, &config.wal_dir).has_log(&Disks::files().wal)? {
        warn!("discovery is not asked for: the member has data, and knows its cluster");
        return Ok(initial.clone());
    }
    let own_urls = initial.own_urls();
    match discovery {
        InitialDiscovery::Srv(srv) => {
            let found = find_members(srv, &initial.name, own_urls).await.map_err(|error| match &error {
                SrvError::NotAmongThem { found, .. } => surplus(complete(found), &error),
                _ => error.into(),
            });
            let found = found.with_context(|| format!("--discovery-srv={}", srv.domain))?;
            Ok(initial.found(&found)?.with_names_to_come())
        }
        InitialDiscovery::Registry(registry) => {
            let entry: Vec<_> = own_urls.iter().map(|url| format!("{}={url}", initial.name)).collect();
            let own = member_id(own_urls, &initial.token);
            let found = join_cluster(registry, own, &entry.join(",")).await;
            let found = found.map_err(|error| as_surplus(error, config, registry));
            // etcd's text.
            let found = found.with_context(|| format!("--{}: failed to join discovery cluster", registry.flag()))?;
            initial.found(&found).with_context(|| format!("--{}: discovery: invalid URL", registry.flag()))
        }
    }
}

/// The same error, as [`Surplus`] where the member may become a proxy.
fn as_surplus(error: JoinError, config: &ServerConfig, registry: &MemberRegistry) -> anyhow::Error {
    let cluster = match &error {
        JoinError::Full { cluster, .. } => Some(complete(cluster)),
        JoinError::SizeNotFound(_) if config.fallback == Fallback::Proxy => kept(config, registry),
        _ => None,
    };
    match cluster {
        Some(cluster) => surplus(cluster, &error),
        None => error.into(),
    }
}

/// The cluster that this member served as a proxy before, if it was found by the same token.
fn kept(config: &ServerConfig, registry: &MemberRegistry) -> Option<CompleteCluster> {
    let place = KeptClusterConfig::new(&config.data_dir, registry);
    let file = place.file.display();
    let kept = KeptCluster::read(&place).unwrap_or_else(|error| {
        warn!(%file, %error, "the cluster that was served before cannot be read");
        None
    });
    let KeptCluster { cluster_id, peer_urls, .. } = kept?;
    warn!(%file, cluster_id, "the registry does not know the token any more: its cluster is known from before");
    Some(CompleteCluster { peer_urls, id: Some(cluster_id) })
}

fn complete(cluster: &str) -> CompleteCluster {
    CompleteCluster { peer_urls: peer_urls(cluster), id: None }
}

/// An error that says what `error` says.
fn surplus(cluster: CompleteCluster, error: &impl std::error::Error) -> anyhow::Error {
    anyhow::Error::new(Surplus { cluster }).context(error.to_string())
}
