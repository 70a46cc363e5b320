use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use proptest::prelude::*;
use tonic::{Code, Status};

use super::super::upstream::{ReplicaWatches, Subscription, UpstreamStream};
use super::*;
use crate::api_error::ApiError;
use crate::pb::encoded::ResponseHeader;
use crate::types::{KeyRange, MemberId};

#[tokio::test]
async fn a_thousand_watchers_on_a_hundred_ranges_cost_a_handful_of_watches() {
    let proxy = Proxy::start(|_| {});
    proxy.cluster.write(&[("/bench/000/x", "before")]);
    let mut clients = Vec::new();
    for number in 0..1000 {
        let mut client = proxy.anonymous();
        let created = client.watch(prefix(&format!("/bench/{:03}/", number % 100))).await;
        let header = created.header.unwrap();
        assert!(created.created && header.revision >= 2, "{created:?}");
        assert_eq!((header.cluster_id, header.member_id, header.raft_term), (7, 100, 3));
        clients.push(client);
        if number % 50 == 0 {
            proxy.cluster.write(&[("/elsewhere", "x")]);
        }
    }
    assert!(proxy.cluster.opened() <= 8, "{} upstream watches", proxy.cluster.opened());
    let all: Vec<String> = (0..100).map(|number| format!("/bench/{number:03}/x")).collect();
    let changes: Vec<(&str, &str)> = all.iter().map(|key| (key.as_str(), "after")).collect();
    let revision = proxy.cluster.write(&changes);
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.events().await, vec![format!("/bench/{:03}/x@{revision}", number % 100)]);
    }
    eventually(|| proxy.metrics.upstream_watches.get() == 1).await;
}

#[tokio::test]
async fn a_watch_from_now_begins_behind_every_acknowledged_write() {
    let proxy = Proxy::start(|_| {});
    let mut first = proxy.anonymous();
    first.watch(key("a")).await;
    proxy.cluster.lag(true);
    // Acknowledged, but the member of the upstream watch has not seen it yet.
    let written = proxy.cluster.write(&[("a", "1")]);
    let mut second = proxy.anonymous();
    let created = second.watch(key("a")).await;
    assert_eq!(created.header.unwrap().revision, written);
    proxy.cluster.lag(false);
    let later = proxy.cluster.write(&[("a", "2")]);
    assert_eq!(first.all_events(2).await, [format!("a@{written}"), format!("a@{later}")]);
    assert_eq!(second.events().await, vec![format!("a@{later}")]);
    assert_eq!(proxy.cluster.opened(), 1);
}

#[tokio::test]
async fn a_watch_from_now_begins_where_the_cluster_stood_when_it_was_asked_for() {
    // The start used to be read after the upstream watch was confirmed: what was written while that was being opened
    // was missed.
    let proxy = Proxy::start(|_| {});
    proxy.cluster.write(&[("a", "before")]);
    proxy.cluster.refuse_streams(Some(Status::unavailable("not yet")));
    let mut client = proxy.anonymous();
    client.create(key("a")).await;
    // Polled, so that the request is read; nothing can come yet.
    assert!(client.try_next().now_or_never().is_none());
    eventually(|| proxy.cluster.read_index_reads() == 1).await;
    let written = proxy.cluster.write(&[("a", "during")]);
    proxy.cluster.refuse_streams(None);
    let created = client.next().await;
    assert_eq!((created.created, created.header.unwrap().revision), (true, written - 1));
    assert_eq!(client.events().await, vec![format!("a@{written}")]);
    let written = proxy.cluster.write(&[("a", "after")]);
    assert_eq!(client.events().await, vec![format!("a@{written}")]);
}

#[tokio::test]
async fn creates_of_one_stream_begin_where_the_cluster_stood_when_they_were_asked_for() {
    // Each used to wait for the answer of the one before: the last began that many round trips late.
    let proxy = Proxy::start(|_| {});
    proxy.cluster.write(&[("elsewhere", "x")]);
    proxy.cluster.refuse_streams(Some(Status::unavailable("not yet")));
    let mut client = proxy.anonymous();
    let names = ["a", "b", "c", "d"];
    for name in names {
        client.create(key(name)).await;
    }
    client.send(cancel(1)).await;
    client.create(WatchCreateRequest { start_revision: -1, ..key("e") }).await;
    client.progress().await;
    // One read for the first, one for those that came meanwhile.
    let begun = std::time::Instant::now();
    while proxy.cluster.read_index_reads() < 2 {
        assert!(client.try_next().now_or_never().is_none(), "nothing can come yet");
        assert!(begun.elapsed() < Duration::from_secs(20), "{} reads", proxy.cluster.read_index_reads());
        tokio::task::yield_now().await;
    }
    let written = proxy.cluster.write(&names.map(|name| (name, "x")));
    proxy.cluster.refuse_streams(None);
    // In the order of the requests. The events of one watch may come before the next one is created: their upstream
    // watches are opened again after pauses of their own.
    let (mut answers, mut seen) = (Vec::new(), Vec::new());
    while answers.len() < 6 || seen.len() < 3 {
        let answer = client.next().await;
        match answer.created || answer.canceled {
            true => answers.push(answer),
            false => seen.extend(named(&answer).into_iter().filter(|event| !event.starts_with('b'))),
        }
    }
    for (id, created) in answers.drain(..4).enumerate() {
        assert_eq!((created.created, created.canceled, created.watch_id), (true, false, id as i64));
        assert_eq!(created.header.unwrap().revision, written - 1);
    }
    let [canceled, refused] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((canceled.created, canceled.canceled, canceled.watch_id), (false, true, 1));
    assert_eq!((refused.created, refused.canceled, refused.watch_id), (true, true, -1));
    seen.sort();
    assert_eq!(seen, ["a", "c", "d"].map(|name| format!("{name}@{written}")));
}

