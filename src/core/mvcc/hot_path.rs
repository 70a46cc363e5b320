//! Reads of one key from the published state, for `benches/hot_paths.py`.

use bytes::Bytes;
use prost::Message;

use super::{Store, StoreReader, check_range};
use crate::core::backend::Backend;
use crate::pb::encoded::WireEncode;
use crate::pb::etcdserverpb::{PutRequest, RangeRequest};
use crate::types::LeaseId;

const RANGES: u64 = 1000;
const KEYS: u64 = 10_000;

fn key(number: u64) -> Bytes {
    format!("/registry/{number:06}").into()
}

/// From the request as it arrives to the answer as it leaves.
fn answer(reader: &StoreReader, request: &Bytes) -> Vec<u8> {
    let request = RangeRequest::decode(request.clone()).unwrap();
    check_range(&request).unwrap();
    let snapshot = reader.snapshot();
    assert!(snapshot.extent(&request).is_small());
    let answer = snapshot.range(&request).unwrap();
    let mut message = Vec::with_capacity(answer.wire_len());
    answer.write(&mut message);
    message
}

#[inline(never)]
fn counted(reader: &StoreReader, requests: &[Bytes]) -> usize {
    requests.iter().map(|request| answer(reader, request).len()).sum()
}

#[test]
fn range() {
    let mut store = Store::open(Backend::in_memory().unwrap()).unwrap();
    for number in 0..KEYS {
        let put = PutRequest { key: key(number), value: vec![b'v'; 256].into(), ..Default::default() };
        store.put(&put, &|_: LeaseId| false).unwrap();
    }
    store.publish();
    let request = |number: u64| {
        let request = RangeRequest { key: key(number * 7919 % KEYS), ..Default::default() };
        request.encode_to_vec().into()
    };
    let requests: Vec<Bytes> = (0..RANGES).map(request).collect();
    assert!(counted(&store.reader(), &requests) > 256 * RANGES as usize);
}
