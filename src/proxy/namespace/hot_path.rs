//! Requests and answers with a prefix added and removed, for `benches/hot_paths.py`.

use bytes::Bytes;
use prost::Message;

use super::Namespace;
use crate::client::framed;
use crate::pb::etcdserverpb::{PutRequest, RangeResponse};
use crate::pb::mvccpb::KeyValue;

const CALLS: usize = 1000;
const PAIRS: usize = 10;

/// Bytes of the put as it goes upstream and of the answer to a range as it comes back.
fn rewrite(namespace: &Namespace, put: &Bytes, answer: &Bytes) -> (Bytes, Bytes) {
    let mut put = PutRequest::decode(put.clone()).unwrap();
    namespace.add_prefix_to_put(&mut put);
    let mut answer = RangeResponse::decode(answer.clone()).unwrap();
    namespace.strip_prefix_in_range(&mut answer);
    (framed(&put), framed(&answer))
}

#[inline(never)]
fn counted(namespace: &Namespace, put: &Bytes, answer: &Bytes) -> usize {
    (0..CALLS).map(|_| rewrite(namespace, put, answer).0.len()).sum()
}

#[test]
fn namespace_rewrite() {
    let namespace = Namespace::new("tenants/a/");
    let value = Bytes::from(vec![b'v'; 256]);
    let put = PutRequest { key: "key/000001".into(), value: value.clone(), ..Default::default() };
    let pair = |number: usize| KeyValue {
        key: format!("tenants/a/key/{number:06}").into(),
        value: value.clone(),
        ..Default::default()
    };
    let answer = RangeResponse { kvs: (0..PAIRS).map(pair).collect(), count: PAIRS as i64, ..Default::default() };
    let (put, answer) = (put.encode_to_vec().into(), answer.encode_to_vec().into());
    let (upstream, downstream) = rewrite(&namespace, &put, &answer);
    assert!(upstream.windows(20).any(|bytes| bytes == b"tenants/a/key/000001"));
    assert!(!downstream.windows(10).any(|bytes| bytes == b"tenants/a/"));
    assert_eq!(counted(&namespace, &put, &answer), CALLS * upstream.len());
}
