use anyhow::Context;

use crate::config::{FirstPeers, PeerSourceConfig, SrvConfig};
use crate::discovery::{Discovery, Followed, MemberList, PeerMembers, SrvRecords, count_sources};
use crate::net::ClientTls;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// Endpoints from SRV records. `tls` is what they must stand up to unless discovery is insecure.
///
/// # Errors
/// When there is none to begin with.
pub(super) async fn of_srv(srv: &SrvConfig, tls: ClientTls, tasks: &Tasks) -> anyhow::Result<Box<dyn Discovery>> {
    let found = SrvRecords::start(srv, tls, tasks).await;
    Ok(Box::new(found.with_context(|| format!("--discovery-srv={}", srv.domain))?))
}

/// Endpoints of a cluster that is known by its peer ports.
///
/// # Errors
/// What its registry refuses for good.
pub(super) async fn of_peers(peers: &PeerSourceConfig, tasks: &Tasks) -> anyhow::Result<Box<dyn Discovery>> {
    let flag = match &peers.first {
        FirstPeers::Registered(registry) => registry.flag(),
        FirstPeers::Known(_) => "discovery-fallback",
    };
    let found = PeerMembers::start(peers, tasks).await;
    Ok(Box::new(found.with_context(|| format!("--{flag}"))?))
}

/// Counts where endpoints come from: what was configured, and the member list if that is followed. Returns both, to be asked anew.
pub(super) fn counted(listed: &dyn Discovery, members: Option<&MemberList>, metrics: &Metrics) -> Vec<Followed> {
    let mut all = vec![listed];
    all.extend(members.map(|members| members as &dyn Discovery));
    count_sources(metrics, &all);
    all.into_iter().map(Discovery::followed).collect()
}
