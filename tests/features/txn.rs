//! Transactions.

use bytes::Bytes;
use tonic::Code;
use watershed::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use watershed::pb::etcdserverpb::request_op::Request;
use watershed::pb::etcdserverpb::response_op::Response;
use watershed::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
};

use crate::harness::{Deployment, refused};
use crate::on_every_target;

on_every_target! {
    compares_see_every_target,
    compares_over_ranges,
    writes_of_a_transaction_share_a_revision,
    nested_transactions_compare_before_anything_runs,
    a_failing_operation_undoes_the_transaction,
    reading_transactions_write_nothing,
    malformed_transactions_are_refused,
    duplicate_keys_are_refused_as_etcd_does,
    too_many_operations_are_refused,
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put(key: &'static str, value: &'static str) -> RequestOp {
    op(Request::RequestPut(PutRequest { key: key.into(), value: value.into(), ..Default::default() }))
}

fn get(key: &'static str) -> RequestOp {
    op(Request::RequestRange(RangeRequest { key: key.into(), ..Default::default() }))
}

fn delete(key: &'static str, range_end: &'static str) -> RequestOp {
    let request = DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: false };
    op(Request::RequestDeleteRange(request))
}

fn nested(request: TxnRequest) -> RequestOp {
    op(Request::RequestTxn(request))
}

fn then(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..Default::default() }
}

fn compare(key: &'static str, result: CompareResult, union: TargetUnion) -> Compare {
    let target = match union {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    let (result, target) = (result.into(), target.into());
    Compare { result, target, key: key.into(), target_union: Some(union), range_end: Bytes::new() }
}

async fn holds(deployment: &Deployment, compare: Compare) -> bool {
    deployment.txn(TxnRequest { compare: vec![compare], ..Default::default() }).await.succeeded
}

/// The answers of a transaction in words.
fn in_words(answer: &TxnResponse) -> String {
    let words = answer.responses.iter().map(|response| match response.response.as_ref().expect("an arm") {
        Response::ResponsePut(put) => format!("put@{}", put.header.as_ref().map_or(0, |header| header.revision)),
        Response::ResponseRange(range) => {
            let pairs: Vec<_> = range.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()).collect();
            format!("[{}]@{}", pairs.join(" "), range.header.as_ref().map_or(0, |header| header.revision))
        }
        Response::ResponseDeleteRange(delete) => {
            format!("del{}@{}", delete.deleted, delete.header.as_ref().map_or(0, |header| header.revision))
        }
        Response::ResponseTxn(txn) => format!("{{{}: {}}}", txn.succeeded, in_words(txn)),
    });
    words.collect::<Vec<_>>().join(", ")
}

async fn compares_see_every_target(deployment: &mut Deployment) {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    let lease = deployment.grant(60).await;
    deployment.put("k", "a").await;
    deployment.put_with(PutRequest { key: "k".into(), value: "b".into(), lease, ..Default::default() }).await;
    // Created at 2, written at 3, version 2.
    let number = |make: fn(i64) -> TargetUnion, actual: i64| {
        [
            (Equal, 0, true),
            (Equal, 1, false),
            (Greater, -1, true),
            (Greater, 0, false),
            (Less, 1, true),
            (Less, 0, false),
            (NotEqual, 1, true),
        ]
        .map(|(result, difference, expected)| (compare("k", result, make(actual + difference)), expected))
    };
    let mut cases = Vec::new();
    cases.extend(number(TargetUnion::Version, 2));
    cases.extend(number(TargetUnion::CreateRevision, 2));
    cases.extend(number(TargetUnion::ModRevision, 3));
    cases.extend(number(TargetUnion::Lease, lease));
    for (result, value, expected) in
        [(Equal, "b", true), (Greater, "a", true), (Greater, "b", false), (Less, "c", true), (NotEqual, "b", false)]
    {
        cases.push((compare("k", result, TargetUnion::Value(value.into())), expected));
    }
    // A missing key has zeros, but no value to compare.
    cases.push((compare("x", Equal, TargetUnion::Version(0)), true));
    cases.push((compare("x", Equal, TargetUnion::Lease(0)), true));
    cases.push((compare("x", Less, TargetUnion::ModRevision(1)), true));
    cases.push((compare("x", Equal, TargetUnion::Value("".into())), false));
    cases.push((compare("x", NotEqual, TargetUnion::Value("a".into())), false));
    // An arm of another target counts as zero; unknown numbers behave as they do in etcd.
    let mut crossed = compare("k", Greater, TargetUnion::Value("z".into()));
    crossed.target = CompareTarget::Version.into();
    cases.push((crossed, true));
    let unknown_target = |result: CompareResult| Compare { target: 9, ..compare("k", result, TargetUnion::Version(5)) };
    cases.push((unknown_target(Equal), true));
    cases.push((unknown_target(NotEqual), false));
    cases.push((Compare { result: 9, ..compare("k", Equal, TargetUnion::Version(5)) }, true));
    for (compare, expected) in cases {
        assert_eq!(holds(deployment, compare.clone()).await, expected, "{compare:?}");
    }
}

