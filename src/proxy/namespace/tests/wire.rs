//! Bodies that are not one plain message, and what of them reaches the upstream.

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use prost::Message;
use tonic::Code;

use super::lawful::Law;
use super::upstream::{
    ALARM, Answer, KEEP_ALIVE, LIMIT, NAMESPACE, OWN_LEASE, PUT, STATUS, Setup, TXN, WATCH, frame, frames_of, gzip,
    never,
};
use crate::client::framed;
use crate::pb::etcdserverpb::{
    AlarmRequest, AlarmType, LeaseKeepAliveRequest, PutRequest, RequestOp, StatusRequest, TxnRequest,
    WatchCreateRequest, WatchRequest, WatchResponse, alarm_request::AlarmAction, request_op, watch_request,
};
use crate::pb::methods::{METHODS, MethodKind};

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(120), test).await.expect("the test ends in time") });
}

#[test]
fn an_alarm_behind_the_announced_length_raises_none() {
    // Cause: the proxy decoded all that stood behind the five bytes of the prefix and sent the body on as it was. The
    // last field made it a GET for the proxy; a member reads as many bytes as the prefix announces: ACTIVATE.
    run(async {
        let setup = Setup::start().await;
        let body = [0, 0, 0, 0, 4, 0x08, 1, 0x18, 1, 0x08, 0];
        let answer = setup.unary(ALARM, &[], &body).await;
        assert_eq!(answer.code, Some(Code::Internal), "{answer:?}");
        assert!(setup.calls_of(ALARM).is_empty(), "{:?}", setup.calls_of(ALARM));
    });
}

#[test]
fn a_body_that_is_not_one_message_is_refused() {
    let (get, put) = (AlarmRequest::default().encode_to_vec(), PutRequest { key: "k".into(), ..Default::default() });
    let put = put.encode_to_vec();
    let gzip_of = |data: &[u8]| frame(1, &gzip(data));
    run(async {
        let setup = Setup::start().await;
        for (path, message) in [(ALARM, &get), (STATUS, &get), (PUT, &put), ("/v3lockpb.Lock/Unlock", &put)] {
            let good = frame(0, message);
            let with = |tail: &[u8]| [&good[..], tail].concat();
            let mut long = good.clone();
            long[4] += 1;
            let encoded = &[("grpc-encoding", "gzip")][..];
            for (what, headers, body, code) in [
                ("nothing", &[][..], Vec::new(), Code::Internal),
                ("half a prefix", &[], good[..3].to_vec(), Code::Internal),
                ("a prefix alone", &[], vec![0, 0, 0, 0, 1], Code::Internal),
                ("a frame cut short", &[], long, Code::Internal),
                ("bytes behind the frame", &[], with(&[8, 0]), Code::Internal),
                ("a zero byte behind the frame", &[], with(&[0]), Code::Internal),
                ("an empty frame behind the frame", &[], with(&[0; 5]), Code::Internal),
                ("two frames", &[], with(&good), Code::Internal),
                ("a prefix behind the frame", &[], with(&[0, 0, 0, 0, 1]), Code::Internal),
                ("another flag", &[], frame(2, message), Code::Internal),
                ("compressed without an encoding", &[], gzip_of(message), Code::Internal),
                ("compressed as identity", &[("grpc-encoding", "identity")], gzip_of(message), Code::Internal),
                ("another encoding", &[("grpc-encoding", "snappy")], good.clone(), Code::Unimplemented),
                ("damaged gzip", encoded, frame(1, b"not gzip"), Code::Internal),
                ("bytes behind a compressed frame", encoded, [gzip_of(message), vec![8, 0]].concat(), Code::Internal),
                ("not protobuf", &[], frame(0, &[0xff, 0xff]), Code::Internal),
            ] {
                let answer = setup.unary(path, headers, &body).await;
                assert_eq!(answer.code, Some(code), "{what} for {path}: {answer:?}");
                assert_eq!(setup.calls().len(), 0, "{what} for {path} went upstream: {:?}", setup.calls());
            }
        }
    });
}

