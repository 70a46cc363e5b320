use super::*;
use crate::core::mvcc::range::{PartEnd, in_order};
use crate::core::mvcc::view::Walk;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};

/// Keys k1..k5 whose values descend; k3 is written twice and holds a lease.
fn five() -> Bench {
    let mut bench = Bench::new();
    for (key, value) in [("k1", "e"), ("k2", "d"), ("k3", "x"), ("k4", "b"), ("k5", "a")] {
        bench.put(key, value);
    }
    bench.try_put(PutRequest { lease: 9, ..put("k3", "c") }).unwrap();
    bench
}

fn keys(bench: &Bench, request: RangeRequest) -> String {
    let answer = bench.range(request).unwrap();
    let keys: Vec<_> = answer.kvs.iter().map(|encoded| kv(encoded).key.escape_ascii().to_string()).collect();
    format!("{} of {}{}", keys.join(" "), answer.count, if answer.more { ", more" } else { "" })
}

fn sorted(target: SortTarget, order: SortOrder, limit: i64) -> RangeRequest {
    RangeRequest { sort_target: target as i32, sort_order: order as i32, limit, ..range("k", "l") }
}

#[test]
fn ends_of_ranges() {
    let bench = five();
    for (key, end, expected) in [
        ("k2", "", "k2 of 1"),
        ("k2", "k4", "k2 k3 of 2"),
        ("k4", "k2", " of 0"),
        ("k4", "k4", " of 0"),
        ("k4", "\0", "k4 k5 of 2"),
        ("\0", "\0", "k1 k2 k3 k4 k5 of 5"),
        ("k0", "", " of 0"),
        ("k22", "k9", "k3 k4 k5 of 3"),
    ] {
        assert_eq!(keys(&bench, range(key, end)), expected);
        let count = RangeRequest { count_only: true, limit: 1, ..range(key, end) };
        assert!(expected.ends_with(&keys(&bench, count)));
    }
}

// Cause: counts and compares hold nothing of what they look at, so the thread that serves everybody else looked at all of it.
#[test]
fn what_is_looked_at_counts_although_the_answer_holds_nothing_of_it() {
    let mut bench = Bench::new();
    for number in 0..300 {
        bench.put(&format!("k{number:03}"), "v");
    }
    let snapshot = bench.store.reader().snapshot();
    let count = |revision| RangeRequest { count_only: true, revision, ..range("k", "l") };
    assert!(snapshot.extent(&count(0)).is_small());
    assert!(snapshot.extent(&count(301)).is_small(), "the newest revision");
    let old = snapshot.extent(&count(2));
    assert_eq!((old.keys, old.looks, old.is_small()), (0, 300, false));
    let compare = |end: &'static str| Compare { key: "k000".into(), range_end: end.into(), ..Default::default() };
    let txn = |ends: [&'static str; 2]| {
        let nested = TxnRequest { compare: ends.map(compare).into(), ..Default::default() };
        let op = RequestOp { request: Some(Request::RequestTxn(nested)) };
        snapshot.txn_extent(&TxnRequest { compare: vec![compare("")], failure: vec![op], ..Default::default() })
    };
    let one_each = txn(["", ""]);
    assert_eq!((one_each.looks, one_each.is_small()), (3, true));
    let ranges = txn(["k200", "l"]);
    assert_eq!((ranges.keys, ranges.looks, ranges.is_small()), (0, 501, false));
}

#[test]
fn a_limit_tells_that_there_is_more() {
    let bench = five();
    let limited = |limit| RangeRequest { limit, ..range("k", "l") };
    assert_eq!(keys(&bench, limited(2)), "k1 k2 of 5, more");
    assert_eq!(keys(&bench, limited(5)), "k1 k2 k3 k4 k5 of 5");
    assert_eq!(keys(&bench, limited(-1)), "k1 k2 k3 k4 k5 of 5");
    assert_eq!(keys(&bench, limited(i64::MAX)), "k1 k2 k3 k4 k5 of 5");
}

