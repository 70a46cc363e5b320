use bytes::Bytes;
use prost::{DecodeError, Message};

use super::cost::{LEASE_COST_BYTES, put_cost, txn_cost};
use crate::core::auth::Identity;
use crate::core::cluster::Member;
use crate::core::mvcc::TxnAnswer;
use crate::pb::encoded::{DeleteRangeResponse, PutResponse};
use crate::pb::etcdserverpb::{
    AlarmMember, AlarmRequest, AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest,
    AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserAddRequest, AuthUserChangePasswordRequest,
    AuthUserDeleteRequest, AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest, CompactionRequest, DeleteRangeRequest,
    InternalAuthenticateRequest, InternalRaftRequest, LeaseCheckpointRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RequestHeader, TxnRequest,
};
use crate::pb::membershippb::{ClusterMemberAttrSetRequest, ClusterVersionSetRequest, DowngradeInfoSetRequest};
use crate::telemetry::OperationKind;
use crate::types::{LeaseId, LogIndex, Revision};

/// A compaction that is in force; removing what it compacts goes on in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionInForce {
    /// The newest revision when it took effect.
    pub revision: Revision,
    /// The revision it compacts to.
    pub at: Revision,
}

/// A lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantedLease {
    /// Its id.
    pub id: LeaseId,
    /// Seconds granted, at least the cluster's minimum.
    pub ttl: i64,
    /// The newest revision when it was granted.
    pub revision: Revision,
}

/// A user that logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user, with the auth revision when the entry was applied.
    pub identity: Identity,
    /// The entry; part of a simple token.
    pub index: LogIndex,
}

/// A request that a member can propose.
pub trait Proposable: Send {
    /// What the caller gets once the request is applied.
    type Answer;
    /// Its label in metrics.
    const KIND: OperationKind;

    /// The log entry that carries this request under `id`.
    fn into_entry(self, id: u64) -> InternalRaftRequest;

    /// The answer, if `applied` is the outcome of a request of this kind.
    fn answer(applied: Applied) -> Option<Self::Answer>;
}

/// Makes [`Operation`] and [`Applied`] of one table: field of `InternalRaftRequest`, variant, request, answer.
macro_rules! operations {
    ($($field:ident: $kind:ident($request:ty) -> $answer:ty,)*) => {
        /// A decoded request of the log. The variants are the fields of `InternalRaftRequest` that this version applies.
        #[allow(missing_docs, reason = "the requests are documented where the API defines them")]
        #[derive(Clone, Debug, PartialEq)]
        pub enum Operation {
            $($kind($request),)*
            /// A request of a later version.
            Unknown,
        }

        /// The answer to a request that took effect. Headers inside carry the revision only; the server adds the rest.
        #[allow(missing_docs, reason = "one variant for each operation")]
        #[derive(Clone, Debug, PartialEq)]
        pub enum Applied {
            $($kind($answer),)*
            /// A membership change: the members after it, by id.
            Members(Vec<Member>),
        }

        impl Operation {
            /// Decodes a log entry into the id of its request, who asked for it, and the request.
            ///
            /// # Errors
            /// The bytes are not an `InternalRaftRequest`.
            pub fn decode(entry: Bytes) -> Result<(u64, Option<RequestHeader>, Self), DecodeError> {
                let entry = InternalRaftRequest::decode(entry)?;
                $(if let Some(request) = entry.$field {
                    return Ok((entry.id, entry.header, Self::$kind(request)));
                })*
                Ok((entry.id, entry.header, Self::Unknown))
            }

            /// Its label in metrics.
            pub fn kind(&self) -> OperationKind {
                match self {
                    $(Self::$kind(_) => OperationKind::$kind,)*
                    Self::Unknown => OperationKind::Unknown,
                }
            }
        }

        $(impl Proposable for $request {
            type Answer = $answer;
            const KIND: OperationKind = OperationKind::$kind;

            fn into_entry(self, id: u64) -> InternalRaftRequest {
                InternalRaftRequest { id, $field: Some(self), ..InternalRaftRequest::default() }
            }

            fn answer(applied: Applied) -> Option<$answer> {
                match applied {
                    Applied::$kind(answer) => Some(answer),
                    _ => None,
                }
            }
        })*
    };
}

