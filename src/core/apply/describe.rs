use std::fmt::Write as _;

use super::operation::Operation;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

/// Bytes of a key that are shown.
const KEY_BYTES_MAX: usize = 256;
/// Operations of a transaction that are shown, on each side.
const OPS_MAX: usize = 8;

/// A request of the log as a log line shows it: keys cut short, no values.
pub fn describe_request(id: u64, operation: &Operation) -> String {
    let mut text = format!("header:{{ID:{id}}} ");
    match operation {
        Operation::Put(put) => write_put(&mut text, put),
        Operation::Txn(txn) => text += &describe_txn(txn),
        Operation::DeleteRange(delete) => write_delete(&mut text, delete),
        Operation::Compaction(compaction) => {
            let _ = write!(text, "compaction:{{revision:{}}}", compaction.revision);
        }
        Operation::LeaseGrant(grant) => {
            let _ = write!(text, "lease_grant:{{TTL:{} ID:{}}}", grant.ttl, grant.id);
        }
        Operation::LeaseRevoke(revoke) => {
            let _ = write!(text, "lease_revoke:{{ID:{}}}", revoke.id);
        }
        // Nothing of what is inside: requests about users hold hashes.
        other => text += other.kind().label(),
    }
    text
}

/// A range as a log line shows it.
pub fn describe_range(request: &RangeRequest) -> String {
    let mut text = String::new();
    write_range(&mut text, request);
    text
}

/// A transaction as a log line shows it.
pub fn describe_txn(request: &TxnRequest) -> String {
    let mut text = format!("txn:{{compares:{}", request.compare.len());
    for (name, ops) in [("success", &request.success), ("failure", &request.failure)] {
        let _ = write!(text, " {name}:{}[", ops.len());
        for op in ops.iter().take(OPS_MAX) {
            write_op(&mut text, op);
        }
        text += if ops.len() > OPS_MAX { "...]" } else { "]" };
    }
    text += "}";
    text
}

fn write_op(text: &mut String, op: &RequestOp) {
    match &op.request {
        Some(Request::RequestRange(range)) => write_range(text, range),
        Some(Request::RequestPut(put)) => write_put(text, put),
        Some(Request::RequestDeleteRange(delete)) => write_delete(text, delete),
        // One level is enough to recognise it.
        Some(Request::RequestTxn(nested)) => {
            let _ = write!(text, "txn:{{success:{} failure:{}}}", nested.success.len(), nested.failure.len());
        }
        None => {}
    }
}

fn write_range(text: &mut String, range: &RangeRequest) {
    *text += "range:{";
    write_bounds(text, &range.key, &range.range_end);
    let _ = write!(text, " limit:{} revision:{}}}", range.limit, range.revision);
}

fn write_put(text: &mut String, put: &PutRequest) {
    let (key, size) = (shown(&put.key), put.value.len());
    let _ = write!(text, "put:{{key:\"{key}\" value_size:{size} lease:{}}}", put.lease);
}

fn write_delete(text: &mut String, delete: &DeleteRangeRequest) {
    *text += "delete_range:{";
    write_bounds(text, &delete.key, &delete.range_end);
    *text += "}";
}

fn write_bounds(text: &mut String, key: &[u8], range_end: &[u8]) {
    let _ = write!(text, "key:\"{}\"", shown(key));
    if !range_end.is_empty() {
        let _ = write!(text, " range_end:\"{}\"", shown(range_end));
    }
}

fn shown(key: &[u8]) -> impl std::fmt::Display + '_ {
    key[..key.len().min(KEY_BYTES_MAX)].escape_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_shown_without_values_and_within_a_bound() {
        let put = PutRequest { key: "a\n".into(), value: "secret".into(), lease: 7, ..Default::default() };
        let text = describe_request(3, &Operation::Put(put.clone()));
        assert_eq!(text, "header:{ID:3} put:{key:\"a\\n\" value_size:6 lease:7}");
        let range = RangeRequest { key: vec![0xff; 4096].into(), range_end: "b".into(), ..Default::default() };
        let op = |request| RequestOp { request: Some(request) };
        let success: Vec<_> = (0..1000)
            .flat_map(|_| [op(Request::RequestPut(put.clone())), op(Request::RequestRange(range.clone()))])
            .collect();
        let text = describe_txn(&TxnRequest { success, ..Default::default() });
        assert!(text.starts_with("txn:{compares:0 success:2000[put:{key:\"a\\n\" value_size:6 lease:7}range:{key:"));
        assert!(text.ends_with("...] failure:0[]}") && !text.contains("secret"), "{text}");
        assert!(text.len() < 16 * 1024, "{}", text.len());
    }
}
