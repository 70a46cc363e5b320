//! Watches with every option.

use std::time::Duration;

use watershed::pb::etcdserverpb::watch_create_request::FilterType;
use watershed::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCreateRequest, request_op,
};
use watershed::types::KeyRange;

use crate::harness::{Deployment, Target, Watching, client, in_words, run, soon};
use crate::on_every_target;

on_every_target! {
    a_watch_from_now_sees_what_comes,
    a_watch_from_the_past_sees_history_then_the_present,
    a_watch_from_the_future_waits_for_it,
    ranges_select_events,
    previous_values_come_when_asked_for,
    filters_leave_events_out,
    ids_are_chosen_or_counted,
    refused_watches_leave_the_stream_usable,
    a_cancelled_watch_is_silent,
    compaction_cancels_a_watch_of_the_past,
    compaction_counts_beside_a_live_watch,
    progress_is_told_when_everything_is_delivered,
    progress_is_not_told_for_a_watch_of_the_future,
    a_transaction_is_one_answer,
    long_history_arrives_whole_and_in_order,
    a_half_closed_stream_goes_on,
    unknown_requests_are_ignored,
    an_expired_lease_is_one_delete_per_key,
}

on_every_target! {
    flags = ["--watch-progress-notify-interval=200ms"];
    idle_watches_tell_their_progress,
    idle_watches_beside_a_busy_one_tell_their_progress,
}

on_every_target! {
    flags = ["--max-request-bytes=20000"];
    large_answers_come_in_fragments_when_asked_for,
}

fn key(key: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.into(), ..Default::default() }
}

fn prefix(prefix: &'static str) -> WatchCreateRequest {
    let (key, range_end) = KeyRange::prefix(prefix.into()).to_wire();
    WatchCreateRequest { key, range_end, ..Default::default() }
}

async fn a_watch_from_now_sees_what_comes(deployment: &mut Deployment) {
    deployment.put("k", "before").await;
    let (mut watching, created) = Watching::create(&deployment.client, key("k")).await;
    assert_eq!((created.watch_id, created.canceled), (0, false));
    let header = created.header.expect("header");
    assert_eq!(header.revision, 2);
    let present = deployment.get("k").await.header.expect("header");
    assert_eq!((header.cluster_id, header.member_id), (present.cluster_id, present.member_id));

    deployment.put("other", "").await;
    deployment.put("k", "1").await;
    let first = watching.next().await;
    assert_eq!((in_words(&first).as_slice(), first.watch_id), (["+k=1@4".to_owned()].as_slice(), 0));
    assert_eq!(first.header.expect("header").revision, 4, "a live answer shows the revision of its events");
    deployment.delete("k").await;
    deployment.delete("k").await;
    deployment.put("k", "2").await;
    assert_eq!(watching.events(2).await, ["-k@5", "+k=2@6"]);
}

async fn a_watch_from_the_past_sees_history_then_the_present(deployment: &mut Deployment) {
    for value in ["1", "2", "3"] {
        deployment.put("k", value).await;
    }
    let request = WatchCreateRequest { start_revision: 3, ..key("k") };
    let (mut watching, created) = Watching::create(&deployment.client, request).await;
    assert_eq!(created.header.expect("header").revision, 4);
    assert_eq!(watching.events(2).await, ["+k=2@3", "+k=3@4"]);
    deployment.put("k", "4").await;
    assert_eq!(watching.events(1).await, ["+k=4@5"]);

    let request = WatchCreateRequest { start_revision: 1, ..key("k") };
    let (mut watching, _) = Watching::create(&deployment.client, request).await;
    assert_eq!(watching.events(4).await, ["+k=1@2", "+k=2@3", "+k=3@4", "+k=4@5"]);
}

async fn a_watch_from_the_future_waits_for_it(deployment: &mut Deployment) {
    let request = WatchCreateRequest { start_revision: 4, ..key("k") };
    let (mut watching, created) = Watching::create(&deployment.client, request).await;
    assert_eq!(created.header.expect("header").revision, 1);
    for value in ["2", "3", "4", "5"] {
        deployment.put("k", value).await;
    }
    assert_eq!(watching.events(2).await, ["+k=4@4", "+k=5@5"]);
}