#[test]
fn sorting_by_another_field_in_no_order_sorts_what_the_limit_let_through() {
    let bench = five();
    use SortOrder::{Ascend, Descend, None};
    use SortTarget::{Create, Key, Mod, Value, Version};
    for (target, order, limit, expected) in [
        (Value, None, 2, "k3 k2 of 5, more"),
        (Value, Ascend, 2, "k5 k4 of 5, more"),
        (Value, Descend, 2, "k1 k2 of 5, more"),
        (Value, None, 0, "k5 k4 k3 k2 k1 of 5"),
        (Key, Descend, 2, "k5 k4 of 5, more"),
        (Key, None, 2, "k1 k2 of 5, more"),
        (Create, Descend, 0, "k5 k4 k3 k2 k1 of 5"),
        (Mod, Descend, 1, "k3 of 5, more"),
        (Version, Descend, 1, "k3 of 5, more"),
        (Mod, None, 0, "k1 k2 k4 k5 k3 of 5"),
    ] {
        assert_eq!(keys(&bench, sorted(target, order, limit)), expected, "{target:?} {order:?}");
    }
}

#[test]
fn filters_are_inclusive_and_do_not_change_the_count() {
    let bench = five();
    let all = range("k", "l");
    assert_eq!(keys(&bench, RangeRequest { min_mod_revision: 5, ..all.clone() }), "k3 k4 k5 of 5");
    assert_eq!(keys(&bench, RangeRequest { max_mod_revision: 3, ..all.clone() }), "k1 k2 of 5");
    assert_eq!(keys(&bench, RangeRequest { min_create_revision: 4, limit: 1, ..all.clone() }), "k3 of 5, more");
    let both = RangeRequest { min_create_revision: 3, max_create_revision: 5, max_mod_revision: 6, ..all };
    assert_eq!(keys(&bench, both), "k2 k4 of 5");
}

#[test]
fn keys_only_drops_the_lease_too_unless_values_are_looked_at() {
    let bench = five();
    let only = RangeRequest { keys_only: true, ..range("k3", "") };
    assert_eq!(shown(&bench.range(only.clone()).unwrap().kvs), ["k3= @4/7 v2"]);
    let by_value = RangeRequest { sort_target: SortTarget::Value as i32, ..only.clone() };
    assert_eq!(shown(&bench.range(by_value).unwrap().kvs), ["k3= @4/7 v2 lease 9"]);
    let filtered = RangeRequest { min_mod_revision: 1, ..only.clone() };
    assert_eq!(shown(&bench.range(filtered).unwrap().kvs), ["k3= @4/7 v2"]);
    let old = RangeRequest { revision: 6, ..only };
    assert_eq!(shown(&bench.range(old).unwrap().kvs), ["k3= @4/4 v1"]);
}

#[test]
fn old_revisions_show_what_was_there() {
    let mut bench = five();
    bench.delete("k2", "k4");
    bench.put("k2", "again");
    assert_eq!(bench.get("", 6).unwrap().len(), 5);
    assert_eq!(bench.get("", 8).unwrap(), ["k1=e @2/2 v1", "k4=b @5/5 v1", "k5=a @6/6 v1"]);
    assert_eq!(bench.get("", 7).unwrap()[1..3], ["k2=d @3/3 v1", "k3=c @4/7 v2 lease 9"]);
    for revision in 1..=9 {
        let old = RangeRequest { revision, ..range("\0", "\0") };
        let (all, counted) = (bench.range(old.clone()).unwrap(), RangeRequest { count_only: true, ..old.clone() });
        assert_eq!(all.count, bench.range(counted).unwrap().count);
        assert_eq!(all.header.unwrap().revision, 9);
        let first = bench.range(RangeRequest { limit: 1, ..old }).unwrap();
        assert_eq!((first.kvs.first(), first.count), (all.kvs.first(), all.count));
    }
}

// Cause: a walk at an old revision first passed over all keys written since, up to the end of the store, and each slice of a
// long range began with that.
#[test]
fn a_walk_at_an_old_revision_does_not_run_ahead() {
    let mut bench = Bench::new();
    for value in ["old", "new"] {
        for key in ["k1", "k2", "k3", "z1", "z2", "z3"] {
            bench.put(key, value);
        }
    }
    let snapshot = bench.store.reader().snapshot();
    let covered = KeyRange::prefix("k".into());
    let mut walk = snapshot.view().walk(&covered, Revision(7));
    assert_eq!(walk.next().map(|found| found.key().to_vec()), Some(b"k1".to_vec()));
    let Walk::Merged { live, .. } = &mut walk else { panic!("the revision is an old one") };
    assert_eq!(live.peek().map(|record| record.key()), Some(&b"k1"[..]));
    assert_eq!(walk.by_ref().count(), 2);
    let Walk::Merged { live, .. } = walk else { panic!("the revision is an old one") };
    assert_eq!(live.count(), 3, "what lies behind the range is not looked at");
}

