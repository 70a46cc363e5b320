use tonic::{Code, Status};

/// Whether the cluster has decided against the client, so that asking again would not help.
pub(super) fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument)
}
