use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use prost::Message;
use tokio::time::{Instant, sleep};
use tonic::Status;
use tonic::body::Body;

use super::super::budget::CacheBudget;
use super::super::config::{CacheConfig, CacheReads};
use super::super::metrics::CacheMetrics;
use super::super::service::{OverParts, RangeCache};
use super::super::shared::State;
use super::cluster::{Fault, SimCluster, answer};
use crate::client::{PeekedHeader, Seen, framed};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse, RangeStreamResponse};
use crate::proxy::identity::Members;
use crate::proxy::{Namespace, ReadPermissions};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;
use crate::types::KeyRange;

const STALENESS: Duration = Duration::from_secs(1);
const READERS: u64 = 4;
const KEYS: u64 = 30;
/// Hours on the clock of the cluster in the usual tests; `WATERSHED_CACHE_SIM_HOURS` sets another number.
pub(super) const USUAL_HOURS: f64 = 0.5;

/// A cluster without users.
struct Everybody;

impl Members for Everybody {
    fn may_read(&self, _: HeaderMap, _: KeyRange) -> BoxFuture<'static, Result<(), Status>> {
        async { Ok(()) }.boxed()
    }
}

/// What a run has shown.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    answered: u64,
    passed: u64,
    /// Streams that were opened again, and replicas that were loaded anew because their position was compacted.
    resumed: u64,
    compacted: u64,
    /// Comparisons with the cluster.
    checked: u64,
    /// Answers at a revision before the newest.
    past: u64,
}

impl Counts {
    fn add(self, other: Self) -> Self {
        Self {
            answered: self.answered + other.answered,
            passed: self.passed + other.passed,
            resumed: self.resumed + other.resumed,
            compacted: self.compacted + other.compacted,
            checked: self.checked + other.checked,
            past: self.past + other.past,
        }
    }
}

pub(super) fn key(number: u64) -> Bytes {
    format!("p/{number:02}").into()
}

pub(super) async fn write_on(cluster: &SimCluster, rng: &mut fastrand::Rng) {
    let changes: Vec<_> = (0..if rng.u32(..5) == 0 { rng.u64(2..6) } else { 1 })
        .map(|change| {
            let value = (rng.u32(..4) > 0).then(|| Bytes::from(format!("{}-{change}", cluster.revision())));
            // Some writes are outside of what is cached.
            let key = if rng.u32(..4) == 0 { Bytes::from_static(b"other") } else { key(rng.u64(..KEYS)) };
            (key, value)
        })
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    let changes: Vec<_> = changes.into_iter().filter(|(key, _)| seen.insert(key.clone())).collect();
    cluster.write(&changes);
    match rng.u32(..2000) {
        0 => cluster.compact(0),
        1..4 => cluster.compact(100),
        _ => {}
    }
    // Bursts, and a quiet minute now and then.
    let pause = match rng.u32(..300) {
        0 => 60_000,
        1..100 => 5,
        _ => 1000,
    };
    sleep(Duration::from_micros(rng.u64(..pause * 1000))).await;
}

/// One range of a client; some are at a revision around what the client has seen.
fn request_at(rng: &mut fastrand::Rng, shown: i64) -> RangeRequest {
    let revision = if rng.u32(..4) == 0 { (shown - rng.i64(-2..30)).max(0) } else { 0 };
    RangeRequest { revision, ..request(rng) }
}

/// One range of a client, as it is asked and as it is checked.
fn request(rng: &mut fastrand::Rng) -> RangeRequest {
    let serializable = rng.bool();
    let limit = if rng.bool() { rng.i64(..8) } else { 0 };
    match rng.u32(..4) {
        0 => RangeRequest { key: "p/".into(), range_end: "p0".into(), serializable, limit, ..Default::default() },
        1 => {
            let (one, other) = (key(rng.u64(..KEYS)), key(rng.u64(..KEYS)));
            let (key, range_end) = if one < other { (one, other) } else { (other, one) };
            RangeRequest { key, range_end, serializable, limit, keys_only: rng.bool(), ..Default::default() }
        }
        2 => RangeRequest {
            key: "p/".into(),
            range_end: "p0".into(),
            serializable,
            count_only: true,
            ..Default::default()
        },
        _ => RangeRequest { key: key(rng.u64(..KEYS)), serializable, ..Default::default() },
    }
}

