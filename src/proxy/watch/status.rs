use tonic::{Code, Status};

use crate::api_error::{ApiError, cancel_reason};

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