#[tokio::test]
async fn a_start_below_an_acknowledged_compaction_is_compacted() {
    // The log never heard of compactions and served what it still had.
    let proxy = Proxy::start(|_| {});
    let mut live = proxy.anonymous();
    live.watch(key("a")).await;
    for value in 0..3 {
        proxy.cluster.write(&[("a", &value.to_string())]);
    }
    live.all_events(3).await;
    proxy.cluster.write(&[("elsewhere", "")]);
    proxy.cluster.compact(4);
    let mut client = proxy.anonymous();
    let created = client.watch(WatchCreateRequest { start_revision: 3, ..key("a") }).await;
    assert_eq!((created.created, created.canceled), (true, false));
    let canceled = client.next().await;
    assert_eq!((canceled.canceled, canceled.compact_revision, canceled.cancel_reason.as_str()), (true, 4, ""));
    assert_eq!((canceled.watch_id, canceled.header.unwrap().revision), (created.watch_id, 0));
    for (start, expected) in [(4, "a@4"), (5, "a@6"), (6, "a@6"), (9, "")] {
        let mut client = proxy.anonymous();
        assert!(!client.watch(WatchCreateRequest { start_revision: start, ..key("a") }).await.canceled);
        if start == 5 {
            assert_eq!(proxy.cluster.write(&[("a", "")]), 6);
        }
        if !expected.is_empty() {
            assert_eq!(client.events().await, vec![expected.to_owned()]);
        }
    }
    // Not a member that has not applied the compaction yet, and lets the watch pass, but the cluster decides.
    proxy.cluster.lag(true);
    proxy.cluster.write(&[("a", "7")]);
    let newest = proxy.cluster.write(&[("a", "8")]);
    proxy.cluster.compact(newest);
    client.create(WatchCreateRequest { start_revision: newest - 1, ..key("a") }).await;
    assert!(client.try_next().now_or_never().is_none());
    proxy.cluster.lag(false);
    assert!(client.next().await.created);
    let canceled = client.next().await;
    assert_eq!((canceled.canceled, canceled.compact_revision), (true, newest));
}

#[tokio::test]
async fn a_start_at_a_compaction_that_went_another_way_gets_nothing_from_before() {
    let proxy = Proxy::start(|_| {});
    let mut live = proxy.anonymous();
    live.watch(key("a")).await;
    for value in 0..3 {
        proxy.cluster.write(&[("a", &value.to_string())]);
        live.events().await;
    }
    proxy.cluster.compact(3);
    for (start, expected) in [(4, vec![(4, true)]), (3, vec![(3, false), (4, true)])] {
        let mut client = proxy.anonymous();
        client.watch(WatchCreateRequest { start_revision: start, prev_kv: true, ..key("a") }).await;
        let mut told = Vec::new();
        while told.len() < expected.len() {
            let events = client.next().await.events.into_iter();
            told.extend(events.map(|event| (event.kv.unwrap().mod_revision, event.prev_kv.is_some())));
        }
        assert_eq!(told, expected, "from {start}");
    }
}

#[tokio::test]
async fn starts_in_the_past_share_their_reads() {
    let proxy = Proxy::start(|_| {});
    let mut live = proxy.anonymous();
    live.watch(key("a")).await;
    for value in 0..30 {
        proxy.cluster.write(&[("a", &value.to_string())]);
        live.events().await;
    }
    proxy.cluster.compact(10);
    let before = proxy.cluster.read_index_reads();
    let mut clients: Vec<Client> = (0..200).map(|_| proxy.anonymous()).collect();
    for (number, client) in clients.iter().enumerate() {
        client.create(WatchCreateRequest { start_revision: number as i64 % 40 + 1, ..key("a") }).await;
    }
    let first = futures::future::join_all(clients.iter_mut().map(Client::next)).await;
    assert!(first.iter().all(|response| response.created && !response.canceled));
    let second = futures::future::join_all(clients.iter_mut().take(40).map(Client::next).take(31)).await;
    for (number, response) in second.iter().enumerate() {
        let compacted = if number < 9 { 10 } else { 0 };
        assert_eq!(response.compact_revision, compacted, "from {}: {response:?}", number + 1);
    }
    let reads = proxy.cluster.read_index_reads() - before;
    assert!(reads <= 6, "{reads} reads");
}

#[tokio::test]
async fn old_revisions_come_before_new_ones_and_join_the_log_without_a_call() {
    let proxy = Proxy::start(|_| {});
    for value in 0..10 {
        proxy.cluster.write(&[("a", &value.to_string()), ("b", "x")]);
    }
    let mut client = proxy.anonymous();
    client.watch(WatchCreateRequest { start_revision: 4, prev_kv: true, ..key("a") }).await;
    let mut seen = Vec::new();
    while seen.len() < 8 {
        seen.extend(client.events().await);
    }
    assert_eq!(seen, (4..=11).map(|revision| format!("a@{revision}")).collect::<Vec<_>>());
    let opened = proxy.cluster.opened();
    let revision = proxy.cluster.write(&[("a", "new")]);
    assert_eq!(client.events().await, vec![format!("a@{revision}")]);
    let mut other = proxy.anonymous();
    other.watch(WatchCreateRequest { start_revision: revision, ..key("a") }).await;
    assert_eq!(other.events().await, vec![format!("a@{revision}")]);
    assert_eq!(proxy.cluster.opened(), opened);
}

/// Cause: a read handed out more than the response to the client took, or the client's next read began before a gap that the read had
/// seen: no kept watch stood there, and each read opened another one, which had the member begin anew.
#[tokio::test]
async fn the_past_comes_over_one_private_watch() {
    // Responses of some events, cut by their bytes; responses of one event, with others between that nobody asked for.
    for (catch_up_bytes_max, between) in [(50, 0), (1, 1)] {
        let proxy = Proxy::start(|config| config.limits.catch_up_bytes_max = catch_up_bytes_max);
        let mut written = Vec::new();
        for _ in 0..8 {
            written.push(format!("a@{}", proxy.cluster.write(&[("a", "x")])));
            for _ in 0..between {
                proxy.cluster.write(&[("elsewhere", "x")]);
            }
        }
        let mut client = proxy.anonymous();
        client.watch(WatchCreateRequest { start_revision: 3, prev_kv: true, ..key("a") }).await;
        assert_eq!(client.all_events(7).await, written[1..]);
        assert_eq!(proxy.cluster.opened(), 2, "the shared watch, and one for the past");
    }
}

#[tokio::test]
async fn clients_do_not_notice_that_a_member_is_gone() {
    let proxy = Proxy::start(|_| {});
    let mut client = proxy.anonymous();
    client.watch(key("a")).await;
    proxy.cluster.write(&[("a", "1")]);
    proxy.cluster.fail_over();
    proxy.cluster.write(&[("a", "2")]);
    proxy.cluster.write(&[("a", "3")]);
    assert_eq!(client.all_events(3).await, ["a@2", "a@3", "a@4"]);
    // Nothing was written since: the new member must not take the resumed watch for one of the future.
    client.progress().await;
    let progress = client.next().await;
    assert_eq!((progress.watch_id, progress.header.unwrap().revision), (-1, 4));
    proxy.cluster.compact(5);
    proxy.cluster.fail_over();
    proxy.cluster.write(&[("a", "4")]);
    assert_eq!(client.events().await, vec!["a@5"]);
    client.send(cancel(0)).await;
    assert_eq!(client.next().await.header.unwrap().member_id, 102);
}

