use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::{info, warn};

use super::proposer::Proposer;
use super::published::Published;
use crate::core::cluster::{ClusterVersion, STORAGE_VERSION};
use crate::core::peer::PeerTransport;
use crate::core::raft::RaftHandle;
use crate::pb::membershippb::ClusterVersionSetRequest;
use crate::shutdown::Tasks;
use crate::types::{API_VERSION, MemberId};

/// The call that answers what `/version` does.
pub(super) const VERSION_CALL: &str = "version";
/// How often the leader asks for the members' versions.
const PERIOD: Duration = Duration::from_secs(4);
/// The same while the cluster's version is not its own, or not known: then members refuse what they could do.
const PERIOD_BEHIND: Duration = Duration::from_secs(1);
/// How long a member may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The versions of this member and its cluster, in JSON; the same at `/version` and between members.
pub(super) fn versions(published: &Published) -> String {
    let cluster = published.cluster();
    let cluster = cluster.version().unwrap_or("not_decided");
    format!(r#"{{"etcdserver":"{API_VERSION}","etcdcluster":"{cluster}","storage":"{STORAGE_VERSION}"}}"#)
}

/// What the leader needs to decide on the cluster version.
pub(super) struct ClusterVersionTask {
    pub(super) member: MemberId,
    pub(super) raft: RaftHandle,
    pub(super) peers: PeerTransport,
    pub(super) published: Arc<Published>,
    pub(super) proposer: Arc<Proposer>,
}

/// Keeps the cluster version at the lowest version of the members: the leader asks all of them when it begins to lead
/// and periodically after that, and proposes a change if there is one.
pub(super) async fn run(cluster_version: ClusterVersionTask, tasks: Tasks) {
    let stop = tasks.stop_signal();
    let mut status = cluster_version.raft.status();
    loop {
        let led = status.borrow_and_update().is_leader;
        if led {
            tokio::select! {
                () = stop.cancelled() => return,
                () = cluster_version.look() => {}
            }
        }
        let agreed = cluster_version.published.cluster().version().and_then(ClusterVersion::parse);
        let pause = if agreed == ClusterVersion::parse(API_VERSION) { PERIOD } else { PERIOD_BEHIND };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            changed = status.wait_for(|status| status.is_leader != led) => if changed.is_err() { return },
        }
    }
}

impl ClusterVersionTask {
    async fn look(&self) {
        let cluster = Arc::clone(&self.published.cluster());
        let agreed = cluster.version().and_then(ClusterVersion::parse);
        let asked = cluster.members().map(|member| self.version_of(member.member_id()));
        let versions = futures::future::join_all(asked).await;
        let term = self.raft.term();
        let Some(version) = ClusterVersion::decide(agreed, cluster.downgrade(), versions) else { return };
        let set = ClusterVersionSetRequest { ver: version.to_string() };
        match self.proposer.propose_as_leader(set, term).await {
            Ok(_) => info!(from = cluster.version(), to = %version, "cluster version is updated"),
            Err(error) => warn!(%error, %version, "cluster version is not updated"),
        }
    }

    /// The version of a member; none when it does not answer.
    async fn version_of(&self, member: MemberId) -> Option<ClusterVersion> {
        if member == self.member {
            return ClusterVersion::parse(API_VERSION);
        }
        #[derive(serde::Deserialize)]
        struct Versions {
            etcdserver: String,
        }
        let answer = self.peers.call(member, VERSION_CALL, Bytes::new());
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(answer)) => ClusterVersion::parse(&serde_json::from_slice::<Versions>(&answer).ok()?.etcdserver),
            Ok(Err(error)) => {
                warn!(%member, %error, "member does not tell its version");
                None
            }
            Err(_) => {
                warn!(%member, "member does not tell its version in time");
                None
            }
        }
    }
}
