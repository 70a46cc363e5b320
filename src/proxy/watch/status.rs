use tonic::{Code, Status};

use crate::api_error::{ApiError, cancel_reason};
use crate::eventlog::End;
use crate::types::Revision;

/// Whether the cluster has decided against the client, so that asking again would not help.
pub(super) fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument)
}

/// Whether the reason of a refusal is about the token alone, which says nothing of what its user may read.
pub(super) fn is_about_token(reason: &str) -> bool {
    let error = ApiError::from_cancel_reason(reason);
    matches!(error, Some(ApiError::InvalidAuthToken | ApiError::UserEmpty | ApiError::AuthOldRevision))
}

/// Why watches that are read as the proxy's own user are cancelled when the cluster refuses that user.
pub(super) fn refusal_of_proxy_user(status: &Status) -> String {
    cancel_reason(&Status::unavailable(format!("the cluster refuses the proxy's own user: {}", status.message())))
}

/// How watches end whose history the cluster has lost, which is at `revision` now. What their clients know is of no use for them to
/// go on, just as after a compaction: the compacted revision has them read all anew.
pub(super) fn lost(revision: Revision, reason: &str) -> End {
    End { compact_revision: Revision(revision.0.max(1)), reason: reason.to_owned() }
}
