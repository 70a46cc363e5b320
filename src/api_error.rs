//! Every error of the etcd API: code and text, both directions.
//!
//! Clients compare the text, monitoring counts the code, so both are protocol. The list is that of etcd 3.7; two
//! rows say where the code on the wire differs from the documented one.

use tonic::{Code, Status};

macro_rules! api_errors {
    ($($code:ident $name:ident $text:literal, $doc:literal;)*) => {
        /// An error a client may see.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum ApiError {
            $(#[doc = $doc] #[error($text)] $name,)*
        }

        impl ApiError {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The gRPC code that goes on the wire.
            pub fn code(self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)*
                }
            }

            /// The exact status message.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// Recognises a status message, whatever its code.
            pub fn from_text(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Recognises the reason for which a watch is canceled: a status as text, or the message of one alone.
            pub fn from_cancel_reason(reason: &str) -> Option<Self> {
                let status = reason.strip_prefix(CODE_BEFORE).and_then(|rest| rest.split_once(TEXT_BEFORE));
                Self::from_text(status.map_or(reason, |(_code, message)| message))
            }
        }
    };
}

api_errors! {
    InvalidArgument EmptyKey "etcdserver: key is not provided", "A request without a key.";
    InvalidArgument KeyNotFound "etcdserver: key not found", "Ignore_value or ignore_lease on a missing key; an operation without a request.";
    InvalidArgument ValueProvided "etcdserver: value is provided", "Ignore_value with a value.";
    InvalidArgument LeaseProvided "etcdserver: lease is provided", "Ignore_lease with a lease.";
    InvalidArgument TooManyOps "etcdserver: too many operations in txn request", "A transaction over `max-txn-ops`.";
    InvalidArgument DuplicateKey "etcdserver: duplicate key given in txn request", "A transaction that writes a key twice.";
    InvalidArgument InvalidClientApiVersion "etcdserver: invalid client api version", "Metadata that is not UTF-8.";
    InvalidArgument InvalidSortOption "etcdserver: invalid sort option", "An unknown sort order or target.";
    InvalidArgument BadMemberUrls "etcdserver: given member URLs are invalid", "Peer URLs nobody could dial.";
    InvalidArgument RequestTooLarge "etcdserver: request is too large", "A proposal over `max-request-bytes`.";
    InvalidArgument UserEmpty "etcdserver: user name is empty", "No credentials, or a user without a name.";
    InvalidArgument RoleEmpty "etcdserver: role name is empty", "A role without a name.";
    InvalidArgument AuthFailed "etcdserver: authentication failed, invalid user ID or password", "Wrong user or password.";
    InvalidArgument PermissionNotGiven "etcdserver: permission not given", "A grant without a permission.";
    InvalidArgument InvalidAuthMgmt "etcdserver: invalid auth management", "A change that would lock everybody out.";
    InvalidArgument AuthOldRevision "etcdserver: revision of auth store is old", "Permissions changed meanwhile.";
    InvalidArgument WrongDowngradeVersionFormat "etcdserver: wrong downgrade target version format", "Not `X.Y` or `X.Y.0`.";
    InvalidArgument InvalidDowngradeTargetVersion "etcdserver: invalid downgrade target version", "Not one minor version below.";
    OutOfRange Compacted "etcdserver: mvcc: required revision has been compacted", "A revision that is forgotten.";
    OutOfRange FutureRevision "etcdserver: mvcc: required revision is a future revision", "A revision nobody wrote yet.";
    OutOfRange LeaseTtlTooLarge "etcdserver: too large lease TTL", "More than 9,000,000,000 seconds.";
    ResourceExhausted NoSpace "etcdserver: mvcc: database space exceeded", "The quota is used up.";
    Unknown TooManyRequests "etcdserver: too many requests", "A full queue; documented as ResourceExhausted, sent as Unknown.";
    NotFound LeaseNotFound "etcdserver: requested lease not found", "No such lease.";
    NotFound MemberNotFound "etcdserver: member not found", "No such member.";
    FailedPrecondition LeaseExists "etcdserver: lease already exists", "A lease id in use.";
    FailedPrecondition MemberExists "etcdserver: member ID already exist", "A member id in use.";
    FailedPrecondition PeerUrlExists "etcdserver: Peer URLs already exists", "A peer URL in use.";
    Unknown NotEnoughStartedMembers "etcdserver: re-configuration failed due to not enough started members", "Documented as FailedPrecondition, sent as Unknown.";
    FailedPrecondition MemberNotLearner "etcdserver: can only promote a learner member", "Promoting a voter.";
    FailedPrecondition LearnerNotReady "etcdserver: can only promote a learner member which is in sync with leader", "Promoting a learner too early.";
    FailedPrecondition TooManyLearners "etcdserver: too many learner members in cluster", "More than `max-learners`.";
    FailedPrecondition ClusterIdMismatch "etcdserver: cluster ID mismatch", "A peer of another cluster.";
    FailedPrecondition RootUserNotExist "etcdserver: root user does not exist", "Auth enabled without root.";
    FailedPrecondition RootRoleNotExist "etcdserver: root user does not have root role", "Auth enabled without the root role.";
    FailedPrecondition UserAlreadyExist "etcdserver: user name already exists", "A user name in use.";
    FailedPrecondition UserNotFound "etcdserver: user name not found", "No such user.";
    FailedPrecondition RoleAlreadyExist "etcdserver: role name already exists", "A role name in use.";
    FailedPrecondition RoleNotFound "etcdserver: role name not found", "No such role.";
    FailedPrecondition RoleNotGranted "etcdserver: role is not granted to the user", "Revoking what was not granted.";
    FailedPrecondition PermissionNotGranted "etcdserver: permission is not granted to the role", "Revoking what was not granted.";
    FailedPrecondition AuthNotEnabled "etcdserver: authentication is not enabled", "Authenticating while auth is off.";
    FailedPrecondition NotLeader "etcdserver: not leader", "Sent to a follower.";
    FailedPrecondition NotCapable "etcdserver: not capable", "The cluster version is not decided yet.";
    FailedPrecondition NotSupportedForLearner "etcdserver: rpc not supported for learner", "Sent to a learner.";
    FailedPrecondition BadLeaderTransferee "etcdserver: bad leader transferee", "A transfer to no voter.";
    FailedPrecondition ClusterVersionUnavailable "etcdserver: cluster version not found during downgrade", "The cluster version is not decided yet.";
    FailedPrecondition DowngradeInProcess "etcdserver: cluster has a downgrade job in progress", "A second downgrade.";
    FailedPrecondition NoInflightDowngrade "etcdserver: no inflight downgrade job", "Nothing to cancel.";
    Unavailable NoLeader "etcdserver: no leader", "No leader is known.";
    Unavailable LeaderChanged "etcdserver: leader changed", "The leader changed while a read waited.";
    Unavailable Stopped "etcdserver: server stopped", "The member is stopping.";
    Unavailable Timeout "etcdserver: request timed out", "Not applied within the request timeout.";
    Unavailable TimeoutDueToLeaderFail "etcdserver: request timed out, possibly due to previous leader failure", "Lost with the previous leader, perhaps.";
    Unavailable TimeoutDueToConnectionLost "etcdserver: request timed out, possibly due to connection lost", "Lost on the way to the leader, perhaps.";
    Unavailable TimeoutWaitAppliedIndex "etcdserver: request timed out, waiting for the applied index took too long", "A lease read while applying lags.";
    Unknown TimeoutLeaderTransfer "etcdserver: request timed out, leader transfer took too long", "The new leader does not lead.";
    Unavailable Unhealthy "etcdserver: unhealthy cluster", "A reconfiguration that would lose quorum.";
    PermissionDenied PermissionDenied "etcdserver: permission denied", "The user may not.";
    Unauthenticated InvalidAuthToken "etcdserver: invalid auth token", "A token nobody issued, or an expired one.";
    DataLoss Corrupt "etcdserver: corrupt cluster", "A CORRUPT alarm is raised.";
    Cancelled WatchCanceled "etcdserver: watch canceled", "The client ended its watch stream.";
    Cancelled RequestCanceled "etcdserver: request canceled", "The client gave up.";
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        Self::new(error.code(), error.text())
    }
}

