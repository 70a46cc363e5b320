use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ThreadId};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::cluster::Cluster;
use super::config::Periods;
use super::gathering::Gathering;
use super::metrics::CacheMetrics;
use super::shared::SharedReplica;
use super::spawner::Spawner;
use crate::api_error::ApiError;
use crate::client::Pool;
use crate::pb::encoded::ResponseHeader;
use crate::proxy::Identity;
use crate::proxy::watch::Upstream;
use crate::types::{ClusterId, KeyRange, Revision};

/// The cluster's revision, read by linearizable reads that all ranges of a group share.
///
/// A caller is served by a read that was sent after it called, never by one in flight, which might miss a write that was
/// acknowledged in between. Callers that arrive during a read share the next one.
///
/// Reads are sent from the thread of the caller that comes first, by its connections, for as long as others follow: callers of
/// that thread are served without a wake-up from another one.
///
/// No caller is lost: each is told the outcome of the read after the one that was in flight when it came, both of which end within
/// `read_index_max`, or that the task that reads has ended, however it did.
pub(super) struct ReadIndex {
    cluster: Arc<dyn Cluster>,
    identity: Identity,
    spawner: Spawner,
    metrics: CacheMetrics,
    periods: Periods,
    waiting: Mutex<Waiting>,
    /// As many wait as the next read is for.
    gathered: Notify,
    /// Microseconds a read takes, smoothed.
    took: AtomicU64,
}

/// What the next read serves.
#[derive(Default)]
struct Waiting {
    /// The task that reads runs.
    running: bool,
    callers: Vec<Callers>,
    /// The lowest revision at which one of them reads; 0 when all read the newest.
    lowest: Revision,
    /// Their watches are asked for progress together with the read.
    replicas: Vec<Arc<SharedReplica>>,
    gathering: Gathering,
    /// Callers that the next read waits for; 0 when it waits for nobody.
    wanted: usize,
}

/// Callers of one thread. Where that is not the one that reads, they are told in a task of their own runtime: a wake-up from
/// another thread costs a system call, and this way it is one for all of them.
struct Callers {
    thread: ThreadId,
    runtime: Handle,
    answers: Vec<oneshot::Sender<Result<ReadAnswer, Status>>>,
}

impl Callers {
    fn tell(self, outcome: &Result<ReadAnswer, Status>) {
        for answer in self.answers {
            // Who is gone needs none.
            let _ = answer.send(outcome.clone());
        }
    }
}

/// Those whom one read serves.
struct Round {
    callers: Vec<Callers>,
    lowest: Revision,
    replicas: Vec<Arc<SharedReplica>>,
}

impl Waiting {
    fn number(&self) -> usize {
        self.callers.iter().map(|callers| callers.answers.len()).sum()
    }

    fn take(&mut self) -> Round {
        self.wanted = 0;
        let Self { callers, lowest, replicas, .. } = self;
        Round { callers: std::mem::take(callers), lowest: std::mem::take(lowest), replicas: std::mem::take(replicas) }
    }

    fn join(&mut self) -> oneshot::Receiver<Result<ReadAnswer, Status>> {
        let (answer, receiver) = oneshot::channel();
        let thread = thread::current().id();
        match self.callers.iter_mut().find(|callers| callers.thread == thread) {
            Some(callers) => callers.answers.push(answer),
            None => self.callers.push(Callers { thread, runtime: Handle::current(), answers: vec![answer] }),
        }
        receiver
    }
}

/// What a read told.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadAnswer {
    /// At or after every write acknowledged before the call.
    pub revision: Revision,
    pub cluster: ClusterId,
    /// This revision and all after it were not compacted; 0 when none was asked for, or the lowest one was.
    pub kept_from: Revision,
    /// When it was sent.
    pub sent_at: Instant,
}

