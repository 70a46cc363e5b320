//! Messages, calls and snapshots from the other members, and the snapshots sent to them (`peer_snapshots.rs`).

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::Code;

use super::error::Failed;
use super::member_info::MemberInfo;
use super::metrics::CoreMetrics;
use super::on_thread::on_thread;
use super::peer_rpc::PeerRpc;
use super::peer_snapshots::{ArrivedSnapshots, write_db_snapshot};
use super::published::Published;
use crate::core::backend::Backend;
use crate::core::peer::{CallFailure, PeerReceiver, SnapshotSource};
use crate::core::raft::{PeerMessage, RaftHandle};
use crate::shutdown::Tasks;
use crate::telemetry::Counted;
use crate::types::MemberId;

/// Receives from the transport. Until its member exists everything is dropped, which the peers treat as a lost packet.
pub(super) struct MemberPeers {
    inner: Arc<OnceLock<ReceiverParts>>,
    failed: Failed,
    snapshot_dir: PathBuf,
    tasks: Tasks,
}

/// What the receiver needs of its member.
pub(super) struct ReceiverParts {
    pub(super) info: Arc<MemberInfo>,
    pub(super) raft: RaftHandle,
    pub(super) backend: Backend,
    pub(super) published: Arc<Published>,
    pub(super) arrived: ArrivedSnapshots,
    pub(super) rpc: Arc<PeerRpc>,
    pub(super) metrics: Arc<CoreMetrics>,
}

/// Connects [`MemberPeers`] with its member.
pub(super) struct MemberPeersSlot(Arc<OnceLock<ReceiverParts>>);

impl MemberPeersSlot {
    pub(super) fn fill(&self, parts: ReceiverParts) {
        // Filled once, by the start of the member.
        let _ = self.0.set(parts);
    }
}

impl MemberPeers {
    /// Db snapshots are received and written in `snapshot_dir`.
    pub(super) fn new(snapshot_dir: PathBuf, failed: Failed, tasks: Tasks) -> (Self, MemberPeersSlot) {
        let inner = Arc::new(OnceLock::new());
        let slot = MemberPeersSlot(inner.clone());
        (Self { inner, failed, snapshot_dir, tasks }, slot)
    }
}

const STARTING: &str = "member is starting";

impl PeerReceiver for MemberPeers {
    fn message(&self, from: MemberId, bytes: Bytes) -> Result<(), String> {
        match self.inner.get() {
            Some(inner) => inner.raft.receive(from, bytes).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    fn unreachable(&self, peer: MemberId) {
        if let Some(inner) = self.inner.get() {
            inner.raft.unreachable(peer);
        }
    }

    fn removed(&self, by: MemberId) {
        // Repeated with every attempt to connect: an early one may be lost.
        let Some(inner) = self.inner.get() else { return };
        let (removed, may_end) = (inner.published.removed().clone(), inner.raft.told_removed(by));
        self.tasks.spawn(async move {
            if may_end.await == Ok(true) {
                removed.cancel();
            }
        });
    }

    fn call(&self, _from: MemberId, method: String, body: Bytes) -> BoxFuture<'static, Result<Bytes, CallFailure>> {
        let Some(inner) = self.inner.get() else {
            let failure = CallFailure { code: Code::Unavailable, text: STARTING.to_owned() };
            return std::future::ready(Err(failure)).boxed();
        };
        inner.rpc.clone().answer(method, body).boxed()
    }

    fn snapshot_source(&self, to: MemberId, message: Bytes) -> BoxFuture<'static, Result<SnapshotSource, String>> {
        let (inner, dir) = (self.inner.clone(), self.snapshot_dir.clone());
        on_thread(
            |error| error.to_string(),
            move || {
                let inner = inner.get().ok_or(STARTING)?;
                write_db_snapshot(&inner.backend, &dir, to, &message)
            },
        )
        .boxed()
    }

    fn snapshot_dir(&self) -> PathBuf {
        self.snapshot_dir.clone()
    }

    fn snapshot_received(
        &self,
        from: MemberId,
        message: Bytes,
        file: PathBuf,
    ) -> BoxFuture<'static, Result<(), String>> {
        let slot = self.inner.clone();
        let failed = self.failed.clone();
        async move {
            let Some(inner) = slot.get() else { return Err(STARTING.to_owned()) };
            let _applying = Counted::new(inner.metrics.server.snapshot_apply_in_progress.clone());
            let parsed =
                PeerMessage::snapshot(inner.info.member(), from, &message).map_err(|error| error.to_string())?;
            let position = parsed.snapshot_position();
            let taken = inner.arrived.take(file, position, || inner.raft.receive_snapshot(parsed)).await;
            taken.map_err(|error| {
                if error.is_fatal() {
                    failed(error.to_string());
                }
                error.to_string()
            })
        }
        .boxed()
    }

    fn snapshot_sent(&self, to: MemberId, ok: bool) {
        let Some(inner) = self.inner.get() else { return };
        let raft = inner.raft.clone();
        // Waits while the inbox is full, and the transport's thread must not.
        drop(tokio::task::spawn_blocking(move || raft.snapshot_sent(to, ok)));
    }
}
