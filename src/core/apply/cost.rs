//! What a write counts for against the space quota.

use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{PutRequest, RequestOp, TxnRequest};

/// What a lease grant counts for.
pub const LEASE_COST_BYTES: u64 = 64;
/// What a put counts for beside its key and value.
const PUT_OVERHEAD_BYTES: u64 = 256;

/// What a put counts for.
pub fn put_cost(put: &PutRequest) -> u64 {
    PUT_OVERHEAD_BYTES + put.key.len() as u64 + put.value.len() as u64
}

/// What a transaction counts for: its dearer branch.
pub fn txn_cost(txn: &TxnRequest) -> u64 {
    branch_cost(&txn.success).max(branch_cost(&txn.failure))
}

/// Whether `cost` more bytes reach the quota. A negative quota is no limit.
pub fn exceeds(size: u64, cost: u64, quota: i64) -> bool {
    u64::try_from(quota).is_ok_and(|quota| size.saturating_add(cost) >= quota)
}

fn branch_cost(branch: &[RequestOp]) -> u64 {
    branch
        .iter()
        .map(|op| match &op.request {
            Some(Request::RequestPut(put)) => put_cost(put),
            Some(Request::RequestTxn(txn)) => txn_cost(txn),
            _ => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: &'static str) -> RequestOp {
        let put = PutRequest { key: "k".into(), value: value.into(), ..Default::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    }

    #[test]
    fn a_transaction_costs_its_dearer_branch() {
        let nested = TxnRequest { success: vec![put("12345")], ..Default::default() };
        let txn = TxnRequest {
            success: vec![put("1")],
            failure: vec![RequestOp { request: Some(Request::RequestTxn(nested)) }],
            ..Default::default()
        };
        assert_eq!(txn_cost(&txn), 256 + 1 + 5);
    }

    #[test]
    fn a_negative_quota_is_none() {
        assert!(!exceeds(u64::MAX, 1, -1));
        assert!(exceeds(90, 10, 100));
        assert!(!exceeds(90, 9, 100));
    }
}
