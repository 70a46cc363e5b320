use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::caller::Caller;
use super::parts::Parts;
use crate::pb::membershippb::{Attributes, ClusterMemberAttrSetRequest};

/// Pause before a member that did not reach a quorum tries again.
const RETRY: Duration = Duration::from_millis(100);

/// Waits until this member has everything that was acknowledged before, tells the cluster its name and client URLs,
/// and waits until the cluster has a version. Waits as long as there is no quorum.
pub(super) async fn publish(parts: &Parts, name: &str, client_urls: &[String]) {
    while let Err(error) = parts.reads.linearizable().await {
        warn!(%error, "no answer from the cluster yet; waiting for a quorum");
        tokio::time::sleep(RETRY).await;
    }
    set_attributes(parts, name, client_urls).await;
    let mut applied = parts.apply.progress();
    while parts.published.cluster().version().is_none() {
        // The leader decides it; any entry may be the one that sets it.
        let _ = tokio::time::timeout(RETRY, applied.changed()).await;
    }
}

async fn set_attributes(parts: &Parts, name: &str, client_urls: &[String]) {
    let member = parts.info.member();
    loop {
        let cluster = Arc::clone(&parts.published.cluster());
        if cluster.member(member).is_some_and(|known| known.name == name && known.client_urls == client_urls) {
            return;
        }
        let attributes = Attributes { name: name.to_owned(), client_urls: client_urls.to_vec() };
        let set = ClusterMemberAttrSetRequest { member_id: member.0, member_attributes: Some(attributes) };
        match parts.proposer.propose(&Caller::Member, set).await {
            Ok(_) if parts.published.cluster().member(member).is_some() => {
                info!(%member, name, "published local member to cluster through raft");
                return;
            }
            Ok(_) => warn!("the cluster does not know this member yet"),
            Err(error) => warn!(%error, "local member not published yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}