#[tokio::test]
async fn compaction_beyond_the_resume_point_cancels_as_a_member_would() {
    let proxy = Proxy::start(|_| {});
    let mut client = proxy.anonymous();
    client.watch(key("a")).await;
    proxy.cluster.refuse_streams(Some(Status::unavailable("down")));
    for value in 0..5 {
        proxy.cluster.write(&[("a", &value.to_string())]);
    }
    proxy.cluster.compact(5);
    proxy.cluster.refuse_streams(None);
    let canceled = client.next().await;
    assert_eq!((canceled.canceled, canceled.compact_revision, canceled.cancel_reason.as_str()), (true, 5, ""));
    assert_eq!(canceled.header.unwrap().revision, 0);
    // The next watch is not caught by the dead one.
    client.watch(WatchCreateRequest { start_revision: 5, ..key("a") }).await;
    assert_eq!(client.events().await, vec!["a@5", "a@6"]);
}

/// Pauses that double up to 1 s, each shortened by up to a half.
fn assert_backoff(pauses: &[Duration], first: Duration) {
    assert!(pauses.len() > 20, "{pauses:?}");
    let longest = std::iter::successors(Some(first), |pause| Some((*pause * 2).min(Duration::from_secs(1))));
    for (pause, longest) in pauses.iter().zip(longest) {
        // Timers count in whole milliseconds.
        assert!((longest / 2..=longest + Duration::from_millis(2)).contains(pause), "{pauses:?}");
    }
}

fn usual_pauses(config: &mut WatchHubConfig) {
    let usual = Periods::default();
    config.periods = Periods { retry_first: usual.retry_first, retry_max: usual.retry_max, ..config.periods };
}

