use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::member::Member;
use super::version::ClusterVersion;
use crate::core::backend::{Change, Table};
use crate::pb::membershippb::Attributes;
use crate::pb::walpb;
use crate::types::MemberId;

/// Layout of the stored rows.
pub const STORAGE_VERSION: &str = "3.7.0";

const CLUSTER_VERSION_KEY: &[u8] = b"clusterVersion";
const DOWNGRADE_KEY: &[u8] = b"downgrade";
const STORAGE_VERSION_KEY: &[u8] = b"storageVersion";
/// Value of a row in the table of removed members.
const REMOVED: &[u8] = b"removed";

/// Why stored membership cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A row of the members table that is not a member.
    #[error("stored member {row} is unreadable")]
    BadMember {
        /// The row's key.
        row: String,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A row of the removed members whose key is no id.
    #[error("stored id of a removed member is unreadable: {row}")]
    BadRemoved {
        /// The row's key.
        row: String,
    },
}

/// The members, those that were removed, and the cluster version. Changed by apply only.
#[derive(Clone, Debug, Default)]
pub struct ClusterStore {
    members: BTreeMap<MemberId, Member>,
    /// Ids of removed members, never used again.
    removed: BTreeSet<MemberId>,
    version: Option<String>,
    /// What the cluster is being downgraded to.
    downgrade: Option<ClusterVersion>,
}

/// The stored form of a downgrade, in etcd's JSON.
#[derive(serde::Serialize, serde::Deserialize)]
struct StoredDowngrade {
    #[serde(rename = "target-version")]
    target: String,
    enabled: bool,
}

/// The rows that [`ClusterStore`] is read from.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClusterRows<'a> {
    /// [`Table::Members`].
    pub members: &'a [(Bytes, Bytes)],
    /// [`Table::MembersRemoved`].
    pub removed: &'a [(Bytes, Bytes)],
    /// [`Table::Cluster`].
    pub cluster: &'a [(Bytes, Bytes)],
}

impl ClusterStore {
    /// Reads back what the changes of earlier runs stored.
    ///
    /// # Errors
    /// When a member's row is unreadable.
    pub fn open(rows: ClusterRows<'_>) -> Result<Self, ClusterError> {
        let mut store = Self::default();
        let name = |row: &Bytes| String::from_utf8_lossy(row).into_owned();
        for (row, json) in rows.members {
            let member: Member =
                serde_json::from_slice(json).map_err(|source| ClusterError::BadMember { row: name(row), source })?;
            store.members.insert(member.member_id(), member);
        }
        for (row, _) in rows.removed {
            let id = std::str::from_utf8(row).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok());
            store.removed.insert(MemberId(id.ok_or_else(|| ClusterError::BadRemoved { row: name(row) })?));
        }
        let version = rows.cluster.iter().find(|(key, _)| key.as_ref() == CLUSTER_VERSION_KEY);
        store.version = version.map(|(_, version)| String::from_utf8_lossy(version).into_owned());
        let downgrade = rows.cluster.iter().find(|(key, _)| key.as_ref() == DOWNGRADE_KEY);
        let downgrade = downgrade.and_then(|(_, json)| serde_json::from_slice::<StoredDowngrade>(json).ok());
        store.downgrade =
            downgrade.filter(|stored| stored.enabled).and_then(|stored| ClusterVersion::parse(&stored.target));
        Ok(store)
    }

    /// A first member of a cluster that begins with the state of a db snapshot.
    pub fn restore_member(&mut self, member: Member) -> Change {
        self.set_member(member)
    }

    /// Adds or replaces a member.
    pub(super) fn set_member(&mut self, member: Member) -> Change {
        let change = row(&member);
        self.members.insert(member.member_id(), member);
        change
    }

    /// Removes a member; its id is never used again.
    pub(super) fn remove_member(&mut self, id: MemberId) -> Vec<Change> {
        self.members.remove(&id);
        self.removed.insert(id);
        vec![
            Change::delete(Table::Members, id.to_string()),
            Change::put(Table::MembersRemoved, id.to_string(), Bytes::from_static(REMOVED)),
        ]
    }

    /// Sets what a member publishes about itself; none when there is no such member.
    pub fn set_attributes(&mut self, id: MemberId, attributes: &Attributes) -> Option<Change> {
        let member = self.members.get_mut(&id)?;
        member.name.clone_from(&attributes.name);
        member.client_urls.clone_from(&attributes.client_urls);
        Some(row(member))
    }

    /// Sets the version the cluster agreed on; the layout of the stored rows goes with it.
    ///
    /// A version below the known one is ignored: two leaders in a row may see different members, and the proposal
    /// of the first may be the later one in the log. The target of a downgrade is the exception.
    pub fn set_version(&mut self, version: &str) -> Vec<Change> {
        let known = self.version().and_then(ClusterVersion::parse);
        let new = ClusterVersion::parse(version);
        let is_target = new.is_some() && new == self.downgrade;
        if !is_target && known.is_some_and(|known| new.is_none_or(|new| new < known)) {
            return Vec::new();
        }
        self.version = Some(version.to_owned());
        let cluster = Bytes::copy_from_slice(version.as_bytes());
        vec![
            Change::put(Table::Cluster, Bytes::from_static(CLUSTER_VERSION_KEY), cluster),
            Change::put(Table::Meta, Bytes::from_static(STORAGE_VERSION_KEY), STORAGE_VERSION.as_bytes()),
        ]
    }

    /// Begins a downgrade to a version, or ends it.
    pub fn set_downgrade(&mut self, target: Option<&str>) -> Change {
        self.downgrade = target.and_then(ClusterVersion::parse);
        let stored = StoredDowngrade { target: target.unwrap_or_default().to_owned(), enabled: target.is_some() };
        let json = serde_json::to_vec(&stored).expect("a text and a boolean can be written as JSON");
        Change::put(Table::Cluster, Bytes::from_static(DOWNGRADE_KEY), json)
    }

    /// What the cluster is being downgraded to.
    pub fn downgrade(&self) -> Option<ClusterVersion> {
        self.downgrade
    }

    /// All members, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Those with a vote, by id.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members().filter(|member| !member.is_learner)
    }

    /// Those without a vote, by id.
    pub fn learners(&self) -> impl Iterator<Item = &Member> {
        self.members().filter(|member| member.is_learner)
    }

    /// One member.
    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// Whether this id belonged to a member that was removed.
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id)
    }

    /// Ids of all members that were removed.
    pub fn removed(&self) -> &BTreeSet<MemberId> {
        &self.removed
    }

    /// Voters and learners, as raft stores them.
    pub fn conf_state(&self) -> walpb::ConfState {
        let ids = |learners| self.members().filter(move |member| member.is_learner == learners).map(|member| member.id);
        walpb::ConfState {
            voters: ids(false).collect(),
            learners: ids(true).collect(),
            auto_leave: Some(false),
            ..walpb::ConfState::default()
        }
    }

    /// Voters and learners in the JSON form of etcd's meta table.
    pub fn conf_state_row(&self) -> Change {
        let state = self.conf_state();
        let json = serde_json::json!({
            "voters": state.voters,
            "learners": state.learners,
            "voters_outgoing": state.voters_outgoing,
            "learners_next": state.learners_next,
            "auto_leave": state.auto_leave.unwrap_or(false),
        });
        Change::put(Table::Meta, Bytes::from_static(b"confState"), json.to_string().into_bytes())
    }

    /// The version the cluster agreed on, once it has.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }
}

