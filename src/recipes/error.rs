use tonic::Status;

use crate::api_error::ApiError;

/// Why a recipe failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecipeError {
    /// The waiter's own key went away, most likely with its lease.
    #[error("mutex: session is expired")]
    SessionExpired,
    #[error("election: not leader")]
    NotLeader,
    #[error("election: no leader")]
    NoLeader,
    #[error("\"leader\" field must be provided")]
    MissingLeader,
    #[error("lost watcher waiting for delete")]
    LostWatcher,
    /// The watch was refused or ended; carries the reason.
    #[error("{0}")]
    WatchEnded(String),
    /// The client's own deadline.
    #[error("context deadline exceeded")]
    Deadline,
    /// The process is stopping.
    #[error("{}", ApiError::Stopped.text())]
    Stopped,
    /// The store's answer does not fit the transaction.
    #[error("unexpected answer to a recipe's transaction")]
    BadAnswer,
    #[error("{}", .0.message())]
    Store(Status),
}

impl From<RecipeError> for Status {
    /// The recipes of etcd are a client of their own member: an error of the API reaches the caller with its text,
    /// but as `Unknown`; any other status passes as it is.
    fn from(error: RecipeError) -> Self {
        match error {
            RecipeError::Store(status) if ApiError::from_text(status.message()).is_none() => status,
            RecipeError::Store(status) => Self::unknown(status.message()),
            RecipeError::Deadline => Self::deadline_exceeded(error.to_string()),
            RecipeError::Stopped => ApiError::Stopped.into(),
            RecipeError::SessionExpired
            | RecipeError::NotLeader
            | RecipeError::NoLeader
            | RecipeError::MissingLeader
            | RecipeError::LostWatcher
            | RecipeError::WatchEnded(_)
            | RecipeError::BadAnswer => Self::unknown(error.to_string()),
        }
    }
}

impl From<Status> for RecipeError {
    fn from(status: Status) -> Self {
        Self::Store(status)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn api_errors_come_out_as_unknown_with_their_text() {
        let status = Status::from(RecipeError::from(Status::from(ApiError::LeaseNotFound)));
        assert_eq!((status.code(), status.message()), (Code::Unknown, ApiError::LeaseNotFound.text()));
    }

    #[test]
    fn other_statuses_pass_unchanged() {
        let status = Status::from(RecipeError::from(Status::deadline_exceeded("context deadline exceeded")));
        assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "context deadline exceeded"));
    }
}