// Cause: each chunk of a stream was counted, which at an old revision is a walk over all that changed since.
#[test]
fn a_range_in_order_leaves_the_count_to_its_caller() {
    let bench = five();
    let snapshot = bench.store.reader().snapshot();
    let (covered, mut kvs) = (KeyRange::prefix("k".into()), Vec::new());
    let request = RangeRequest { limit: 2, ..range("k", "l") };
    let end = PartEnd { bytes: usize::MAX, loads: usize::MAX };
    let more = in_order(snapshot.view(), &request, (&covered, Revision(6)), end, &mut kvs).unwrap();
    assert!(more);
    assert_eq!(shown(&kvs), ["k1=e @2/2 v1", "k2=d @3/3 v1"]);
    for limit in [0, 2, 5, 9] {
        let old = RangeRequest { revision: 6, limit, ..range("k", "l") };
        let (parts, whole) = (chunks(&bench, &old, 20), bench.range(old).unwrap());
        let last = parts.last().unwrap();
        assert_eq!((last.count, last.more), (whole.count, whole.more));
        assert_eq!(parts.iter().map(|part| part.kvs.len()).sum::<usize>(), whole.kvs.len());
    }
}

fn chunks(bench: &Bench, request: &RangeRequest, bytes: usize) -> Vec<RangeResponse> {
    let mut stream = bench.store.reader().range_stream(request, bytes).unwrap();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    chunks
}

#[test]
fn chunks_of_a_stream_add_up_to_the_answer() {
    let mut bench = Bench::new();
    for number in 0..35 {
        bench.put(&format!("k{number:02}"), &format!("{:02}", 99 - number));
    }
    let all = range("k", "l");
    let by_value = RangeRequest { sort_target: SortTarget::Value as i32, ..all.clone() };
    for request in [by_value.clone(), RangeRequest { limit: 20, ..by_value }] {
        let sorted = bench.range(request.clone()).unwrap();
        let parts = chunks(&bench, &request, 200);
        assert!(parts.len() > 1 && parts.iter().all(|part| part.encoded_len() < 300), "{parts:?}");
        let kvs = parts.iter().flat_map(|part| part.kvs.clone()).collect();
        let merged = RangeResponse { kvs, ..parts.last().cloned().unwrap() };
        assert_eq!(merged, sorted, "a target alone sorts the whole answer");
    }
    let sizes = |chunks: &[RangeResponse]| chunks.iter().map(|chunk| chunk.kvs.len()).collect::<Vec<_>>();
    assert_eq!(sizes(&chunks(&bench, &all, 1 << 20)), [10, 20, 5]);
    assert_eq!(sizes(&chunks(&bench, &all, 24))[..3], [2, 2, 2], "a chunk ends with the pair that fills it");
    let single = RangeRequest { key: "k07".into(), range_end: Default::default(), ..all.clone() };
    for request in [
        all.clone(),
        RangeRequest { limit: 17, ..all.clone() },
        RangeRequest { limit: 35, ..all.clone() },
        RangeRequest { limit: -3, ..all.clone() },
        RangeRequest { revision: 20, keys_only: true, ..all.clone() },
        RangeRequest { count_only: true, limit: 3, ..all.clone() },
        RangeRequest { range_end: "\0".into(), ..all.clone() },
        RangeRequest { key: "x".into(), range_end: "z".into(), ..all.clone() },
        single,
    ] {
        let mut merged = RangeResponse::default();
        for chunk in chunks(&bench, &request, 300) {
            assert!(merged.header.is_none(), "only the last has one");
            merged.kvs.extend(chunk.kvs);
            (merged.header, merged.more, merged.count) = (chunk.header, chunk.more, chunk.count);
        }
        assert_eq!(merged, bench.range(request).unwrap());
    }
}

