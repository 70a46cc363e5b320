//! Every answer is byte for byte what the member answers.

use std::fmt::Debug;

use prost::Message;
use tonic::Status;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};

use super::Cached;
use crate::harness::{Deployment, Target, raw_call, run, until};

const RANGE: &str = "/etcdserverpb.KV/Range";
/// Changes the choice of requests.
const SEED: u64 = 20_261_129;

/// Keys with several versions, leases, values that are equal and one that is long.
async fn fill(deployment: &Deployment) -> i64 {
    let lease = deployment.grant(1000).await;
    let mut newest = 0;
    for number in 0..60 {
        let key = format!("k/{:02}", number * 7 % 40);
        let value = if number == 5 { "v".repeat(200_000) } else { format!("{}", number % 5) };
        let lease = if number % 6 == 0 { lease } else { 0 };
        let put = PutRequest { key: key.into(), value: value.into(), lease, ..Default::default() };
        newest = deployment.put_with(put).await.header.expect("header").revision;
    }
    for key in ["k/03", "k/17", "before", "z"] {
        deployment.put(key, "x").await;
    }
    deployment.delete("k/17").await;
    newest
}

fn request(random: &mut fastrand::Rng, newest: i64) -> RangeRequest {
    let mut key = || match random.u8(..8) {
        0 => String::from("k/"),
        1 => String::from("k0"),
        2 => String::from("\0"),
        3 => String::new(),
        _ => format!("k/{:02}", random.u8(..42)),
    };
    let (key, range_end) = (key(), key());
    let mut bound = || if random.u8(..4) == 0 { random.i64(1..newest + 3) } else { 0 };
    let (revision, bounds) = (bound(), [bound(), bound(), bound(), bound()]);
    let few = random.bool();
    RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        limit: if random.bool() { 0 } else { random.i64(-1..20) },
        revision: if few { 0 } else { revision },
        sort_order: if few { 0 } else { random.i32(0..4) },
        sort_target: if few { 0 } else { random.i32(0..6) },
        serializable: random.bool(),
        keys_only: random.u8(..4) == 0,
        count_only: random.u8(..6) == 0,
        min_mod_revision: bounds[0],
        max_mod_revision: if few { 0 } else { bounds[1] },
        min_create_revision: if few { 0 } else { bounds[2] },
        max_create_revision: if few { 0 } else { bounds[3] },
    }
}

#[test]
fn any_request_is_answered_as_by_the_member() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let newest = fill(deployment).await;
        deployment.compact(newest / 2).await;
        let cached = Cached::start(deployment, &["--cache-prefix=k/", "--cache-prefix=z"], "k/01").await;
        cached.until_answers("z").await;
        let member = deployment.member_client();
        let mut random = fastrand::Rng::with_seed(SEED);
        let before = cached.answers().await;
        for number in 0..1500 {
            let request = request(&mut random, newest);
            let bytes = request.encode_to_vec();
            let expected = raw_call(&member, RANGE, bytes.clone().into()).await;
            let answer = raw_call(&cached.client, RANGE, bytes.into()).await;
            if let Some((answer, expected)) = answers(answer, expected, &format!("{number}: {request:?}")) {
                let (answer, expected) = (answer.into_inner(), expected.into_inner());
                let decoded = |bytes: &bytes::Bytes| RangeResponse::decode(bytes.clone()).expect("an answer");
                assert!(answer == expected, "{number}: {request:?}: {:?}, {:?}", decoded(&answer), decoded(&expected));
            }
        }
        let share = cached.answers().await - before;
        assert!(share > 200.0, "{share} answers of the cache");
    });
}

