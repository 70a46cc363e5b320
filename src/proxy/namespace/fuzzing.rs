//! For fuzz targets only: the rewriting of transactions, and the keys in them.

use bytes::Bytes;

use super::Namespace;
use crate::pb::etcdserverpb::{TxnRequest, request_op};

/// A client's transaction as it goes upstream.
pub fn add_prefix_to_txn(namespace: &Namespace, mut txn: TxnRequest) -> TxnRequest {
    namespace.add_prefix_to_txn(&mut txn, &|lease| lease);
    txn
}

/// Every range that a transaction names.
pub fn each_range(txn: &TxnRequest, each: &mut dyn FnMut(&Bytes, &Bytes)) {
    for compare in &txn.compare {
        each(&compare.key, &compare.range_end);
    }
    for operation in txn.success.iter().chain(&txn.failure) {
        match &operation.request {
            Some(request_op::Request::RequestRange(range)) => each(&range.key, &range.range_end),
            Some(request_op::Request::RequestPut(put)) => each(&put.key, &Bytes::new()),
            Some(request_op::Request::RequestDeleteRange(delete)) => each(&delete.key, &delete.range_end),
            Some(request_op::Request::RequestTxn(txn)) => each_range(txn, each),
            None => {}
        }
    }
}
