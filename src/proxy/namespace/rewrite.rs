use bytes::Bytes;

use super::keys::Namespace;
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse, request_op, response_op,
};
use crate::pb::mvccpb::KeyValue;

// Requests go in, answers come out; every field that holds a key is here.
//
// An empty key is an error that the member words, in its own order among other errors. It goes on as an empty key with
// no range, so that even a server which took it would touch nothing of the namespace or beside it.

impl Namespace {
    pub(super) fn enter_request_range(&self, key: &mut Bytes, range_end: &mut Bytes) {
        if key.is_empty() {
            range_end.clear();
        } else {
            (*key, *range_end) = self.enter_range(key, range_end);
        }
    }

    pub(super) fn enter_range_request(&self, request: &mut RangeRequest) {
        self.enter_request_range(&mut request.key, &mut request.range_end);
    }

    pub(super) fn enter_delete(&self, request: &mut DeleteRangeRequest) {
        self.enter_request_range(&mut request.key, &mut request.range_end);
    }

    pub(super) fn enter_put(&self, request: &mut PutRequest) {
        if !request.key.is_empty() {
            request.key = self.add_prefix(&request.key);
        }
    }

    /// Rewrites a whole transaction. `lease` may replace the lease of each put.
    pub(super) fn enter_txn(&self, request: &mut TxnRequest, lease: &dyn Fn(i64) -> i64) {
        for Compare { key, range_end, .. } in &mut request.compare {
            self.enter_request_range(key, range_end);
        }
        for operation in request.success.iter_mut().chain(&mut request.failure) {
            match &mut operation.request {
                Some(request_op::Request::RequestRange(range)) => self.enter_range_request(range),
                Some(request_op::Request::RequestPut(put)) => {
                    put.lease = lease(put.lease);
                    self.enter_put(put);
                }
                Some(request_op::Request::RequestDeleteRange(delete)) => self.enter_delete(delete),
                Some(request_op::Request::RequestTxn(txn)) => self.enter_txn(txn, lease),
                // The member says what it thinks of an operation without a request.
                None => {}
            }
        }
    }

    pub(super) fn leave_range(&self, answer: &mut RangeResponse) {
        self.leave_all(&mut answer.kvs);
    }

    pub(super) fn leave_put(&self, answer: &mut PutResponse) {
        answer.prev_kv = answer.prev_kv.take().and_then(|kv| self.leave_kv(kv));
    }

    pub(super) fn leave_delete(&self, answer: &mut DeleteRangeResponse) {
        self.leave_all(&mut answer.prev_kvs);
    }

    pub(super) fn leave_txn(&self, answer: &mut TxnResponse) {
        for ResponseOp { response } in &mut answer.responses {
            match response {
                Some(response_op::Response::ResponseRange(range)) => self.leave_range(range),
                Some(response_op::Response::ResponsePut(put)) => self.leave_put(put),
                Some(response_op::Response::ResponseDeleteRange(delete)) => self.leave_delete(delete),
                Some(response_op::Response::ResponseTxn(txn)) => self.leave_txn(txn),
                None => {}
            }
        }
    }

    pub(super) fn leave_time_to_live(&self, answer: &mut LeaseTimeToLiveResponse) {
        answer.keys = answer.keys.iter().filter_map(|key| self.strip_prefix(key)).collect();
    }

    /// The pair under the client's key; none when it lies outside, whatever the cluster meant by it.
    pub(super) fn leave_kv(&self, mut kv: KeyValue) -> Option<KeyValue> {
        kv.key = self.strip_prefix(&kv.key)?;
        Some(kv)
    }

    fn leave_all(&self, kvs: &mut Vec<KeyValue>) {
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