#[test]
fn unknown_fields_and_odd_frames_pass() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("k", "v").await;
        let cached = Cached::start(deployment, &["--cache-prefix=k"], "k").await;
        let before = cached.answers().await;
        let known = RangeRequest { key: "k".into(), ..Default::default() }.encode_to_vec();
        // Field 99, and a field that says its default.
        for more in [&[0x98, 0x06, 1][..], &[3 << 3, 0]] {
            let request = [&known, more].concat();
            let answer = raw_call(&cached.client, RANGE, request.clone().into()).await.expect("an answer").into_inner();
            let expected = raw_call(&deployment.member_client(), RANGE, request.into()).await.expect("an answer");
            assert_eq!(answer, expected.into_inner());
        }
        assert!(raw_call(&cached.client, RANGE, bytes::Bytes::from_static(b"\xff")).await.is_err());
        assert_eq!(cached.answers().await, before);
        assert_eq!(cached.metrics().await.sum("watershed_proxy_cache_passed_total", "\"unread\""), 3.0);
    });
}

#[test]
fn long_answers_are_whole() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        for number in 0..3000 {
            deployment.put(format!("k/{number:05}"), "value".repeat(40)).await;
        }
        let cached = Cached::start(deployment, &["--cache-prefix=k/"], "k/00000").await;
        let all = RangeRequest { key: "k/".into(), range_end: "k0".into(), ..Default::default() }.encode_to_vec();
        let member = deployment.member_client();
        let expected = raw_call(&member, RANGE, all.clone().into()).await.expect("an answer").into_inner();
        let answered = async || {
            let before = cached.answers().await;
            let answer = raw_call(&cached.client, RANGE, all.clone().into()).await.expect("an answer").into_inner();
            assert!(answer == expected, "{} bytes, {} of the member", answer.len(), expected.len());
            (cached.answers().await > before).then_some(())
        };
        until("an answer of the cache", answered).await;
    });
}

/// Both answers, to be compared, unless both are errors, which are the same.
fn answers<T: Debug>(answer: Result<T, Status>, expected: Result<T, Status>, case: &str) -> Option<(T, T)> {
    match (answer, expected) {
        (Ok(answer), Ok(expected)) => Some((answer, expected)),
        (Err(status), Err(expected)) => {
            assert_eq!((status.code(), status.message()), (expected.code(), expected.message()), "{case}");
            None
        }
        (answer, expected) => panic!("{case}: {answer:?}, member: {expected:?}"),
    }
}

/// The messages of a stream as one answer, and their number.
async fn streamed(client: &Client, request: RangeRequest) -> Result<(RangeResponse, usize), Status> {
    let mut messages = client.kv().range_stream(request).await?.into_inner();
    let (mut whole, mut number) = (RangeResponse::default(), 0);
    while let Some(message) = messages.message().await? {
        let part = message.range_response.expect("a range");
        assert!(whole.header.is_none(), "the header is in the last message");
        whole.kvs.extend(part.kvs);
        (whole.header, whole.more, whole.count) = (part.header, part.more, part.count);
        number += 1;
    }
    Ok((whole, number))
}

#[test]
fn any_range_stream_is_answered_as_by_the_member() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let newest = fill(deployment).await;
        let cached = Cached::start(deployment, &["--cache-prefix=k/"], "k/01").await;
        let member = deployment.member_client();
        if streamed(&member, RangeRequest { key: "k/".into(), ..Default::default() }).await.is_err() {
            return; // Another server, which is older.
        }
        let (mut random, before) = (fastrand::Rng::with_seed(SEED), cached.answers().await);
        for number in 0..500 {
            let request = request(&mut random, newest);
            let expected = streamed(&member, request.clone()).await;
            let answer = streamed(&cached.client, request.clone()).await;
            if let Some(((answer, _), (expected, _))) = answers(answer, expected, &format!("{number}: {request:?}")) {
                assert_eq!(answer, expected, "{number}: {request:?}");
            }
        }
        let share = cached.answers().await - before;
        assert!(share > 50.0, "{share} answers of the cache");
        for number in 0..5 {
            deployment.put(format!("k/{number}"), "v".repeat(100_000)).await;
        }
        let all = RangeRequest { key: "k/".into(), range_end: "k0".into(), ..Default::default() };
        // A member would send so little in one message.
        let answer = until("a stream from the cache", async || {
            let (answer, messages) = streamed(&cached.client, all.clone()).await.expect("a stream");
            (messages > 1).then_some(answer)
        })
        .await;
        assert_eq!(answer.kvs.len() as i64, answer.count);
    });
}
