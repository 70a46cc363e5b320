//! Compaction.

use tonic::Code;
use watershed::pb::etcdserverpb::{CompactionRequest, RangeRequest, WatchCreateRequest};

use crate::harness::{Deployment, Watching, refused};
use crate::on_every_target;

on_every_target! {
    history_below_the_revision_is_gone,
    compacting_nothing_or_the_future_is_refused,
    a_compacted_store_survives_a_restart,
    a_watch_from_the_compaction_has_nothing_before_it,
    a_live_watch_does_not_keep_what_was_before_a_compaction,
}

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";

fn at(revision: i64) -> RangeRequest {
    RangeRequest { key: "k".into(), revision, ..Default::default() }
}

async fn history_below_the_revision_is_gone(deployment: &mut Deployment) {
    for value in ["1", "2", "3"] {
        deployment.put("k", value).await;
    }
    deployment.compact(3).await;
    assert_eq!(deployment.range(at(3)).await.kvs[0].value, "2", "the compacted revision itself stays");
    assert_eq!(deployment.range(at(4)).await.kvs[0].value, "3");
    refused(deployment.client.kv().range(at(2)).await, Code::OutOfRange, COMPACTED);
    deployment.delete("k").await;
    deployment.compact(5).await;
    assert_eq!(deployment.get("k").await.count, 0);
    assert_eq!(deployment.put("k", "4").await, 6);
}

// Cause: the events of the compacted revision came from the event log while that had them, with what was there before;
// after a restart they came from the store, without.
async fn a_watch_from_the_compaction_has_nothing_before_it(deployment: &mut Deployment) {
    for value in ["1", "2", "3"] {
        deployment.put("k", value).await;
    }
    deployment.compact(3).await;
    for restarted in [false, true] {
        if restarted {
            deployment.crash_and_restart().await;
        }
        let request = WatchCreateRequest { key: "k".into(), start_revision: 3, prev_kv: true, ..Default::default() };
        let (mut watching, _) = Watching::create(&deployment.client, request).await;
        let mut seen = Vec::new();
        while seen.len() < 2 {
            seen.extend(watching.next().await.events);
        }
        let seen: Vec<_> = seen
            .into_iter()
            .map(|event| (event.kv.map(|kv| kv.mod_revision), event.prev_kv.map(|kv| kv.mod_revision)))
            .collect();
        assert_eq!(seen, [(Some(3), None), (Some(4), Some(3))], "after a restart: {restarted}");
    }
}

// Cause: the proxy's log of the live watch was not told of the compaction.
async fn a_live_watch_does_not_keep_what_was_before_a_compaction(deployment: &mut Deployment) {
    let request = WatchCreateRequest { key: "k".into(), prev_kv: true, ..Default::default() };
    let (mut live, _) = Watching::create(&deployment.client, request.clone()).await;
    for value in ["1", "2"] {
        deployment.put("k", value).await;
    }
    assert_eq!(live.events(2).await, ["+k=1@2", "+k=2@3"]);
    deployment.compact(3).await;
    let (mut watching, _) =
        Watching::create(&deployment.client, WatchCreateRequest { start_revision: 3, ..request }).await;
    let event = watching.next().await.events.remove(0);
    assert_eq!((event.kv.map(|kv| kv.mod_revision), event.prev_kv), (Some(3), None));
    // What comes later has what was before.
    deployment.put("k", "3").await;
    for watching in [&mut live, &mut watching] {
        let event = watching.next().await.events.remove(0);
        assert_eq!(event.prev_kv.map(|kv| kv.mod_revision), Some(3));
    }
}

async fn compacting_nothing_or_the_future_is_refused(deployment: &mut Deployment) {
    let mut kv = deployment.client.kv();
    let compact = |revision| CompactionRequest { revision, physical: false };
    refused(kv.compact(compact(99)).await, Code::OutOfRange, FUTURE);
    refused(kv.compact(compact(-1)).await, Code::OutOfRange, COMPACTED);
    kv.compact(compact(0)).await.expect("once on a fresh store");
    refused(kv.compact(compact(0)).await, Code::OutOfRange, COMPACTED);
    deployment.put("k", "1").await;
    let answer = kv.compact(compact(2)).await.expect("compacts").into_inner();
    assert_eq!(answer.header.expect("header").revision, 2);
    refused(kv.compact(compact(2)).await, Code::OutOfRange, COMPACTED);
}

async fn a_compacted_store_survives_a_restart(deployment: &mut Deployment) {
    for value in ["1", "2", "3"] {
        deployment.put("k", value).await;
    }
    deployment.compact(3).await;
    deployment.crash_and_restart().await;
    refused(deployment.client.kv().range(at(2)).await, Code::OutOfRange, COMPACTED);
    assert_eq!(deployment.range(at(3)).await.kvs[0].value, "2");
    let answer = deployment.get("k").await;
    assert_eq!((answer.kvs[0].value.as_ref(), answer.header.expect("header").revision), (b"3".as_ref(), 4));
}