/// Asks the cache, in either way; none when it passes the request on.
pub(super) async fn ask(
    cache: &RangeCache,
    seen: &Seen,
    message: &RangeRequest,
    streams: bool,
) -> Option<RangeResponse> {
    ask_with(cache, seen, message, streams, HeaderMap::new()).await
}

/// The same with headers, that of a token for instance.
pub(super) async fn ask_with(
    cache: &RangeCache,
    seen: &Seen,
    message: &RangeRequest,
    streams: bool,
    headers: HeaderMap,
) -> Option<RangeResponse> {
    let response = unread_answer(cache, seen, message, streams, headers).await?;
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    // So few pairs are one message of a stream.
    Some(if streams {
        RangeStreamResponse::decode(&body[5..]).expect("an answer").range_response.expect("a range")
    } else {
        RangeResponse::decode(&body[5..]).expect("an answer")
    })
}

/// The answer, of which nothing is taken yet.
pub(super) async fn unread_answer(
    cache: &RangeCache,
    seen: &Seen,
    message: &RangeRequest,
    streams: bool,
    headers: HeaderMap,
) -> Option<Response<Body>> {
    let mut request = Request::new(Full::new(framed(message)));
    *request.headers_mut() = headers;
    let path = if streams { "/etcdserverpb.KV/RangeStream" } else { "/etcdserverpb.KV/Range" };
    *request.uri_mut() = path.parse().expect("a path");
    request.extensions_mut().insert(seen.clone());
    cache.answer(request, cache.looks()?, None).await.ok()
}

/// One connection: reads, and checks what it gets.
pub(super) async fn read_on(
    cluster: &SimCluster,
    cache: &RangeCache,
    seen: &Seen,
    rng: &mut fastrand::Rng,
) -> Result<Answered, String> {
    let (asked_at, acknowledged, shown) = (Instant::now(), cluster.revision(), seen.newest().revision);
    let (request, compacted) = (request_at(rng, shown), cluster.compacted());
    let Some(got) = ask(cache, seen, &request, rng.u8(..4) == 0).await else { return Ok(Answered::No) };
    let header = got.header.expect("a header");
    let revision = header.revision;
    let floor = if request.serializable && request.revision == 0 {
        let old = asked_at.checked_sub(STALENESS).map_or(1, |at| cluster.acknowledged_by(at));
        old.max(shown)
    } else {
        acknowledged
    };
    if revision < floor {
        return Err(format!("{request:?} was answered at {revision}, and should be at {floor} or after"));
    }
    if request.revision != 0 && (request.revision < compacted || request.revision > revision) {
        return Err(format!(
            "{request:?} was answered, and {compacted} was compacted before, the newest is {revision}"
        ));
    }
    let at = if request.revision != 0 { request.revision } else { revision };
    let pairs = cluster.pairs(at).ok_or(format!("an answer of revision {at}, which is not written"))?;
    let expected = RangeResponse { header: Some(header), ..answer(&pairs, &request) };
    if got != expected {
        return Err(format!("{request:?}\n got {got:?}\n not {expected:?}"));
    }
    seen.show(PeekedHeader { cluster_id: header.cluster_id, revision });
    Ok(if at < revision { Answered::Past } else { Answered::Newest })
}

/// How a request was answered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    No,
    Newest,
    /// From a state before the newest.
    Past,
}

/// A cache in front of a cluster.
pub(super) fn cache_of(cluster: &SimCluster, metrics: &Metrics, tasks: &Tasks) -> (RangeCache, CacheMetrics) {
    let cache_metrics = CacheMetrics::register(metrics);
    let budget = CacheBudget::new(1 << 30, &cache_metrics);
    (cache_within(cluster, "p/", &budget, &cache_metrics, tasks), cache_metrics)
}

