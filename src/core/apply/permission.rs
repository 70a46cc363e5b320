//! Which permissions a request for keys and leases needs. Pure: of users and roles, leases, and the request.

use crate::core::auth::{Access, AuthError, AuthState, Identity};
use crate::core::lease::LeaseStore;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::types::LeaseId;

type Checked = Result<(), AuthError>;

/// Checks what is checked when an entry is applied. Whatever else needs permission is checked before it is proposed.
pub(super) fn check_operation(
    auth: &AuthState,
    who: &Identity,
    leases: &LeaseStore,
    operation: &super::Operation,
) -> Checked {
    use super::Operation;
    match operation {
        Operation::Put(put) => check_put(auth, who, leases, put),
        Operation::DeleteRange(delete) => check_delete(auth, who, delete),
        Operation::Txn(txn) => check_txn_permission(auth, who, leases, txn),
        Operation::LeaseRevoke(revoke) => check_lease_writes(auth, who, leases, LeaseId(revoke.id)),
        change if change.is_auth_change() => auth.check_admin(who),
        _ => Ok(()),
    }
}

/// Whether `who` may read this range.
pub fn check_range_permission(auth: &AuthState, who: &Identity, range: &RangeRequest) -> Checked {
    auth.check(who, Access::Read, &range.key, &range.range_end)
}

/// Whether `who` may do everything in a transaction: compare, and each operation of both branches, at any depth.
pub fn check_txn_permission(auth: &AuthState, who: &Identity, leases: &LeaseStore, txn: &TxnRequest) -> Checked {
    for compare in &txn.compare {
        auth.check(who, Access::Read, &compare.key, &compare.range_end)?;
    }
    txn.success.iter().chain(&txn.failure).try_for_each(|op| check_op(auth, who, leases, op))
}

/// Whether `who` may write every key of a lease, as attaching a key to it, renewing and revoking it demand. No such lease has
/// no keys.
pub fn check_lease_writes(auth: &AuthState, who: &Identity, leases: &LeaseStore, lease: LeaseId) -> Checked {
    if auth.check_admin(who).is_ok() {
        return Ok(());
    }
    // The order of the keys does not matter: for one user and revision the error is the same for each.
    leases.keys(lease).try_for_each(|key| auth.check(who, Access::Write, key, b""))
}

fn check_op(auth: &AuthState, who: &Identity, leases: &LeaseStore, op: &RequestOp) -> Checked {
    match &op.request {
        Some(Request::RequestRange(range)) => check_range_permission(auth, who, range),
        Some(Request::RequestPut(put)) => check_put(auth, who, leases, put),
        Some(Request::RequestDeleteRange(delete)) => check_delete(auth, who, delete),
        Some(Request::RequestTxn(txn)) => check_txn_permission(auth, who, leases, txn),
        None => Ok(()),
    }
}

fn check_put(auth: &AuthState, who: &Identity, leases: &LeaseStore, put: &PutRequest) -> Checked {
    auth.check(who, Access::Write, &put.key, b"")?;
    // Otherwise a user could attach its key to a lease that it may not revoke.
    check_lease_writes(auth, who, leases, LeaseId(put.lease))?;
    if put.prev_kv {
        auth.check(who, Access::Read, &put.key, b"")?;
    }
    Ok(())
}

fn check_delete(auth: &AuthState, who: &Identity, delete: &DeleteRangeRequest) -> Checked {
    auth.check(who, Access::Write, &delete.key, &delete.range_end)?;
    if delete.prev_kv {
        auth.check(who, Access::Read, &delete.key, &delete.range_end)?;
    }
    Ok(())
}
