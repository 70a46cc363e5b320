use std::collections::BTreeMap;

use bytes::Bytes;

use super::member::Member;
use crate::core::backend::{Change, Table};
use crate::pb::membershippb::Attributes;
use crate::types::MemberId;

/// What a cluster of members with this version decides on.
pub const CLUSTER_VERSION: &str = "3.7.0";
/// Layout of the stored rows.
pub const STORAGE_VERSION: &str = "3.7.0";

const CLUSTER_VERSION_KEY: &[u8] = b"clusterVersion";
const STORAGE_VERSION_KEY: &[u8] = b"storageVersion";

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
}

/// The members and the cluster version. Changed by apply only.
#[derive(Clone, Debug, Default)]
pub struct ClusterStore {
    members: BTreeMap<MemberId, Member>,
    version: Option<String>,
}

impl ClusterStore {
    /// Reads back what [`set_member`](Self::set_member) and [`set_version`](Self::set_version) stored.
    ///
    /// # Errors
    /// When a member's row is unreadable.
    pub fn open(members: &[(Bytes, Bytes)], cluster: &[(Bytes, Bytes)]) -> Result<Self, ClusterError> {
        let mut store = Self::default();
        for (row, json) in members {
            let member: Member = serde_json::from_slice(json)
                .map_err(|source| ClusterError::BadMember { row: String::from_utf8_lossy(row).into_owned(), source })?;
            store.members.insert(member.member_id(), member);
        }
        store.version = cluster
            .iter()
            .find(|(key, _)| key.as_ref() == CLUSTER_VERSION_KEY)
            .map(|(_, version)| String::from_utf8_lossy(version).into_owned());
        Ok(store)
    }

    /// Adds or replaces a member.
    pub fn set_member(&mut self, member: Member) -> Change {
        let change = Self::row(&member);
        self.members.insert(member.member_id(), member);
        change
    }

    /// Sets what a member publishes about itself; none when there is no such member.
    pub fn set_attributes(&mut self, id: MemberId, attributes: &Attributes) -> Option<Change> {
        let member = self.members.get_mut(&id)?;
        member.name.clone_from(&attributes.name);
        member.client_urls.clone_from(&attributes.client_urls);
        Some(Self::row(member))
    }

    /// Sets the version the cluster agreed on; the layout of the stored rows goes with it.
    pub fn set_version(&mut self, version: &str) -> [Change; 2] {
        self.version = Some(version.to_owned());
        let cluster = Bytes::copy_from_slice(version.as_bytes());
        [
            Change::put(Table::Cluster, Bytes::from_static(CLUSTER_VERSION_KEY), cluster),
            Change::put(Table::Meta, Bytes::from_static(STORAGE_VERSION_KEY), STORAGE_VERSION.as_bytes()),
        ]
    }

    /// All members, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// One member.
    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// The version the cluster agreed on, once it has.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    fn row(member: &Member) -> Change {
        Change {
            table: Table::Members,
            key: Bytes::from(member.member_id().to_string()),
            value: Some(member.to_json().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_back() {
        let mut store = ClusterStore::default();
        let member = Member { id: 0xabc, peer_urls: vec!["http://127.0.0.1:2380".into()], ..Member::default() };
        store.set_member(member);
        let attributes = Attributes { name: "m1".into(), client_urls: vec!["http://127.0.0.1:2379".into()] };
        let row = store.set_attributes(MemberId(0xabc), &attributes).expect("a member");
        let [version, _] = store.set_version("3.7.0");
        let pair = |change: Change| (change.key, change.value.expect("a value"));
        let read = ClusterStore::open(&[pair(row)], &[pair(version)]).expect("readable");
        assert_eq!(read.members().collect::<Vec<_>>(), store.members().collect::<Vec<_>>());
        assert_eq!(read.version(), Some("3.7.0"));
    }

    #[test]
    fn an_unreadable_row_is_named() {
        let error = ClusterStore::open(&[("abc".into(), "{".into())], &[]).expect_err("bad JSON");
        assert_eq!(error.to_string(), "stored member abc is unreadable");
    }
}
