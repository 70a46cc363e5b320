use std::path::PathBuf;
use std::sync::Arc;

use tonic::Status;

use crate::api_error::ApiError;
use crate::core::apply::ApplyError;
use crate::core::auth::AuthError;
use crate::core::backend::BackendError;
use crate::core::cluster::{ClusterError, MembershipError};
use crate::core::lease::LeaseError;
use crate::core::mvcc::MvccError;
use crate::core::peer::CallError;
use crate::core::raft::ProposeError;
use crate::core::wal::WalError;
use crate::types::{LogIndex, LogPosition, MemberId};

/// Called once when a member can no longer be trusted with its state; must end the process.
pub type Failed = Arc<dyn Fn(String) + Send + Sync>;

/// Why a request to this member failed, before it becomes a status.
#[allow(missing_docs, reason = "the types say what the variants are")]
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The entry was applied and refused.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A read was refused.
    #[error(transparent)]
    Mvcc(#[from] MvccError),
    /// Not permitted, or no such user or role.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The request could not be proposed.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// Another member could not answer.
    #[error(transparent)]
    Peer(#[from] CallError),
    /// An error that the API does not have.
    #[error("{0}")]
    Other(String),
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Api(error) => error.into(),
            Failure::Apply(error) => apply_status(error),
            Failure::Mvcc(error) => mvcc_status(error),
            Failure::Auth(error) => auth_status(error),
            Failure::Propose(error) => ApiError::from(error).into(),
            Failure::Peer(CallError::Failed(failure)) => Status::new(failure.code, failure.text),
            Failure::Peer(CallError::Stopped) => ApiError::Stopped.into(),
            Failure::Peer(error) => Status::new(error.code(), error.to_string()),
            Failure::Other(text) => Status::unknown(text),
        }
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Overloaded => Self::TooManyRequests,
            ProposeError::NotLeader => Self::LeaderChanged,
            ProposeError::Stopped => Self::Stopped,
        }
    }
}

fn apply_status(error: ApplyError) -> Status {
    match error {
        ApplyError::Mvcc(error) => mvcc_status(error),
        ApplyError::Lease(error) => lease_status(error),
        ApplyError::Membership(error) => membership_status(error),
        ApplyError::Auth(error) => auth_status(error),
        ApplyError::NoSpace => ApiError::NoSpace.into(),
        ApplyError::Corrupt => ApiError::Corrupt.into(),
        // Never an answer: the member stops.
        ApplyError::NoDbSnapshot(_) | ApplyError::Backend(_) | ApplyError::Cluster(_) => ApiError::Stopped.into(),
        ApplyError::Unknown => Status::unimplemented("request kind is not supported by this member"),
    }
}

fn mvcc_status(error: MvccError) -> Status {
    match error {
        MvccError::EmptyKey => ApiError::EmptyKey.into(),
        MvccError::KeyNotFound { .. } | MvccError::EmptyOperation => ApiError::KeyNotFound.into(),
        MvccError::ValueProvided => ApiError::ValueProvided.into(),
        MvccError::LeaseProvided => ApiError::LeaseProvided.into(),
        MvccError::LeaseNotFound { .. } => ApiError::LeaseNotFound.into(),
        MvccError::InvalidSortOption { .. } => ApiError::InvalidSortOption.into(),
        MvccError::StreamedSort | MvccError::StreamedFilter => Status::unimplemented(error.to_string()),
        MvccError::TooManyOps { .. } => ApiError::TooManyOps.into(),
        MvccError::DuplicateKey { .. } => ApiError::DuplicateKey.into(),
        MvccError::Compacted { .. } => ApiError::Compacted.into(),
        MvccError::Future { .. } => ApiError::FutureRevision.into(),
        MvccError::Corrupt { .. } | MvccError::Backend(_) => {
            // The client learns that it failed, the operator learns where.
            tracing::error!(%error, "stored state cannot be read");
            Status::unknown(format!("{:#}", anyhow::Error::from(error)))
        }
    }
}