async fn compares_over_ranges(deployment: &mut Deployment) {
    use CompareResult::{Equal, Greater, NotEqual};
    for key in ["k1", "k2", "k3"] {
        deployment.put(key, key).await;
    }
    deployment.put("k3", "again").await;
    let over = |compare: Compare, end: &'static str| Compare { range_end: end.into(), ..compare };
    for (compare, expected) in [
        (over(compare("k", Greater, TargetUnion::ModRevision(1)), "l"), true),
        (over(compare("k", Equal, TargetUnion::Version(1)), "l"), false),
        (over(compare("k", Equal, TargetUnion::Version(1)), "k3"), true),
        (over(compare("k", Greater, TargetUnion::Version(0)), "\0"), true),
        (over(compare("x", Greater, TargetUnion::ModRevision(0)), "y"), false),
        (over(compare("x", Equal, TargetUnion::ModRevision(0)), "y"), true),
        (over(compare("x", NotEqual, TargetUnion::Value("a".into())), "y"), false),
    ] {
        assert_eq!(holds(deployment, compare.clone()).await, expected, "{compare:?}");
    }
}

async fn writes_of_a_transaction_share_a_revision(deployment: &mut Deployment) {
    deployment.put("old", "o").await;
    let answer = deployment
        .txn(TxnRequest {
            compare: vec![compare("old", CompareResult::Equal, TargetUnion::Value("o".into()))],
            success: vec![
                get("a"),
                delete("missing", ""),
                put("a", "1"),
                get("a"),
                delete("old", ""),
                put("b", "2"),
                delete("missing", ""),
                get("old"),
            ],
            failure: vec![put("wrong", "")],
        })
        .await;
    assert!(answer.succeeded);
    assert_eq!(in_words(&answer), "[]@2, del0@2, put@3, [1]@3, del1@3, put@3, del0@3, []@3");
    assert_eq!(answer.header.expect("header").revision, 3);
    let (a, b) = (deployment.get("a").await.kvs.remove(0), deployment.get("b").await.kvs.remove(0));
    assert_eq!((a.mod_revision, b.mod_revision), (3, 3));
    assert_eq!(deployment.get("wrong").await.count, 0);

    let other = TxnRequest {
        compare: vec![compare("old", CompareResult::Equal, TargetUnion::Value("o".into()))],
        success: vec![put("wrong", "")],
        failure: vec![get("a")],
    };
    let answer = deployment.txn(other).await;
    assert!(!answer.succeeded);
    assert_eq!((in_words(&answer).as_str(), answer.header.expect("header").revision), ("[1]@3", 3));
}

async fn nested_transactions_compare_before_anything_runs(deployment: &mut Deployment) {
    let fresh = compare("a", CompareResult::Equal, TargetUnion::Version(0));
    let inner =
        TxnRequest { compare: vec![fresh], success: vec![get("a"), put("b", "then")], failure: vec![put("b", "else")] };
    let answer = deployment.txn(then(vec![put("a", "1"), nested(inner), nested(then(vec![]))])).await;
    assert_eq!(in_words(&answer), "put@2, {true: [1]@2, put@2}, {true: }", "the inner compare saw no `a`");
    let Some(Response::ResponseTxn(inner)) = &answer.responses[1].response else { panic!("{answer:?}") };
    assert_eq!(inner.header, Some(Default::default()), "a nested header is there but empty");
    assert_eq!(deployment.get("b").await.kvs[0].value, "then");
}