/// Cause: the request of a stream was collected without being counted, so that a thousand of them held 4 GiB.
#[test]
fn unfinished_requests_of_streams_are_counted() {
    const BYTES: usize = 4 * 1024 * 1024 - 1;
    // All but the last byte of a message.
    let unfinished = Bytes::from(frame(0, &vec![0; BYTES - 4])).slice(..BYTES);
    run(async {
        let setup = Setup::start_in("").await;
        for path in ["/etcdserverpb.Maintenance/Snapshot", WATCH] {
            loop {
                let (open, answer) = setup.until_answered(path, &unfinished, 100).await;
                assert_eq!(answer.code, Some(Code::ResourceExhausted), "{path}: {answer:?}");
                assert_eq!(answer.text, "etcdserver: too many requests", "{path}");
                // 64 of them fit, once the proxy has seen that those of the other method are closed.
                if open > 64 {
                    break;
                }
            }
        }
    });
}

/// Cause: two bytes for an operation took more than a hundred once they were decoded, so that 64 kB of gzip took 4 GB.
#[test]
fn a_transaction_of_very_many_operations_is_not_decoded() {
    run(async {
        let setup = Setup::start().await;
        let many = |operations: usize| frame(0, &[0x12, 0].repeat(operations));
        let refused = setup.unary(TXN, &[], &many(65_537)).await;
        assert_eq!(refused.code, Some(Code::InvalidArgument), "{refused:?}");
        assert!(refused.text.contains("too many operations"), "{refused:?}");
        assert!(setup.calls().is_empty());
        assert_eq!(setup.unary(TXN, &[], &many(65_536)).await.code, Some(Code::Ok));
        assert_eq!(setup.calls_of(TXN)[0].body, many(65_536), "whether they are too many says the member");
    });
}

/// Cause: each lease of a transaction was looked for by itself, however many there were.
#[test]
fn the_leases_of_a_transaction_are_looked_for_together() {
    run(async {
        let setup = Setup::start().await;
        let put = |lease| {
            let put = PutRequest { key: "k".into(), lease, ..Default::default() };
            RequestOp { request: Some(request_op::Request::RequestPut(put)) }
        };
        let txn = TxnRequest { success: (0..100).map(put).collect(), ..Default::default() };
        assert_eq!(setup.unary(TXN, &[], &framed(&txn)).await.code, Some(Code::Ok));
        let calls = setup.calls();
        assert_eq!(calls.len(), 3, "two to look, one that writes: {calls:?}");
        let written = calls.iter().map(|call| TxnRequest::decode(&call.body[5..]).unwrap());
        let leases: Vec<i64> = written
            .flat_map(|txn| txn.success)
            .filter_map(|operation| match operation.request {
                Some(request_op::Request::RequestPut(put)) => Some(put.lease),
                _ => None,
            })
            .collect();
        assert_eq!(leases.len(), 100);
        let kept: Vec<_> = leases.into_iter().filter(|lease| *lease >= 0).collect();
        assert_eq!(kept, [0, OWN_LEASE], "the others are nobody's");
    });
}