/// A cache of one prefix that shares its memory with others.
pub(super) fn cache_within(
    cluster: &SimCluster,
    prefix: &'static str,
    budget: &CacheBudget,
    metrics: &CacheMetrics,
    tasks: &Tasks,
) -> RangeCache {
    let prefixes = vec![KeyRange::prefix(prefix.into())];
    let parts = OverParts {
        config: CacheConfig::new(Namespace::default(), CacheReads::Linearizable, prefixes, STALENESS),
        reader: None,
        is_callers_user: false,
        permissions: ReadPermissions::with_members(Arc::new(Everybody), &Metrics::new(), tasks),
        budget: budget.clone(),
        metrics: metrics.clone(),
        tasks: tasks.clone(),
    };
    RangeCache::over(Arc::new(cluster.clone()), parts)
}

/// Runs clients for so long, on the clock of the cluster.
async fn simulate(seed: u64, hours: f64, fault: Fault) -> Result<Counts, String> {
    let (cluster, tasks) = (SimCluster::new(seed, fault), Tasks::new());
    let (cache, metrics) = cache_of(&cluster, &Metrics::new(), &tasks);
    let end = Instant::now() + Duration::from_secs_f64(hours * 3600.0);
    let failure = Cell::new(None);
    let writer = async {
        let mut rng = fastrand::Rng::with_seed(seed);
        while Instant::now() < end {
            write_on(&cluster, &mut rng).await;
        }
    };
    let reader = async |number: u64| {
        let mut rng = fastrand::Rng::with_seed(seed * 100 + number);
        let (seen, mut counts) = (Seen::default(), Counts::default());
        while Instant::now() < end {
            match read_on(&cluster, &cache, &seen, &mut rng).await {
                Ok(Answered::No) => counts.passed += 1,
                Ok(answered) => {
                    counts.answered += 1;
                    counts.past += u64::from(answered == Answered::Past);
                }
                Err(violation) => {
                    failure.set(Some(format!("seed {seed}: {violation}")));
                    return counts;
                }
            }
            // Half of the time reads overlap, so that some arrive while another's read of the cluster is in flight.
            let pause = if rng.bool() { 10_000 } else { 1_000_000 };
            sleep(Duration::from_micros(rng.u64(..pause))).await;
        }
        counts
    };
    let ((), counts) = tokio::join!(writer, join_all((0..READERS).map(reader)));
    tasks.stop();
    if let Some(failure) = failure.take() {
        return Err(failure);
    }
    let changes = |state, reason| metrics.changes.with_label_values(&[state, reason]).get();
    for reason in ["old_event", "previous_pair", "version", "malformed", "foreign_key", "different"] {
        if fault == Fault::None && changes("gap", reason) > 0 {
            return Err(format!("seed {seed}: {reason}, and the cluster did nothing wrong"));
        }
    }
    let of_replica = Counts {
        resumed: changes("behind", "stream_ended"),
        compacted: changes("compacted", "compacted"),
        checked: metrics.checks.with_label_values(&["same"]).get(),
        ..Counts::default()
    };
    Ok(counts.into_iter().fold(of_replica, Counts::add))
}

fn run(seed: u64, hours: f64, fault: Fault) -> Result<Counts, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(simulate(seed, hours, fault))
}

/// Hours to simulate in all.
pub(super) fn hours() -> f64 {
    let hours = std::env::var("WATERSHED_CACHE_SIM_HOURS");
    hours.map_or(USUAL_HOURS, |hours| hours.parse().expect("WATERSHED_CACHE_SIM_HOURS: a number of hours"))
}