/// A status as the reason for which a watch is canceled, in the form of Go's gRPC library.
pub fn cancel_reason(status: &Status) -> String {
    format!("{CODE_BEFORE}{:?}{TEXT_BEFORE}{}", status.code(), status.message())
}

const CODE_BEFORE: &str = "rpc error: code = ";
const TEXT_BEFORE: &str = " desc = ";

/// A downgrade request whose action does not exist.
pub fn unknown_downgrade_action() -> Status {
    Status::unknown("etcdserver: unknown method")
}

/// An alarm request with an action or a type that no version has.
pub fn unknown_alarm(what: &str, value: i32) -> Status {
    Status::invalid_argument(format!("etcdserver: unknown alarm {what} {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire() {
        for &error in ApiError::ALL {
            let status = Status::from(error);
            assert_eq!(status.code(), error.code());
            assert_eq!(ApiError::from_text(status.message()), Some(error));
            assert_eq!(ApiError::from_cancel_reason(status.message()), Some(error));
            assert_eq!(ApiError::from_cancel_reason(&cancel_reason(&status)), Some(error));
        }
    }

    #[test]
    fn documented_pairs_hold() {
        let pairs = [
            (ApiError::EmptyKey, Code::InvalidArgument, "etcdserver: key is not provided"),
            (ApiError::Compacted, Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            (ApiError::TooManyRequests, Code::Unknown, "etcdserver: too many requests"),
            (ApiError::LeaseNotFound, Code::NotFound, "etcdserver: requested lease not found"),
            (ApiError::Corrupt, Code::DataLoss, "etcdserver: corrupt cluster"),
        ];
        for (error, code, text) in pairs {
            assert_eq!((error.code(), error.text()), (code, text));
        }
    }
}
