//! Db snapshots between members: the one that is written for a peer, and the one that was received from the leader.

use std::io::{Seek, Write};
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use tracing::{info, warn};

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
