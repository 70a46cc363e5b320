use crate::core::backend::BackendError;
use crate::types::LeaseId;

/// Why a change of the leases was refused.
#[allow(missing_docs, reason = "the messages name the fields")]
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("lease {lease} does not exist")]
    NotFound { lease: LeaseId },
    #[error("lease {lease} exists already")]
    Exists { lease: LeaseId },
    /// The time to live is longer than may be granted.
    #[error("a time to live of {ttl_seconds} s is too large")]
    TtlTooLarge { ttl_seconds: i64 },
    /// A stored lease cannot be read; the member must stop.
    #[error("stored lease {row:02x?} is unreadable")]
    Corrupt { row: Vec<u8> },
    /// The backend could not be read; the member must stop.
    #[error("read backend")]
    Backend(#[from] BackendError),
}

/// Why a lease was not renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    /// The lease does not exist.
    #[error("lease {0} does not exist")]
    NotFound(LeaseId),
    /// It has expired and its revocation is proposed. The renewal waits for that and then answers that it does not exist.
    #[error("lease {0} has run out")]
    Expired(LeaseId),
    /// Only the leader renews.
    #[error("not the leader")]
    NotPrimary,
}
