use super::*;
use crate::pb::encoded::response_op::Response;

fn compare(target: CompareTarget, result: CompareResult, key: &str, operand: TargetUnion) -> Compare {
    let key = key.to_owned().into();
    Compare { target: target as i32, result: result as i32, key, range_end: Bytes::new(), target_union: Some(operand) }
}

fn nested(compares: Vec<Compare>, then: Vec<RequestOp>, otherwise: Vec<RequestOp>) -> RequestOp {
    op(TxnRequest { compare: compares, success: then, failure: otherwise })
}

fn is_duplicate(ops: Vec<RequestOp>) -> bool {
    match check_txn(&always(ops), 128) {
        Ok(()) => false,
        Err(MvccError::DuplicateKey { .. }) => true,
        Err(other) => panic!("{other}"),
    }
}

fn ranges(answer: &TxnResponse) -> Vec<(i64, Vec<String>)> {
    let mut found = Vec::new();
    for response in &answer.responses {
        match response.response.as_ref().unwrap() {
            Response::ResponseRange(range) => found.push((range.header.unwrap().revision, shown(&range.kvs))),
            Response::ResponseTxn(nested) => found.extend(ranges(nested)),
            _ => {}
        }
    }
    found
}

#[test]
fn compares_look_at_every_field() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    use TargetUnion as Operand;
    let mut bench = Bench::new();
    bench.put("a", "m");
    bench.try_put(PutRequest { lease: 5, ..put("a", "m") }).unwrap();
    let mut holds = |compare: Compare| {
        let revision = bench.store.revision();
        let request = TxnRequest { compare: vec![compare], ..Default::default() };
        let answer = bench.txn(&request).unwrap().response;
        assert_eq!(answer.header.unwrap().revision, revision.0);
        assert_eq!(bench.store.reader().snapshot().read_only_txn(&request).unwrap(), answer);
        answer.succeeded
    };
    for (target, result, key, operand, expected) in [
        (Version, Equal, "a", Operand::Version(2), true),
        (Create, Equal, "a", Operand::CreateRevision(2), true),
        (Mod, Less, "a", Operand::ModRevision(4), true),
        (Mod, Greater, "a", Operand::ModRevision(3), false),
        (Lease, NotEqual, "a", Operand::Lease(4), true),
        (Value, Greater, "a", Operand::Value("l".into()), true),
        (Value, Equal, "a", Operand::Version(0), false),
        (Mod, Greater, "a", Operand::Version(9), true),
        (Version, Equal, "missing", Operand::Version(0), true),
        (Lease, Less, "missing", Operand::Lease(1), true),
        (Value, NotEqual, "missing", Operand::Value("x".into()), false),
        (Value, Equal, "missing", Operand::Value("".into()), false),
    ] {
        assert_eq!(holds(compare(target, result, key, operand.clone())), expected, "{target:?} {result:?} {operand:?}");
    }
    let odd = |target, result| Compare { target, result, ..compare(Mod, Equal, "a", Operand::ModRevision(1)) };
    assert!(holds(odd(77, Equal as i32)) && !holds(odd(77, NotEqual as i32)), "an unknown target is equal");
    assert!(holds(odd(Mod as i32, 77)), "an unknown result holds");
    let over = |end: &str, target, result, operand| Compare {
        range_end: end.to_owned().into(),
        ..compare(target, result, "a", operand)
    };
    assert!(holds(over("b", Mod, Greater, Operand::ModRevision(2))));
    assert!(!holds(over("Z", Mod, Greater, Operand::ModRevision(0))), "nothing counts as zero");
    assert!(holds(over("\0", Version, Equal, Operand::Version(2))));
}

#[test]
fn all_compares_come_before_all_operations() {
    let mut bench = Bench::new();
    let unwritten = compare(CompareTarget::Version, CompareResult::Equal, "a", TargetUnion::Version(0));
    let inner = nested(vec![unwritten], vec![op(put("b", "then"))], vec![op(put("b", "else"))]);
    let answer = bench.txn(&always(vec![op(put("a", "")), inner])).unwrap();
    assert_eq!(bench.get("b", 0).unwrap(), ["b=then @2/2 v1"]);
    let Some(Response::ResponseTxn(inner)) = &answer.response.responses[1].response else { panic!("nested") };
    assert!(inner.succeeded);
    assert_eq!(inner.header, Some(Default::default()));
    assert_eq!(answer.response.header.unwrap().revision, 2);
}