operations! {
    put: Put(PutRequest) -> PutResponse,
    delete_range: DeleteRange(DeleteRangeRequest) -> DeleteRangeResponse,
    txn: Txn(TxnRequest) -> TxnAnswer,
    compaction: Compaction(CompactionRequest) -> CompactionInForce,
    lease_grant: LeaseGrant(LeaseGrantRequest) -> GrantedLease,
    // The newest revision after its keys are deleted.
    lease_revoke: LeaseRevoke(LeaseRevokeRequest) -> Revision,
    lease_checkpoint: LeaseCheckpoint(LeaseCheckpointRequest) -> (),
    // Those listed, raised or lifted.
    alarm: Alarm(AlarmRequest) -> Vec<AlarmMember>,
    cluster_member_attr_set: ClusterMemberAttrSet(ClusterMemberAttrSetRequest) -> (),
    cluster_version_set: ClusterVersionSet(ClusterVersionSetRequest) -> (),
    downgrade_info_set: DowngradeInfoSet(DowngradeInfoSetRequest) -> (),
    auth_enable: AuthEnable(AuthEnableRequest) -> (),
    auth_disable: AuthDisable(AuthDisableRequest) -> (),
    authenticate: Authenticate(InternalAuthenticateRequest) -> Login,
    auth_user_add: AuthUserAdd(AuthUserAddRequest) -> (),
    auth_user_delete: AuthUserDelete(AuthUserDeleteRequest) -> (),
    auth_user_change_password: AuthUserChangePassword(AuthUserChangePasswordRequest) -> (),
    auth_user_grant_role: AuthUserGrantRole(AuthUserGrantRoleRequest) -> (),
    auth_user_revoke_role: AuthUserRevokeRole(AuthUserRevokeRoleRequest) -> (),
    auth_role_add: AuthRoleAdd(AuthRoleAddRequest) -> (),
    auth_role_delete: AuthRoleDelete(AuthRoleDeleteRequest) -> (),
    auth_role_grant_permission: AuthRoleGrantPermission(AuthRoleGrantPermissionRequest) -> (),
    auth_role_revoke_permission: AuthRoleRevokePermission(AuthRoleRevokePermissionRequest) -> (),
}

impl Applied {
    /// The members after a membership change.
    pub fn members(self) -> Option<Vec<Member>> {
        match self {
            Self::Members(members) => Some(members),
            _ => None,
        }
    }
}

impl Operation {
    /// What it counts for against the space quota; 0 if it does not grow the state.
    pub fn cost_bytes(&self) -> u64 {
        match self {
            Self::Put(put) => put_cost(put),
            Self::Txn(txn) => txn_cost(txn),
            Self::LeaseGrant(_) => LEASE_COST_BYTES,
            _ => 0,
        }
    }

    /// Whether it changes what clients store: keys, history or leases. The cluster's own records are no write.
    pub fn is_write(&self) -> bool {
        match self {
            Self::Put(_)
            | Self::DeleteRange(_)
            | Self::Txn(_)
            | Self::Compaction(_)
            | Self::LeaseGrant(_)
            | Self::LeaseRevoke(_) => true,
            Self::LeaseCheckpoint(_)
            | Self::Alarm(_)
            | Self::ClusterMemberAttrSet(_)
            | Self::ClusterVersionSet(_)
            | Self::DowngradeInfoSet(_)
            | Self::AuthEnable(_)
            | Self::AuthDisable(_)
            | Self::Authenticate(_)
            | Self::AuthUserAdd(_)
            | Self::AuthUserDelete(_)
            | Self::AuthUserChangePassword(_)
            | Self::AuthUserGrantRole(_)
            | Self::AuthUserRevokeRole(_)
            | Self::AuthRoleAdd(_)
            | Self::AuthRoleDelete(_)
            | Self::AuthRoleGrantPermission(_)
            | Self::AuthRoleRevokePermission(_)
            | Self::Unknown => false,
        }
    }

    /// Whether it changes users, roles or the auth flag: only root may do that.
    pub fn is_auth_change(&self) -> bool {
        matches!(
            self,
            Self::AuthEnable(_)
                | Self::AuthDisable(_)
                | Self::AuthUserAdd(_)
                | Self::AuthUserDelete(_)
                | Self::AuthUserChangePassword(_)
                | Self::AuthUserGrantRole(_)
                | Self::AuthUserRevokeRole(_)
                | Self::AuthRoleAdd(_)
                | Self::AuthRoleDelete(_)
                | Self::AuthRoleGrantPermission(_)
                | Self::AuthRoleRevokePermission(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposed_request_is_read_back_and_only_its_own_answer_fits() {
        let put = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
        let entry = Bytes::from(put.clone().into_entry(7).encode_to_vec());
        let (id, header, operation) = Operation::decode(entry).expect("what is proposed can be applied");
        assert_eq!(header, None);
        assert_eq!((id, operation.kind(), operation.cost_bytes()), (7, PutRequest::KIND, 256 + 1 + 1));
        assert_eq!(operation, Operation::Put(put));
        assert!(PutRequest::answer(Applied::Put(PutResponse::default())).is_some());
        assert!(PutRequest::answer(Applied::LeaseRevoke(Revision(1))).is_none());
    }

    #[test]
    fn an_entry_of_a_later_version_keeps_its_id() {
        let mut later = InternalRaftRequest { id: 9, ..Default::default() }.encode_to_vec();
        // Field 1400, empty.
        later.extend_from_slice(&[0x82, 0x57, 0x00]);
        let read = Operation::decode(later.into()).expect("readable");
        assert_eq!(read, (9, None, Operation::Unknown));
        assert!(!read.2.is_write() && read.2.cost_bytes() == 0);
    }
}