#[tokio::test(start_paused = true)]
async fn broken_streams_are_opened_again_with_growing_pauses() {
    let proxy = Proxy::start(usual_pauses);
    let mut client = proxy.anonymous();
    client.watch(key("a")).await;
    for value in ["1", "2"] {
        // The second time begins as the first one did. The first pause, of 20 ms, is before the first attempt.
        proxy.cluster.refuse_streams(Some(Status::unavailable("down")));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_backoff(&proxy.cluster.pauses(), Duration::from_millis(40));
        proxy.cluster.refuse_streams(None);
        proxy.cluster.write(&[("a", value)]);
        client.events().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_revision_of_a_new_watch_is_asked_for_with_growing_pauses() {
    let proxy = Proxy::start(usual_pauses);
    let mut client = proxy.anonymous();
    proxy.cluster.refuse_reads(Some(Status::unavailable("no quorum")));
    client.create(key("a")).await;
    let created = tokio::time::timeout(Duration::from_secs(30), client.try_next()).await;
    assert!(created.is_err(), "{created:?}");
    assert_backoff(&proxy.cluster.pauses(), Duration::from_millis(20));
    proxy.cluster.refuse_reads(None);
    assert!(client.next().await.created);
}

#[tokio::test]
async fn progress_is_asked_for_upstream() {
    let proxy = Proxy::start(|_| {});
    let mut client = proxy.anonymous();
    client.watch(key("a")).await;
    client.watch(key("b")).await;
    let revision = proxy.cluster.write(&[("elsewhere", "x")]);
    client.progress().await;
    let progress = client.next().await;
    assert_eq!((progress.watch_id, progress.header.unwrap().revision, progress.events.len()), (-1, revision, 0));
    let revision = proxy.cluster.write(&[("a", "1"), ("c", "1")]);
    client.progress().await;
    assert_eq!(client.events().await, vec![format!("a@{revision}")]);
    assert_eq!(client.next().await.header.unwrap().revision, revision);
}

fn notified(request: WatchCreateRequest) -> WatchCreateRequest {
    WatchCreateRequest { progress_notify: true, ..request }
}

/// A namespace with one idle watch that wants to be told its progress, and a busy one.
async fn idle_beside_busy(change: impl FnOnce(&mut WatchHubConfig)) -> (Proxy, Client, Client) {
    let proxy = Proxy::start(|config| {
        config.namespace = Namespace::new("n/");
        change(config);
    });
    let (mut idle, mut busy) = (proxy.anonymous(), proxy.anonymous());
    idle.watch(notified(key("idle"))).await;
    idle.watch(key("asks/for/none")).await;
    busy.watch(notified(key("busy"))).await;
    (proxy, idle, busy)
}

#[tokio::test]
async fn idle_watches_beside_a_busy_one_are_told_at_the_members_interval() {
    // A member tells no progress to a busy watch, and the shared one is busy whenever any of its ranges is.
    let (proxy, mut idle, mut busy) = idle_beside_busy(|_| {}).await;
    eventually(|| proxy.cluster.clocks() == 1).await;
    eventually(|| proxy.hub.inner.versions.has_ordered_progress(MemberId(100))).await;
    for round in 0..6 {
        let written = proxy.cluster.write(&[("n/busy", "x")]);
        assert_eq!(busy.events().await, vec![format!("busy@{written}")]);
        // What is written elsewhere counts: the member is asked how far it is.
        let newest = if round % 2 == 0 { proxy.cluster.write(&[("elsewhere", "x")]) } else { written };
        proxy.cluster.tick();
        let told = idle.next().await;
        let revision = told.header.as_ref().unwrap().revision;
        assert_eq!((told.watch_id, told.events.len(), revision), (0, 0, newest), "in round {round}");
    }
    // A quiet period: both watches are told, each once.
    proxy.cluster.tick();
    for client in [&mut idle, &mut busy] {
        let told = client.next().await;
        assert_eq!((told.watch_id, told.events.len(), told.header.unwrap().revision), (0, 0, 10));
    }
    let written = proxy.cluster.write(&[("n/idle", "x"), ("n/busy", "x")]);
    assert_eq!(idle.events().await, vec![format!("idle@{written}")]);
    assert_eq!(busy.events().await, vec![format!("busy@{written}")]);
    assert_eq!(proxy.cluster.opened(), 1);
}

#[tokio::test]
async fn progress_that_might_overtake_events_is_not_asked_for() {
    // Members before 3.4.25 and 3.5.8 answer progress requests ahead of events: for them the events are the proof.
    let (proxy, mut idle, mut busy) = {
        let proxy = Proxy::start(|config| {
            config.namespace = Namespace::new("n/");
            config.periods.position_max = Duration::from_millis(20);
        });
        proxy.cluster.set_version("3.5.7");
        let (mut idle, mut busy) = (proxy.anonymous(), proxy.anonymous());
        idle.watch(notified(key("idle"))).await;
        busy.watch(key("busy")).await;
        (proxy, idle, busy)
    };
    eventually(|| proxy.cluster.clocks() == 1).await;
    for _ in 0..3 {
        proxy.cluster.write(&[("n/busy", "x")]);
        busy.events().await;
        let elsewhere = proxy.cluster.write(&[("elsewhere", "x")]);
        proxy.cluster.tick();
        let written = proxy.cluster.write(&[("n/busy", "x")]);
        assert_eq!(busy.events().await, vec![format!("busy@{written}")]);
        let told = idle.next().await.header.unwrap().revision;
        assert!((elsewhere..=written).contains(&told), "{told}");
    }
    assert_eq!(proxy.cluster.progress_requests(), 0);
}

#[tokio::test]
async fn the_past_of_a_member_that_answers_progress_too_early_is_whole() {
    // The answer to a progress request came ahead of the events, which then were taken for none: nothing was sent of them.
    let proxy = Proxy::start(|config| config.periods.settled = Duration::from_secs(600));
    proxy.cluster.set_version("3.4.23");
    let before: Vec<_> = (0..3).map(|_| proxy.cluster.write(&[("a", "x")])).collect();
    proxy.cluster.write(&[("elsewhere", "x")]);
    proxy.cluster.hold_history(true);
    let mut client = proxy.anonymous();
    client.watch(WatchCreateRequest { start_revision: 1, ..key("a") }).await;
    eventually(|| proxy.cluster.opened() == 2).await;
    proxy.cluster.hold_history(false);
    let mut events = Vec::new();
    while events.len() < 3 {
        events.extend(client.events().await);
    }
    assert_eq!(events, before.iter().map(|revision| format!("a@{revision}")).collect::<Vec<_>>());
    // What comes later comes though nothing has shown that the past is complete.
    let written = proxy.cluster.write(&[("a", "x")]);
    assert_eq!(client.events().await, [format!("a@{written}")]);
    assert_eq!(proxy.cluster.progress_requests(), 0);
}

#[tokio::test]
async fn the_past_is_complete_when_an_old_member_sends_nothing_more() {
    let proxy = Proxy::start(|config| config.periods.settled = Duration::from_millis(50));
    proxy.cluster.set_version("3.5.7");
    proxy.cluster.write(&[("a", "x")]);
    proxy.cluster.write(&[("elsewhere", "x")]);
    let mut client = proxy.anonymous();
    client.watch(WatchCreateRequest { start_revision: 1, ..key("a") }).await;
    assert_eq!(client.events().await, ["a@2"]);
    eventually(|| proxy.cluster.progress_requests() > 0).await;
    let written = proxy.cluster.write(&[("a", "x")]);
    assert_eq!(client.events().await, [format!("a@{written}")]);
}

#[tokio::test]
async fn an_interval_of_the_proxys_own_holds_without_ticks_of_the_member() {
    let interval = Duration::from_millis(20);
    let (proxy, mut idle, mut busy) = idle_beside_busy(|config| config.progress_interval = interval).await;
    for _ in 0..3 {
        let written = proxy.cluster.write(&[("n/busy", "x")]);
        while busy.next().await.events.is_empty() {}
        let newest = proxy.cluster.write(&[("elsewhere", "x")]);
        loop {
            let told = idle.next().await;
            assert_eq!((told.watch_id, told.events.len()), (0, 0));
            let revision = told.header.unwrap().revision;
            assert!(revision <= newest && revision + 2 >= written, "{revision}");
            if revision == newest {
                break;
            }
        }
    }
}

fn position(proxy: &Proxy) -> i64 {
    let broadcasts = proxy.hub.inner.group(Identity::default()).broadcasts();
    broadcasts.iter().filter_map(|broadcast| broadcast.head()).map(|head| head.0).min().unwrap_or(0)
}

#[tokio::test]
async fn a_quiet_watch_keeps_its_place_fresh_and_outlives_a_compaction() {
    // The resume point stood where the last event was, behind whatever was compacted since.
    let proxy = Proxy::start(|config| config.periods.position_max = Duration::from_millis(20));
    let mut client = proxy.anonymous();
    client.watch(key("quiet")).await;
    for _ in 0..100 {
        proxy.cluster.write(&[("busy", "x")]);
    }
    let newest = proxy.cluster.write(&[("busy", "x")]);
    eventually(|| position(&proxy) == newest).await;
    proxy.cluster.compact(newest);
    proxy.cluster.fail_over();
    let written = proxy.cluster.write(&[("quiet", "x")]);
    assert_eq!(client.events().await, vec![format!("quiet@{written}")]);
}

#[tokio::test]
async fn a_compaction_that_passes_has_places_renewed_first() {
    let proxy = Proxy::start(|_| {});
    let (mut one, mut other) = (proxy.anonymous(), proxy.anonymous());
    one.watch(key("quiet")).await;
    other.watch(key("silent")).await;
    eventually(|| proxy.hub.inner.versions.has_ordered_progress(MemberId(100))).await;
    let newest = proxy.cluster.write(&[("busy", "x")]);
    assert!(position(&proxy) < newest);
    proxy.hub.inner.before_compaction().await;
    proxy.cluster.compact(newest);
    proxy.cluster.fail_over();
    let written = proxy.cluster.write(&[("quiet", "x"), ("silent", "x")]);
    assert_eq!(one.events().await, vec![format!("quiet@{written}")]);
    assert_eq!(other.events().await, vec![format!("silent@{written}")]);
}

#[tokio::test]
async fn a_compaction_waits_for_watches_that_are_being_resumed() {
    // Their positions were not renewed, and compacted when the streams were open again.
    let proxy = Proxy::start(|config| config.periods.compaction_wait = Duration::from_secs(60));
    let mut client = proxy.anonymous();
    client.watch(key("quiet")).await;
    proxy.cluster.refuse_streams(Some(Status::unavailable("not yet")));
    eventually(|| proxy.cluster.refusals() > 0).await;
    let newest = proxy.cluster.write(&[("busy", "x")]);
    let before = proxy.hub.inner.before_compaction();
    tokio::pin!(before);
    assert!(before.as_mut().now_or_never().is_none());
    proxy.cluster.refuse_streams(None);
    before.await;
    assert_eq!(position(&proxy), newest);
}

#[tokio::test]
async fn a_promotion_before_an_old_member_has_sent_the_past_cancels_nobody() {
    // It was asked for progress meanwhile, and its answer came ahead of the events.
    let proxy = Proxy::start(|config| config.periods.settled = Duration::from_secs(600));
    proxy.cluster.set_version("3.5.7");
    let names: Vec<String> = (0..8).map(|number| format!("/some/{number}")).collect();
    let mut clients = Vec::new();
    for name in &names[..7] {
        let mut client = proxy.anonymous();
        client.watch(key(name)).await;
        clients.push(client);
    }
    // The first stays where it is, and the wide watch begins there.
    let busy: Vec<_> = names[1..].iter().map(|name| (name.as_str(), "x")).collect();
    let written = proxy.cluster.write(&busy);
    for (name, client) in names.iter().zip(&mut clients).skip(1) {
        assert_eq!(client.events().await, [format!("{name}@{written}")]);
    }
    proxy.cluster.hold_history(true);
    let mut last = proxy.anonymous();
    last.create(key(&names[7])).await;
    assert!(last.try_next().now_or_never().is_none(), "polled, so that the request is read");
    eventually(|| proxy.cluster.opened() == 8).await;
    proxy.cluster.hold_history(false);
    assert!(last.next().await.created);
    clients.push(last);
    eventually(|| proxy.metrics.upstream_watches.get() == 1).await;
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), "y")).collect();
    let written = proxy.cluster.write(&all);
    for (name, client) in names.iter().zip(&mut clients) {
        assert_eq!(client.events().await, [format!("{name}@{written}")]);
    }
    assert_eq!(proxy.cluster.progress_requests(), 0);
}