async fn ranges_select_events(deployment: &mut Deployment) {
    let half_open = WatchCreateRequest { range_end: "c".into(), ..key("a") };
    let from = WatchCreateRequest { range_end: "\0".into(), ..key("b") };
    let everything = WatchCreateRequest { range_end: "\0".into(), ..Default::default() };
    let expectations = [
        (half_open, vec!["+a=@2", "+b=@3", "-a@6"]),
        (from, vec!["+b=@3", "+c=@4"]),
        (everything, vec!["+a=@2", "+b=@3", "+c=@4", "+\0=@5", "-a@6"]),
        (key(""), vec!["+\0=@5"]),
        (prefix("b"), vec!["+b=@3"]),
    ];
    let mut all = Vec::new();
    for (request, expected) in expectations {
        let (watching, _) = Watching::create(&deployment.client, request.clone()).await;
        all.push((watching, request, expected));
    }
    for key in ["a", "b", "c", "\0"] {
        deployment.put(key, "").await;
    }
    deployment.delete("a").await;
    for (watching, request, expected) in &mut all {
        assert_eq!(watching.events(expected.len()).await, *expected, "{request:?}");
    }
}

async fn previous_values_come_when_asked_for(deployment: &mut Deployment) {
    let with_previous = WatchCreateRequest { prev_kv: true, ..key("k") };
    let (mut with, _) = Watching::create(&deployment.client, with_previous.clone()).await;
    let (mut without, _) = Watching::create(&deployment.client, key("k")).await;
    deployment.put("k", "1").await;
    deployment.put("k", "2").await;
    deployment.delete("k").await;
    deployment.put("k", "3").await;
    let catch_up = WatchCreateRequest { start_revision: 1, ..with_previous };
    let (mut past, _) = Watching::create(&deployment.client, catch_up).await;
    for watching in [&mut with, &mut past] {
        let mut previous = Vec::new();
        while previous.len() < 4 {
            let answer = watching.next().await;
            previous.extend(answer.events.into_iter().map(|event| event.prev_kv.map(|kv| (kv.value, kv.mod_revision))));
        }
        assert_eq!(previous, [None, Some(("1".into(), 2)), Some(("2".into(), 3)), None]);
    }
    let mut seen = 0;
    while seen < 4 {
        let events = without.next().await.events;
        assert!(events.iter().all(|event| event.prev_kv.is_none()), "{events:?}");
        seen += events.len();
    }
}

async fn filters_leave_events_out(deployment: &mut Deployment) {
    let filtered = |filters: &[i32]| WatchCreateRequest { filters: filters.to_vec(), ..prefix("k") };
    let no_put = filtered(&[FilterType::Noput.into()]);
    let no_delete = filtered(&[FilterType::Nodelete.into()]);
    let (mut deletes, _) = Watching::create(&deployment.client, no_put.clone()).await;
    let (mut puts, _) = Watching::create(&deployment.client, no_delete).await;
    let (mut everything, _) = Watching::create(&deployment.client, filtered(&[77])).await;
    deployment.put("k", "1").await;
    deployment.delete("k").await;
    deployment.put("k", "2").await;
    deployment.delete("k").await;
    assert_eq!(deletes.events(2).await, ["-k@3", "-k@5"]);
    assert_eq!(puts.events(2).await, ["+k=1@2", "+k=2@4"]);
    assert_eq!(everything.events(4).await, ["+k=1@2", "-k@3", "+k=2@4", "-k@5"]);
    let (mut past, _) = Watching::create(&deployment.client, WatchCreateRequest { start_revision: 1, ..no_put }).await;
    assert_eq!(past.events(2).await, ["-k@3", "-k@5"]);
}

