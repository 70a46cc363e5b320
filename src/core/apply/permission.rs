//! Which permissions a request for keys and leases needs. Pure: of users and roles, leases, and the request.

use std::collections::HashSet;

use crate::core::auth::{Access, AuthError, AuthState, Identity};
use crate::core::lease::LeaseStore;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::types::LeaseId;

type Checked = Result<(), AuthError>;
/// Checks the lease that a put attaches its key to.
type CheckLease<'a> = dyn FnMut(LeaseId) -> Checked + 'a;

/// Checks what is checked when an entry is applied. Whatever else needs permission is checked before it is proposed.
pub(super) fn check_operation(
    auth: &AuthState,
    who: &Identity,
    leases: &LeaseStore,
    operation: &super::Operation,
) -> Checked {
    use super::Operation;
    match operation {
        Operation::Put(put) => check_put(auth, who, &mut |lease| check_lease_writes(auth, who, leases, lease), put),
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
    check_txn(auth, who, &mut each_once(|lease| check_lease_writes(auth, who, leases, lease)), txn)
}

/// Puts may be many, and so may the keys of the lease that all of them name.
fn each_once(mut check: impl FnMut(LeaseId) -> Checked) -> impl FnMut(LeaseId) -> Checked {
    let mut checked = HashSet::new();
    move |lease| if checked.insert(lease) { check(lease) } else { Ok(()) }
}

fn check_txn(auth: &AuthState, who: &Identity, lease: &mut CheckLease<'_>, txn: &TxnRequest) -> Checked {
    for compare in &txn.compare {
        auth.check(who, Access::Read, &compare.key, &compare.range_end)?;
    }
    txn.success.iter().chain(&txn.failure).try_for_each(|op| check_op(auth, who, lease, op))
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

fn check_op(auth: &AuthState, who: &Identity, lease: &mut CheckLease<'_>, op: &RequestOp) -> Checked {
    match &op.request {
        Some(Request::RequestRange(range)) => check_range_permission(auth, who, range),
        Some(Request::RequestPut(put)) => check_put(auth, who, lease, put),
        Some(Request::RequestDeleteRange(delete)) => check_delete(auth, who, delete),
        Some(Request::RequestTxn(txn)) => check_txn(auth, who, lease, txn),
        None => Ok(()),
    }
}

fn check_put(auth: &AuthState, who: &Identity, lease: &mut CheckLease<'_>, put: &PutRequest) -> Checked {
    auth.check(who, Access::Write, &put.key, b"")?;
    // Otherwise a user could attach its key to a lease that it may not revoke.
    lease(LeaseId(put.lease))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::auth::AuthStore;
    use crate::core::backend::Backend;

    fn put(lease: i64) -> RequestOp {
        let put = PutRequest { key: "k".into(), lease, ..Default::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    }

    // Cause: apply looked at every key of a lease for each put that named it.
    #[test]
    fn a_transaction_checks_each_lease_once() {
        let nested = TxnRequest { failure: vec![put(7), put(9)], ..Default::default() };
        let nested = RequestOp { request: Some(Request::RequestTxn(nested)) };
        let success = vec![put(7), put(8), put(7), nested];
        let txn = TxnRequest { success, failure: vec![put(8)], ..Default::default() };
        let auth = AuthStore::open(&Backend::in_memory().expect("a backend")).expect("no users");
        let mut checked = Vec::new();
        let mut lease = each_once(|lease| {
            checked.push(lease.0);
            Ok(())
        });
        check_txn(auth.state(), &Identity::default(), &mut lease, &txn).expect("auth is off");
        drop(lease);
        assert_eq!(checked, [7, 8, 9]);
        let mut refused = each_once(|_| Err(AuthError::PermissionDenied));
        let checked = check_txn(auth.state(), &Identity::default(), &mut refused, &txn);
        assert_eq!(checked, Err(AuthError::PermissionDenied));
    }
}
