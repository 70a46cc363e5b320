use bytes::Bytes;

pub use crate::types::LogPosition;

/// A bucket of stored rows. Names, keys and values are etcd's, so that a db snapshot of the store is one of etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Record id, `t` appended for a tombstone, to `mvccpb.KeyValue`.
    Key,
    /// Applied position, membership of the raft group, compaction marks, storage version.
    Meta,
    /// Lease id (8 bytes big endian) to `leasepb.Lease`.
    Lease,
    /// Encoded `AlarmMember` to nothing.
    Alarm,
    /// Cluster version and downgrade state.
    Cluster,
    /// Member id in hex to JSON.
    Members,
    /// Ids of removed members, never used again.
    MembersRemoved,
    /// Whether auth is on, and its revision.
    Auth,
    /// User name to `authpb.User`.
    AuthUsers,
    /// Role name to `authpb.Role`.
    AuthRoles,
}

impl Table {
    /// Every table, in the order of the declaration.
    pub const ALL: [Self; 10] = [
        Self::Key,
        Self::Meta,
        Self::Lease,
        Self::Alarm,
        Self::Cluster,
        Self::Members,
        Self::MembersRemoved,
        Self::Auth,
        Self::AuthUsers,
        Self::AuthRoles,
    ];

    /// The bucket's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Meta => "meta",
            Self::Lease => "lease",
            Self::Alarm => "alarm",
            Self::Cluster => "cluster",
            Self::Members => "members",
            Self::MembersRemoved => "members_removed",
            Self::Auth => "auth",
            Self::AuthUsers => "authUsers",
            Self::AuthRoles => "authRoles",
        }
    }

    pub(super) fn slot(self) -> usize {
        self as usize
    }
}

/// One row written, or deleted when there is no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub table: Table,
    /// The row's key as it is stored.
    pub key: Bytes,
    /// The row's value as it is stored; `None` deletes the row, which need not exist.
    pub value: Option<Bytes>,
}

impl Change {
    /// Writes a row.
    pub fn put(table: Table, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self { table, key: key.into(), value: Some(value.into()) }
    }

    /// Deletes a row.
    pub fn delete(table: Table, key: impl Into<Bytes>) -> Self {
        Self { table, key: key.into(), value: None }
    }
}

/// What applying the log up to `position` changed since the set before.
///
/// A set becomes durable as a whole and together with its position, so that replay starts exactly behind it.
#[derive(Clone, Debug, Default)]
pub struct ChangeSet {
    /// Last log entry whose effect is contained.
    pub position: LogPosition,
    /// Rows in the order in which they were changed; the last change of a row counts.
    pub changes: Vec<Change>,
}
