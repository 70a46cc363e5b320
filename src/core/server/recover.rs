use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bootstrap::Bootstrap;
use super::error::RecoverError;
use super::force_new_cluster::go_alone;
use crate::core::backend::{Backend, FsStateDisk, LogPosition, StateDisk, Table};
use crate::core::cluster::{ClusterRows, ClusterStore};
use crate::core::wal::{FsDisk, Keep, Recovered, Wal, WalDisk, WalError, WalMetadata};
use crate::types::LogIndex;

/// Bytes of log entries before the state that are read for members that are behind, at most.
const CATCH_UP_BYTES: u64 = 64 * 1024 * 1024;

/// The disks with a member's files; simulated in tests.
#[allow(missing_docs, reason = "state and log")]
pub struct Disks<D> {
    pub state: Arc<dyn StateDisk>,
    pub wal: D,
}

impl Disks<FsDisk> {
    /// The file system.
    pub fn files() -> Self {
        Self { state: Arc::new(FsStateDisk::default()), wal: FsDisk::default() }
    }

    /// The file system, without any sync (`--unsafe-no-fsync`).
    pub fn unsynced_files() -> Self {
        Self { state: Arc::new(FsStateDisk::unsynced()), wal: FsDisk::unsynced() }
    }
}

/// Where a member keeps its files, in etcd's layout.
#[derive(Clone, Debug)]
pub struct Layout {
    /// `--data-dir`.
    pub root: PathBuf,
    /// The write-ahead log.
    pub wal: PathBuf,
    /// The state.
    pub state: PathBuf,
}

impl Layout {
    /// The state below `data_dir`, the log where the operator wants it.
    pub fn new(data_dir: &Path, wal_dir: &Path) -> Self {
        let state = data_dir.join("member").join("snap").join("db");
        Self { root: data_dir.to_owned(), wal: wal_dir.to_owned(), state }
    }