#[test]
fn what_was_decided_on_is_what_goes_up() {
    let alarm = |action: AlarmAction| AlarmRequest { action: action.into(), ..Default::default() };
    let get = framed(&AlarmRequest { action: 0, member_id: 5, alarm: AlarmType::Nospace.into() });
    let put = |key: &'static str| PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
    let prefixed = framed(&put("t/b"));
    run(async {
        let setup = Setup::start().await;
        // Field 1 twice, the first ACTIVATE: the last one counts, and alone goes up.
        let repeated = [&[8, 1][..], &[8, 0], &[16, 5], &[24, 1]].concat();
        // Field 15 is unknown: dropped.
        let unknown = [&[16, 5][..], &[24, 1], &[0x7a, 2, b'x', b'y']].concat();
        let keys = [put("a").encode_to_vec(), put("b").encode_to_vec()].concat();
        let encoded = &[("grpc-encoding", "gzip")][..];
        for (what, path, headers, body, expected) in [
            ("repeated fields", ALARM, &[][..], frame(0, &repeated), &get),
            ("an unknown field", ALARM, &[], frame(0, &unknown), &get),
            ("gzip", ALARM, encoded, frame(1, &gzip(&unknown)), &get),
            ("gzip that was not used", ALARM, encoded, frame(0, &unknown), &get),
            ("identity", ALARM, &[("grpc-encoding", "identity")], frame(0, &unknown), &get),
            ("a repeated key", PUT, &[], frame(0, &keys), &prefixed),
            ("gzip of a repeated key", PUT, encoded, frame(1, &gzip(&keys)), &prefixed),
            ("an empty message", STATUS, &[], frame(0, &[0x7a, 0]), &framed(&StatusRequest::default())),
        ] {
            let before = setup.calls_of(path).len();
            let answer = setup.unary(path, headers, &body).await;
            assert_eq!(answer.code, Some(Code::Ok), "{what}: {answer:?}");
            let calls = setup.calls_of(path);
            assert_eq!((calls.len(), &calls[before].body[..]), (before + 1, &expected[..]), "{what}");
            assert!(!calls[before].headers.contains_key("grpc-encoding"), "{what}: {:?}", calls[before]);
        }
        for body in [framed(&alarm(AlarmAction::Activate)), frame(0, &[8, 0, 8, 2]).into(), frame(0, &[8, 9]).into()] {
            let answer = setup.unary(ALARM, &[], &body).await;
            assert_eq!(
                (answer.code, answer.text.as_str()),
                (Some(Code::PermissionDenied), "etcdserver: permission denied")
            );
        }
        assert_eq!(setup.calls_of(ALARM).len(), 5, "only what reads alarms went up");
    });
}

#[test]
fn submessages_that_repeat_are_merged_once() {
    // Two parts of one operation: a decoder merges them, so the key of the second counts.
    let operation = |key: &'static str| RequestOp {
        request: Some(request_op::Request::RequestPut(PutRequest { key: key.into(), ..Default::default() })),
    };
    let merged = [operation("a").encode_to_vec(), operation("b").encode_to_vec()].concat();
    let mut txn = vec![0x12, merged.len() as u8];
    txn.extend_from_slice(&merged);
    run(async {
        let setup = Setup::start().await;
        setup.unary("/etcdserverpb.KV/Txn", &[], &frame(0, &txn)).await;
        let expected = TxnRequest { success: vec![operation("t/b")], ..Default::default() };
        assert_eq!(setup.calls_of("/etcdserverpb.KV/Txn")[0].body, framed(&expected));
    });
}

#[test]
fn the_path_that_was_decided_on_goes_up() {
    run(async {
        let setup = Setup::start().await;
        let answer =
            setup.unary("/etcdserverpb.Maintenance/Status?a=/etcdserverpb.Maintenance/Defragment", &[], &[0; 5]);
        assert_eq!(answer.await.code, Some(Code::Unimplemented), "no method has a query");
        assert!(setup.calls().is_empty());
        assert_eq!(setup.unary(STATUS, &[], &[0; 5]).await.code, Some(Code::Ok));
        let paths: Vec<_> = setup.calls().into_iter().map(|call| call.path).collect();
        assert_eq!(paths, [STATUS]);
        // The member list passes with a namespace too when the proxy does not name itself.
        let answer = setup.unary("/etcdserverpb.Cluster/MemberList", &[], &frame(0, &[0x7a, 0])).await;
        assert_eq!(answer.code, Some(Code::Ok));
        assert_eq!(setup.calls_of("/etcdserverpb.Cluster/MemberList")[0].body, [0; 5]);
    });
}

fn create(key: &'static str) -> Vec<u8> {
    let create = WatchCreateRequest { key: key.into(), ..Default::default() };
    WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(create)) }.encode_to_vec()
}

/// How many watches the client was told to be created.
fn created(answer: &Answer) -> usize {
    let (frames, _) = frames_of(&answer.body);
    let answers = frames.into_iter().map(|(_, message)| WatchResponse::decode(message).expect("a watch response"));
    answers.filter(|answer| answer.created && !answer.canceled).count()
}

