//! Watches whose upstream watches are shared.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use watershed::client::Client;
use watershed::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCreateRequest, request_op,
};
use watershed::pb::mvccpb::Event;

use super::{put, try_put, under};
use crate::harness::{Deployment, Proxy, Target, Watching, client, in_words, run};

/// A proxy that lets it share the live watch before all of the past has come loses what is between.
#[test]
fn one_that_catches_up_beside_a_live_one_misses_nothing() {
    const BEFORE: usize = 3500;
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        let member = deployment.member_client();
        let first = put(&member, "k").await;
        let puts = (1..BEFORE).map(|_| put(&member, "k"));
        stream::iter(puts).buffer_unordered(64).collect::<Vec<_>>().await;
        let key = WatchCreateRequest { key: "k".into(), ..Default::default() };
        let (mut live, _) = Watching::create(&deployment.client, key.clone()).await;
        let last = put(&member, "k").await;
        assert_eq!(live.events(1).await, [format!("+k=v@{last}")]);
        let past = WatchCreateRequest { start_revision: first, ..key };
        let (mut past, _) = Watching::create(&client(&deployment.endpoint), past).await;
        let expected: Vec<_> = (first..=last).map(|revision| format!("+k=v@{revision}")).collect();
        assert_eq!(expected.len(), BEFORE + 1);
        assert!(past.events(expected.len()).await == expected, "each event once and in order");
    });
}

/// Writes transactions of three keys; each has its number in it.
async fn write_rounds(client: &Client, rounds: std::ops::Range<usize>) {
    for round in rounds {
        let put = |step: usize| {
            let key = format!("p/{:02}", (round * 7 + step) % 50).into();
            let put = PutRequest { key, value: round.to_string().into(), ..Default::default() };
            RequestOp { request: Some(request_op::Request::RequestPut(put)) }
        };
        let txn = TxnRequest { success: (0..3).map(put).collect(), ..Default::default() };
        client.kv().txn(txn).await.expect("txn");
    }
}

fn revision_of(word: &str) -> i64 {
    word.rsplit_once('@').expect("a revision").1.parse().expect("a number")
}

#[test]
fn any_start_gets_what_the_member_tells() {
    const ROUNDS: usize = 600;
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        let member = deployment.member_client();
        let first = put(&member, "before").await + 1;
        let (mut direct, _) = Watching::create(&member, under("p/")).await;
        write_rounds(&member, 0..ROUNDS / 2).await;
        let mut live = Vec::new();
        let writing = write_rounds(&member, ROUNDS / 2..ROUNDS);
        let opening = async {
            let clients: Vec<_> = (0..4).map(|_| client(&deployment.endpoint)).collect();
            for number in 0..20 {
                let start_revision = first + (number * 61) % (ROUNDS as i64 / 2);
                let request = WatchCreateRequest { start_revision, ..under("p/") };
                live.push((start_revision, Watching::create(&clients[number as usize % 4], request).await.0));
                // One from now, so that there is a live watch to be merged with.
                let (from_now, created) = Watching::create(&clients[number as usize % 4], under("p/")).await;
                live.push((created.header.expect("header").revision + 1, from_now));
            }
        };
        let ((), ()) = tokio::join!(writing, opening);
        let truth = direct.events(3 * ROUNDS).await;
        for (start, mut watching) in live {
            let expected: Vec<_> = truth.iter().filter(|word| revision_of(word) >= start).cloned().collect();
            assert!(watching.events(expected.len()).await == expected, "from revision {start}");
        }
    });
}

/// The events of a prefix since a revision, as a new watch with the previous values gets them.
async fn events_since(client: &Client, start_revision: i64, last: i64) -> Vec<Event> {
    let request = WatchCreateRequest { start_revision, prev_kv: true, ..under("k/") };
    let (mut watching, created) = Watching::create(client, request).await;
    assert!(!created.canceled, "{created:?}");
    let mut events: Vec<Event> = Vec::new();
    while events.last().and_then(|event| event.kv.as_ref()).is_none_or(|kv| kv.mod_revision < last) {
        let answer = watching.next().await;
        assert!(!answer.canceled, "{answer:?}");
        events.extend(answer.events);
    }
    events
}