pub(super) fn auth_status(error: AuthError) -> Status {
    match error {
        AuthError::RootUserNotExist => ApiError::RootUserNotExist.into(),
        AuthError::RootRoleNotExist => ApiError::RootRoleNotExist.into(),
        AuthError::UserExists => ApiError::UserAlreadyExist.into(),
        AuthError::UserEmpty => ApiError::UserEmpty.into(),
        AuthError::UserNotFound => ApiError::UserNotFound.into(),
        AuthError::RoleExists => ApiError::RoleAlreadyExist.into(),
        AuthError::RoleNotFound => ApiError::RoleNotFound.into(),
        AuthError::RoleEmpty => ApiError::RoleEmpty.into(),
        AuthError::PermissionNotGiven => ApiError::PermissionNotGiven.into(),
        AuthError::AuthFailed => ApiError::AuthFailed.into(),
        // etcd has no API error for it.
        AuthError::NoPasswordUser => {
            Status::unknown("auth: authentication failed, password was given for no password user")
        }
        AuthError::PermissionDenied => ApiError::PermissionDenied.into(),
        AuthError::RoleNotGranted => ApiError::RoleNotGranted.into(),
        AuthError::PermissionNotGranted => ApiError::PermissionNotGranted.into(),
        AuthError::NotEnabled => ApiError::AuthNotEnabled.into(),
        AuthError::OldRevision => ApiError::AuthOldRevision.into(),
        AuthError::InvalidManagement => ApiError::InvalidAuthMgmt.into(),
    }
}

fn lease_status(error: LeaseError) -> Status {
    match error {
        LeaseError::NotFound { .. } => ApiError::LeaseNotFound.into(),
        LeaseError::Exists { .. } => ApiError::LeaseExists.into(),
        LeaseError::TtlTooLarge { .. } => ApiError::LeaseTtlTooLarge.into(),
        LeaseError::Corrupt { .. } | LeaseError::Backend(_) => {
            tracing::error!(%error, "stored leases cannot be read");
            Status::unknown(format!("{:#}", anyhow::Error::from(error)))
        }
    }
}

fn membership_status(error: MembershipError) -> Status {
    match error {
        // etcd has the same text for a member that was removed and one that never was.
        MembershipError::IdRemoved | MembershipError::IdNotFound => ApiError::MemberNotFound.into(),
        MembershipError::IdExists => ApiError::MemberExists.into(),
        MembershipError::PeerUrlExists => ApiError::PeerUrlExists.into(),
        MembershipError::NotLearner => ApiError::MemberNotLearner.into(),
        MembershipError::TooManyLearners => ApiError::TooManyLearners.into(),
        MembershipError::LastVoter => ApiError::NotEnoughStartedMembers.into(),
        MembershipError::Unreadable => Status::internal(error.to_string()),
    }
}

/// Why a data directory cannot be used.
#[allow(missing_docs, reason = "the messages name the fields")]
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The directory belongs to another program.
    #[error("data directory {path} holds {found:?}, which is not ours; give --data-dir a directory of its own")]
    Foreign { path: PathBuf, found: String },
    /// A directory cannot be made or read.
    #[error("cannot access data directory {path}: {source}")]
    Access { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The log disappeared while the member started.
    #[error("there is no log in {path}")]
    NoLog { path: PathBuf },
    /// The files of a member that was removed from its cluster.
    #[error(
        "the member has been permanently removed from the cluster: {member} cannot come back; remove its data directory \
         {path}, add a member and start it with --initial-cluster-state=existing"
    )]
    Removed { member: MemberId, path: PathBuf },
    /// The same, started with `--force-new-cluster`.
    #[error(
        "member {member} has been permanently removed from the cluster: --force-new-cluster needs one that was not"
    )]
    RemovedAlone { member: MemberId },
    /// State that is newer than the end of its log.
    #[error(
        "state in {state} reaches index {index}, but the log in {log} ends at {last}: the files do not belong together; \
         restore both from one backup"
    )]
    LogBehindState { state: PathBuf, index: LogIndex, log: PathBuf, last: LogIndex },
    /// A log that continues from a later state.
    #[error(
        "state in {state} is at index {index}, but the log in {log} goes on from a state at index {}: the state file is \
         an older copy, or the one that was to replace it is gone; restore both from one backup, or remove this member \
         from the cluster and add it anew",
        mark.index
    )]
    StateBehindLog { state: PathBuf, index: LogIndex, log: PathBuf, mark: LogPosition },
}
