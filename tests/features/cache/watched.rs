//! A prefix that is cached and watched has one upstream watch.

use watershed::pb::etcdserverpb::WatchCreateRequest;

use super::Cached;
use crate::harness::{Deployment, Target, Watching, metric, run, until};

/// Waits until the member has so many watchers.
async fn until_watchers(deployment: &Deployment, count: f64) {
    until("the upstream watches", || async move {
        let watchers = metric(&deployment.member, "etcd_debugging_mvcc_watcher_total").await?;
        (watchers == count).then_some(())
    })
    .await;
}

fn watch(key: &'static str, range_end: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}

#[test]
fn a_prefix_that_is_cached_and_watched_has_one_upstream_watch() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("p/1", "1").await;
        let cached = Cached::start(deployment, &["--cache-prefix=p/"], "p/1").await;
        let (mut all, _) = Watching::create(&cached.client, watch("p/", "p0")).await;
        let (mut one, _) = Watching::create(&cached.client, watch("p/1", "")).await;
        until_watchers(deployment, 1.0).await;
        let own = cached.metrics().await.sum("watershed_proxy_upstream_watches", "");
        assert_eq!(own, 0.0, "none but that of the replica");
        let first = deployment.put("p/1", "2").await;
        deployment.put("p/2", "2").await;
        cached.put("p/1", "3").await;
        let expected = [format!("+p/1=2@{first}"), format!("+p/2=2@{}", first + 1), format!("+p/1=3@{}", first + 2)];
        assert_eq!(all.events(3).await, expected);
        assert_eq!(one.events(2).await, [&*expected[0], &*expected[2]]);

        // A revision of another prefix is one of progress for these.
        let other = deployment.put("other", "1").await;
        all.request_progress().await;
        let progress = all.next().await;
        assert!(progress.events.is_empty() && progress.header.expect("a header").revision >= other);

        // One watch without events on the same stream tells of the member's interval.
        let notified = WatchCreateRequest { progress_notify: true, ..watch("p/2", "") };
        let (mut notified, _) = Watching::create(&cached.client, notified).await;
        until_watchers(deployment, 2.0).await;
        let put = deployment.put("p/2", "3").await;
        assert_eq!(notified.events(1).await, [format!("+p/2=3@{put}")]);
    });
}

#[test]
fn watches_of_a_cached_prefix_outlive_the_member_and_share_its_watch_again() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("p/1", "0").await;
        let cached = Cached::start(deployment, &["--cache-prefix=p/"], "p/1").await;
        let (mut watching, _) = Watching::create(&cached.client, watch("p/", "p0")).await;
        until_watchers(deployment, 1.0).await;
        for round in 1..4 {
            let put = deployment.put("p/1", round.to_string()).await;
            assert_eq!(watching.events(1).await, [format!("+p/1={round}@{put}")]);
            deployment.crash_and_restart().await;
            cached.until_answers("p/1").await;
            until_watchers(deployment, 1.0).await;
        }
    });
}

#[test]
fn a_watch_that_comes_first_changes_over_to_that_of_the_cache() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        deployment.put("p/1", "1").await;
        let cached = Cached::start_empty(deployment, &["--cache-prefix=p/"]).await;
        let (mut watching, _) = Watching::create(&cached.client, watch("p/", "p0")).await;
        until_watchers(deployment, 1.0).await;
        let own = async || cached.metrics().await.sum("watershed_proxy_upstream_watches", "");
        assert_eq!(own().await, 1.0);
        cached.until_answers("p/1").await;
        until("one upstream watch", || async { (own().await == 0.0).then_some(()) }).await;
        until_watchers(deployment, 1.0).await;
        let put = deployment.put("p/1", "2").await;
        assert_eq!(watching.events(1).await, [format!("+p/1=2@{put}")]);
    });
}
