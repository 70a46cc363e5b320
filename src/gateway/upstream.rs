use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::balance::Division;
use super::cause::Cause;
use super::metrics::{EndpointMetrics, GatewayMetrics};
use crate::net::Endpoint;

/// The part of its share that an endpoint gets in the moment it comes back.
const FIRST_FACTOR: f64 = 0.1;

/// An endpoint as the balancer sees it: whether it is used, and which connections it has.
#[derive(Debug)]
pub(super) struct Upstream {
    endpoint: Endpoint,
    down: AtomicBool,
    /// Down until connections to it do not come back to this gateway any more, whatever else is found of it.
    looped: AtomicBool,
    /// Its last check failed, or has no answer when there usually is one: others are preferred until it has been decided whether it
    /// is down.
    suspect: AtomicBool,
    condition: Mutex<Condition>,
    /// No longer listed: no new connections, the open ones end by themselves or after the drain timeout.
    removed: AtomicBool,
    /// Wakes the task that looks after this endpoint: it went down or came back, it left the list or returned to it.
    pub(super) changed: Notify,
    /// Connections it has or that are on their way to it.
    open: AtomicUsize,
    connections: Mutex<Connections>,
    closes_when_down: bool,
    is_checked: bool,
    pub(super) metrics: EndpointMetrics,
}

#[derive(Debug)]
struct Condition {
    /// When it last took a connection.
    taken: Option<Instant>,
    /// Why it is down, or was.
    reason: String,
    /// When it came back; none if it has not been down.
    returned: Option<Instant>,
    /// It has worked once.
    proven: bool,
}

#[derive(Debug, Default)]
struct Connections {
    /// None for the moment until the task has started.
    tasks: Slab<Option<AbortHandle>>,
    /// Grows each time all of them are closed. What was chosen before and is connected after that is closed too.
    closed: u64,
}