async fn a_failing_operation_undoes_the_transaction(deployment: &mut Deployment) {
    deployment.put("k", "v").await;
    let mut kv = deployment.client.kv();
    let unknown_lease = op(Request::RequestPut(PutRequest { key: "l".into(), lease: 77, ..Default::default() }));
    let answer = kv.txn(then(vec![put("a", "1"), unknown_lease])).await;
    refused(answer, Code::NotFound, "etcdserver: requested lease not found");
    let ignore = PutRequest { key: "a2".into(), ignore_value: true, ..Default::default() };
    let answer = kv.txn(then(vec![put("a", "1"), op(Request::RequestPut(ignore))])).await;
    refused(answer, Code::InvalidArgument, "etcdserver: key not found");
    let future = RangeRequest { key: "k".into(), revision: 3, ..Default::default() };
    let answer = kv.txn(then(vec![put("a", "1"), op(Request::RequestRange(future))])).await;
    refused(answer, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
    let answer = deployment.get("a").await;
    assert_eq!((answer.count, answer.header.expect("header").revision), (0, 2), "nothing was written");
}

async fn reading_transactions_write_nothing(deployment: &mut Deployment) {
    deployment.put("k", "v").await;
    let answer = deployment.txn(TxnRequest::default()).await;
    assert!(answer.succeeded && answer.responses.is_empty());
    let answer = deployment.txn(then(vec![get("k"), nested(then(vec![get("k")]))])).await;
    assert_eq!(in_words(&answer), "[v]@2, {true: [v]@2}");
    assert_eq!(answer.header.expect("header").revision, 2);
    let serializable = RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
    let answer = deployment.txn(then(vec![op(Request::RequestRange(serializable))])).await;
    assert_eq!(in_words(&answer), "[v]@2");
}

async fn malformed_transactions_are_refused(deployment: &mut Deployment) {
    let mut kv = deployment.client.kv();
    let invalid = Code::InvalidArgument;
    let empty_key = "etcdserver: key is not provided";
    let no_key = Compare { key: Bytes::new(), ..compare("k", CompareResult::Equal, TargetUnion::Version(0)) };
    refused(kv.txn(TxnRequest { compare: vec![no_key], ..Default::default() }).await, invalid, empty_key);
    refused(kv.txn(then(vec![put("", "v")])).await, invalid, empty_key);
    refused(kv.txn(then(vec![get("")])).await, invalid, empty_key);
    refused(kv.txn(then(vec![delete("", "")])).await, invalid, empty_key);
    let in_failure = TxnRequest { failure: vec![put("", "")], ..Default::default() };
    refused(kv.txn(in_failure).await, invalid, empty_key);
    refused(kv.txn(then(vec![nested(then(vec![put("", "")]))])).await, invalid, empty_key);
    let nothing = RequestOp { request: None };
    refused(kv.txn(then(vec![nothing])).await, invalid, "etcdserver: key not found");
    let sort = RangeRequest { key: "k".into(), sort_order: 7, ..Default::default() };
    refused(kv.txn(then(vec![op(Request::RequestRange(sort))])).await, invalid, "etcdserver: invalid sort option");
    assert_eq!(deployment.get("k").await.header.expect("header").revision, 1);
}

async fn duplicate_keys_are_refused_as_etcd_does(deployment: &mut Deployment) {
    let one = |key| nested(then(vec![put(key, "")]));
    let either =
        |key| nested(TxnRequest { success: vec![put(key, "")], failure: vec![put(key, "")], ..Default::default() });
    let delete_in = |key, end| nested(then(vec![delete(key, end)]));
    let refused_lists = [
        vec![put("k", "1"), put("k", "2")],
        vec![put("k", "1"), delete("k", "")],
        vec![delete("a", "z"), put("k", "1")],
        vec![one("k"), put("k", "1")],
        vec![one("k"), one("k")],
        vec![delete("k", ""), one("k")],
        vec![delete_in("k", ""), one("k")],
        vec![put("k", ""), delete_in("a", "z")],
    ];
    let accepted_lists = [
        vec![delete("k", ""), delete("a", "z")],
        vec![either("k")],
        vec![get("k"), put("k", "1"), get("k")],
        // Facts of etcd: a later nested delete, and a delete without an end, are not looked at.
        vec![one("k"), delete_in("k", "")],
        vec![delete("a", "\0"), put("k", "1")],
    ];
    let mut kv = deployment.client.kv();
    for list in refused_lists {
        let text = "etcdserver: duplicate key given in txn request";
        let words = format!("{list:?}");
        let answer = kv.txn(then(list.clone())).await;
        assert!(answer.is_err(), "{words}");
        refused(answer, Code::InvalidArgument, text);
        let in_failure = TxnRequest { failure: list, ..Default::default() };
        refused(kv.txn(in_failure).await, Code::InvalidArgument, text);
    }
    for list in accepted_lists {
        let words = format!("{list:?}");
        kv.txn(then(list)).await.unwrap_or_else(|status| panic!("{words}: {status}"));
    }
    let branches = TxnRequest { success: vec![put("k", "")], failure: vec![put("k", "")], ..Default::default() };
    deployment.txn(branches).await;
}

async fn too_many_operations_are_refused(deployment: &mut Deployment) {
    let mut kv = deployment.client.kv();
    let many = |count| (0..count).map(|_| get("k")).collect::<Vec<_>>();
    let text = "etcdserver: too many operations in txn request";
    kv.txn(then(many(128))).await.expect("128 are fine");
    refused(kv.txn(then(many(129))).await, Code::InvalidArgument, text);
    let compares = vec![compare("k", CompareResult::Equal, TargetUnion::Version(0)); 129];
    refused(kv.txn(TxnRequest { compare: compares, ..Default::default() }).await, Code::InvalidArgument, text);
    // What is left for a nested transaction shrinks with its parent's own operations.
    let with_nested = |outer, inner| {
        let mut list = many(outer - 1);
        list.push(nested(then(many(inner))));
        then(list)
    };
    kv.txn(with_nested(127, 1)).await.expect("fits");
    refused(kv.txn(with_nested(127, 2)).await, Code::InvalidArgument, text);
}
