use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use super::super::service::RangeCache;
use super::cluster::{Fault, SimCluster};
use super::simulation::{Answered, USUAL_HOURS, cache_of, hours, key, read_on, write_on};
use crate::client::Seen;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchResponse};
use crate::pb::mvccpb::Event;
use crate::proxy::watch::tests::Proxy;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;
use crate::types::KeyRange;

/// What a run has shown.
#[derive(Clone, Debug, Default)]
struct Counts {
    events: usize,
    /// Notifications of progress.
    progress: usize,
    /// Watches that ended because their position was compacted.
    compacted: usize,
    /// Reads that the cache has answered.
    answered: usize,
    /// How many upstream watches the hub had of its own, besides those of replicas.
    own: BTreeSet<i64>,
}

/// A watch from its confirmation on, against what the cluster has written.
struct Watched<'c> {
    cluster: &'c SimCluster,
    range: KeyRange,
    /// All events up to here were told.
    at: i64,
}

impl Watched<'_> {
    /// Whether exactly what follows is told.
    fn take(&mut self, answer: &WatchResponse) -> Result<(), String> {
        let header = answer.header.unwrap_or_default().revision;
        let last = answer.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
        let up_to = last.unwrap_or(header);
        let expected = self.cluster.events(&self.range, self.at, up_to);
        let compacted = self.cluster.compacted();
        // What was there before an event is not told once that is compacted.
        let is_told = |(told, expected): (&Event, &Event)| {
            let at = expected.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            told.kv == expected.kv && (told.prev_kv == expected.prev_kv || told.prev_kv.is_none() && at <= compacted)
        };
        if answer.events.len() != expected.len() || !answer.events.iter().zip(&expected).all(is_told) {
            return Err(format!(
                "{:?} after {} up to {up_to}: got {:?}, not {expected:?}",
                self.range, self.at, answer.events
            ));
        }
        self.at = self.at.max(up_to);
        Ok(())
    }
}

/// The ranges of the clients: some within that of the replica, the whole of it in every other run, which then serves all of these, and
/// one that is not in it.
fn ranges(seed: u64) -> [KeyRange; 5] {
    [
        if seed.is_multiple_of(2) { KeyRange::prefix("p/".into()) } else { KeyRange::One(key(20)) },
        KeyRange::One(key(3)),
        KeyRange::HalfOpen { start: key(5), end: key(9) },
        KeyRange::prefix("p/1".into()),
        KeyRange::One(Bytes::from_static(b"other")),
    ]
}

/// Clients of a hub that reads the watches of replicas, while others read these replicas and let them go.
async fn simulate(seed: u64, hours: f64) -> Result<Counts, String> {
    let (cluster, tasks) = (SimCluster::new(seed, Fault::None), Tasks::new());
    let (cache, _) = cache_of(&cluster, &Metrics::new(), &tasks);
    let hub = Proxy::over(cluster.clone(), |config| config.replicas = Some(Arc::new(cache.clone())));
    let end = Instant::now() + Duration::from_secs_f64(hours * 3600.0);
    let (counts, failure) = (RefCell::new(Counts::default()), Cell::new(None));
    let writer = async {
        let mut rng = fastrand::Rng::with_seed(seed);
        while Instant::now() < end {
            write_on(&cluster, &mut rng).await;
            counts.borrow_mut().own.insert(hub.upstream_watches());
        }
    };
    let reader = read_in_turns(&cluster, &cache, seed, end, &counts);
    let watcher = async |number: usize| {
        let mut rng = fastrand::Rng::with_seed(seed * 100 + number as u64);
        while Instant::now() < end {
            let watching = watch_on(&cluster, &hub, ranges(seed)[number % 5].clone(), end, &mut rng, &counts);
            if let Err(violation) = watching.await {
                failure.set(Some(format!("seed {seed}: {violation}")));
                return;
            }
        }
    };
    let (_, (), _) = tokio::join!(writer, reader, join_all((0..10).map(watcher)));
    tasks.stop();
    drop(hub);
    failure.take().map_or(Ok(counts.into_inner()), Err)
}

