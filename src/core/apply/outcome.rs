use crate::core::backend::BackendError;
use crate::core::cluster::{ClusterError, Member, MembershipError};
use crate::core::lease::LeaseError;
use crate::core::mvcc::{MvccError, TxnAnswer};
use crate::pb::encoded;
use crate::pb::etcdserverpb::AlarmMember;
use crate::types::{LeaseId, LogIndex, Revision};

/// What became of a request once it was applied.
pub type Outcome = Result<Applied, ApplyError>;

/// A request that took effect. Headers inside carry the revision only; the server adds who answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// A put.
    Put(encoded::PutResponse),
    /// A delete.
    DeleteRange(encoded::DeleteRangeResponse),
    /// A transaction.
    Txn(TxnAnswer),
    /// A compaction that is in force; removing what it forgets goes on in the background.
    Compact {
        /// The newest revision when it took effect.
        revision: Revision,
        /// What was compacted.
        at: Revision,
    },
    /// A lease.
    LeaseGrant {
        /// Its id.
        id: LeaseId,
        /// Seconds granted.
        ttl: i64,
        /// The newest revision then.
        revision: Revision,
    },
    /// A lease is gone, and its keys with it.
    LeaseRevoke {
        /// The newest revision after the deletions.
        revision: Revision,
    },
    /// What is left of some leases is noted.
    LeaseCheckpoint,
    /// Alarms listed, raised or ended.
    Alarm(Vec<AlarmMember>),
    /// A change of the cluster's own records.
    Cluster,
    /// A membership change; the members there are since, by id.
    Members(Vec<Member>),
}

/// Why a request took no effect (with one exception, see [`NoSpace`](Self::NoSpace)).
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The store refused.
    #[error(transparent)]
    Mvcc(#[from] MvccError),
    /// The lease store refused.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The members would not be right after it.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The quota is used up. Noticed only while applying, the write has taken effect all the same and the alarm is
    /// on its way, as in etcd.
    #[error("database space exceeded")]
    NoSpace,
    /// A CORRUPT alarm is raised.
    #[error("corrupt cluster")]
    Corrupt,
    /// Consensus installs a snapshot whose db snapshot file is not here.
    #[error("no db snapshot of the state at index {0} is prepared")]
    NoDbSnapshot(LogIndex),
    /// The state on disk.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The members in a state that was installed.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A request of a kind this member does not know.
    #[error("unknown request")]
    Unknown,
}