impl ReadIndex {
    pub fn new(
        cluster: Arc<dyn Cluster>,
        identity: Identity,
        spawner: Spawner,
        metrics: CacheMetrics,
        periods: Periods,
    ) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            identity,
            spawner,
            metrics,
            periods,
            waiting: Mutex::default(),
            gathered: Notify::new(),
            took: AtomicU64::new(0),
        })
    }

    /// The revision of the cluster, for a reader of this replica at a revision, 0 for the newest; `pool` is that of the current
    /// thread, if it has one. Dropping the future is safe.
    ///
    /// # Errors
    /// Those of the read.
    pub async fn read(
        self: &Arc<Self>,
        replica: &Arc<SharedReplica>,
        at: Revision,
        pool: Option<&Pool>,
    ) -> Result<ReadAnswer, Status> {
        let (answer, is_running) = {
            let mut waiting = self.waiting.lock();
            if at.0 != 0 && (waiting.lowest.0 == 0 || at < waiting.lowest) {
                waiting.lowest = at;
            }
            if !waiting.replicas.iter().any(|other| Arc::ptr_eq(other, replica)) {
                waiting.replicas.push(replica.clone());
            }
            let joined = (waiting.join(), std::mem::replace(&mut waiting.running, true));
            if waiting.wanted != 0 && waiting.number() >= waiting.wanted {
                waiting.wanted = 0;
                self.gathered.notify_one();
            }
            joined
        };
        if !is_running {
            // Outside of the lock: a task that cannot be started is dropped here.
            let running = Running { read_index: self.clone(), is_over: false };
            match pool.and_then(|pool| self.cluster.on_worker(pool)) {
                Some(cluster) => self.spawner.start_on(&Handle::current(), running.run(cluster)),
                None => self.spawner.start(running.run(self.cluster.clone())),
            }
        }
        answer.await.unwrap_or_else(|_| Err(ApiError::Stopped.into()))
    }

    /// How long a read takes.
    pub fn took(&self) -> Duration {
        Duration::from_micros(self.took.load(Ordering::Relaxed))
    }

    /// Waits for those who are likely to come at once, about as long as a read takes.
    async fn gather(&self) {
        {
            let mut waiting = self.waiting.lock();
            let number = waiting.number();
            let Some(wanted) = (number > 0).then(|| waiting.gathering.wanted(Instant::now())).flatten() else { return };
            if number >= wanted {
                waiting.gathering.gathered(true);
                return;
            }
            waiting.wanted = wanted;
            // Told too late the last time.
            let _ = self.gathered.notified().now_or_never();
        }
        let _ = timeout(self.took().min(self.periods.gather_max), self.gathered.notified()).await;
        let mut waiting = self.waiting.lock();
        let came = std::mem::take(&mut waiting.wanted) == 0;
        waiting.gathering.gathered(came);
    }

    /// A read has served these.
    fn note_ended(&self, callers: &[Callers]) {
        let mut waiting = self.waiting.lock();
        let (served, others) = (callers.iter().map(|callers| callers.answers.len()).sum(), waiting.number());
        waiting.gathering.ended(served, others, Instant::now());
    }

    async fn send(
        &self,
        cluster: &dyn Upstream,
        replicas: &[Arc<SharedReplica>],
        lowest: Revision,
    ) -> Result<ReadAnswer, Status> {
        let sent_at = Instant::now();
        let key = replicas.first().map(|replica| replica.upstream.start().clone()).unwrap_or_default();
        let key = KeyRange::key_in_request(key);
        self.metrics.read_index.inc();
        let reading = self.read_from(cluster, key, lowest);
        replicas.iter().for_each(|replica| replica.note_read_sent());
        let late = |_| Status::deadline_exceeded("the revision of the cluster was not told in time");
        let (header, kept_from) = timeout(self.periods.read_index_max, reading).await.map_err(late)??;
        let took = u64::try_from(sent_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        let before = self.took.load(Ordering::Relaxed);
        self.took.store(if before == 0 { took } else { (before * 7 + took) / 8 }, Ordering::Relaxed);
        let (revision, cluster) = (Revision(header.revision), ClusterId(header.cluster_id));
        Ok(ReadAnswer { revision, cluster, kept_from, sent_at })
    }

    /// Reads a key at a revision; at the newest if that one is compacted or not there yet, so that who reads others is served.
    async fn read_from(
        &self,
        cluster: &dyn Upstream,
        key: Bytes,
        lowest: Revision,
    ) -> Result<(ResponseHeader, Revision), Status> {
        let read = |at| cluster.read_index(&self.identity, key.clone(), at);
        match read(lowest).await {
            Ok(header) => Ok((header, lowest)),
            Err(status) => match ApiError::from_text(status.message()) {
                Some(ApiError::Compacted | ApiError::FutureRevision) if lowest.0 != 0 => {
                    Ok((read(Revision(0)).await?, Revision(0)))
                }
                _ => Err(status),
            },
        }
    }
}

