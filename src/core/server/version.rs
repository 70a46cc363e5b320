use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::{info, warn};

use super::core::Core;
use crate::core::cluster::{ClusterVersion, STORAGE_VERSION};
use crate::pb::membershippb::ClusterVersionSetRequest;
use crate::shutdown::Tasks;
use crate::types::{API_VERSION, MemberId};

/// Method under which a member tells what `/version` tells.
pub(super) const VERSION_CALL: &str = "version";
/// How often the leader looks at the members' versions.
const PERIOD: Duration = Duration::from_secs(4);
/// The same while the cluster's version is not its own, or not known: then members refuse what they could do.
const PERIOD_BEHIND: Duration = Duration::from_secs(1);
/// How long a member may take to tell its version.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// What this member answers to "which version?", the same on `/version` and between members.
pub(super) fn versions(core: &Core) -> String {
    let cluster = core.published.cluster.load();
    let cluster = cluster.version().unwrap_or("not_decided");
    format!(r#"{{"etcdserver":"{API_VERSION}","etcdcluster":"{cluster}","storage":"{STORAGE_VERSION}"}}"#)
}

/// Keeps the cluster version what the members have in common: the leader asks all of them when it begins to lead, and
/// then from time to time, and proposes a change if there is one.
pub(super) async fn run(core: Arc<Core>, tasks: Tasks) {
    let stop = tasks.stop_signal();
    let mut status = core.raft.status();
    loop {
        let led = status.borrow_and_update().is_leader;
        if led {
            tokio::select! {
                () = stop.cancelled() => return,
                () = look(&core) => {}
            }
        }
        let agreed = core.published.cluster.load().version().and_then(ClusterVersion::parse);
        let pause = if agreed == ClusterVersion::parse(API_VERSION) { PERIOD } else { PERIOD_BEHIND };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            changed = status.wait_for(|status| status.is_leader != led) => if changed.is_err() { return },
        }
    }
}

async fn look(core: &Core) {
    let cluster = core.published.cluster.load_full();
    let agreed = cluster.version().and_then(ClusterVersion::parse);
    let asked = cluster.members().map(|member| version_of(core, member.member_id()));
    let versions = futures::future::join_all(asked).await;
    let term = core.raft.term();
    let Some(version) = ClusterVersion::decide(agreed, versions) else { return };
    let set = ClusterVersionSetRequest { ver: version.to_string() };
    match core.propose_as_leader(set, term).await {
        Ok(_) => info!(from = cluster.version(), to = %version, "cluster version is updated"),
        Err(error) => warn!(%error, %version, "cluster version is not updated"),
    }
}

/// What a member runs; none when it does not say.
async fn version_of(core: &Core, member: MemberId) -> Option<ClusterVersion> {
    if member == core.member {
        return ClusterVersion::parse(API_VERSION);
    }
    #[derive(serde::Deserialize)]
    struct Versions {
        etcdserver: String,
    }
    let answer = core.peers.call(member, VERSION_CALL, Bytes::new());
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
