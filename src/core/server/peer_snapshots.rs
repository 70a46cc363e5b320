//! Db snapshots between members: the one that is written for a peer, and the one that was received from the leader.

use std::io::{Seek, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, oneshot};
use tracing::{info, warn};

use super::on_thread::on_thread;
use crate::bolt::{BoltError, BoltFile};
use crate::core::apply::PreparedSnapshots;
use crate::core::backend::{Backend, BackendError, LogPosition, Table};
use crate::core::cluster::{ClusterRows, ClusterStore};
use crate::core::peer::SnapshotSource;
use crate::core::raft::snapshot_message;
use crate::pb::walpb;
use crate::types::MemberId;

/// Writes a db snapshot of the newest state to a file without a name, and rewrites the message to its position.
///
/// # Errors
/// The file cannot be written, or the state has no members.
pub fn write_db_snapshot(
    backend: &Backend,
    dir: &Path,
    to: MemberId,
    message: &[u8],
) -> Result<SnapshotSource, String> {
    let db_snapshot = backend.db_snapshot().map_err(|error| error.to_string())?;
    let summary = db_snapshot.summary();
    let mut named = tempfile::NamedTempFile::with_suffix_in(".snap", dir).map_err(|error| error.to_string())?;
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

/// Takes the db snapshots that have arrived, one after the other.
///
/// Two leaders in a row may send the state of one position, and the second one is not prepared again. Raft may be asked about
/// that one only once it has accepted the first: before, the state is not complete, and it is removed if raft refuses it. A log
/// that goes on from a state which is not there keeps the member from starting.
pub(super) struct ArrivedSnapshots {
    backend: Backend,
    prepared: Arc<PreparedSnapshots>,
    turn: Mutex<()>,
}

impl ArrivedSnapshots {
    pub(super) fn new(backend: Backend, prepared: Arc<PreparedSnapshots>) -> Self {
        Self { backend, prepared, turn: Mutex::new(()) }
    }

    /// Prepares the db snapshot in `file`, asks raft whether its state will be installed, and removes it if not.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub(super) async fn take(
        &self,
        file: PathBuf,
        position: LogPosition,
        ask: impl FnOnce() -> oneshot::Receiver<bool> + Send,
    ) -> Result<(), SnapshotError> {
        let _turn = self.turn.lock().await;
        let (backend, prepared) = (self.backend.clone(), self.prepared.clone());
        let prepare = move || ReceivedSnapshot::prepare(&backend, &prepared, &file, position);
        let received = on_thread(|_| SnapshotError::Stopped, prepare).await?;
        if !ask().await.unwrap_or(false) {
            let prepared = self.prepared.clone();
            on_thread(|_| SnapshotError::Stopped, move || Ok(received.refused(&prepared)?)).await?;
        }
        Ok(())
    }
}

/// A db snapshot of the leader that has arrived, before raft decides about it.
#[derive(Debug)]
pub struct ReceivedSnapshot {
    position: LogPosition,
    /// Prepared for its installation; not when this member does not need it.
    prepared: bool,
}

/// Why a db snapshot cannot be installed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file is none.
    #[error(transparent)]
    File(#[from] BoltError),
    /// The state cannot be prepared from it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The thread that prepares it ended.
    #[error("member is stopping")]
    Stopped,
}

impl SnapshotError {
    /// Whether the member cannot go on.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Backend(error) if error.is_fatal())
    }
}

impl ReceivedSnapshot {
    /// Prepares a db snapshot and registers it for its installation. Raft is asked after that.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn prepare(
        backend: &Backend,
        snapshots: &PreparedSnapshots,
        file: &Path,
        position: LogPosition,
    ) -> Result<Self, SnapshotError> {
        let db_snapshot = BoltFile::open(file)?;
        let prepared = match backend.prepare(&db_snapshot, position) {
            Ok(prepared) => {
                info!(index = %position.index, "prepared a state of another member");
                snapshots.put(prepared);
                true
            }
            // Raft has the log up to there and answers so, without a db snapshot; or it has one from an earlier transfer.
            Err(BackendError::Outdated { .. } | BackendError::AlreadyPrepared { .. }) => false,
            Err(error) => {
                warn!(%error, index = %position.index, "state of another member is not usable");
                return Err(error.into());
            }
        };
        Ok(Self { position, prepared })
    }

    /// Raft does not need it: removes what was prepared, and only that, for the log may already continue from the state of
    /// an earlier transfer.
    ///
    /// # Errors
    /// Its file cannot be removed.
    pub fn refused(self, snapshots: &PreparedSnapshots) -> Result<(), BackendError> {
        info!(index = %self.position.index, "state of another member is not needed");
        if !self.prepared {
            return Ok(());
        }
        match snapshots.take_back(self.position) {
            Some(unused) => unused.discard(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use super::*;
    use crate::core::backend::{Change, ChangeSet};
    use crate::types::{LogIndex, Term};

    // Cause: a state of the same position from the next leader was taken for one that raft has accepted while it was still
    // being prepared for a transfer that raft then refused. Raft went on from a state that was not there.
    #[tokio::test(start_paused = true)]
    async fn raft_is_asked_about_one_state_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snapshot");
        let position = LogPosition { index: LogIndex(7), term: Term(1) };
        let source = Backend::in_memory().unwrap();
        source.submit(ChangeSet { position, changes: vec![Change::put(Table::Lease, "lease", "")] });
        source.write_db_snapshot(&mut std::fs::File::create(&file).unwrap()).unwrap();

        let prepared = Arc::new(PreparedSnapshots::default());
        let arrived = ArrivedSnapshots::new(Backend::in_memory().unwrap(), prepared.clone());
        let (refuse, first_answer) = oneshot::channel();
        let mut first = pin!(arrived.take(file.clone(), position, || first_answer));
        let mut second = pin!(arrived.take(file, position, || {
            let (accept, answer) = oneshot::channel();
            let _ = accept.send(true);
            answer
        }));
        // Time goes on once nothing else does.
        let idle = || tokio::time::sleep(Duration::from_secs(1));
        tokio::select! {
            _ = &mut first => panic!("raft has not answered"),
            () = idle() => {}
        }
        tokio::select! {
            _ = &mut second => panic!("raft was asked, and may still refuse the first one"),
            () = idle() => {}
        }
        refuse.send(false).unwrap();
        first.await.unwrap();
        second.await.unwrap();
        assert!(prepared.take(position).is_some(), "what raft has accepted is there");
    }
}