/// Reads for a while, and then lets the replica be given up.
async fn read_in_turns(cluster: &SimCluster, cache: &RangeCache, seed: u64, end: Instant, counts: &RefCell<Counts>) {
    let (mut rng, seen) = (fastrand::Rng::with_seed(seed + 1), Seen::default());
    while Instant::now() < end {
        let until = Instant::now() + Duration::from_secs(rng.u64(1..200));
        while Instant::now() < until {
            if read_on(cluster, cache, &seen, &mut rng).await.is_ok_and(|answered| answered != Answered::No) {
                counts.borrow_mut().answered += 1;
            }
            sleep(Duration::from_millis(rng.u64(..2000))).await;
        }
        // A replica that nobody reads is given up after ten minutes.
        if rng.u32(..4) == 0 {
            sleep(Duration::from_secs(900)).await;
        }
    }
}

/// One watch from its creation to its end, which the client brings about, the end of the run, or a compaction.
async fn watch_on(
    cluster: &SimCluster,
    hub: &Proxy<SimCluster>,
    range: KeyRange,
    end: Instant,
    rng: &mut fastrand::Rng,
    counts: &RefCell<Counts>,
) -> Result<(), String> {
    let mut client = hub.anonymous();
    let (key, range_end) = range.to_wire();
    let acknowledged = cluster.revision();
    let progress_notify = rng.bool();
    client.create(WatchCreateRequest { key, range_end, prev_kv: true, progress_notify, ..Default::default() }).await;
    let created = client.try_next().await.map_err(|status| status.to_string())?;
    let begun = created.header.unwrap_or_default().revision;
    if !created.created || begun < acknowledged {
        return Err(format!("{created:?} at {acknowledged}"));
    }
    let mut watched = Watched { cluster, range, at: begun };
    let until = end.min(Instant::now() + Duration::from_secs(rng.u64(1..1200)));
    loop {
        let pause = Duration::from_secs(rng.u64(1..60));
        match timeout(pause, client.try_next()).await {
            Ok(Ok(answer)) if answer.canceled && answer.compact_revision != 0 => {
                counts.borrow_mut().compacted += 1;
                return Ok(());
            }
            Ok(Ok(answer)) if answer.canceled => return Err(format!("{answer:?}")),
            Ok(Ok(answer)) => {
                watched.take(&answer)?;
                let mut counts = counts.borrow_mut();
                counts.events += answer.events.len();
                counts.progress += usize::from(answer.events.is_empty());
            }
            Ok(Err(status)) => return Err(status.to_string()),
            Err(_) if Instant::now() >= until => break,
            Err(_) => client.progress().await,
        }
    }
    // What was written long ago has come.
    let written = cluster.acknowledged_by(Instant::now().checked_sub(Duration::from_secs(60)).unwrap_or(until));
    match cluster.events(&watched.range, watched.at, written).as_slice() {
        [] => Ok(()),
        missing => Err(format!("{:?} after {}: {missing:?} did not come in a minute", watched.range, watched.at)),
    }
}

#[test]
fn watches_miss_nothing_when_they_change_over_to_the_watch_of_a_replica() {
    let (hours, mut sum) = ((hours() / 4.0).max(USUAL_HOURS), Counts::default());
    let seeds = 2 * (hours / USUAL_HOURS).ceil() as u64;
    for seed in 1..=seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let run = runtime.block_on(simulate(seed, hours / seeds as f64));
        let counts = run.unwrap_or_else(|violation| panic!("{violation}"));
        sum.events += counts.events;
        sum.progress += counts.progress;
        sum.compacted += counts.compacted;
        sum.answered += counts.answered;
        sum.own.extend(counts.own);
    }
    println!("{hours} h, {seeds} seeds: {sum:?}");
    // The one that is not of the replica, alone and with those that cannot read it at the time.
    assert!(sum.own.contains(&1) && sum.own.iter().any(|own| *own > 3), "{sum:?}");
    assert!(sum.events > 1000 && sum.progress > 0 && sum.answered > 0, "{sum:?}");
}