#[tokio::test]
async fn a_promotion_behind_a_compaction_cancels_nobody() {
    // The wide watch began where the slowest stood; compacted there, it began at once, and those it took over read the
    // compacted rest, though they had missed nothing.
    let proxy = Proxy::start(|_| {});
    let mut clients = Vec::new();
    let name = |number: usize| format!("/some/{number}");
    for number in 0..7 {
        let mut client = proxy.anonymous();
        client.watch(key(&name(number))).await;
        clients.push(client);
    }
    eventually(|| proxy.hub.inner.versions.has_ordered_progress(MemberId(100))).await;
    for _ in 0..10 {
        proxy.cluster.write(&[("elsewhere", "x")]);
    }
    let newest = proxy.cluster.write(&[("elsewhere", "x")]);
    proxy.cluster.compact(newest);
    let mut last = proxy.anonymous();
    last.watch(key(&name(7))).await;
    clients.push(last);
    eventually(|| proxy.metrics.upstream_watches.get() == 1).await;
    let names: Vec<String> = (0..8).map(name).collect();
    let written = proxy.cluster.write(&names.iter().map(|name| (name.as_str(), "x")).collect::<Vec<_>>());
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.events().await, vec![format!("{}@{written}", name(number))]);
    }
}

#[tokio::test]
async fn refusals_of_the_cluster_reach_the_client() {
    let proxy = Proxy::start(|config| config.prefixes = vec![KeyRange::prefix("p/".into())]);
    let denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    proxy.cluster.deny(vec![KeyRange::prefix("p/".into()), KeyRange::One("p/secret".into())]);
    let mut client = proxy.anonymous();
    for (request, reason) in [
        (key("p/secret"), denied),
        (WatchCreateRequest { range_end: "a".into(), ..key("b") }, "mvcc: watcher range is empty"),
        (
            WatchCreateRequest { start_revision: -3, ..key("b") },
            "etcdserver: mvcc: required revision has been compacted",
        ),
    ] {
        let refused = client.watch(request).await;
        assert!(refused.created && refused.canceled, "{refused:?}");
        assert_eq!((refused.watch_id, refused.cancel_reason.as_str()), (-1, reason));
    }
    // The prefix is not theirs to watch, the key is.
    assert!(!client.watch(key("p/open")).await.canceled);
    let revision = proxy.cluster.write(&[("p/secret", "1"), ("p/open", "1")]);
    assert_eq!(client.events().await, vec![format!("p/open@{revision}")]);
}

/// Cause: a client that had lost the right to a prefix, and kept that to a key, had its watch of the key cancelled when the
/// upstream watch of the prefix was resumed.
#[tokio::test]
async fn a_refused_prefix_does_not_cancel_a_watch_of_a_key_that_is_permitted() {
    let proxy = Proxy::start(|config| config.prefixes = vec![KeyRange::prefix("p/".into())]);
    let (mut narrow, mut wide) = (proxy.anonymous(), proxy.anonymous());
    assert!(!narrow.watch(key("p/open")).await.canceled);
    assert!(!wide.watch(prefix("p/")).await.canceled);
    assert_eq!(proxy.cluster.opened(), 1);
    proxy.cluster.deny(vec![KeyRange::prefix("p/".into())]);
    proxy.cluster.fail_over();
    let cancelled = wide.next().await;
    let denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    assert_eq!((cancelled.canceled, cancelled.cancel_reason.as_str()), (true, denied));
    let ended = narrow.try_next().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "clients open such a stream again: {ended}");
    let mut again = proxy.anonymous();
    assert!(!again.watch(key("p/open")).await.canceled);
    let revision = proxy.cluster.write(&[("p/open", "1")]);
    assert_eq!(again.events().await, vec![format!("p/open@{revision}")]);
}

/// A replica of everything to which nothing happens, once it is live.
#[derive(Debug, Default)]
struct QuietReplica {
    is_live: AtomicBool,
    subscribed: AtomicUsize,
}

impl ReplicaWatches for QuietReplica {
    fn subscribe(&self, _: &Identity, _: &KeyRange) -> Option<Subscription> {
        if !self.is_live.load(Ordering::Relaxed) {
            return None;
        }
        self.subscribed.fetch_add(1, Ordering::Relaxed);
        let header = ResponseHeader { cluster_id: 7, member_id: 100, revision: 1, raft_term: 3 };
        let (requests, _) = mpsc::channel(16);
        Some(Subscription { header, stream: UpstreamStream { requests, answers: futures::stream::pending().boxed() } })
    }
}

