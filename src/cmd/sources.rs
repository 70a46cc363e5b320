use anyhow::Context;

use crate::config::{FirstPeers, PeerSourceConfig, SrvConfig};
use crate::discovery::{Discovery, PeerMembers, SrvRecords};
use crate::net::ClientTls;
use crate::shutdown::Tasks;

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