/// The task that reads. However it ends, also with its runtime, nobody goes on waiting for it and the next caller starts another.
struct Running {
    read_index: Arc<ReadIndex>,
    /// It has ended because nobody waits; another one may run.
    is_over: bool,
}

impl Running {
    /// Reads for as long as somebody waits.
    async fn run(mut self, cluster: Arc<dyn Upstream>) {
        loop {
            // Requests that have arrived are read and join: a task that yields goes on behind what the sockets have, and behind the
            // tasks of these requests when it yields again.
            for _ in 0..2 {
                yield_now().await;
            }
            self.read_index.gather().await;
            let Some(Round { callers, lowest, replicas }) = self.next() else { return };
            let outcome = self.read_index.send(&*cluster, &replicas, lowest).await;
            self.read_index.note_ended(&callers);
            let here = thread::current().id();
            for callers in callers {
                if callers.thread == here {
                    callers.tell(&outcome);
                } else {
                    let (runtime, outcome) = (callers.runtime.clone(), outcome.clone());
                    self.read_index.spawner.start_on(&runtime, async move { callers.tell(&outcome) });
                }
            }
        }
    }

    /// Whom the next read serves. Taken before it is sent: who comes later is served by the one after.
    fn next(&mut self) -> Option<Round> {
        let mut waiting = self.read_index.waiting.lock();
        if waiting.callers.is_empty() {
            waiting.running = false;
            self.is_over = true;
            return None;
        }
        Some(waiting.take())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            let mut waiting = self.read_index.waiting.lock();
            waiting.running = false;
            let round = waiting.take();
            drop(waiting);
            drop(round);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI64;

    use futures::future::{BoxFuture, join_all};
    use proptest::prelude::*;
    use tokio::runtime::{Builder, Runtime};
    use tokio::time::sleep;

    use super::*;
    use crate::client::PoolConfig;
    use crate::pb::etcdserverpb::{RangeRequest, RangeResponse};
    use crate::proxy::watch::UpstreamStream;
    use crate::shutdown::Tasks;
    use crate::telemetry::Metrics;
    use crate::types::MemberId;

    /// A cluster whose reads are answered when the test says so, with the revision as it was when they were sent: the oldest
    /// that a member may tell.
    #[derive(Clone, Default)]
    struct Scripted {
        revision: Arc<AtomicI64>,
        /// Reads that were sent and are not answered.
        sent: Arc<Mutex<Vec<InFlight>>>,
    }

    /// The oldest revision that may answer a read, and the way to answer it.
    type InFlight = (i64, oneshot::Sender<Result<i64, Status>>);

    impl Scripted {
        /// Answers the read in flight; false when there is none.
        fn answer(&self) -> bool {
            self.in_flight().is_some_and(|(revision, read)| read.send(Ok(revision)).is_ok())
        }

        fn in_flight(&self) -> Option<InFlight> {
            let mut sent = self.sent.lock();
            sent.retain(|(_, read)| !read.is_closed());
            assert!(sent.len() <= 1, "one read at a time");
            sent.pop()
        }

        fn revision(&self) -> i64 {
            self.revision.load(Ordering::Relaxed)
        }

        /// A write is acknowledged.
        fn write(&self) {
            self.revision.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Upstream for Scripted {
        fn open_watch(&self, _: &Identity) -> BoxFuture<'static, Result<UpstreamStream, Status>> {
            unreachable!("reads open no watch")
        }

        fn read_index(
            &self,
            _: &Identity,
            _: Bytes,
            _: Revision,
        ) -> BoxFuture<'static, Result<ResponseHeader, Status>> {
            let (sender, answer) = oneshot::channel();
            self.sent.lock().push((self.revision(), sender));
            let header = |revision| ResponseHeader { revision, cluster_id: 7, ..ResponseHeader::default() };
            async move { answer.await.expect("the test answers").map(header) }.boxed()
        }

        fn version(&self, _: &Identity) -> BoxFuture<'static, Result<(MemberId, String), Status>> {
            unreachable!("reads ask for no version")
        }
    }