#[test]
fn watch_requests_in_any_pieces() {
    let pieces_of = |body: &[u8], size: usize| body.chunks(size).map(Bytes::copy_from_slice).collect::<Vec<_>>();
    run(async {
        for (what, headers, pieces, expected) in [
            (
                "several messages in one piece",
                &[][..],
                pieces_of(&[frame(0, &create("a")), frame(0, &create("b"))].concat(), 1000),
                2,
            ),
            ("a message in many pieces", &[], pieces_of(&frame(0, &create("a")), 1), 1),
            (
                "a compressed one and a plain one",
                &[("grpc-encoding", "gzip")],
                pieces_of(&[frame(1, &gzip(&create("a"))), frame(0, &create("b"))].concat(), 7),
                2,
            ),
            ("a key twice", &[], pieces_of(&frame(0, &[create("a"), create("b")].concat()), 1000), 1),
        ] {
            let setup = Setup::start().await;
            let enough = |answer: &Answer| created(answer) == expected;
            let answer = setup.send(WATCH, headers, &pieces, LIMIT, enough).await;
            assert_eq!(created(&answer), expected, "{what}: {answer:?}");
            assert_eq!(Law::new(NAMESPACE, [OWN_LEASE]).check(&setup.calls()), Ok(()), "{what}");
        }
        // A frame that cannot be read ends the stream, and nothing of it goes up.
        let cut = frame(0, &create("a"))[..6].to_vec();
        for body in [frame(1, &gzip(&create("a"))), frame(3, &create("a")), cut] {
            let setup = Setup::start().await;
            let answer = setup.unary(WATCH, &[], &body).await;
            assert_eq!((answer.code, created(&answer)), (Some(Code::Internal), 0), "{answer:?}");
            assert!(setup.calls_of(WATCH).is_empty());
        }
    });
}

#[test]
fn keep_alives_in_any_pieces() {
    let ask = |id| LeaseKeepAliveRequest { id }.encode_to_vec();
    let asked = |setup: &Setup| -> Vec<i64> {
        let calls = setup.calls_of(KEEP_ALIVE);
        let frames = calls.iter().flat_map(|call| call.frames().0);
        frames.map(|(_, message)| LeaseKeepAliveRequest::decode(message).expect("a keep-alive").id).collect()
    };
    run(async {
        for (what, headers, body, size, code) in [
            ("own and foreign in one piece", &[][..], [frame(0, &ask(9)), frame(0, &ask(7))].concat(), 1000, Code::Ok),
            ("in many pieces", &[], [frame(0, &ask(9)), frame(0, &ask(7))].concat(), 1, Code::Ok),
            ("an id twice: the last one counts", &[], frame(0, &[ask(9), ask(7)].concat()), 1000, Code::Ok),
            ("compressed", &[("grpc-encoding", "gzip")], frame(1, &gzip(&ask(7))), 1000, Code::Ok),
            ("cut short", &[], [frame(0, &ask(7)), frame(0, &ask(7))[..6].to_vec()].concat(), 1000, Code::Internal),
        ] {
            let setup = Setup::start().await;
            let pieces: Vec<_> = body.chunks(size).map(Bytes::copy_from_slice).collect();
            let answer = setup.send(KEEP_ALIVE, headers, &pieces, LIMIT, never).await;
            assert_eq!(answer.code, Some(code), "{what}: {answer:?}");
            // What stands before a cut may have gone up or not.
            let ids = asked(&setup);
            assert!(ids == [7] || (code != Code::Ok && ids.is_empty()), "{what}: {ids:?}");
        }
        let setup = Setup::start().await;
        let answer = setup.unary(KEEP_ALIVE, &[("grpc-encoding", "snappy")], &frame(0, &ask(7))).await;
        assert_eq!((answer.code, asked(&setup)), (Some(Code::Unimplemented), vec![]), "{answer:?}");
    });
}

// Arbitrary bodies.

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..10u64,
        1 => Just(OWN_LEASE as u64),
        1 => Just((-1i64) as u64),
        1 => Just(1 << 62),
        1 => any::<u64>(),
    ]
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn keyish() -> impl Strategy<Value = Vec<u8>> {
    const KEYS: [&[u8]; 9] = [
        b"",
        b"\0",
        b"a",
        b"t/",
        b"t0",
        b"u/k",
        b"\xff",
        b"\0watershed/lease/742f/0000000000000008",
        b"\0watershed/lease/752f/0000000000000009",
    ];
    proptest::sample::select(&KEYS[..]).prop_map(<[u8]>::to_vec)
}

