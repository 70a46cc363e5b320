//! Messages, calls and snapshots from the other members, and the snapshots sent to them.

use std::io::{Seek, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::Code;
use tracing::{info, warn};

use super::error::Failed;
use super::member_info::MemberInfo;
use super::metrics::CoreMetrics;
use super::peer_rpc::PeerRpc;
use super::published::Published;
use crate::bolt::BoltFile;
use crate::core::apply::PreparedSnapshots;
use crate::core::backend::{Backend, BackendError, LogPosition, Table};
use crate::core::cluster::{ClusterRows, ClusterStore};
use crate::core::peer::{CallFailure, PeerReceiver, SnapshotSource};
use crate::core::raft::{PeerMessage, RaftHandle, snapshot_message};
use crate::pb::walpb;
use crate::shutdown::Tasks;
use crate::telemetry::Counted;
use crate::types::MemberId;

/// Receives from the transport. Until its member exists everything is dropped, which the peers treat as a lost packet.
pub(super) struct MemberPeers {
    inner: Arc<OnceLock<ReceiverParts>>,
    failed: Failed,
    room: PathBuf,
    tasks: Tasks,
}

/// What the receiver needs of its member.
pub(super) struct ReceiverParts {
    pub(super) info: Arc<MemberInfo>,
    pub(super) raft: RaftHandle,
    pub(super) backend: Backend,
    pub(super) published: Arc<Published>,
    pub(super) prepared_snapshots: Arc<PreparedSnapshots>,
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
    /// `room` is where db snapshots are received and written.
    pub(super) fn new(room: PathBuf, failed: Failed, tasks: Tasks) -> (Self, MemberPeersSlot) {
        let inner = Arc::new(OnceLock::new());
        let slot = MemberPeersSlot(inner.clone());
        (Self { inner, failed, room, tasks }, slot)
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
        let (inner, room) = (self.inner.clone(), self.room.clone());
        blocking(move || {
            let inner = inner.get().ok_or(STARTING)?;
            write_db_snapshot(&inner.backend, &room, to, &message)
        })
    }

    fn snapshot_room(&self) -> PathBuf {
        self.room.clone()
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
            let prepare = slot.clone();
            let put =
                blocking(move || prepare_db_snapshot(prepare.get().ok_or(STARTING)?, &file, position, &failed)).await?;
            let accepted = inner.raft.receive_snapshot(parsed).await.unwrap_or(false);
            if !accepted {
                info!(index = %position.index, "state of another member is not needed");
                // Only the one of this transfer: the log may already continue from that of an earlier one.
                if put && let Some(unused) = inner.prepared_snapshots.take_back(position) {
                    blocking(move || unused.discard().map_err(|error| error.to_string())).await?;
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn snapshot_sent(&self, to: MemberId, ok: bool) {
        let Some(inner) = self.inner.get() else { return };
        let raft = inner.raft.clone();
        // Waits for room in the inbox, and the transport's thread must not.
        drop(tokio::task::spawn_blocking(move || raft.snapshot_sent(to, ok)));
    }
}

fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> BoxFuture<'static, Result<T, String>> {
    async move { tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string())) }.boxed()
}

/// Writes a db snapshot of the newest state to a file without a name, and rewrites the message to its position.
fn write_db_snapshot(backend: &Backend, room: &Path, to: MemberId, message: &[u8]) -> Result<SnapshotSource, String> {
    let db_snapshot = backend.db_snapshot().map_err(|error| error.to_string())?;
    let summary = db_snapshot.summary();
    let mut named = tempfile::NamedTempFile::with_suffix_in(".snap", room).map_err(|error| error.to_string())?;
    db_snapshot.write(&mut named).map_err(|error| error.to_string())?;
    named.flush().map_err(|error| error.to_string())?;
    let conf_state = members_of(named.path())?;
    let message = snapshot_message(message, summary.position, &conf_state).map_err(|error| error.to_string())?;
    let mut file = named.into_file();
    file.rewind().map_err(|error| error.to_string())?;
    info!(index = %summary.position.index, bytes = summary.bytes, %to, "sending a state");
    Ok(SnapshotSource { message, position: summary.position, db_snapshot: file, size_bytes: summary.bytes })
}

/// Voters and learners in the db snapshot itself: later changes must not get into the message.
fn members_of(path: &Path) -> Result<walpb::ConfState, String> {
    let db_snapshot = BoltFile::open(path).map_err(|error| error.to_string())?;
    let rows = |table: Table| -> Result<Vec<(Bytes, Bytes)>, String> {
        let mut rows = Vec::new();
        let visited = db_snapshot.bucket(table.name().as_bytes(), &mut |key, value| {
            rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        });
        visited.map_err(|error| error.to_string())?;
        Ok(rows)
    };
    let (members, removed, cluster) = (rows(Table::Members)?, rows(Table::MembersRemoved)?, rows(Table::Cluster)?);
    let stored = ClusterStore::open(ClusterRows { members: &members, removed: &removed, cluster: &cluster });
    let state = stored.map_err(|error| error.to_string())?.conf_state();
    if state.voters.is_empty() { Err("the state has no members".to_owned()) } else { Ok(state) }
}

/// Prepares a db snapshot and registers it for its installation; false when this member does not need it.
fn prepare_db_snapshot(
    inner: &ReceiverParts,
    file: &Path,
    position: LogPosition,
    failed: &Failed,
) -> Result<bool, String> {
    let db_snapshot = BoltFile::open(file).map_err(|error| error.to_string())?;
    match inner.backend.prepare(&db_snapshot, position) {
        Ok(prepared) => {
            info!(index = %position.index, "prepared a state of another member");
            inner.prepared_snapshots.put(prepared);
            Ok(true)
        }
        // Raft has the log up to there and answers so, without a db snapshot; or it has one from an earlier transfer.
        Err(BackendError::Outdated { .. } | BackendError::AlreadyPrepared { .. }) => Ok(false),
        Err(error) => {
            warn!(%error, index = %position.index, "state of another member is not usable");
            if error.is_fatal() {
                failed(error.to_string());
            }
            Err(error.to_string())
        }
    }
}