    impl Cluster for Scripted {
        fn range(&self, _: &Identity, _: RangeRequest) -> BoxFuture<'static, Result<RangeResponse, Status>> {
            unreachable!("reads load no pairs")
        }

        fn on_worker(&self, _: &Pool) -> Option<Arc<dyn Upstream>> {
            Some(Arc::new(self.clone()))
        }
    }

    fn read_index() -> (Arc<Scripted>, Arc<ReadIndex>, Arc<SharedReplica>) {
        read_index_of(&Tasks::new())
    }

    fn read_index_of(tasks: &Tasks) -> (Arc<Scripted>, Arc<ReadIndex>, Arc<SharedReplica>) {
        let (cluster, metrics) = (Arc::new(Scripted::default()), CacheMetrics::register(&Metrics::new()));
        let (identity, spawner) = (Identity::default(), Spawner::new(tasks));
        let read_index = ReadIndex::new(cluster.clone(), identity, spawner, metrics, Periods::default());
        let range = || KeyRange::prefix("p".into());
        (cluster, read_index, Arc::new(SharedReplica::new(range(), range(), Instant::now())))
    }

    /// With the clock paused: time passes once nothing else can happen.
    async fn settled() {
        sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_served_by_a_read_that_was_in_flight_when_it_came() {
        let (cluster, read_index, replica) = read_index();
        let read = || read_index.read(&replica, Revision(0), None).map(|answer| answer.unwrap().revision.0).boxed();
        let mut first = read();
        assert!((&mut first).now_or_never().is_none());
        settled().await;
        // The first read is at the cluster. A write is acknowledged, and others come to read it.
        cluster.write();
        let mut later: Vec<_> = (0..10).map(|_| read()).collect();
        assert!(later.iter_mut().all(|read| read.now_or_never().is_none()));
        assert!(cluster.answer());
        assert_eq!(first.await, 0);
        settled().await;
        assert!(later.iter_mut().all(|read| read.now_or_never().is_none()), "the write is not in what was read");
        assert!(cluster.answer());
        assert_eq!(join_all(later).await, [1; 10], "all of them share the next one");
        settled().await;
        assert!(!cluster.answer(), "nobody waits");
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_for_those_whose_read_it_was() {
        let (cluster, read_index, replica) = read_index();
        let mut first = read_index.read(&replica, Revision(0), None).boxed();
        assert!((&mut first).now_or_never().is_none());
        settled().await;
        let mut second = read_index.read(&replica, Revision(0), None).boxed();
        assert!((&mut second).now_or_never().is_none());
        let (_, read) = cluster.in_flight().expect("a read");
        read.send(Err(Status::unavailable("gone"))).expect("it waits");
        assert_eq!(first.await.unwrap_err().message(), "gone");
        settled().await;
        assert!(cluster.answer());
        assert_eq!(second.await.unwrap().revision, Revision(0));
        // A silent cluster: the bound, and then the next read is tried.
        let late = read_index.read(&replica, Revision(0), None).await.unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
        let mut next = read_index.read(&replica, Revision(0), None).boxed();
        assert!((&mut next).now_or_never().is_none());
        settled().await;
        assert!(cluster.answer());
        assert!(next.await.is_ok());
    }

    /// Cause: a task that was stopped while it read was still taken for running, and later callers waited for it until their
    /// clients gave up.
    #[tokio::test(start_paused = true)]
    async fn a_task_that_is_stopped_leaves_nobody_waiting() {
        let tasks = Tasks::new();
        let (_cluster, read_index, replica) = read_index_of(&tasks);
        let mut callers: Vec<_> = (0..2).map(|_| read_index.read(&replica, Revision(0), None).boxed()).collect();
        for caller in &mut callers {
            assert!(caller.now_or_never().is_none());
            settled().await;
        }
        tasks.stop();
        callers.push(read_index.read(&replica, Revision(0), None).boxed());
        for outcome in join_all(callers).await {
            assert_eq!(outcome.unwrap_err().message(), ApiError::Stopped.text());
        }
        let later = read_index.read(&replica, Revision(0), None).await.unwrap_err();
        assert_eq!(later.message(), ApiError::Stopped.text());
    }

    /// Runs it on the runtime of a serving thread.
    fn on(worker: &Runtime, part: impl Future<Output = ()> + Send) {
        thread::scope(|scope| scope.spawn(|| worker.block_on(part)).join().expect("it runs"));
    }

    async fn others_run() {
        for _ in 0..5 {
            yield_now().await;
        }
    }

    #[test]
    fn reads_are_sent_by_the_thread_that_calls_first_and_by_another_when_it_is_gone() {
        let here = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let worker = Builder::new_current_thread().enable_time().build().unwrap();
        let (cluster, read_index, replica) = here.block_on(async { read_index() });
        let pool = Pool::new(PoolConfig::new(Vec::new()), &Tasks::new());
        let read = || read_index.read(&replica, Revision(0), Some(&pool)).boxed();
        let (mut first, mut second) = (read(), read());
        on(&worker, async { assert!((&mut first).now_or_never().is_none()) });
        here.block_on(async {
            assert!((&mut second).now_or_never().is_none());
            settled().await;
        });
        assert!(!cluster.answer(), "the other thread does not run");
        on(&worker, others_run());
        assert!(cluster.answer());
        on(&worker, async { assert!(first.await.is_ok()) });
        here.block_on(async { assert!(second.await.is_ok(), "it came before the read was sent") });
        let (mut third, mut fourth) = (read(), read());
        on(&worker, async {
            assert!((&mut third).now_or_never().is_none());
            others_run().await;
        });
        here.block_on(async { assert!((&mut fourth).now_or_never().is_none()) });
        drop(worker);
        here.block_on(async {
            assert_eq!(fourth.await.unwrap_err().message(), ApiError::Stopped.text());
            let mut fifth = read();
            assert!((&mut fifth).now_or_never().is_none());
            // The two that were served together are waited for.
            sleep(2 * Periods::default().gather_max).await;
            assert!(cluster.answer());
            assert!(fifth.await.is_ok());
        });
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_come_again_share_every_read() {
        let (cluster, read_index, replica) = read_index();
        let caller = async || {
            for _ in 0..20 {
                read_index.read(&replica, Revision(0), None).await.unwrap();
            }
        };
        // One comes first: its read and that of the others would take turns.
        let all = async {
            let first = caller();
            let others = async {
                settled().await;
                join_all((0..7).map(|_| caller())).await;
            };
            futures::join!(first, others);
        };
        let mut all = std::pin::pin!(all);
        let mut reads = 0;
        while (&mut all).now_or_never().is_none() {
            settled().await;
            reads += u32::from(cluster.answer());
        }
        assert!((20..25).contains(&reads), "{reads} reads");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Write,
        Arrive,
        /// The read in flight is answered, if there is one.
        Answer,
        /// A caller no longer waits.
        Leave,
    }

    /// Runs a script; every caller must be told a revision at or after the one that was acknowledged when it came.
    async fn run(script: Vec<Step>) {
        let (cluster, read_index, replica) = read_index();
        let mut callers: Vec<BoxFuture<'_, (i64, Result<ReadAnswer, Status>)>> = Vec::new();
        let mut ends = script.len() + 1;
        for step in script.into_iter().chain(std::iter::repeat(Step::Answer)) {
            match step {
                Step::Write => cluster.write(),
                Step::Arrive => {
                    let arrived = cluster.revision();
                    callers.push(
                        read_index.read(&replica, Revision(0), None).map(move |answer| (arrived, answer)).boxed(),
                    );
                }
                Step::Answer => {
                    cluster.answer();
                }
                Step::Leave => drop(callers.pop()),
            }
            callers.retain_mut(|caller| match caller.now_or_never() {
                None => true,
                Some((arrived, answer)) => {
                    let told = answer.unwrap().revision.0;
                    assert!(told >= arrived, "told {told}, and {arrived} was acknowledged before the call");
                    false
                }
            });
            settled().await;
            ends = ends.saturating_sub(1);
            if ends == 0 && callers.is_empty() {
                break;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn every_caller_is_told_of_what_was_written_before(
            script in prop::collection::vec(
                prop_oneof![Just(Step::Write), Just(Step::Arrive), Just(Step::Answer), Just(Step::Leave)], 1..60)
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(run(script));
        }
    }
}