#[test]
fn no_answer_is_old_or_wrong_whatever_the_cluster_does() {
    let (hours, mut sum) = (hours(), Counts::default());
    let seeds = (hours / USUAL_HOURS).ceil() as u64;
    for seed in 1..=seeds {
        let counts = run(seed, hours / seeds as f64, Fault::None).unwrap_or_else(|violation| panic!("{violation}"));
        sum = sum.add(counts);
    }
    println!("{hours} h, {seeds} seeds: {sum:?}");
    assert!(sum.answered > 4 * sum.passed && sum.resumed > 0 && sum.checked > 0 && sum.past > 0, "{sum:?}");
}

#[test]
fn a_cluster_that_breaks_the_rules_of_the_cache_is_found_out() {
    for fault in [Fault::ProgressAhead, Fault::OldReads] {
        let found = (1..20).find_map(|seed| run(seed, 0.1, fault).err());
        assert!(found.is_some(), "{fault:?}: no answer was found to be wrong");
    }
}

/// The value of the first key when the cache answers, which it does at this revision.
async fn read_at(cache: &RangeCache, revision: i64) -> Bytes {
    let (request, begun) = (RangeRequest { key: key(0), ..Default::default() }, Instant::now());
    loop {
        if let Some(answer) = ask(cache, &Seen::default(), &request, false).await {
            assert_eq!(answer.header.expect("a header").revision, revision);
            return answer.kvs[0].value.clone();
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is answered");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Cause: a cluster that was restored, and had gone on to the position of a replica before its watch was open again, was taken for
/// what it had been: what was written meanwhile was missing until the next comparison.
#[tokio::test(start_paused = true)]
async fn a_replica_does_not_outlive_a_restore_that_has_caught_up() {
    let (cluster, tasks) = (SimCluster::new(1, Fault::None), Tasks::new());
    let (cache, metrics) = cache_of(&cluster, &Metrics::new(), &tasks);
    let put = |key: Bytes, value: &'static str| cluster.write(&[(key, Some(value.into()))]);
    put(key(0), "before");
    put(key(1), "before");
    assert_eq!(read_at(&cache, cluster.revision()).await, "before");
    let kept = cluster.revision();
    for _ in 0..3 {
        put("other".into(), "lost");
    }
    assert_eq!(read_at(&cache, cluster.revision()).await, "before");
    // All members have it.
    sleep(Duration::from_secs(10)).await;
    cluster.restore(kept);
    put(key(0), "after");
    for _ in 0..3 {
        put("other".into(), "again");
    }
    assert_eq!(read_at(&cache, cluster.revision()).await, "after");
    assert_eq!(metrics.changes.with_label_values(&["gap", "old_event"]).get(), 1);
    tasks.stop();
}

/// Cause: of a replica that had not changed since it was loaded, or whose last change was a deletion, only an older pair was compared: what
/// the restored cluster had written to other keys before the position was missing.
#[tokio::test(start_paused = true)]
async fn a_replica_whose_last_change_is_no_pair_does_not_outlive_a_restore() {
    for deletes in [false, true] {
        let (cluster, tasks) = (SimCluster::new(1, Fault::None), Tasks::new());
        let (cache, metrics) = cache_of(&cluster, &Metrics::new(), &tasks);
        let put = |key: Bytes, value: &'static str| cluster.write(&[(key, Some(value.into()))]);
        put(key(0), "before");
        put(key(2), "before");
        let kept = cluster.revision();
        for _ in 0..2 {
            put("other".into(), "lost");
        }
        if deletes {
            assert_eq!(read_at(&cache, cluster.revision()).await, "before");
            cluster.write(&[(key(2), None)]);
        } else {
            put("other".into(), "lost");
        }
        assert_eq!(read_at(&cache, cluster.revision()).await, "before");
        // All members have it.
        sleep(Duration::from_secs(10)).await;
        cluster.restore(kept);
        put(key(1), "after");
        for _ in 0..3 {
            put("other".into(), "again");
        }
        let (all, begun) =
            (RangeRequest { key: "p/".into(), range_end: "p0".into(), ..Default::default() }, Instant::now());
        let answer = loop {
            if let Some(answer) = ask(&cache, &Seen::default(), &all, false).await {
                break answer;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing is answered");
            sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(answer.count, 3, "deletes: {deletes}");
        assert_eq!(metrics.changes.with_label_values(&["gap", "revision_went_back"]).get(), 1);
        tasks.stop();
    }
}

/// Cause to look for: a pair that became wrong in memory, or was wrong when it came, was served for as long as the proxy ran.
#[test]
fn a_replica_that_differs_from_the_cluster_is_dropped_within_minutes_and_loaded_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (cluster, tasks) = (SimCluster::new(1, Fault::None), Tasks::new());
        let (cache, metrics) = cache_of(&cluster, &Metrics::new(), &tasks);
        for number in 0..KEYS {
            cluster.write(&[(key(number), Some("right".into()))]);
        }
        let checks = |outcome| metrics.checks.with_label_values(&[outcome]).get();
        let read = async || {
            let request = RangeRequest { key: key(7), ..Default::default() };
            ask(&cache, &Seen::default(), &request, false).await.map(|answer| answer.kvs[0].version)
        };
        let deadline = Instant::now() + Duration::from_secs(600);
        while checks("same") < 2 {
            assert!(Instant::now() < deadline, "no check");
            let _ = read().await;
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(checks("different"), 0);
        cluster.corrupt(|pairs| pairs.get_mut(&key(7)).expect("written").version = 9);
        let deadline = Instant::now() + Duration::from_secs(600);
        while read().await != Some(9) {
            assert!(Instant::now() < deadline, "the replica is still as it was");
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(checks("different"), 1);
        tasks.stop();
    });
}

/// Cause to look for: readers waited four times as long as the read of the cluster's revision had taken. Where the task that follows the
/// watch is always later than that, all reads were passed on.
#[test]
fn reads_wait_for_a_replica_that_is_later_than_the_reads_of_the_cluster() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let tasks = Tasks::new();
        let cluster = SimCluster::new(1, Fault::None).with_late_watches(Duration::from_millis(250));
        let (cache, _) = cache_of(&cluster, &Metrics::new(), &tasks);
        let (mut answered, seen) = (0, Seen::default());
        for number in 0..100 {
            cluster.write(&[(key(7), Some(format!("{number}").into()))]);
            let request = RangeRequest { key: key(7), ..Default::default() };
            answered += u32::from(ask(&cache, &seen, &request, false).await.is_some());
            sleep(Duration::from_millis(300)).await;
        }
        assert!(answered > 50, "{answered} of 100 reads were answered");
        tasks.stop();
    });
}

/// Cause: what the cache of a tenant held stayed counted in the memory of all when the tenant was gone, and no other replica was
/// compared with the cluster any more, since it was always the turn of one that nobody kept.
#[tokio::test(start_paused = true)]
async fn a_cache_that_is_stopped_holds_nothing() {
    let (cluster, tasks) = (SimCluster::new(1, Fault::None), Tasks::new());
    let tenant = tasks.child();
    let (cache, metrics) = cache_of(&cluster, &Metrics::new(), &tenant);
    let replicas = || State::ALL.map(|state| metrics.replicas.with_label_values(&[state.label()]).get());
    cluster.write(&[(key(0), Some("v".into()))]);
    let (request, begun) = (RangeRequest { key: key(0), ..Default::default() }, Instant::now());
    while ask(&cache, &Seen::default(), &request, false).await.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is loaded");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(metrics.bytes.get() > 0);
    assert_eq!((metrics.keys.get(), replicas().iter().sum::<i64>()), (1, 1));
    tenant.stop();
    assert!(tasks.finish(Duration::from_secs(10)).await);
    assert_eq!((metrics.bytes.get(), metrics.keys.get(), replicas()), (0, 0, [0; 8]));
    assert!(cache.report().iter().all(|range| range.state == State::Cold.label()), "{:?}", cache.report());
}
