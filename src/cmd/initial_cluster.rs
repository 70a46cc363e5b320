use anyhow::Context;
use tracing::warn;

use crate::config::{InitialCluster, InitialDiscovery, ServerConfig};
use crate::core::cluster::member_id;
use crate::core::server::Layout;
use crate::discovery::{find_members, join_cluster};

/// The members that a member without data begins with: those of `--initial-cluster`, or those that are found.
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
            let found = find_members(srv, &initial.name, own_urls).await;
            let found = found.with_context(|| format!("--discovery-srv={}", srv.domain))?;
            Ok(initial.found(&found)?.with_names_to_come())
        }
        InitialDiscovery::Registry(registry) => {
            let entry: Vec<_> = own_urls.iter().map(|url| format!("{}={url}", initial.name)).collect();
            let own = member_id(own_urls, &initial.token);
            let found = join_cluster(registry, own, &entry.join(",")).await;
            Ok(initial.found(&found.context("--discovery-token")?)?)
        }
    }
}