#[test]
fn ranges_see_the_operations_before_them() {
    let mut bench = Bench::new();
    bench.put("a", "0");
    let answer = bench.txn(&always(vec![
        op(range("a", "z")),
        op(put("b", "1")),
        op(range("a", "z")),
        op(delete("a", "")),
        nested(vec![], vec![op(range("a", "z"))], vec![]),
        op(RangeRequest { revision: 2, ..range("a", "z") }),
        op(delete("x", "")),
    ]));
    let answer = answer.unwrap();
    assert_eq!(
        ranges(&answer.response),
        [
            (2, vec!["a=0 @2/2 v1".to_string()]),
            (3, vec!["a=0 @2/2 v1".into(), "b=1 @3/3 v1".into()]),
            (3, vec!["b=1 @3/3 v1".into()]),
            (3, vec!["a=0 @2/2 v1".into()]),
        ]
    );
    let Some(Response::ResponseDeleteRange(last)) = &answer.response.responses[6].response else { panic!("delete") };
    assert_eq!((last.deleted, last.header.unwrap().revision), (0, 3));
    let events = answer.events.unwrap();
    assert_eq!(events.events.iter().map(|event| event.kind).collect::<Vec<_>>(), [EventKind::Put, EventKind::Delete]);
}

#[test]
fn a_refused_operation_leaves_nothing_of_the_others() {
    let mut bench = Bench::new();
    bench.put("a", "0");
    bench.put("a", "1");
    bench.compact(2);
    let write = || op(put("w", ""));
    let keep = PutRequest { ignore_value: true, ..put("w", "") };
    for (last, refused) in [
        (op(RangeRequest { revision: 4, ..range("a", "") }), "revision 4 is not written yet, newest is 3"),
        (op(RangeRequest { revision: 1, ..range("a", "") }), "revision 1 is compacted, oldest kept is 2"),
        (op(RangeRequest { revision: -1, ..range("a", "") }), "revision -1 is compacted, oldest kept is 2"),
        (op(PutRequest { lease: 101, ..put("a", "") }), "lease 65 does not exist"),
        (op(keep), "key b\"w\" does not exist"),
    ] {
        for last in [last.clone(), nested(vec![], vec![last], vec![])] {
            let error = bench.txn(&always(vec![write(), last])).err().unwrap();
            assert_eq!(error.to_string(), refused);
            assert!(!error.is_fatal());
        }
    }
    assert_eq!(bench.get("", 0).unwrap(), ["a=1 @2/3 v2"]);
    assert_eq!(bench.store.revision(), Revision(3));
    assert_eq!(bench.get("a", -1).unwrap(), ["a=1 @2/3 v2"], "outside of a transaction that is now");
}

#[test]
fn a_key_touched_twice_shows_what_was_before_the_revision() {
    let mut bench = Bench::new();
    bench.put("k", "old");
    let from_key = delete("k", "\0");
    let request = always(vec![op(from_key.clone()), op(put("k", "mid")), nested(vec![], vec![op(from_key)], vec![])]);
    check_txn(&request, 128).unwrap();
    let events = bench.txn(&request).unwrap().events.unwrap().events;
    let seen: Vec<_> =
        events.iter().map(|event| (event.kind, event.created, event.prev_kv.as_ref().map(show))).collect();
    let old = Some("k=old @2/2 v1".to_string());
    assert_eq!(
        seen,
        [(EventKind::Delete, false, old.clone()), (EventKind::Put, true, None), (EventKind::Delete, false, old)]
    );
    let request = always(vec![op(delete("k", "\0")), op(put("k", "new"))]);
    bench.txn(&request).unwrap();
    for _ in 0..2 {
        assert_eq!(bench.get("", 0).unwrap(), ["k=new @4/4 v1"]);
        assert_eq!(bench.get("", 3).unwrap(), [""; 0]);
        bench.reopen();
    }
    bench.compact(4);
    bench.reopen();
    assert_eq!(bench.get("", 4).unwrap(), ["k=new @4/4 v1"]);
}

#[test]
fn a_budget_shrinks_on_the_way_down() {
    let puts = |count: usize| (0..count).map(|key| op(put(&format!("{key}"), ""))).collect::<Vec<_>>();
    assert!(check_txn(&always(puts(128)), 128).is_ok());
    assert!(matches!(check_txn(&always(puts(129)), 128), Err(MvccError::TooManyOps { given: 129, allowed: 128 })));
    let with = |outer: usize, inner: Vec<RequestOp>| {
        let mut ops = puts(outer);
        ops.push(nested(vec![], inner, vec![]));
        check_txn(&always(ops), 128)
    };
    assert!(with(126, vec![op(range("a", ""))]).is_ok());
    let two = vec![op(range("a", "")), op(range("a", ""))];
    assert!(matches!(with(126, two), Err(MvccError::TooManyOps { given: 2, allowed: 1 })));
    let compares = vec![compare(CompareTarget::Mod, CompareResult::Equal, "a", TargetUnion::ModRevision(0)); 129];
    let request = TxnRequest { compare: compares, ..Default::default() };
    assert!(matches!(check_txn(&request, 128), Err(MvccError::TooManyOps { .. })));
}