/// Cause: a range that was refused before counted as refused for a minute, though a replica of it was read, and each watch of it had
/// a broadcast of its own.
#[tokio::test]
async fn watches_of_a_range_that_was_refused_before_share_the_watch_of_a_replica() {
    let replica = Arc::new(QuietReplica::default());
    let proxy = Proxy::start(|config| config.replicas = Some(replica.clone()));
    proxy.cluster.deny(vec![KeyRange::One("a".into())]);
    let mut client = proxy.anonymous();
    assert!(client.watch(key("a")).await.canceled);
    proxy.cluster.deny(Vec::new());
    replica.is_live.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        assert!(!client.watch(key("a")).await.canceled);
    }
    assert_eq!(replica.subscribed.load(Ordering::Relaxed), 1);
}

/// The upstream watch is refused before the read index is: whichever was first decided what the client was told.
#[tokio::test]
async fn a_refused_upstream_watch_is_explained_to_who_has_a_certificate() {
    let proxy = Proxy::start(|_| {});
    proxy.cluster.deny(vec![KeyRange::One("a".into())]);
    proxy.cluster.deny_with(ApiError::UserEmpty);
    for (common_name, told) in [
        (Some("alice"), "rpc error: code = Unauthenticated desc = the gRPC proxy does not pass on the user"),
        (None, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"),
    ] {
        let mut client = proxy.client_of(Caller { common_name: common_name.map(Into::into), ..Default::default() });
        let refused = client.watch(key("a")).await;
        assert!(refused.canceled && refused.cancel_reason.starts_with(told), "{refused:?}");
    }
}

#[tokio::test]
async fn a_revoked_permission_stops_new_watches() {
    let proxy = Proxy::start(|_| {});
    let mut headers = http::HeaderMap::new();
    headers.insert("token", "t".parse().unwrap());
    let mut client = proxy.client(Identity::of(&headers));
    assert!(!client.watch(key("a")).await.canceled);
    proxy.cluster.deny(vec![KeyRange::One("a".into())]);
    // Not even a client that never pauses keeps the old permission alive.
    let begun = std::time::Instant::now();
    loop {
        let answer = client.watch(key("a")).await;
        if answer.canceled {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "the permission is revoked");
        // Within the bound on verdicts the old permission still holds.
        client.send(cancel(answer.watch_id)).await;
        assert!(client.next().await.canceled);
    }
    let revision = proxy.cluster.write(&[("a", "1")]);
    assert_eq!(client.events().await, vec![format!("a@{revision}")], "the old one goes on, as with a member");
}

#[tokio::test]
async fn a_namespace_is_one_upstream_watch_and_shows_its_own_keys() {
    let proxy = Proxy::start(|config| config.namespace = Namespace::new("n/"));
    let mut client = proxy.anonymous();
    client.watch(prefix("")).await;
    client.watch(key("a")).await;
    let revision = proxy.cluster.write(&[("n/a", "1"), ("a", "2"), ("n0", "3")]);
    for _ in 0..2 {
        assert_eq!(client.events().await, vec![format!("a@{revision}")]);
    }
    assert_eq!(proxy.cluster.opened(), 1);
}

#[tokio::test]
async fn streams_that_want_a_leader_end_when_nobody_has_one() {
    let proxy = Proxy::start(|_| {});
    let mut strict = proxy.client(Identity::default().with_require_leader(true));
    let mut relaxed = proxy.anonymous();
    strict.watch(key("a")).await;
    relaxed.watch(key("a")).await;
    proxy.cluster.refuse_streams(Some(ApiError::NoLeader.into()));
    let status = strict.try_next().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    proxy.cluster.refuse_streams(None);
    let revision = proxy.cluster.write(&[("a", "1")]);
    assert_eq!(relaxed.events().await, vec![format!("a@{revision}")]);
}

#[tokio::test]
async fn an_upstream_watch_ends_a_while_after_its_last_watcher() {
    let proxy = Proxy::start(|_| {});
    let mut client = proxy.anonymous();
    client.watch(key("a")).await;
    drop(client);
    proxy.anonymous().watch(key("a")).await;
    assert_eq!(proxy.cluster.opened(), 1, "it was still there");
    eventually(|| proxy.metrics.upstream_watches.get() == 0).await;
    proxy.anonymous().watch(key("a")).await;
    assert_eq!(proxy.cluster.opened(), 2);
}

#[tokio::test]
async fn creates_at_the_same_time_share_their_reads() {
    let proxy = Proxy::start(|_| {});
    let mut clients: Vec<Client> = (0..200).map(|_| proxy.anonymous()).collect();
    for client in &clients {
        client.create(key("a")).await;
    }
    let created = futures::future::join_all(clients.iter_mut().map(Client::next)).await;
    assert!(created.iter().all(|response| response.created && !response.canceled));
    assert!(proxy.cluster.read_index_reads() <= 3, "{} reads", proxy.cluster.read_index_reads());
}

/// A client that has seen so many revisions of a key.
async fn watching(proxy: &Proxy, name: &str, revisions: usize) -> Client {
    let mut client = proxy.anonymous();
    client.watch(key(name)).await;
    for _ in 0..revisions {
        proxy.cluster.write(&[(name, "x")]);
        client.events().await;
    }
    client
}

/// Expects that a watch is cancelled because its history is gone, and that its client is told to begin at `revision`.
async fn assert_lost(client: &mut Client, revision: i64) {
    let canceled = client.next().await;
    assert_eq!((canceled.canceled, canceled.compact_revision), (true, revision), "{canceled:?}");
    assert_eq!(canceled.header.unwrap().revision, 0);
}

/// Cause: the first cluster id counted for as long as the proxy ran, so that every watch of a rebuilt cluster was refused.
#[tokio::test]
async fn a_rebuilt_cluster_is_watched_without_a_restart_of_the_proxy() {
    let proxy = Proxy::start(|_| {});
    let mut client = watching(&proxy, "a", 5).await;
    for rebuilt in 1..3 {
        proxy.cluster.rebuild(2);
        assert_lost(&mut client, 2).await;
        let created = client.watch(key("a")).await;
        let header = created.header.unwrap();
        assert_eq!((created.canceled, header.cluster_id, header.revision), (false, 7 + rebuilt, 2));
        assert_eq!(proxy.cluster.write(&[("a", "x")]), 3);
        assert_eq!(client.events().await, ["a@3"]);
        assert_eq!(proxy.hub.inner.revision().0, 3, "what the old cluster was told to have reached does not count");
    }
}

/// Cause: the upstream watch was resumed at a revision of the history that was lost, which the member took for one of the future.
#[tokio::test]
async fn a_watch_of_a_cluster_that_was_restored_is_cancelled() {
    let proxy = Proxy::start(|_| {});
    let mut client = watching(&proxy, "a", 5).await;
    let mut elsewhere = watching(&proxy, "b", 1).await;
    proxy.cluster.restore(3);
    for client in [&mut client, &mut elsewhere] {
        assert_lost(client, 3).await;
    }
    assert_eq!(client.watch(key("a")).await.header.unwrap().revision, 3);
    assert_eq!(proxy.cluster.write(&[("a", "x")]), 4);
    assert_eq!(client.events().await, ["a@4"]);
}

/// Cause: a new watch joined the one of the lost history, and got events of that, or none until its revisions had passed.
#[tokio::test]
async fn a_new_watch_does_not_join_a_history_that_is_lost() {
    let proxy = Proxy::start(|_| {});
    let mut before = watching(&proxy, "a", 5).await;
    proxy.cluster.refuse_streams(Some(Status::unavailable("not yet")));
    proxy.cluster.restore(3);
    let mut client = proxy.anonymous();
    {
        let mut created = std::pin::pin!(client.watch(key("a")));
        // Before the watch of the old history could be opened again.
        tokio::select! {
            created = &mut created => panic!("{created:?}"),
            () = assert_lost(&mut before, 3) => {}
        }
        proxy.cluster.refuse_streams(None);
        let created = created.await;
        assert_eq!((created.created, created.canceled, created.header.unwrap().revision), (true, false, 3));
    }
    assert_eq!(proxy.cluster.write(&[("a", "x")]), 4);
    assert_eq!(client.events().await, ["a@4"]);
}

/// The wide watch was to begin where the narrow ones stand, in the lost history.
#[tokio::test]
async fn a_promotion_does_not_begin_in_a_history_that_is_lost() {
    for rebuilt in [false, true] {
        let proxy = Proxy::start(|_| {});
        let names: Vec<String> = (0..8).map(|number| format!("/some/{number}")).collect();
        let mut clients = Vec::new();
        for name in &names[..7] {
            clients.push(watching(&proxy, name, 1).await);
        }
        for name in &names[..7] {
            proxy.cluster.write(&[(name, "y")]);
        }
        for client in &mut clients {
            client.events().await;
        }
        proxy.cluster.refuse_streams(Some(Status::unavailable("not yet")));
        if rebuilt {
            proxy.cluster.rebuild(2)
        } else {
            proxy.cluster.restore(2)
        }
        let mut last = proxy.anonymous();
        {
            let mut created = std::pin::pin!(last.watch(key(&names[7])));
            let lost = async {
                for client in &mut clients {
                    assert_lost(client, 2).await;
                }
            };
            tokio::select! {
                created = &mut created => panic!("{created:?}"),
                () = lost => {}
            }
            proxy.cluster.refuse_streams(None);
            let created = created.await;
            assert_eq!((created.canceled, created.header.unwrap().revision), (false, 2), "{rebuilt}");
        }
        assert_eq!(proxy.cluster.write(&[(&names[7], "x")]), 3);
        assert_eq!(last.events().await, [format!("{}@3", names[7])], "{rebuilt}");
    }
}

#[tokio::test]
async fn a_member_that_lags_is_not_taken_for_a_restored_cluster() {
    let proxy = Proxy::start(|_| {});
    let mut client = watching(&proxy, "a", 5).await;
    let reads = proxy.cluster.read_index_reads();
    proxy.cluster.fail_over_to_one_behind(3);
    eventually(|| proxy.cluster.read_index_reads() > reads).await;
    let written = proxy.cluster.write(&[("a", "x")]);
    proxy.cluster.lag(false);
    assert_eq!(client.events().await, [format!("a@{written}")]);
    // A new one neither.
    proxy.cluster.fail_over_to_one_behind(3);
    let mut other = proxy.anonymous();
    assert_eq!(other.watch(key("a")).await.header.unwrap().revision, written);
}

/// A client whose watch needs what only a watch of its own reads.
async fn behind(proxy: &Proxy) -> Client {
    let mut client = proxy.anonymous();
    let created = client.watch(WatchCreateRequest { start_revision: 2, ..key("a") }).await;
    assert!(created.created && !created.canceled, "{created:?}");
    client
}

/// A private watch that is kept, since its client takes no more than the first of the revisions with this value.
async fn with_a_kept_private_watch(value: &'static str) -> (Proxy, Client) {
    let proxy = Proxy::start(|config| {
        config.limits.stream_responses_max = 1;
        config.limits.catch_up_revisions_max = 1;
    });
    for _ in 0..3 {
        proxy.cluster.write(&[("a", value)]);
    }
    let client = behind(&proxy).await;
    eventually(|| proxy.hub.inner.history.idle() == 1).await;
    (proxy, client)
}

/// Cause: the refusal was taken for a lost connection, and the stream opened again every 20 ms for ever.
#[tokio::test]
async fn history_that_is_refused_cancels_the_watch() {
    let proxy = Proxy::start(|_| {});
    proxy.cluster.write(&[("a", "x")]);
    proxy.cluster.write(&[("a", "x")]);
    let _live = watching(&proxy, "a", 1).await;
    proxy.cluster.refuse_streams(Some(Status::permission_denied("not you")));
    let canceled = behind(&proxy).await.next().await;
    let reason = "rpc error: code = PermissionDenied desc = not you";
    assert_eq!((canceled.canceled, canceled.cancel_reason.as_str()), (true, reason));
}

#[tokio::test(start_paused = true)]
async fn history_is_asked_for_again_with_growing_pauses() {
    let proxy = Proxy::start(usual_pauses);
    proxy.cluster.write(&[("a", "x")]);
    proxy.cluster.write(&[("a", "x")]);
    let _live = watching(&proxy, "a", 1).await;
    proxy.cluster.refuse_streams(Some(Status::unavailable("down")));
    let mut client = behind(&proxy).await;
    assert!(tokio::time::timeout(Duration::from_secs(60), client.try_next()).await.is_err());
    // Of the shared watch and of the one for history: some 80 each.
    let refusals = proxy.cluster.refusals();
    assert!((100..300).contains(&refusals), "{refusals}");
}

/// Cause: what a kept private watch had received of the lost history was handed to a watch of the new one.
#[tokio::test]
async fn the_past_is_not_read_from_a_history_that_is_lost() {
    let (proxy, _behind) = with_a_kept_private_watch("lost").await;
    proxy.cluster.restore(2);
    eventually(|| proxy.metrics.upstream_watches.get() == 0).await;
    assert_eq!(proxy.cluster.write(&[("a", "kept")]), 3);
    let mut client = proxy.anonymous();
    client.watch(WatchCreateRequest { start_revision: 3, ..key("a") }).await;
    let told = client.next().await;
    assert_eq!(named(&told), ["a@3"]);
    assert_eq!(told.events[0].kv.as_ref().unwrap().value, "kept");
}

/// Cause: the upstream watch of a client that went away in the middle of its history stayed open, unread, until others took its place:
/// the member kept in memory what it could not send.
#[tokio::test(start_paused = true)]
async fn a_private_watch_that_nobody_comes_back_for_is_closed() {
    let (proxy, client) = with_a_kept_private_watch("x").await;
    drop(client);
    eventually(|| proxy.hub.inner.history.idle() == 0).await;
}

/// Cause: a slow watch was cancelled because the token of its stream had expired, though its client had a new one.
#[tokio::test]
async fn history_that_is_refused_for_the_token_ends_the_stream() {
    let proxy = Proxy::start(|_| {});
    proxy.cluster.write(&[("a", "x")]);
    proxy.cluster.write(&[("a", "x")]);
    let _live = watching(&proxy, "a", 1).await;
    proxy.cluster.deny(vec![KeyRange::One("a".into())]);
    for error in [ApiError::InvalidAuthToken, ApiError::UserEmpty, ApiError::AuthOldRevision] {
        proxy.cluster.deny_with(error);
        let status = behind(&proxy).await.try_next().await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "clients open such a stream again: {status}");
    }
    proxy.cluster.deny_with(ApiError::PermissionDenied);
    let canceled = behind(&proxy).await.next().await;
    let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    assert_eq!((canceled.canceled, canceled.cancel_reason.as_str()), (true, reason));
}