    /// Whether there is a log: as in etcd, a directory with a file of one in it. An empty one was made for the log to come.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn has_log<D: WalDisk>(&self, disk: &D) -> Result<bool, RecoverError> {
        match disk.list(&self.wal) {
            Ok(names) => Ok(names.iter().any(|name| name.ends_with(".wal"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(RecoverError::Access { path: self.wal.clone(), source }),
        }
    }

    /// Refuses directories that belong to something else, before anything is written.
    pub fn check(&self, disk: &dyn StateDisk) -> Result<(), RecoverError> {
        let names = match disk.list(&self.root) {
            Ok(names) => names,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(RecoverError::Access { path: self.root.clone(), source }),
        };
        for name in names {
            match name.as_str() {
                "member" | "fixtures" | "lost+found" => {}
                "proxy" => return Err(RecoverError::Foreign { path: self.root.clone(), found: name }),
                _ => {
                    tracing::warn!(path = %self.root.display(), found = ?name, "unexpected file in the data directory")
                }
            }
        }
        Ok(())
    }
}

/// How a member's files are opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opening<'a> {
    /// What a member without a log starts with.
    pub bootstrap: Option<&'a Bootstrap>,
    /// Log entries before the state that are kept in memory for members that are behind.
    pub catch_up_entries: u64,
    /// Own peer URLs, to start as the only member of the cluster (`--force-new-cluster`).
    pub alone: Option<&'a [String]>,
}

/// A member's files, opened.
pub struct Opened<D: WalDisk> {
    /// The log, ready to append.
    pub wal: Wal<D>,
    /// The ids of this member and its cluster; they never change.
    pub metadata: WalMetadata,
    /// The log after `log_base`. Its commit index covers the state.
    pub recovered: Recovered,
    /// Where the log in memory begins, at or before the state's position.
    pub log_base: LogPosition,
    /// The state.
    pub backend: Backend,
    /// The state's position.
    pub position: LogPosition,
    /// The members at that position; raft's voters and learners follow from them.
    pub members: ClusterStore,
}

/// Opens a member's files, or makes the first ones from `bootstrap`.
///
/// # Errors
/// Names the file or directory and what to do about it.
pub fn open<D: WalDisk + Clone>(
    disks: &Disks<D>,
    layout: &Layout,
    opening: &Opening<'_>,
) -> Result<Opened<D>, RecoverError> {
    layout.check(disks.state.as_ref())?;
    // The state first: opening it takes the lock that keeps a second process out of the directory.
    let backend = Backend::open_on(disks.state.clone(), &layout.state)?;
    let has_log = layout.has_log(&disks.wal)?;
    adopt(disks, layout, &backend, has_log)?;
    let position = backend.durable();
    let log_behind = |last| RecoverError::LogBehindState {
        state: layout.state.clone(),
        index: position.index,
        log: layout.wal.clone(),
        last,
    };
    if !has_log {
        if position.index > LogIndex(0) {
            return Err(log_behind(LogIndex(0)));
        }
        let bootstrap = opening.bootstrap.ok_or_else(|| RecoverError::NoLog { path: layout.wal.clone() })?;
        bootstrap.create_log(&disks.wal, &layout.wal)?;
    }
    let keep = Keep { entries: opening.catch_up_entries, bytes: CATCH_UP_BYTES };
    let opened = Wal::open_keeping(disks.wal.clone(), &layout.wal, position, keep);
    let (mut wal, mut recovered) = opened.map_err(|error| match error {
        WalError::Superseded { mark, .. } => RecoverError::StateBehindLog {
            state: layout.state.clone(),
            index: position.index,
            log: layout.wal.clone(),
            mark,
        },
        other => other.into(),
    })?;
    let metadata = recovered.metadata;
    let last = wal.last_index();
    if last < position.index {
        return Err(log_behind(last));
    }
    // A change of the commit index alone is not synced, and only committed entries get into the state.
    recovered.hard_state.commit = recovered.hard_state.commit.max(position.index);
    let members = stored_members(&backend)?;
    if members.is_removed(metadata.member) {
        return Err(RecoverError::Removed { member: metadata.member, path: layout.root.clone() });
    }
    if let Some(own_urls) = opening.alone.filter(|_| has_log) {
        go_alone(&mut wal, &mut recovered, &members, position, own_urls)?;
    }
    let log_base = recovered.base;
    Ok(Opened { wal, metadata, recovered, log_base, backend, position, members })
}

/// Finishes the installation of a snapshot received from the leader: the one that the log continues from replaces the
/// state, and other prepared ones are removed.
fn adopt<D: WalDisk>(disks: &Disks<D>, layout: &Layout, backend: &Backend, has_log: bool) -> Result<(), RecoverError> {
    let marks = match has_log && backend.has_prepared()? {
        true => Wal::snapshots(&disks.wal, &layout.wal)?,
        false => Vec::new(),
    };
    let is_marked =
        |position: LogPosition| marks.iter().any(|mark| (mark.index, mark.term) == (position.index, position.term));
    if let Some(position) = backend.adopt(is_marked)? {
        tracing::warn!(index = %position.index, "finished the installation of a state that a crash had interrupted");
    }
    Ok(())
}

/// The members as of the state's position.
pub fn stored_members(backend: &Backend) -> Result<ClusterStore, RecoverError> {
    let (members, removed) = (backend.rows(Table::Members)?, backend.rows(Table::MembersRemoved)?);
    let cluster = backend.rows(Table::Cluster)?;
    Ok(ClusterStore::open(ClusterRows { members: &members, removed: &removed, cluster: &cluster })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::Member;
    use crate::types::{ClusterId, MemberId};

    // Cause: a directory made for `--wal-dir` beforehand was taken for a log, which had no beginning.
    #[test]
    fn a_directory_made_for_the_log_is_no_log() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(&folder.path().join("data"), &folder.path().join("wal"));
        std::fs::create_dir(&layout.wal).unwrap();
        let metadata = WalMetadata { member: MemberId(7), cluster: ClusterId(9) };
        let bootstrap = Bootstrap { metadata, first: vec![Member { id: 7, ..Member::default() }], running: Vec::new() };
        let first = Opening { bootstrap: Some(&bootstrap), ..Opening::default() };
        let disks = Disks::files();
        let other = layout.wal.join("something-else");
        std::fs::write(&other, "kept").unwrap();
        assert!(!layout.has_log(&disks.wal).unwrap());
        let refused = open(&disks, &layout, &first).err();
        assert!(matches!(refused, Some(RecoverError::Wal(WalError::Exists { .. }))), "{refused:?}");
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "kept");
        std::fs::remove_file(other).unwrap();
        assert!(!layout.has_log(&disks.wal).unwrap());
        assert_eq!(open(&disks, &layout, &first).unwrap().metadata, metadata);
        assert!(layout.has_log(&disks.wal).unwrap());
        assert_eq!(open(&disks, &layout, &Opening::default()).unwrap().metadata, metadata, "without a beginning");
    }
}
