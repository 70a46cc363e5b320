/// What a request asks for, as the labels `op` and `type` of metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// A range, never in the log.
    Range,
    /// A transaction of ranges, never in the log.
    ReadonlyTxn,
    /// A put.
    Put,
    /// A delete.
    DeleteRange,
    /// A transaction.
    Txn,
    /// A compaction.
    Compaction,
    /// A lease grant.
    LeaseGrant,
    /// A lease revocation.
    LeaseRevoke,
    /// What is left of leases.
    LeaseCheckpoint,
    /// An alarm.
    Alarm,
    /// A member's name and client URLs.
    ClusterMemberAttrSet,
    /// The cluster version.
    ClusterVersionSet,
    /// A downgrade begun or ended.
    DowngradeInfoSet,
    /// Auth on.
    AuthEnable,
    /// Auth off.
    AuthDisable,
    /// A login.
    Authenticate,
    /// A new user.
    AuthUserAdd,
    /// A user removed.
    AuthUserDelete,
    /// A new password.
    AuthUserChangePassword,
    /// A role for a user.
    AuthUserGrantRole,
    /// A role taken from a user.
    AuthUserRevokeRole,
    /// A new role.
    AuthRoleAdd,
    /// A role removed.
    AuthRoleDelete,
    /// A permission for a role.
    AuthRoleGrantPermission,
    /// A permission taken from a role.
    AuthRoleRevokePermission,
    /// None of these.
    Unknown,
}

impl OperationKind {
    const ALL: [(Self, &'static str); 26] = [
        (Self::Range, "Range"),
        (Self::ReadonlyTxn, "ReadonlyTxn"),
        (Self::Put, "Put"),
        (Self::DeleteRange, "DeleteRange"),
        (Self::Txn, "Txn"),
        (Self::Compaction, "Compaction"),
        (Self::LeaseGrant, "LeaseGrant"),
        (Self::LeaseRevoke, "LeaseRevoke"),
        (Self::LeaseCheckpoint, "LeaseCheckpoint"),
        (Self::Alarm, "Alarm"),
        (Self::ClusterMemberAttrSet, "ClusterMemberAttrSet"),
        (Self::ClusterVersionSet, "ClusterVersionSet"),
        (Self::DowngradeInfoSet, "DowngradeInfoSet"),
        (Self::AuthEnable, "AuthEnable"),
        (Self::AuthDisable, "AuthDisable"),
        (Self::Authenticate, "Authenticate"),
        (Self::AuthUserAdd, "AuthUserAdd"),
        (Self::AuthUserDelete, "AuthUserDelete"),
        (Self::AuthUserChangePassword, "AuthUserChangePassword"),
        (Self::AuthUserGrantRole, "AuthUserGrantRole"),
        (Self::AuthUserRevokeRole, "AuthUserRevokeRole"),
        (Self::AuthRoleAdd, "AuthRoleAdd"),
        (Self::AuthRoleDelete, "AuthRoleDelete"),
        (Self::AuthRoleGrantPermission, "AuthRoleGrantPermission"),
        (Self::AuthRoleRevokePermission, "AuthRoleRevokePermission"),
        (Self::Unknown, "unknown"),
    ];

    /// The name in metrics.
    pub fn label(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The row of a histogram by operation and success.
    pub fn row(self, success: bool) -> usize {
        2 * self as usize + usize::from(success)
    }

    /// The label values of each row: `before`, then the name and the success.
    pub(super) fn rows<'a>(before: &[&'a str]) -> Vec<Vec<&'a str>> {
        let row = |name: &'a str, success: &'a str| [before, &[name, success]].concat();
        Self::ALL.iter().flat_map(|(_, name)| [row(name, "false"), row(name, "true")]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_where_operations_look_for_them() {
        let rows = OperationKind::rows(&["v3"]);
        for (at, (operation, name)) in OperationKind::ALL.into_iter().enumerate() {
            assert_eq!((operation as usize, operation.label()), (at, name));
            assert_eq!(rows[operation.row(true)], ["v3", name, "true"]);
            assert_eq!(rows[operation.row(false)], ["v3", name, "false"]);
        }
    }
}