/// Cause: the read that all creates of the same credentials share was part of one client's stream, which is not polled while that
/// client takes nothing: no other client could create a watch.
#[tokio::test]
async fn a_client_that_takes_nothing_holds_up_nobody() {
    let proxy = Proxy::start(|_| {});
    let mut stuck = proxy.anonymous();
    stuck.create(key("a")).await;
    assert!(stuck.try_next().now_or_never().is_none(), "polled once, so that its read is sent");
    assert!(!proxy.anonymous().watch(key("a")).await.canceled);
    assert!(stuck.next().await.created);
}

#[derive(Clone, Debug)]
enum Op {
    Write(Vec<u8>),
    Create {
        key: u8,
        back: i64,
    },
    FailOver,
    Lag(bool),
    /// Reads this many responses of one client.
    Read {
        client: usize,
        responses: usize,
    },
    /// Lets broadcasts and watcher_sets have their turns.
    Pass,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 1..4).prop_map(Op::Write),
        4 => (any::<u8>(), -2..15i64).prop_map(|(key, back)| Op::Create { key, back }),
        1 => Just(Op::FailOver),
        1 => any::<bool>().prop_map(Op::Lag),
        3 => (any::<usize>(), 1..4usize).prop_map(|(client, responses)| Op::Read { client, responses }),
        3 => Just(Op::Pass),
    ]
}

