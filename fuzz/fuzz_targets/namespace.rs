//! Rewriting into a namespace and out of it: every key that a request may touch upstream begins with the prefix, stripping undoes
//! adding, and an answer shows the keys of the namespace alone.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use watershed::pb::etcdserverpb::{TxnRequest, TxnResponse};
use watershed::proxy::{Namespace, fuzzing};
use watershed::types::KeyRange;

fuzz_target!(|data: &[u8]| {
    let Some((&length, rest)) = data.split_first() else { return };
    let (prefix, rest) = rest.split_at(usize::from(length % 8).min(rest.len()));
    let Some((&length, rest)) = rest.split_first() else { return };
    let (key, rest) = rest.split_at(usize::from(length % 16).min(rest.len()));
    let namespace = Namespace::new(Bytes::copy_from_slice(prefix));
    let inside = Bytes::copy_from_slice(key);
    assert_eq!(namespace.strip_prefix(&namespace.add_prefix(&inside)), Some(inside.clone()));
    let whole = namespace.range();
    if !key.is_empty() {
        let range_end = Bytes::copy_from_slice(&rest[..rest.len().min(16)]);
        let (start, end) = namespace.add_prefix_to_range(&inside, &range_end);
        let (inner, outer) = (KeyRange::from_wire(inside, range_end.clone()), KeyRange::from_wire(start, end));
        for probe in [key, &range_end, prefix, rest, b"", b"\xff\xff\xff", &[key, rest].concat()] {
            // A key of the namespace is covered exactly if the client's range covers it.
            let upstream = namespace.add_prefix(probe);
            if upstream.is_empty() {
                // No key.
                continue;
            }
            assert_eq!(outer.contains(&upstream), inner.contains(&Bytes::copy_from_slice(probe)), "{probe:?}");
            // And no key outside.
            assert!(whole.contains(&upstream));
            assert!(!outer.contains(&Bytes::copy_from_slice(probe)) || probe.starts_with(prefix), "{probe:?}");
        }
    }
    if let Ok(txn) = TxnRequest::decode(rest) {
        let rewritten = fuzzing::add_prefix_to_txn(&namespace, txn);
        fuzzing::each_range(&rewritten, &mut |key, range_end| {
            if key.is_empty() {
                assert!(range_end.is_empty());
                return;
            }
            assert!(key.starts_with(prefix));
            let range = KeyRange::from_wire(key.clone(), range_end.clone());
            for probe in [b"".as_slice(), b"\x01", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff", rest] {
                assert!(!range.contains(&Bytes::copy_from_slice(probe)) || probe.starts_with(prefix));
            }
        });
    }
    if let Ok(answer) = TxnResponse::decode(rest) {
        let mut inside = Vec::new();
        fuzzing::each_pair(&answer, &mut |pair| inside.extend(namespace.strip_prefix(&pair.key)));
        let mut shown = Vec::new();
        fuzzing::each_pair(&fuzzing::strip_prefix_in_txn(&namespace, answer), &mut |pair| shown.push(pair.key.clone()));
        assert_eq!(shown, inside);
    }
});