/// A row of fields that may be a message of anything; the low numbers and the nesting make it one of ours often.
fn fields() -> BoxedStrategy<Vec<u8>> {
    let leaf = prop_oneof![
        (1..10u64, number()).prop_map(|(tag, value)| [varint(tag << 3), varint(value)].concat()),
        (1..10u64, keyish())
            .prop_map(|(tag, value)| { [varint(tag << 3 | 2), varint(value.len() as u64), value].concat() }),
    ];
    let row = |field: BoxedStrategy<Vec<u8>>| proptest::collection::vec(field, 0..5).prop_map(|all| all.concat());
    let field = leaf.prop_recursive(4, 24, 4, move |inner| {
        (1..5u64, row(inner))
            .prop_map(|(tag, value)| [varint(tag << 3 | 2), varint(value.len() as u64), value].concat())
    });
    row(field.boxed()).boxed()
}

#[derive(Clone, Debug)]
enum Shape {
    Plain,
    Gzip,
    Behind(Vec<u8>),
    Cut(usize),
    Announces(u32),
    Flag(u8),
    Twice,
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        6 => Just(Shape::Plain),
        2 => Just(Shape::Gzip),
        2 => fields().prop_map(Shape::Behind),
        1 => (0..8usize).prop_map(Shape::Cut),
        1 => (0..20u32).prop_map(Shape::Announces),
        1 => any::<u8>().prop_map(Shape::Flag),
        1 => Just(Shape::Twice),
    ]
}

#[derive(Clone, Debug)]
struct Sent {
    method: usize,
    encoding: Option<&'static str>,
    body: Vec<u8>,
    piece_bytes: usize,
}

fn sent() -> impl Strategy<Value = Sent> {
    let encoding = prop_oneof![2 => Just(None), 2 => Just(Some("gzip")), 1 => Just(Some("identity"))];
    (0..METHODS.len(), encoding, fields(), shape(), prop_oneof![Just(1usize), Just(6), Just(10_000)]).prop_map(
        |(method, encoding, message, shape, piece_bytes)| {
            let plain = frame(0, &message);
            let body = match shape {
                Shape::Plain => plain,
                Shape::Gzip => frame(1, &gzip(&message)),
                Shape::Behind(bytes) => [plain, bytes].concat(),
                Shape::Cut(bytes) => plain[..plain.len().saturating_sub(bytes)].to_vec(),
                Shape::Announces(length) => [&[0][..], &length.to_be_bytes(), &message].concat(),
                Shape::Flag(flag) => frame(flag, &message),
                Shape::Twice => [&plain[..], &plain].concat(),
            };
            Sent { method, encoding, body, piece_bytes }
        },
    )
}

async fn send(setup: &Setup, sent: &Sent) -> Answer {
    let method = &METHODS[sent.method];
    let headers: Vec<_> = sent.encoding.map(|encoding| ("grpc-encoding", encoding)).into_iter().collect();
    let pieces: Vec<_> = sent.body.chunks(sent.piece_bytes).map(Bytes::copy_from_slice).collect();
    // Streams and waiting recipes have no end of their own.
    let has_end = method.kind == MethodKind::Unary && !method.service.starts_with("v3");
    let limit = if has_end { LIMIT } else { Duration::from_millis(40) };
    setup.send(method.path, &headers, &pieces, limit, never).await
}

#[test]
fn no_body_of_any_method_reaches_outside() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let setup = runtime.block_on(Setup::start());
    let law = RefCell::new(Law::new(NAMESPACE, [OWN_LEASE]));
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&proptest::collection::vec(sent(), 1..40), |all| {
        runtime.block_on(futures::future::join_all(all.iter().map(|sent| send(&setup, sent))));
        law.borrow_mut().check(&setup.calls()).map_err(TestCaseError::fail)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let methods: HashSet<_> = setup.calls().into_iter().map(|call| call.path).collect();
    assert!(methods.len() >= 10, "the bodies reach the upstream: {methods:?}");
}