// Cause: a chunk had up to 4096 keys wherever their values were, and the serving thread read as many rows from the disk for it.
#[test]
fn a_chunk_at_an_old_revision_reads_few_rows() {
    let mut bench = Bench::new();
    for value in ["old", "new"] {
        for number in 0..200 {
            bench.put(&format!("k{number:03}"), value);
        }
    }
    let sizes = |revision| -> Vec<usize> {
        let request = RangeRequest { revision, ..range("k", "l") };
        let parts = chunks(&bench, &request, 1 << 20);
        let kvs: Vec<Bytes> = parts.iter().flat_map(|part| part.kvs.clone()).collect();
        assert_eq!(kvs, bench.range(request).unwrap().kvs);
        parts.iter().map(|part| part.kvs.len()).collect()
    };
    assert_eq!(sizes(201), [10, 20, 40, 64, 64, 2]);
    assert_eq!(sizes(0), [10, 20, 40, 80, 50]);
}

#[test]
fn a_stream_stays_at_its_revision_until_that_is_compacted() {
    let mut bench = Bench::new();
    for number in 0..12 {
        bench.put(&format!("k{number:02}"), "v");
    }
    let reader = bench.store.reader();
    let mut one = reader.range_stream(&range("k", "l"), 1 << 20).unwrap();
    let mut other = reader.range_stream(&range("k", "l"), 1 << 20).unwrap();
    assert_eq!(one.next_chunk().unwrap().unwrap().kvs.len(), 10);
    assert_eq!(other.next_chunk().unwrap().unwrap().kvs.len(), 10);
    bench.delete("k", "l");
    let last = one.next_chunk().unwrap().unwrap();
    assert_eq!((last.kvs.len(), last.count, last.header.unwrap().revision), (2, 12, 13));
    bench.compact(14);
    assert!(matches!(other.next_chunk(), Err(MvccError::Compacted { .. })));
    assert!(other.next_chunk().unwrap().is_none());
}

#[test]
fn malformed_ranges_are_refused() {
    assert!(matches!(check_range(&range("", "")), Err(MvccError::EmptyKey)));
    let order = |sort_order, sort_target| RangeRequest { sort_order, sort_target, ..range("k", "") };
    assert!(check_range(&order(2, 4)).is_ok());
    for (sort_order, sort_target) in [(3, 0), (0, 5), (-1, 0), (0, -1)] {
        assert!(matches!(check_range(&order(sort_order, sort_target)), Err(MvccError::InvalidSortOption { .. })));
    }
    assert!(check_range_stream(&order(0, 4)).is_ok(), "a target alone is ignored");
    assert!(check_range_stream(&order(1, 0)).is_ok());
    assert!(matches!(check_range_stream(&order(2, 0)), Err(MvccError::StreamedSort)));
    let filter = RangeRequest { max_mod_revision: 1, ..range("k", "") };
    assert!(matches!(check_range_stream(&filter), Err(MvccError::StreamedFilter)));
}

// The newest few of a range are found among the last revisions; the answer is that of a sort over everything.
#[test]
fn the_newest_are_those_of_a_whole_sort() {
    let mut bench = Bench::new();
    let mut random = fastrand::Rng::with_seed(7);
    for number in 0..3000 {
        let (queue, place) = (random.u8(0..2), random.u16(0..700));
        let key = format!("{}{place:03x}", ["k", "m"][usize::from(queue)]);
        if number % 10 == 0 {
            bench.delete(&key, "");
        } else {
            bench.put(&key, "");
        }
    }
    for _ in 0..600 {
        let target = [SortTarget::Create, SortTarget::Mod][random.usize(0..2)];
        let all = RangeRequest {
            max_create_revision: random.i64(-20..3200),
            max_mod_revision: if random.bool() { random.i64(0..3200) } else { 0 },
            min_create_revision: if random.bool() { random.i64(0..3200) } else { 0 },
            ..sorted(target, SortOrder::Descend, 0)
        };
        let limit = random.i64(1..6);
        let (all, some) = (bench.range(all.clone()).unwrap(), bench.range(RangeRequest { limit, ..all }).unwrap());
        let end = all.kvs.len().min(limit as usize);
        assert_eq!((&all.kvs[..end], all.count, all.kvs.len() > end), (&some.kvs[..], some.count, some.more));
    }
}