async fn ids_are_chosen_or_counted(deployment: &mut Deployment) {
    let mut watching = Watching::open(&deployment.client);
    let with_id = |watch_id| WatchCreateRequest { watch_id, ..key("k") };
    assert_eq!(watching.add(with_id(0)).await.watch_id, 0);
    assert_eq!(watching.add(with_id(1)).await.watch_id, 1);
    assert_eq!(watching.add(with_id(2)).await.watch_id, 2);
    assert_eq!(watching.add(with_id(0)).await.watch_id, 3, "ids in use are skipped");
    assert_eq!(watching.add(with_id(-5)).await.watch_id, -5);
    let refused = watching.add(with_id(2)).await;
    assert_eq!((refused.watch_id, refused.canceled), (-1, true));
    assert_eq!(refused.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    deployment.put("k", "1").await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        let answer = watching.next().await;
        assert_eq!(in_words(&answer), ["+k=1@2"]);
        ids.push(answer.watch_id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [-5, 0, 1, 2, 3]);
}

async fn refused_watches_leave_the_stream_usable(deployment: &mut Deployment) {
    let mut watching = Watching::open(&deployment.client);
    let empty = "mvcc: watcher range is empty";
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    for (request, reason) in [
        (WatchCreateRequest { start_revision: -1, ..key("k") }, compacted),
        (WatchCreateRequest { range_end: "k".into(), ..key("k") }, empty),
        (WatchCreateRequest { range_end: "a".into(), ..key("k") }, empty),
    ] {
        let answer = watching.add(request.clone()).await;
        assert_eq!(
            (answer.canceled, answer.watch_id, answer.cancel_reason.as_str()),
            (true, -1, reason),
            "{request:?}"
        );
    }
    assert_eq!(watching.add(key("k")).await.watch_id, 0);
    deployment.put("k", "1").await;
    assert_eq!(watching.events(1).await, ["+k=1@2"]);
}

async fn a_cancelled_watch_is_silent(deployment: &mut Deployment) {
    let mut watching = Watching::open(&deployment.client);
    watching.add(key("k")).await;
    watching.add(key("l")).await;
    watching.cancel(0).await;
    let answer = watching.next().await;
    assert_eq!((answer.canceled, answer.watch_id, answer.cancel_reason.as_str()), (true, 0, ""));
    assert_eq!(answer.compact_revision, 0);
    // Neither the repetition nor an unknown id is answered.
    watching.cancel(0).await;
    watching.cancel(42).await;
    deployment.put("k", "1").await;
    deployment.put("l", "1").await;
    let answer = watching.next().await;
    assert_eq!((answer.watch_id, in_words(&answer)), (1, vec!["+l=1@3".to_owned()]));
}

async fn compaction_cancels_a_watch_of_the_past(deployment: &mut Deployment) {
    for value in ["1", "2", "3", "4"] {
        deployment.put("k", value).await;
    }
    deployment.compact(4).await;
    let past = WatchCreateRequest { start_revision: 2, ..key("k") };
    let (mut watching, created) = Watching::create(&deployment.client, past).await;
    assert!(!created.canceled, "it is created first: {created:?}");
    let answer = watching.next().await;
    assert_eq!((answer.canceled, answer.compact_revision), (true, 4));
    assert_eq!((answer.watch_id, answer.cancel_reason.as_str()), (created.watch_id, ""));
    assert_eq!(answer.header.expect("header").revision, 0);

    let oldest = WatchCreateRequest { start_revision: 4, ..key("k") };
    let created = watching.add(oldest).await;
    assert!(!created.canceled);
    assert_eq!(watching.events(2).await, ["+k=3@4", "+k=4@5"]);
}

async fn compaction_counts_beside_a_live_watch(deployment: &mut Deployment) {
    // The proxy's log of the live watch still had the events and never heard of the compaction.
    let (mut live, _) = Watching::create(&deployment.client, key("k")).await;
    deployment.put("k", "1").await;
    let middle = deployment.put("k", "2").await;
    assert_eq!(live.events(2).await.len(), 2);
    let newest = deployment.put("other", "").await;
    // Past the proxy, then through it.
    for (way, at, start) in
        [(deployment.member_client(), middle, middle - 1), (deployment.client.clone(), newest, middle)]
    {
        let compaction = CompactionRequest { revision: at, physical: false };
        way.kv().compact(compaction).await.expect("compaction");
        let past = WatchCreateRequest { start_revision: start, ..key("k") };
        let (mut watching, created) = Watching::create(&deployment.client, past).await;
        assert!(!created.canceled, "it is created first: {created:?}");
        let answer = watching.next().await;
        assert_eq!((answer.canceled, answer.compact_revision), (true, at), "from {start}");
        assert_eq!((answer.watch_id, answer.cancel_reason.as_str()), (created.watch_id, ""));
        assert_eq!(answer.header.expect("header").revision, 0);
        // Neither the compacted revision itself nor one of the future.
        for start in [at, newest + 1] {
            let request = WatchCreateRequest { start_revision: start, ..key("k") };
            let (_, created) = Watching::create(&deployment.client, request).await;
            assert!(!created.canceled, "from {start}");
        }
    }
    // Those who were there go on.
    deployment.put("k", "3").await;
    assert_eq!(live.events(1).await, [format!("+k=3@{}", newest + 1)]);
}

async fn progress_is_told_when_everything_is_delivered(deployment: &mut Deployment) {
    deployment.put("k", "1").await;
    let mut watching = Watching::open(&deployment.client);
    watching.add(key("k")).await;
    watching.add(WatchCreateRequest { start_revision: 1, ..key("k") }).await;
    assert_eq!(watching.events(1).await, ["+k=1@2"]);
    deployment.put("other", "").await;
    // A member that has not noticed yet that its watches caught up keeps silent, so ask until it answers.
    let answer = soon("progress", async {
        loop {
            watching.request_progress().await;
            if let Ok(answer) = tokio::time::timeout(Duration::from_millis(300), watching.next()).await {
                return answer;
            }
        }
    })
    .await;
    assert_eq!((answer.watch_id, answer.events.len(), answer.created), (-1, 0, false));
    assert_eq!(answer.header.expect("header").revision, 3);
}

async fn progress_is_not_told_for_a_watch_of_the_future(deployment: &mut Deployment) {
    let mut watching = Watching::open(&deployment.client);
    watching.request_progress().await;
    watching.add(WatchCreateRequest { start_revision: 100, ..key("k") }).await;
    watching.request_progress().await;
    // Requests of a stream are handled in order: had progress been told, it would be first here.
    assert_eq!(watching.add(key("l")).await.watch_id, 1);
    watching.quiet_for(Duration::from_millis(300)).await;
}

async fn idle_watches_tell_their_progress(deployment: &mut Deployment) {
    let mut watching = Watching::open(&deployment.client);
    watching.add(WatchCreateRequest { progress_notify: true, ..key("k") }).await;
    watching.add(key("k")).await;
    deployment.put("other", "").await;
    let mut seen = 0;
    while seen < 2 {
        let answer = watching.next().await;
        assert_eq!((answer.watch_id, answer.events.len()), (0, 0), "only the watch that asked for it");
        let revision = answer.header.expect("header").revision;
        if revision == 2 {
            seen += 1;
        }
    }
    deployment.put("k", "1").await;
    let mut ids = Vec::new();
    while ids.len() < 2 {
        let answer = watching.next().await;
        if !answer.events.is_empty() {
            ids.push(answer.watch_id);
        }
    }
    ids.sort_unstable();
    assert_eq!(ids, [0, 1]);
}

async fn idle_watches_beside_a_busy_one_tell_their_progress(deployment: &mut Deployment) {
    // Behind the proxy all of them share one upstream watch, to which a member tells no progress while it is busy.
    let fronts = match deployment.target {
        Target::Proxy => vec![deployment.also_front("grpc-proxy", &["--namespace=t/"]).await],
        Target::Core | Target::Gateway => Vec::new(),
    };
    let fronts = fronts.iter().map(|(_, endpoint)| client(endpoint));
    for client in std::iter::once(deployment.client.clone()).chain(fronts) {
        let mut idle = Watching::open(&client);
        for number in 0..12 {
            let (key, range_end) = KeyRange::prefix(format!("idle/{number}/").into()).to_wire();
            idle.ask(WatchCreateRequest { progress_notify: true, key, range_end, ..Default::default() }).await;
            // The progress of those that are there may come before the confirmation.
            while !idle.next().await.created {}
        }
        let (mut busy, _) = Watching::create(&client, key("idle/busy")).await;
        let mut kv = client.kv();
        let write = async {
            loop {
                let put = PutRequest { key: "idle/busy".into(), ..Default::default() };
                kv.put(put).await.expect("put");
                busy.next().await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let told = async {
            // Twice each, further the second time.
            let mut told = [(0, 0); 12];
            while told.iter().any(|(count, _)| *count < 2) {
                let answer = idle.next().await;
                assert!(answer.events.is_empty() && !answer.canceled, "{answer:?}");
                let revision = answer.header.expect("header").revision;
                let (count, last) = &mut told[usize::try_from(answer.watch_id).expect("an id")];
                assert!(revision >= *last, "{revision} after {last}");
                *count += i32::from(revision > *last);
                *last = revision;
            }
        };
        tokio::select! {
            () = soon("progress of all", told) => {}
            () = write => {}
        }
    }
}

#[test]
fn a_quiet_watch_outlives_a_compaction_and_a_restart() {
    // Its upstream watch stood where it was created, behind the compaction: it was cancelled, though it had missed
    // nothing.
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        let (mut quiet, _) = Watching::create(&deployment.client, key("quiet")).await;
        let mut newest = 0;
        for number in 0..300 {
            newest = deployment.put("busy", number.to_string()).await;
        }
        deployment.compact(newest).await;
        deployment.crash_and_restart().await;
        let revision = deployment.put("quiet", "1").await;
        assert_eq!(quiet.events(1).await, [format!("+quiet=1@{revision}")]);
    });
}

async fn large_answers_come_in_fragments_when_asked_for(deployment: &mut Deployment) {
    // A message may have --max-request-bytes and 512 KiB; one delete of sixty pairs of 15,000 bytes is more than that.
    let value = vec![b'x'; 15_000];
    for number in 0..60 {
        deployment.put(format!("k{number:02}"), value.clone()).await;
    }
    let request = WatchCreateRequest { prev_kv: true, ..prefix("k") };
    let (mut whole, _) = Watching::create(&deployment.client, request.clone()).await;
    let (mut pieces, _) = Watching::create(&deployment.client, WatchCreateRequest { fragment: true, ..request }).await;
    let everything = DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    deployment.client.kv().delete_range(everything).await.expect("delete");

    let (mut keys, mut answers) = (Vec::new(), 0);
    while keys.len() < 60 {
        let answer = pieces.next().await;
        answers += 1;
        keys.extend(answer.events.iter().map(|event| event.kv.clone().expect("kv").key));
        assert_eq!((answer.watch_id, answer.header.expect("header").revision), (0, 62));
        assert_eq!(answer.fragment, keys.len() < 60, "all pieces but the last are marked");
    }
    assert!(answers > 1, "900 kB came as one message");
    let expected: Vec<_> = (0..60).map(|number| format!("k{number:02}")).collect();
    assert_eq!(keys, expected, "each once, in order");
    let answer = whole.next().await;
    assert_eq!((answer.events.len(), answer.fragment), (60, false), "not asked for");
}

async fn a_transaction_is_one_answer(deployment: &mut Deployment) {
    deployment.put("k3", "old").await;
    let (mut watching, _) = Watching::create(&deployment.client, prefix("k")).await;
    let put = |key: &'static str| request_op::Request::RequestPut(PutRequest { key: key.into(), ..Default::default() });
    let delete = request_op::Request::RequestDeleteRange(DeleteRangeRequest { key: "k3".into(), ..Default::default() });
    let success = [put("k2"), put("other"), delete, put("k1")].map(|request| RequestOp { request: Some(request) });
    deployment.txn(TxnRequest { success: success.to_vec(), ..Default::default() }).await;
    let answer = watching.next().await;
    assert_eq!(in_words(&answer), ["+k2=@3", "-k3@3", "+k1=@3"], "in the order of the operations");
}

async fn long_history_arrives_whole_and_in_order(deployment: &mut Deployment) {
    for number in 0..2500 {
        deployment.put(format!("k{}", number % 7), number.to_string()).await;
    }
    let request = WatchCreateRequest { start_revision: 2, ..prefix("k") };
    let (mut watching, _) = Watching::create(&deployment.client, request).await;
    let mut expected = 2;
    while expected < 2502 {
        for event in watching.next().await.events {
            assert_eq!(event.kv.expect("kv").mod_revision, expected);
            expected += 1;
        }
    }
    deployment.put("k", "live").await;
    assert_eq!(watching.events(1).await, ["+k=live@2502"]);
}

async fn a_half_closed_stream_goes_on(deployment: &mut Deployment) {
    let (watching, _) = Watching::create(&deployment.client, key("k")).await;
    let mut answers = watching.half_close();
    deployment.put("k", "1").await;
    let answer = soon("an event", answers.message()).await.expect("no error").expect("goes on");
    assert_eq!(in_words(&answer), ["+k=1@2"]);
}

async fn unknown_requests_are_ignored(deployment: &mut Deployment) {
    let mut watching = Watching::open(&deployment.client);
    watching.send(None).await;
    assert_eq!(watching.add(key("k")).await.watch_id, 0);
}

async fn an_expired_lease_is_one_delete_per_key(deployment: &mut Deployment) {
    let lease = deployment.grant(4).await;
    for key in ["k2", "k1", "k3"] {
        deployment.put_with(PutRequest { key: key.into(), lease, ..Default::default() }).await;
    }
    // The lease may have ended before the watch is there.
    let request = WatchCreateRequest { start_revision: 5, ..prefix("k") };
    let (mut watching, _) = Watching::create(&deployment.client, request).await;
    let answer = watching.next().await;
    assert_eq!(in_words(&answer), ["-k1@5", "-k2@5", "-k3@5"], "one revision, keys ascending");
}
