use std::path::{Path, PathBuf};

use crate::core::backend::{Backend, BackendError, LogPosition, Table};
use crate::core::cluster::{ClusterError, ClusterRows, ClusterStore, Member, cluster_id, member_id};
use crate::core::raft::bootstrap_entry;
use crate::core::wal::{FsDisk, HardState, Recovered, Wal, WalError, WalMetadata};
use crate::types::{LogIndex, MemberId, Term};

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Another program's directory.
    #[error("data directory {path} holds {found:?}, which is not ours; give --data-dir a directory of its own")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What gives it away.
        found: String,
    },
    /// A directory cannot be made or read.
    #[error("cannot access data directory {path}: {source}")]
    Access {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The log.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The state.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The members in the state.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// State without the log that belongs to it.
    #[error(
        "state in {state} reaches index {index}, but the log in {log} ends at {last}: the files do not belong together; \
         restore both from one backup"
    )]
    LogBehindState {
        /// The state file.
        state: PathBuf,
        /// Position of the state.
        index: LogIndex,
        /// The log's directory.
        log: PathBuf,
        /// Last entry of the log.
        last: LogIndex,
    },
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

    /// Refuses directories that belong to something else, before anything is written.
    fn check(&self) -> Result<(), RecoverError> {
        let names = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(RecoverError::Access { path: self.root.clone(), source }),
        };
        for name in names {
            let name = name.map_err(|source| RecoverError::Access { path: self.root.clone(), source })?.file_name();
            match name.to_str() {
                Some("member" | "fixtures" | "lost+found") => {}
                Some("proxy") => {
                    return Err(RecoverError::Foreign { path: self.root.clone(), found: "proxy".to_owned() });
                }
                _ => {
                    tracing::warn!(path = %self.root.display(), found = ?name, "unexpected file in the data directory")
                }
            }
        }
        Ok(())
    }

    fn create(&self) -> Result<(), RecoverError> {
        use std::os::unix::fs::DirBuilderExt;
        let member = self.root.join("member");
        for path in [&self.root, &member, &member.join("snap")] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|source| RecoverError::Access { path: path.clone(), source })?;
        }
        Ok(())
    }
}

/// What a new cluster is made from.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Where the first member is reached by others.
    pub peer_urls: Vec<String>,
    /// `--initial-cluster-token`.
    pub token: String,
    /// The member's name.
    pub name: String,
}

/// A member's files, opened.
pub struct Opened {
    /// The log, ready to append.
    pub wal: Wal<FsDisk>,
    /// Who this is, for ever.
    pub metadata: WalMetadata,
    /// What the log says after the state's position.
    pub recovered: Recovered,
    /// The state.
    pub backend: Backend,
    /// The state's position.
    pub position: LogPosition,
    /// The members at that position; raft's voters and learners follow from them.
    pub members: ClusterStore,
}

/// Opens a member's files, or makes those of a new cluster.
///
/// # Errors
/// Names the file or directory and what to do about it.
pub fn open(layout: &Layout, bootstrap: &Bootstrap) -> Result<Opened, RecoverError> {
    layout.check()?;
    layout.create()?;
    // The state first: opening it takes the lock that keeps a second process out of the directory.
    let backend = Backend::open(&layout.state)?;
    let position = backend.durable();
    if !layout.wal.exists() {
        let id = member_id(&bootstrap.peer_urls, &bootstrap.token);
        drop(Wal::create(FsDisk, &layout.wal, WalMetadata { member: id, cluster: cluster_id(&[id]) })?);
    }
    let (mut wal, mut recovered) = Wal::open(FsDisk, &layout.wal, position)?;
    let metadata = recovered.metadata;
    let last = wal.last_index();
    if last < position.index {
        return Err(RecoverError::LogBehindState {
            state: layout.state.clone(),
            index: position.index,
            log: layout.wal.clone(),
            last,
        });
    }
    if position.index == LogIndex(0) && recovered.entries.is_empty() {
        first_entry(&mut wal, &mut recovered, metadata.member, bootstrap)?;
    }
    let members = stored_members(&backend)?;
    Ok(Opened { wal, metadata, recovered, backend, position, members })
}

/// Every log begins with the entry that adds its first member, committed in term 1.
fn first_entry(
    wal: &mut Wal<FsDisk>,
    recovered: &mut Recovered,
    id: MemberId,
    bootstrap: &Bootstrap,
) -> Result<(), WalError> {
    let member =
        Member { id: id.0, peer_urls: bootstrap.peer_urls.clone(), name: bootstrap.name.clone(), ..Member::default() };
    let entry = bootstrap_entry(id, member.to_json());
    let hard_state = HardState { term: Term(1), vote: None, commit: LogIndex(1) };
    wal.append(std::slice::from_ref(&entry), Some(&hard_state))?;
    wal.sync()?;
    recovered.entries.push(entry);
    recovered.hard_state = hard_state;
    Ok(())
}

/// The members as of the state's position.
pub fn stored_members(backend: &Backend) -> Result<ClusterStore, RecoverError> {
    let (members, removed) = (backend.rows(Table::Members)?, backend.rows(Table::MembersRemoved)?);
    let cluster = backend.rows(Table::Cluster)?;
    Ok(ClusterStore::open(ClusterRows { members: &members, removed: &removed, cluster: &cluster })?)
}