/// Twenty keys below two prefixes: enough to be promoted.
fn name(key: u8) -> String {
    format!("/{}/{:02}", if key.is_multiple_of(3) { "some" } else { "other" }, key % 20)
}

async fn run(ops: Vec<Op>) {
    let proxy = Proxy::start(|config| {
        config.log_bytes_max = 4000;
        config.limits.stream_bytes_max = 500;
        config.limits.catch_up_revisions_max = 4;
    });
    let mut written: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    let mut clients: Vec<(Client, String, i64, Vec<String>)> = Vec::new();
    let mut revision = 1;
    for op in ops {
        match op {
            Op::Write(keys) => {
                let mut names: Vec<String> = keys.into_iter().map(name).collect();
                names.sort();
                names.dedup();
                revision = proxy.cluster.write(&names.iter().map(|name| (name.as_str(), "v")).collect::<Vec<_>>());
                written.insert(revision, names);
            }
            Op::Create { key: number, back } => {
                let mut client = proxy.anonymous();
                let start = if back == 0 { 0 } else { (revision - back).max(1) };
                let created = client.watch(WatchCreateRequest { start_revision: start, ..key(&name(number)) }).await;
                assert!(created.created && !created.canceled, "{created:?}");
                let first = if start == 0 { revision + 1 } else { start };
                clients.push((client, name(number), first, Vec::new()));
            }
            Op::FailOver => proxy.cluster.fail_over(),
            Op::Lag(lagging) => proxy.cluster.lag(lagging),
            Op::Read { client, responses } => {
                if !clients.is_empty() {
                    let at = client % clients.len();
                    let (client, _, _, seen) = &mut clients[at];
                    for _ in 0..responses {
                        seen.extend(client.events().now_or_never().unwrap_or_default());
                    }
                }
            }
            Op::Pass => {
                for _ in 0..30 {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
    proxy.cluster.lag(false);
    let names: Vec<String> = (0..60).map(name).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    // Twice: a watch may begin one or a few revisions ahead.
    for _ in 0..3 {
        revision = proxy.cluster.write(&names.iter().map(|name| (name.as_str(), "end")).collect::<Vec<_>>());
        written.insert(revision, names.clone());
    }
    for (client, name, first, seen) in &mut clients {
        let last = format!("{name}@{revision}");
        while seen.last() != Some(&last) {
            let next = tokio::time::timeout(Duration::from_secs(20), client.events()).await;
            seen.extend(next.unwrap_or_else(|_| panic!("watch of {name} from {first} stands still after {seen:?}")));
        }
        let expected: Vec<String> = written
            .range(*first..)
            .filter(|(_, names)| names.contains(name))
            .map(|(revision, _)| format!("{name}@{revision}"))
            .collect();
        assert_eq!(*seen, expected, "watch of {name} from {first}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn every_watcher_sees_exactly_what_it_asked_for(ops in prop::collection::vec(any_op(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(ops));
    }
}
