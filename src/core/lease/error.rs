use crate::core::backend::BackendError;
use crate::types::LeaseId;

/// Why a change of the leases was refused.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// No such lease.
    #[error("lease {lease} does not exist")]
    NotFound {
        /// The lease asked for.
        lease: LeaseId,
    },
    /// The id is taken.
    #[error("lease {lease} exists already")]
    Exists {
        /// The id asked for.
        lease: LeaseId,
    },
    /// The time to live is beyond all reason.
    #[error("a time to live of {ttl_seconds} s is too large")]
    TtlTooLarge {
        /// What was asked for.
        ttl_seconds: i64,
    },
    /// A stored lease cannot be read; the member must stop.
    #[error("stored lease {row:02x?} is unreadable")]
    Corrupt {
        /// Key of the row.
        row: Vec<u8>,
    },
    /// The backend could not be read; the member must stop.
    #[error("read backend")]
    Backend(#[from] BackendError),
}

/// Why a lease was not renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    /// No such lease.
    #[error("lease {0} does not exist")]
    NotFound(LeaseId),
    /// It has run out; its revocation is on the way. Whoever renews waits for that and then says it is gone.
    #[error("lease {0} has run out")]
    Expired(LeaseId),
    /// Only the leader renews.
    #[error("not the leader")]
    NotPrimary,
}
