mod lawful;
mod upstream;
mod wire;

use bytes::Bytes;
use proptest::prelude::*;

use super::keys::Namespace;
use super::rewrite::leases_of;
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseOp, TxnRequest,
    TxnResponse, request_op, response_op,
};
use crate::pb::mvccpb::KeyValue;
use crate::types::KeyRange;

/// Short keys over few bytes, so that equal ones, neighbours and every kind of range end turn up.
fn key() -> impl Strategy<Value = Bytes> {
    let byte = prop_oneof![Just(0u8), Just(1), Just(b'a'), Just(0xfe), Just(0xff)];
    proptest::collection::vec(byte, 0..4).prop_map(Bytes::from)
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just(Bytes::new()), Just(Bytes::from_static(b"\0")), key()]
}

fn operation() -> BoxedStrategy<RequestOp> {
    let leaf =
        prop_oneof![
            (key(), range_end()).prop_map(|(key, range_end)| request_op::Request::RequestRange(RangeRequest {
                key,
                range_end,
                ..Default::default()
            })),
            (key(), 0..3i64).prop_map(|(key, lease)| request_op::Request::RequestPut(PutRequest {
                key,
                lease,
                ..Default::default()
            })),
            (key(), range_end()).prop_map(|(key, range_end)| request_op::Request::RequestDeleteRange(
                DeleteRangeRequest { key, range_end, ..Default::default() }
            )),
        ];
    let operation = prop_oneof![9 => leaf.prop_map(Some), 1 => Just(None)].prop_map(|request| RequestOp { request });
    operation
        .prop_recursive(3, 24, 4, |inner| {
            txn_of(inner).prop_map(|txn| RequestOp { request: Some(request_op::Request::RequestTxn(txn)) })
        })
        .boxed()
}

fn txn_of(operation: impl Strategy<Value = RequestOp> + Clone) -> impl Strategy<Value = TxnRequest> {
    let compare = (key(), range_end()).prop_map(|(key, range_end)| Compare { key, range_end, ..Default::default() });
    let operations = proptest::collection::vec(operation, 0..4);
    (proptest::collection::vec(compare, 0..3), operations.clone(), operations)
        .prop_map(|(compare, success, failure)| TxnRequest { compare, success, failure })
}

/// Every key and range end of a transaction, in order.
fn keys_of(txn: &TxnRequest, out: &mut Vec<(Bytes, Bytes)>) {
    out.extend(txn.compare.iter().map(|compare| (compare.key.clone(), compare.range_end.clone())));
    for operation in txn.success.iter().chain(&txn.failure) {
        match &operation.request {
            Some(request_op::Request::RequestRange(range)) => out.push((range.key.clone(), range.range_end.clone())),
            Some(request_op::Request::RequestPut(put)) => out.push((put.key.clone(), Bytes::new())),
            Some(request_op::Request::RequestDeleteRange(delete)) => {
                out.push((delete.key.clone(), delete.range_end.clone()));
            }
            Some(request_op::Request::RequestTxn(txn)) => keys_of(txn, out),
            None => {}
        }
    }
}

fn kv(key: Bytes) -> KeyValue {
    KeyValue { key, value: "v".into(), ..Default::default() }
}

proptest! {
    #[test]
    fn no_part_of_a_transaction_reaches_outside(
        prefix in key().prop_filter("a namespace", |prefix| !prefix.is_empty()),
        txn in txn_of(operation()),
        probe in key(),
    ) {
        let namespace = Namespace::new(prefix);
        let mut prefixed = txn.clone();
        namespace.add_prefix_to_txn(&mut prefixed, &|lease| lease);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        keys_of(&txn, &mut before);
        keys_of(&prefixed, &mut after);
        prop_assert_eq!(before.len(), after.len());
        for ((key, end), (new_key, new_end)) in before.into_iter().zip(after) {
            if key.is_empty() {
                // The member refuses it; were it not to, nothing of anybody is named.
                prop_assert!(new_key.is_empty() && new_end.is_empty());
                continue;
            }
            let was = KeyRange::from_wire(key, end);
            let is = KeyRange::from_wire(new_key, new_end);
            prop_assert_eq!(is.contains(&namespace.add_prefix(&probe)), was.contains(&probe));
            prop_assert!(namespace.strip_prefix(&probe).is_some() || !is.contains(&probe), "{:?} covers {:?}", is, probe);
            // A member must see as many keys asked for as the client named: one stays one.
            prop_assert_eq!(matches!(is, KeyRange::One(_)), matches!(was, KeyRange::One(_)));
        }
    }

    #[test]
    fn every_put_may_change_its_lease(txn in txn_of(operation())) {
        let mut leases = Vec::new();
        leases_of(&txn, &mut |lease| leases.push(lease));
        let mut prefixed = txn;
        Namespace::new("n").add_prefix_to_txn(&mut prefixed, &|lease| lease + 10);
        let mut replaced = Vec::new();
        leases_of(&prefixed, &mut |lease| replaced.push(lease));
        prop_assert_eq!(replaced, leases.iter().map(|lease| lease + 10).collect::<Vec<_>>());
    }

    #[test]
    fn answers_lose_the_prefix_and_foreign_pairs(prefix in key(), keys in proptest::collection::vec(key(), 0..5)) {
        let namespace = Namespace::new(prefix.clone());
        let mut answer = RangeResponse {
            kvs: keys.iter().flat_map(|key| [kv(namespace.add_prefix(key)), kv(key.clone())]).collect(),
            count: 7,
            ..Default::default()
        };
        let expected: Vec<_> = keys.iter().flat_map(|key| {
            [Some(key.clone()), key.strip_prefix(&prefix[..]).map(Bytes::copy_from_slice)]
        }).flatten().collect();
        namespace.strip_prefix_in_range(&mut answer);
        prop_assert_eq!(answer.kvs.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>(), expected);
        prop_assert_eq!(answer.count, 7);
    }
}

#[test]
fn nested_answers_are_rewritten() {
    let namespace = Namespace::new("n/");
    let range = RangeResponse { kvs: vec![kv("n/k".into()), kv("m/k".into())], ..Default::default() };
    let inner = TxnResponse {
        responses: vec![ResponseOp { response: Some(response_op::Response::ResponseRange(range)) }],
        ..Default::default()
    };
    let mut answer = TxnResponse {
        responses: vec![
            ResponseOp { response: Some(response_op::Response::ResponseTxn(inner)) },
            ResponseOp { response: None },
        ],
        ..Default::default()
    };
    namespace.strip_prefix_in_txn(&mut answer);
    let Some(response_op::Response::ResponseTxn(inner)) = &answer.responses[0].response else { panic!("a txn") };
    let Some(response_op::Response::ResponseRange(range)) = &inner.responses[0].response else { panic!("a range") };
    assert_eq!(range.kvs, [kv("k".into())]);
}
