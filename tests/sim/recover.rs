//! Opening a member's files with the server's own function.

use std::path::Path;
use std::sync::Arc;

use watershed::core::cluster::Member;
use watershed::core::server::{Bootstrap, Disks, Layout, Opened, Opening, RecoverError, recover};
use watershed::core::wal::WalMetadata;
use watershed::types::{ClusterId, MemberId};

use super::disk::SimDisk;

/// Small, so that a member that was away needs a state instead of entries.
const CATCH_UP_ENTRIES: u64 = 4;

/// What a member begins its life with. `first` are the first members of the cluster; one that is added later has
/// `running`, those of the running cluster, instead.
pub fn birth(id: MemberId, first: &[MemberId], running: Vec<Member>) -> Bootstrap {
    let metadata = WalMetadata { member: id, cluster: ClusterId(1) };
    Bootstrap { metadata, first: first.iter().map(|id| member(*id)).collect(), running }
}

/// A member as it is proposed.
pub fn member(id: MemberId) -> Member {
    Member { id: id.0, peer_urls: vec![format!("http://member-{id}:2380")], ..Member::default() }
}

pub fn open(disk: &SimDisk, birth: &Bootstrap) -> Result<Opened<SimDisk>, RecoverError> {
    let disks = Disks { state: Arc::new(disk.clone()), wal: disk.clone() };
    let layout = Layout::new(Path::new("/data"), Path::new("/data/member/wal"));
    let opening = Opening { bootstrap: Some(birth), catch_up_entries: CATCH_UP_ENTRIES, alone: None };
    recover(&disks, &layout, &opening)
}
