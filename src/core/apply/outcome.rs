use super::operation::Applied;
use crate::core::auth::AuthError;
use crate::core::backend::BackendError;
use crate::core::cluster::{ClusterError, MembershipError};
use crate::core::lease::LeaseError;
use crate::core::mvcc::MvccError;
use crate::types::LogIndex;

/// What became of a request once it was applied.
pub type Outcome = Result<Applied, ApplyError>;

/// Why a request took no effect (with one exception, see [`NoSpace`](Self::NoSpace)).
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The store refused.
    #[error(transparent)]
    Mvcc(#[from] MvccError),
    /// The lease store refused.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// Not permitted, or no right change of users and roles.
    #[error(transparent)]
    Auth(#[from] AuthError),
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