fn row(member: &Member) -> Change {
    Change::put(Table::Members, member.member_id().to_string(), member.to_json())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(changes: Vec<Change>) -> Vec<(Bytes, Bytes)> {
        changes.into_iter().filter_map(|change| Some((change.key, change.value?))).collect()
    }

    #[test]
    fn rows_read_back() {
        let mut store = ClusterStore::default();
        let member = Member { id: 0xabc, peer_urls: vec!["http://127.0.0.1:2380".into()], ..Member::default() };
        store.set_member(member.clone());
        store.set_member(Member { id: 0xdef, is_learner: true, ..member });
        let attributes = Attributes { name: "m1".into(), client_urls: vec!["http://127.0.0.1:2379".into()] };
        let named = store.set_attributes(MemberId(0xabc), &attributes).expect("a member");
        let removed = store.remove_member(MemberId(0xdef));
        let version = store.set_version("3.7.0");
        let (members, removed, cluster) = (pairs(vec![named]), pairs(removed), pairs(version));
        let rows = ClusterRows { members: &members, removed: &removed, cluster: &cluster };
        let read = ClusterStore::open(rows).expect("readable");
        assert_eq!(read.members().collect::<Vec<_>>(), store.members().collect::<Vec<_>>());
        assert_eq!(read.removed(), &BTreeSet::from([MemberId(0xdef)]));
        assert_eq!(read.version(), Some("3.7.0"));
    }

    #[test]
    fn an_unreadable_row_is_named() {
        let bad = [("abc".into(), "{".into())];
        let error = ClusterStore::open(ClusterRows { members: &bad, ..ClusterRows::default() }).expect_err("bad JSON");
        assert_eq!(error.to_string(), "stored member abc is unreadable");
        let bad = [("xyz".into(), "removed".into())];
        let error = ClusterStore::open(ClusterRows { removed: &bad, ..ClusterRows::default() }).expect_err("no id");
        assert_eq!(error.to_string(), "stored id of a removed member is unreadable: xyz");
    }

    #[test]
    fn raft_follows_the_members() {
        let mut store = ClusterStore::default();
        assert_eq!(store.conf_state(), walpb::ConfState { auto_leave: Some(false), ..Default::default() });
        for (id, is_learner) in [(3, false), (1, false), (2, true)] {
            store.set_member(Member { id, is_learner, ..Member::default() });
        }
        let state = store.conf_state();
        assert_eq!((state.voters, state.learners), (vec![1, 3], vec![2]));
    }

    #[test]
    fn the_version_never_goes_back() {
        let mut store = ClusterStore::default();
        for (set, then) in [("3.0.0", "3.0.0"), ("3.7.0", "3.7.0"), ("3.6.0", "3.7.0"), ("odd", "3.7.0")] {
            store.set_version(set);
            assert_eq!(store.version(), Some(then));
        }
        assert!(store.set_version("3.6.0").is_empty());
    }

    #[test]
    fn a_downgrade_is_stored_and_lets_the_version_go_back() {
        let mut store = ClusterStore::default();
        store.set_version("3.7.0");
        let enabled = store.set_downgrade(Some("3.6.0"));
        assert_eq!(enabled.value.as_deref(), Some(br#"{"target-version":"3.6.0","enabled":true}"#.as_slice()));
        let rows = pairs(vec![enabled]);
        let read = ClusterStore::open(ClusterRows { cluster: &rows, ..ClusterRows::default() }).expect("readable");
        assert_eq!(read.downgrade(), ClusterVersion::parse("3.6"));
        assert!(store.set_version("3.5.0").is_empty(), "only to the target");
        store.set_version("3.6.0");
        assert_eq!(store.version(), Some("3.6.0"));
        let ended = store.set_downgrade(None);
        assert_eq!(ended.value.as_deref(), Some(br#"{"target-version":"","enabled":false}"#.as_slice()));
        assert_eq!(store.downgrade(), None);
        store.set_version("3.7.0");
        assert_eq!(store.version(), Some("3.7.0"));
    }
}
