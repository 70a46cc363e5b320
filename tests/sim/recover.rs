//! Opening a member's files, as `core::server::recover` does.

use std::path::Path;
use std::sync::Arc;

use watershed::core::backend::{Backend, Table};
use watershed::core::cluster::{ClusterRows, ClusterStore, Member};
use watershed::core::raft::bootstrap_entries;
use watershed::core::wal::{HardState, Keep, Recovered, Wal, WalDisk, WalMetadata};
use watershed::types::{ClusterId, LogIndex, LogPosition, MemberId, Term};

use super::disk::SimDisk;
use super::process::Failure;

/// Small, so that a member that was away needs a state instead of entries.
const KEEP: Keep = Keep { entries: 60, bytes: 64 * 1024 };

/// What a member begins its life with.
#[derive(Clone, Debug)]
pub struct Birth {
    pub member: MemberId,
    /// The first members of the cluster; empty for a member that was added later.
    pub first: Vec<MemberId>,
}

pub struct Opened {
    pub wal: Wal<SimDisk>,
    pub metadata: WalMetadata,
    pub recovered: Recovered,
    pub backend: Backend,
    pub position: LogPosition,
    pub members: ClusterStore,
}

pub fn open(disk: &SimDisk, birth: &Birth) -> Result<Opened, Failure> {
    let backend = Backend::open_on(Arc::new(disk.clone()), Path::new("/member/db")).map_err(text)?;
    let dir = Path::new("/wal");
    let has_log = WalDisk::exists(disk, dir).map_err(text)?;
    let marks = match has_log && backend.has_prepared().map_err(text)? {
        true => Wal::snapshots(disk, dir).map_err(text)?,
        false => Vec::new(),
    };
    let is_marked =
        |position: LogPosition| marks.iter().any(|mark| (mark.index, mark.term) == (position.index, position.term));
    backend.adopt(is_marked).map_err(text)?;
    let position = backend.durable();
    if !has_log {
        if position.index > LogIndex(0) {
            return Err("a state without a log".into());
        }
        let metadata = WalMetadata { member: birth.member, cluster: ClusterId(1) };
        drop(Wal::create(disk.clone(), dir, metadata).map_err(text)?);
    }
    let (mut wal, mut recovered) = Wal::open_keeping(disk.clone(), dir, position, KEEP).map_err(text)?;
    if wal.last_index() < position.index {
        return Err(format!("the log ends at {}, the state is at {}", wal.last_index(), position.index));
    }
    if position.index == LogIndex(0) && recovered.entries.is_empty() && !birth.first.is_empty() {
        let members: Vec<_> = birth.first.iter().map(|id| (*id, member(*id).to_json())).collect();
        let entries = bootstrap_entries(&members);
        let commit = LogIndex(entries.len() as u64);
        let hard_state = HardState { term: Term(1), vote: None, commit };
        wal.append(&entries, Some(&hard_state)).map_err(text)?;
        wal.sync().map_err(text)?;
        recovered.entries = entries;
        recovered.hard_state = hard_state;
    }
    recovered.hard_state.commit = recovered.hard_state.commit.max(position.index);
    let members = stored_members(&backend)?;
    Ok(Opened { wal, metadata: recovered.metadata, recovered, backend, position, members })
}

fn text(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

/// A member as it is proposed.
pub fn member(id: MemberId) -> Member {
    Member { id: id.0, peer_urls: vec![format!("http://member-{id}:2380")], ..Member::default() }
}

pub fn stored_members(backend: &Backend) -> Result<ClusterStore, Failure> {
    let rows = |table| backend.rows(table).map_err(|error| error.to_string());
    let (members, removed, cluster) = (rows(Table::Members)?, rows(Table::MembersRemoved)?, rows(Table::Cluster)?);
    let rows = ClusterRows { members: &members, removed: &removed, cluster: &cluster };
    ClusterStore::open(rows).map_err(|error| error.to_string())
}
