use bytes::Bytes;

use super::keys::Namespace;
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse, request_op, response_op,
};
use crate::pb::mvccpb::KeyValue;

// Requests go in, answers come out; every field that holds a key is here.
//
// An empty key is an error of the member's, which has an order among its errors. It goes on as an empty key with
// no range, so that even a server which took it would touch nothing of the namespace or beside it.

impl Namespace {
    pub(super) fn add_prefix_to_request_keys(&self, key: &mut Bytes, range_end: &mut Bytes) {
        if key.is_empty() {
            range_end.clear();
        } else {
            (*key, *range_end) = self.add_prefix_to_range(key, range_end);
        }
    }

    pub(super) fn add_prefix_to_range_request(&self, request: &mut RangeRequest) {
        self.add_prefix_to_request_keys(&mut request.key, &mut request.range_end);
    }

    pub(super) fn add_prefix_to_delete(&self, request: &mut DeleteRangeRequest) {
        self.add_prefix_to_request_keys(&mut request.key, &mut request.range_end);
    }

    pub(super) fn add_prefix_to_put(&self, request: &mut PutRequest) {
        if !request.key.is_empty() {
            request.key = self.add_prefix(&request.key);
        }
    }

    /// Rewrites a whole transaction. `lease` may replace the lease of each put.
    pub(super) fn add_prefix_to_txn(&self, request: &mut TxnRequest, lease: &dyn Fn(i64) -> i64) {
        for Compare { key, range_end, .. } in &mut request.compare {
            self.add_prefix_to_request_keys(key, range_end);
        }
        for operation in request.success.iter_mut().chain(&mut request.failure) {
            match &mut operation.request {
                Some(request_op::Request::RequestRange(range)) => self.add_prefix_to_range_request(range),
                Some(request_op::Request::RequestPut(put)) => {
                    put.lease = lease(put.lease);
                    self.add_prefix_to_put(put);
                }
                Some(request_op::Request::RequestDeleteRange(delete)) => self.add_prefix_to_delete(delete),
                Some(request_op::Request::RequestTxn(txn)) => self.add_prefix_to_txn(txn, lease),
                // An operation without a request is refused by the member.
                None => {}
            }
        }
    }

    pub(super) fn strip_prefix_in_range(&self, answer: &mut RangeResponse) {
        self.strip_prefix_in_all(&mut answer.kvs);
    }

    pub(super) fn strip_prefix_in_put(&self, answer: &mut PutResponse) {
        answer.prev_kv = answer.prev_kv.take().and_then(|kv| self.strip_prefix_in_kv(kv));
    }

    pub(super) fn strip_prefix_in_delete(&self, answer: &mut DeleteRangeResponse) {
        self.strip_prefix_in_all(&mut answer.prev_kvs);
    }

    pub(super) fn strip_prefix_in_txn(&self, answer: &mut TxnResponse) {
        for ResponseOp { response } in &mut answer.responses {
            match response {
                Some(response_op::Response::ResponseRange(range)) => self.strip_prefix_in_range(range),
                Some(response_op::Response::ResponsePut(put)) => self.strip_prefix_in_put(put),
                Some(response_op::Response::ResponseDeleteRange(delete)) => self.strip_prefix_in_delete(delete),
                Some(response_op::Response::ResponseTxn(txn)) => self.strip_prefix_in_txn(txn),
                None => {}
            }
        }
    }

    pub(super) fn strip_prefix_in_time_to_live(&self, answer: &mut LeaseTimeToLiveResponse) {
        answer.keys = answer.keys.iter().filter_map(|key| self.strip_prefix(key)).collect();
    }

    /// The pair under the client's key; none when its key lies outside the namespace.
    pub(super) fn strip_prefix_in_kv(&self, mut kv: KeyValue) -> Option<KeyValue> {
        kv.key = self.strip_prefix(&kv.key)?;
        Some(kv)
    }

    fn strip_prefix_in_all(&self, kvs: &mut Vec<KeyValue>) {
        kvs.retain_mut(|kv| match self.strip_prefix(&kv.key) {
            Some(key) => {
                kv.key = key;
                true
            }
            None => false,
        });
    }
}

/// Calls `each` with the lease of every put of the transaction.
pub(super) fn leases_of(request: &TxnRequest, each: &mut dyn FnMut(i64)) {
    for RequestOp { request } in request.success.iter().chain(&request.failure) {
        match request {
            Some(request_op::Request::RequestPut(put)) => each(put.lease),
            Some(request_op::Request::RequestTxn(txn)) => leases_of(txn, each),
            Some(request_op::Request::RequestRange(_) | request_op::Request::RequestDeleteRange(_)) | None => {}
        }
    }
}

/// Whether a transaction may change something, on either of its branches.
pub(super) fn changes(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|operation| match &operation.request {
        Some(request_op::Request::RequestTxn(txn)) => changes(txn),
        Some(request_op::Request::RequestPut(_) | request_op::Request::RequestDeleteRange(_)) => true,
        // An operation without a request is refused by the member.
        Some(request_op::Request::RequestRange(_)) | None => false,
    })
}
