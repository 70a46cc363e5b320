use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

use super::admission::Admission;
use super::header_source::HeaderSource;
use super::permission::WatchPermission;
use super::send_queue::{End, Taken};
use super::source::Source;
use super::watcher_set::{Create, JobId, JobResult, StartedRead, WatchLimits, WatcherSet};
use crate::shutdown::Tasks;
use crate::telemetry::WatchMetrics;
use crate::types::Revision;

/// Responses of one turn from which on the next turn waits for as long as these have taken. What is appended meanwhile is delivered
/// together, and other work of the thread, such as the writes that cause the events, has half of its time.
const COSTLY_RESPONSES: usize = 256;
/// Bounds of that wait.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The watchers of one serving thread. Cheap to clone.
///
/// Streams of that thread and the watcher set's own task take turns at the lock, so that it is all but never contended;
/// nothing waits while holding it.
#[derive(Clone, Debug)]
pub struct WatcherSetHandle {
    watcher_set: Arc<Mutex<WatcherSet>>,
    wake: Arc<Notify>,
    metrics: Arc<WatchMetrics>,
}

impl WatcherSetHandle {
    /// A watcher set without its task.
    pub(super) fn new(limits: WatchLimits, header_source: Arc<HeaderSource>, metrics: WatchMetrics, seed: u64) -> Self {
        let wake = Arc::new(Notify::new());
        let watcher_set = WatcherSet::new(limits, header_source, metrics.clone(), wake.clone(), seed);
        Self { watcher_set: Arc::new(Mutex::new(watcher_set)), wake, metrics: Arc::new(metrics) }
    }

    /// Starts a watcher set on the current runtime. When `tasks` stop, its streams end with `stopped`.
    ///
    /// `seed` spreads the progress notifications of its streams.
    pub fn start(
        limits: WatchLimits,
        header_source: Arc<HeaderSource>,
        metrics: WatchMetrics,
        seed: u64,
        stopped: Status,
        tasks: &Tasks,
    ) -> Self {
        let history_reads_max = limits.history_reads_max;
        let handle = Self::new(limits, header_source, metrics, seed);
        let stop = tasks.stop_signal();
        let task = handle.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                // Only waits and short synchronous turns: nothing is lost when it is dropped.
                () = task.run(history_reads_max) => {}
            }
            task.end_streams(&stopped, false);
        });
        handle
    }

    async fn run(&self, history_reads_max: usize) {
        let mut reads: FuturesUnordered<BoxFuture<'static, Option<(JobId, JobResult)>>> = FuturesUnordered::new();
        loop {
            let begun = Instant::now();
            let (more, next_tick, delivered) = {
                let mut watcher_set = self.watcher_set.lock();
                let now = begun;
                if watcher_set.next_tick().is_some_and(|at| at <= now) {
                    watcher_set.tick(now);
                    self.metrics.send_progress.observe(0, now.elapsed());
                }
                let more = watcher_set.route() | watcher_set.resume();
                for read in watcher_set.take_jobs(history_reads_max.saturating_sub(reads.len())) {
                    let StartedRead { id, history, request, abandoned } = read;
                    let read = history.events(request);
                    reads.push(Box::pin(async move {
                        tokio::select! {
                            result = read => Some((id, result)),
                            _ = abandoned => None,
                        }
                    }));
                }
                (more, watcher_set.next_tick(), watcher_set.take_delivered())
            };
            let mut pause = None;
            if delivered >= COSTLY_RESPONSES {
                // The streams that were just filled have their turn first.
                tokio::task::yield_now().await;
                let took = begun.elapsed().min(PAUSE_MAX);
                pause = (took >= PAUSE_MIN).then(|| Instant::now() + took);
            }
            tokio::select! {
                biased;
                Some(finished) = reads.next(), if !reads.is_empty() => {
                    if let Some((id, result)) = finished {
                        self.watcher_set.lock().finish_job(id, result);
                    }
                }
                // The streams that were just filled have their turn first.
                () = sleep_until(pause), if pause.is_some() => {}
                () = tokio::task::yield_now(), if more && pause.is_none() => {}
                () = self.wake.notified(), if !more && pause.is_none() => {}
                () = sleep_until(next_tick), if !more && pause.is_none() && next_tick.is_some() => {}
            }
        }
    }

    /// Cancels the watchers of a source after [`Source::end`].
    pub fn end_source(&self, source: &Arc<Source>, end: &End) {
        self.watcher_set.lock().end_source(source, end);
    }

    /// Cancels the watchers that are open under a permission, after [`WatchPermission::revoke`].
    pub fn end_permission(&self, permission: &Arc<WatchPermission>) {
        self.watcher_set.lock().end_permission(permission);
    }

    /// Tells the idle watchers of a source that asked for progress notifications how far they are.
    pub fn notify_source(&self, source: &Arc<Source>) {
        self.watcher_set.lock().notify_source(source);
    }

    /// Whether a watcher of a source asked for progress notifications.
    pub fn wants_progress(&self, source: &Arc<Source>) -> bool {
        self.watcher_set.lock().wants_progress(source)
    }

    /// Carries the watchers of a source over after [`Source::move_to`].
    pub fn move_source(&self, from: &Arc<Source>, to: &Arc<Source>) {
        self.watcher_set.lock().move_source(from, to);
    }

    /// Ends streams: all of them, or those whose client wants a leader.
    pub fn end_streams(&self, status: &Status, only_require_leader: bool) {
        self.watcher_set.lock().end_streams(status, only_require_leader);
    }

    pub(super) fn open(&self, require_leader: bool) -> u32 {
        self.watcher_set.lock().open(require_leader, Instant::now())
    }

    pub(super) fn close(&self, stream: u32) {
        self.watcher_set.lock().close(stream);
    }

    pub(super) fn create(&self, stream: u32, create: &Create, admission: &Admission) {
        self.watcher_set.lock().create(stream, create, admission, Instant::now());
    }

    pub(super) fn refuse(&self, stream: u32, revision: Revision, reason: &str) {
        self.watcher_set.lock().refuse(stream, revision, reason);
    }

    pub(super) fn cancel(&self, stream: u32, watch_id: i64, known: Revision) {
        self.watcher_set.lock().cancel(stream, watch_id, known);
    }

    pub(super) fn progress(&self, stream: u32, answers: u32) -> Vec<Arc<Source>> {
        self.watcher_set.lock().progress(stream, answers)
    }

    pub(super) fn release(&self, stream: u32) {
        self.watcher_set.lock().release(stream);
    }

    pub(super) fn end_stream(&self, stream: u32, status: Status) {
        self.watcher_set.lock().end_stream(stream, status);
    }

    pub(super) fn sources_of(&self, stream: u32) -> Vec<Arc<Source>> {
        self.watcher_set.lock().sources_of(stream)
    }

    pub(super) fn controls(&self, stream: u32) -> u32 {
        self.watcher_set.lock().controls(stream)
    }

    /// A stream's connection has taken a response of so many events.
    pub(super) fn sent(&self, took: Duration, events: u32) {
        if events == 0 {
            self.metrics.send_control.observe(0, took);
        } else {
            self.metrics.send_events.observe(0, took);
            self.metrics.send_per_event.observe(0, took / events);
        }
    }

    pub(super) fn pop(&self, stream: u32, waker: &Waker) -> Taken {
        self.watcher_set.lock().pop(stream, waker)
    }

    /// The state itself, for tests that run turns by hand.
    #[cfg(test)]
    pub(super) fn lock(&self) -> parking_lot::MutexGuard<'_, WatcherSet> {
        self.watcher_set.lock()
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => ::core::future::pending().await,
    }
}