/// The log of a live watch knows what was there before an event also when the cluster does not any more, and a proxy is not told of
/// compactions that do not pass it. Kubernetes takes a previous value that is missing for a watch that begins too far back.
#[test]
fn what_was_there_before_is_told_as_by_the_member() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let proxy = Proxy::start(&[&deployment.endpoint]).await;
        let member = client(&deployment.endpoint);
        let (mut live, _) = Watching::create(&proxy.client, WatchCreateRequest { prev_kv: true, ..under("k/") }).await;
        for compacting in [&proxy.client, &member] {
            for key in ["k/1", "k/2"] {
                put(&member, key).await;
            }
            // No delete: members before 3.4.34 and 3.5.16 forget one at the compacted revision.
            let compacted = put(&member, "k/1").await;
            let delete = DeleteRangeRequest { key: "k/2".into(), ..Default::default() };
            member.kv().delete_range(delete).await.expect("deleted");
            put(&member, "k/2").await;
            let last = put(&member, "k/1").await;
            // The log has all of them.
            live.events(6).await;
            let compaction = CompactionRequest { revision: compacted, physical: false };
            compacting.kv().compact(compaction).await.expect("compacted");
            for start in compacted..=last {
                let told = events_since(&proxy.client, start, last).await;
                assert_eq!(told, events_since(&member, start, last).await, "from revision {start}");
            }
            let told = events_since(&proxy.client, compacted, last).await;
            let known: Vec<bool> = told.iter().map(|event| event.prev_kv.is_some()).collect();
            // What the first put replaced is compacted, the second one made its key anew.
            assert_eq!(known, [false, true, false, true]);
        }
    });
}

/// What one watcher of a prefix has seen.
struct Seen {
    prefix: String,
    watching: Watching,
    _client: Client,
}

#[test]
fn watchers_of_many_prefixes_outlive_restarts_of_the_member() {
    const PREFIXES: usize = 20;
    const CLIENTS: usize = 8;
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        let first = put(&deployment.member_client(), "before").await + 1;
        let mut watchers = Vec::new();
        for _ in 0..CLIENTS {
            let client = client(&deployment.endpoint);
            for number in 0..PREFIXES {
                let prefix = format!("p{number:02}/");
                let (watching, created) = Watching::create(&client, under(&prefix)).await;
                assert!(!created.canceled, "{created:?}");
                watchers.push(Seen { prefix, watching, _client: client.clone() });
            }
        }
        for round in 0..3 {
            let (stop, endpoint) = (AtomicBool::new(false), deployment.member.clone());
            let writing = async {
                let writer = client(&endpoint);
                let (mut written, mut known) = (0, 0);
                while !stop.load(SeqCst) || known < 2 * PREFIXES {
                    // The outcome of one that failed is unknown: what was written is read afterwards.
                    let key = format!("p{:02}/{round}-{written}", written % PREFIXES);
                    let put = tokio::time::timeout(Duration::from_millis(500), try_put(&writer, key)).await;
                    (written, known) = (written + 1, known + usize::from(matches!(put, Ok(Ok(_)))));
                }
            };
            let restarting = async {
                deployment.crash_and_restart().await;
                stop.store(true, SeqCst);
            };
            tokio::join!(writing, restarting);
        }
        let last = put(&deployment.member_client(), "p00/last").await;
        for number in 1..PREFIXES {
            put(&deployment.member_client(), format!("p{number:02}/last")).await;
        }
        for Seen { prefix, mut watching, .. } in watchers {
            let request = WatchCreateRequest { start_revision: first, ..under(&prefix) };
            let (mut direct, _) = Watching::create(&deployment.member_client(), request).await;
            let truth = until_last(&mut direct, &prefix).await;
            assert!(truth.last().is_some_and(|word| revision_of(word) >= last), "{truth:?}");
            assert_eq!(until_last(&mut watching, &prefix).await, truth);
        }
    });
}

/// Events up to that of the key `last`, which all must be of the prefix.
async fn until_last(watching: &mut Watching, prefix: &str) -> Vec<String> {
    let (mut words, end) = (Vec::new(), format!("+{prefix}last="));
    while !words.last().is_some_and(|word: &String| word.starts_with(&end)) {
        let answer = watching.next().await;
        assert!(!answer.canceled, "{answer:?}");
        words.extend(in_words(&answer));
    }
    assert!(words.iter().all(|word| word[1..].starts_with(prefix)), "{words:?}");
    words
}