#[test]
fn deep_nesting_is_refused_everywhere() {
    let deep = |levels| (1..levels).fold(always(vec![op(range("a", ""))]), |inner, _| always(vec![op(inner)]));
    let deepest = deep(check::DEPTH_MAX);
    assert!(check_txn(&deepest, 200).is_ok());
    assert!(matches!(check_txn(&deep(check::DEPTH_MAX + 1), 200), Err(MvccError::TooManyOps { .. })));
    assert!(matches!(check_txn(&deep(30), 20), Err(MvccError::TooManyOps { .. })), "each level costs one");
    assert!(matches!(check_txn(&deep(5000), usize::MAX), Err(MvccError::TooManyOps { .. })));
    let entry = crate::pb::etcdserverpb::InternalRaftRequest { txn: Some(deepest.clone()), ..Default::default() };
    let entry = crate::pb::etcdserverpb::InternalRaftRequest::decode(entry.encode_to_vec().as_slice());
    assert_eq!(entry.unwrap().txn.as_ref(), Some(&deepest), "what is admitted can be read back from the log");
    let mut bench = Bench::new();
    assert!(bench.txn(&deepest).is_ok());
    assert!(matches!(bench.txn(&deep(check::DEPTH_MAX + 1)), Err(MvccError::TooManyOps { .. })));
    assert!(matches!(bench.txn(&deep(5000)), Err(MvccError::TooManyOps { .. })));
}

#[test]
fn malformed_operations_are_refused() {
    let refused = |op: RequestOp| check_txn(&always(vec![op]), 128).err().map(|error| error.to_string());
    assert_eq!(refused(RequestOp { request: None }), Some("an operation holds no request".into()));
    assert_eq!(refused(op(put("", ""))), Some("key is not provided".into()));
    assert_eq!(refused(op(delete("", "\0"))), Some("key is not provided".into()));
    assert!(refused(op(RangeRequest { sort_order: 3, ..range("a", "") })).is_some());
    assert!(refused(op(PutRequest { ignore_value: true, ..put("a", "x") })).is_some());
    assert!(refused(op(PutRequest { ignore_lease: true, lease: 1, ..put("a", "x") })).is_some());
    let request = TxnRequest { compare: vec![Compare::default()], ..Default::default() };
    assert!(matches!(check_txn(&request, 128), Err(MvccError::EmptyKey)));
}

#[test]
fn duplicate_keys_follow_etcds_order_of_checks() {
    let put = |key: &str| op(put(key, ""));
    let delete = |key: &str, end: &str| op(delete(key, end));
    let txn = |then: &[RequestOp], otherwise: &[RequestOp]| nested(vec![], then.to_vec(), otherwise.to_vec());
    assert!(is_duplicate(vec![put("a"), put("a")]));
    assert!(is_duplicate(vec![put("b"), delete("a", "c")]) && is_duplicate(vec![delete("a", "c"), put("b")]));
    assert!(is_duplicate(vec![put("b"), delete("b", "")]));
    assert!(!is_duplicate(vec![put("b"), delete("c", ""), delete("a", "b"), op(range("b", ""))]));
    assert!(!is_duplicate(vec![delete("a", "c"), delete("b", "d")]));
    assert!(!is_duplicate(vec![delete("a", "\0"), put("z")]), "from key on is not recognised");
    assert!(!is_duplicate(vec![txn(&[put("a")], &[put("a")])]));
    assert!(is_duplicate(vec![txn(&[put("a")], &[]), txn(&[], &[put("a")])]));
    assert!(is_duplicate(vec![txn(&[put("a")], &[]), put("a")]));
    assert!(is_duplicate(vec![delete("a", ""), txn(&[put("a")], &[])]));
    assert!(is_duplicate(vec![txn(&[delete("a", "")], &[]), txn(&[put("a")], &[])]));
    assert!(is_duplicate(vec![put("a"), txn(&[delete("a", "")], &[])]));
    assert!(!is_duplicate(vec![txn(&[put("a")], &[]), txn(&[delete("a", "")], &[])]), "a later delete");
    assert!(!is_duplicate(vec![txn(&[put("a")], &[delete("a", "")])]), "the other branch");
    assert!(is_duplicate(vec![delete("a", "c"), delete("e", "g"), delete("b", "f"), put("d")]), "deletes join");
    assert!(!is_duplicate(vec![delete("a", "c"), delete("e", "g"), put("d")]));
    let branches = TxnRequest { success: vec![put("a")], failure: vec![put("a")], ..Default::default() };
    assert!(check_txn(&branches, 128).is_ok());
}

#[test]
fn read_only_means_nothing_but_ranges() {
    let serializable = RangeRequest { serializable: true, ..range("a", "") };
    let both = |then: Vec<RequestOp>, otherwise: Vec<RequestOp>| {
        let request = TxnRequest { success: then, failure: otherwise, ..Default::default() };
        (is_read_only(&request), is_serializable(&request))
    };
    assert_eq!(both(vec![], vec![]), (true, true));
    assert_eq!(both(vec![op(serializable.clone())], vec![op(range("a", ""))]), (true, false));
    assert_eq!(both(vec![op(serializable.clone())], vec![op(put("a", ""))]), (false, false));
    assert_eq!(both(vec![op(always(vec![op(serializable)]))], vec![]), (false, false));
    let bench = Bench::new();
    let request = always(vec![op(put("a", ""))]);
    assert!(bench.store.reader().snapshot().read_only_txn(&request).is_err());
}