impl Upstream {
    pub(super) fn new(endpoint: Endpoint, division: &Division, metrics: &GatewayMetrics) -> Self {
        Self {
            metrics: metrics.endpoint(&endpoint),
            endpoint,
            down: AtomicBool::new(false),
            looped: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            condition: Mutex::new(Condition { taken: None, reason: String::new(), returned: None, proven: false }),
            removed: AtomicBool::new(false),
            changed: Notify::new(),
            open: AtomicUsize::new(0),
            connections: Mutex::default(),
            closes_when_down: division.closes_when_down,
            is_checked: division.checked,
        }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed) || self.is_looped()
    }

    pub(super) fn is_looped(&self) -> bool {
        self.looped.load(Ordering::Relaxed)
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    pub(super) fn set_suspect(&self, suspect: bool) {
        self.suspect.store(suspect, Ordering::Relaxed);
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// Whether health checks are made and the last of them that decided was passed.
    pub(super) fn is_proven(&self) -> bool {
        self.is_checked && !self.is_down() && self.condition.lock().proven
    }

    /// Notes that it left the list, or returned to it.
    pub(super) fn set_removed(&self, removed: bool) {
        self.removed.store(removed, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// It is of no use: no more clients go there until it works again.
    pub(super) fn mark_down(&self, cause: Cause, reason: &str) {
        {
            let mut condition = self.condition.lock();
            reason.clone_into(&mut condition.reason);
            if self.down.swap(true, Ordering::Relaxed) {
                return;
            }
            // In the order in which it goes down and comes back.
            self.metrics.up.set(0);
        }
        warn!(endpoint = %self.endpoint, cause = cause.label(), error = reason, "endpoint is down");
        self.metrics.ejected(cause);
        if self.closes_when_down {
            self.close_all("endpoint is down");
        }
        self.changed.notify_one();
    }

    /// Connections to it come back to this gateway: all of them are closed, each is part of a chain that would grow.
    pub(super) fn mark_looped(&self) {
        self.looped.store(true, Ordering::Relaxed);
        self.mark_down(Cause::Loop, "connections to it come back to this gateway");
        self.close_all("they come back to this gateway");
        self.changed.notify_one();
    }

    /// They do not come back any more. Whether it works has yet to be found.
    pub(super) fn leave_loop(&self) {
        self.looped.store(false, Ordering::Relaxed);
    }

    /// It took a connection.
    pub(super) fn took_connection(&self) {
        self.condition.lock().taken = Some(Instant::now());
        if !self.is_checked {
            self.mark_up();
        }
    }

    /// It works.
    pub(super) fn mark_up(&self) {
        if self.is_looped() {
            return;
        }
        let now = Instant::now();
        let mut condition = self.condition.lock();
        condition.proven = true;
        if self.is_down() && self.down.swap(false, Ordering::Relaxed) {
            condition.returned = Some(now);
            info!(endpoint = %self.endpoint, "endpoint is back");
            self.metrics.up.set(1);
            self.changed.notify_one();
        }
    }

    /// Whether it took a connection no longer ago than this.
    pub(super) fn took_within(&self, age: Duration) -> bool {
        self.condition.lock().taken.is_some_and(|at| at.elapsed() <= age)
    }

    /// Why it is down.
    pub(super) fn reason(&self) -> String {
        self.condition.lock().reason.clone()
    }

    /// How much of its full share it gets: less for `slow_start` after it came back.
    pub(super) fn slow_start_factor(&self, slow_start: Duration) -> f64 {
        let Some(returned) = self.condition.lock().returned else { return 1.0 };
        let passed = returned.elapsed();
        if passed >= slow_start { 1.0 } else { passed.div_duration_f64(slow_start).max(FIRST_FACTOR) }
    }

    /// Connections it has or that are on their way to it.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Closes all its connections; both sides see a reset.
    pub(super) fn close_all(&self, why: &str) {
        let tasks: Vec<AbortHandle> = {
            let mut connections = self.connections.lock();
            connections.closed += 1;
            connections.tasks.iter().filter_map(|(_, task)| task.clone()).collect()
        };
        if tasks.is_empty() {
            return;
        }
        info!(endpoint = %self.endpoint, connections = tasks.len(), why, "connections are closed");
        self.metrics.cut.inc_by(tasks.len() as u64);
        for task in tasks {
            task.abort();
        }
    }
}

/// A connection that is meant for an endpoint or is open there; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Assigned {
    upstream: Arc<Upstream>,
    /// [`Connections::closed`] when the endpoint was chosen.
    closed_before: u64,
    task: Option<usize>,
}

impl Assigned {
    pub(super) fn new(upstream: Arc<Upstream>) -> Self {
        upstream.open.fetch_add(1, Ordering::Relaxed);
        upstream.metrics.open.inc();
        let closed_before = upstream.connections.lock().closed;
        Self { upstream, closed_before, task: None }
    }

    pub(super) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Starts the task that moves the bytes by `spawn`, which gets this value; the endpoint can end the task from then on.
    pub(super) fn run(mut self, spawn: impl FnOnce(Self) -> AbortHandle) {
        let (upstream, closed_before) = (self.upstream.clone(), self.closed_before);
        let key = upstream.connections.lock().tasks.insert(None);
        self.task = Some(key);
        let task = spawn(self);
        let mut connections = upstream.connections.lock();
        if connections.closed != closed_before {
            task.abort();
        }
        if let Some(entry) = connections.tasks.get_mut(key) {
            *entry = Some(task);
        }
    }
}

impl Drop for Assigned {
    fn drop(&mut self) {
        if let Some(task) = self.task {
            self.upstream.connections.lock().tasks.try_remove(task);
        }
        self.upstream.open.fetch_sub(1, Ordering::Relaxed);
        self.upstream.metrics.open.dec();
    }
}

#[cfg(test)]
mod tests {
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;
    use crate::config::Balance;
    use crate::telemetry::Metrics;

    /// Marks an endpoint as up whenever something is logged.
    struct Recovery(Arc<Upstream>);

    impl Subscriber for Recovery {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, _: &Event<'_>) {
            self.0.mark_up();
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn the_gauge_shows_the_last_of_two_changes_at_once() {
        // Cause: the gauge was set outside of the lock, after the line of the log. An endpoint that came back in that moment was shown
        // as down for ever.
        let division =
            Division { balance: Balance::Listed, slow_start: Duration::ZERO, closes_when_down: false, checked: true };
        let metrics = GatewayMetrics::register(&Metrics::new());
        let upstream = Arc::new(Upstream::new("a:1".parse().unwrap(), &division, &metrics));
        upstream.mark_down(Cause::Check, "no answer");
        assert_eq!((upstream.is_down(), upstream.metrics.up.get()), (true, 0));
        upstream.mark_up();
        assert_eq!((upstream.is_down(), upstream.metrics.up.get()), (false, 1));
        let recovery = Recovery(upstream.clone());
        tracing::subscriber::with_default(recovery, || upstream.mark_down(Cause::Check, "no answer"));
        assert_eq!((upstream.is_down(), upstream.metrics.up.get()), (false, 1), "it came back while it went down");
    }
}
