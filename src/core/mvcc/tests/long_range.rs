use super::*;
use crate::pb::encoded::ResponseOp;
use crate::pb::encoded::response_op::Response;

const KEYS: usize = 1500;

/// Keys `k0000` on; each third was written twice, each seventh deleted. Values of all lengths around those at which
/// the length of a length changes.
fn many() -> Bench {
    let mut bench = Bench::new();
    for number in 0..KEYS {
        bench.try_put(put(&key(number), &"v".repeat(number % 400))).unwrap();
    }
    for number in (0..KEYS).step_by(3) {
        bench.try_put(PutRequest { lease: 7, ..put(&key(number), "again") }).unwrap();
    }
    for number in (0..KEYS).step_by(7) {
        bench.delete(&key(number), "");
    }
    bench
}

fn key(number: usize) -> String {
    format!("k{number:04}")
}

/// The answer as it goes out, in frames of `frame_bytes`; `between` is called after each.
fn sent(bench: &mut Bench, request: &RangeRequest, frame_bytes: usize, between: impl Fn(&mut Bench)) -> RangeResponse {
    let mut long = bench.store.reader().long_range(request).unwrap();
    while !long.measure().unwrap() {}
    let mut pairs = Vec::new();
    loop {
        let mut frame = Vec::new();
        let done = long.write(&mut frame, frame_bytes).unwrap();
        assert!(frame.len() <= frame_bytes);
        pairs.extend(frame);
        if done {
            break;
        }
        between(bench);
    }
    assert_eq!(pairs.len() as u64, long.bytes(), "as long as measured");
    let mut answer = long.frame();
    answer.merge(pairs.as_slice()).unwrap();
    answer
}

#[test]
fn a_long_range_is_the_same_answer() {
    let mut bench = many();
    let all = range("k", "l");
    let newest = bench.store.revision().0;
    for request in [
        all.clone(),
        range("\0", "\0"),
        range("k0100", "k1400"),
        range("k0001", ""),
        range("k0000", ""),
        range("z", "y"),
        RangeRequest { limit: 700, ..all.clone() },
        RangeRequest { limit: KEYS as i64 * 2, ..all.clone() },
        RangeRequest { keys_only: true, ..all.clone() },
        RangeRequest { min_mod_revision: KEYS as i64, ..all.clone() },
        RangeRequest { max_create_revision: 40, limit: 10, ..all.clone() },
        RangeRequest { min_mod_revision: newest + 1, ..all.clone() },
        RangeRequest { revision: KEYS as i64 / 2, ..all.clone() },
        RangeRequest { revision: KEYS as i64 + 5, keys_only: true, limit: 900, ..all.clone() },
        RangeRequest { revision: newest - 3, ..all.clone() },
    ] {
        let expected = bench.range(request.clone()).unwrap();
        for frame_bytes in [1, 7, 600, 32 * 1024] {
            let answer = sent(&mut bench, &request, frame_bytes, |_| ());
            assert_eq!(answer, expected, "{request:?} in frames of {frame_bytes}");
        }
    }
}

#[test]
fn writes_and_lost_pins_change_nothing_of_a_long_range() {
    let request = range("k", "l");
    let mut bench = many();
    let expected = bench.range(request.clone()).unwrap();
    let answer = sent(&mut bench, &request, 5000, |bench| {
        let key = key(bench.index as usize * 31 % KEYS);
        if bench.index % 2 == 0 {
            bench.put(&key, "changed while it is sent");
        } else {
            bench.delete(&key, "");
        }
        bench.put(&format!("k{}", bench.index), "new");
        bench.store.reader().release_pins(0);
    });
    assert_eq!(answer, expected);
}

#[test]
fn compaction_ends_a_long_range_only_once_its_pin_is_lost() {
    let request = range("k", "l");
    let mut bench = many();
    let expected = bench.range(request.clone()).unwrap();
    let reader = bench.store.reader();
    let compacted = |bench: &mut Bench| {
        bench.delete("k", "l");
        let newest = bench.store.revision().0;
        bench.compact(newest);
    };
    let mut long = reader.long_range(&request).unwrap();
    while !long.measure().unwrap() {}
    let mut pairs = Vec::new();
    assert!(!long.write(&mut pairs, 100).unwrap());
    compacted(&mut bench);
    // Nothing is replaced beyond the bound: the pinned state has it all.
    reader.release_pins(u64::MAX);
    assert!(!long.write(&mut pairs, 200).unwrap());
    reader.release_pins(0);
    assert!(matches!(long.write(&mut pairs, 300), Err(MvccError::Compacted { .. })));
    assert!(!expected.kvs.is_empty());
}

#[test]
fn only_what_was_replaced_since_counts_against_a_pin() {
    let mut bench = Bench::new();
    bench.put("k", &"x".repeat(100_000));
    let reader = bench.store.reader();
    let early = reader.pin(reader.replaced_bytes(), "early");
    bench.put("k", "replaces 100,000 bytes");
    let late = reader.pin(reader.replaced_bytes(), "late");
    bench.put("k", "replaces few");
    reader.release_pins(100_000);
    assert_eq!((early.with(|value| *value), late.with(|value| *value)), (None, Some("late")));
    drop((early, late));
    let newer = reader.pin(reader.replaced_bytes(), ());
    bench.put("k", "");
    reader.release_pins(0);
    assert_eq!(newer.with(|()| ()), None);
}

#[test]
fn a_released_pin_frees_the_state() {
    let mut bench = many();
    let reader = bench.store.reader();
    let snapshot = reader.snapshot();
    let state = std::sync::Arc::downgrade(&snapshot.state);
    let mut long = reader.long_range(&range("k", "l")).unwrap();
    drop(snapshot);
    assert!(!long.measure().unwrap());
    bench.put("k", "another state");
    assert!(state.upgrade().is_some(), "the range reads it");
    reader.release_pins(0);
    assert!(state.upgrade().is_none(), "nothing else does");
}

#[test]
fn long_ranges_of_a_transaction_are_read_after_it_in_the_state_they_stood_in() {
    // Apply read them in one go: a transaction with a range of the whole store stopped every member.
    let mut bench = Bench::new();
    for number in 0..400 {
        bench.put(&key(number), "old");
    }
    let all = || op(range("k", "l"));
    let inner = RequestOp { request: Some(Request::RequestTxn(always(vec![op(delete("k", "k0010")), all()]))) };
    let request = always(vec![all(), op(put("k0005", "new")), op(range("k0005", "")), all(), inner, all()]);
    let written = bench.store.txn(&request, &FirstHundred).unwrap();
    assert!(!written.response.is_whole());
    let answer = bench.done(written).response;
    bench.delete("k", "l");
    let answer = answer.read().unwrap();

    let ranges = |answer: &TxnResponse| -> Vec<(usize, i64, usize)> {
        let found = |op: &ResponseOp| match &op.response {
            Some(Response::ResponseRange(range)) => {
                let fresh = range.kvs.iter().filter(|encoded| kv(encoded).value == "new").count();
                Some((range.kvs.len(), range.count, fresh))
            }
            _ => None,
        };
        answer.responses.iter().filter_map(found).collect()
    };
    assert_eq!(ranges(&answer), [(400, 400, 0), (1, 1, 1), (400, 400, 1), (390, 390, 0)]);
    let Some(Response::ResponseTxn(inner)) = &answer.responses[4].response else { panic!("{answer:?}") };
    assert_eq!(ranges(inner), [(390, 390, 0)]);
    let short = always(vec![op(range("k0001", "k0009"))]);
    assert!(bench.store.txn(&short, &FirstHundred).unwrap().response.is_whole());
}
