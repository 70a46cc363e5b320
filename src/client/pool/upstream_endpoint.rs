//! One endpoint and its state.
//!
//! Each connection of an endpoint has a worker of its own ([`UpstreamEndpoint::keep`]), which dials in the background from
//! the first request of its lane on until the pool or the endpoint goes:
//!
//! ```text
//!            first request of the lane
//!   unused ───────────────────────────► dialling ──── connected ────► asking
//!                                        ▲   │                         │  │
//!                        back-off over   │   │ refused, no route,      │  │ answered: the process is there,
//!                                        │   │ out of time             │  │ and of the cluster that is served
//!                                        │   ▼                         │  ▼
//!                                      waiting ◄───────────────────────┘ ready ──┐ an answer every PERIOD
//!                                        ▲  closed, garbage, no gRPC,    │  ▲    │ (of any request, else of a
//!                                        │  `Unavailable`, silent,       │  └────┘  health check)
//!                                        │  of another cluster           │
//!                                        └───────────────────────────────┘ closed, or silent for `silence_max`:
//!                                                                          cut, and what was sent ends
//! ```
//!
//! Requests see `ready` and nothing else: they never dial, and they wait only while no endpoint is ready. That TCP
//! connects says nothing (the kernel of a hung process does that), so nothing but an answer leads to `ready`. Since no
//! request travels before, a fault up to there executed nothing. The back-off belongs to the endpoint and doubles with
//! each failure; a connection that was ready for [`STABLE`] sets it back.
//!
//! A member may allow few streams on a connection, and watches or waiters for a lock may take them all. Nothing is learned
//! then from a health check, which would wait for one of them to end: pings take its place, seldom. Requests go to another
//! connection of the lane, up to [`SPARE_MAX`] more than usual.
//!
//! An endpoint that is ready is not equally good for every request: the health checks of its first connection for unary
//! calls show its [`Standing`], which `select.rs` looks at.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::config::PoolConfig;
use super::connection::Connection;
use super::standing::{Standing, StandingCell};
use crate::client::{Endpoint, Lane};
use crate::net::Backoff;
use crate::shutdown::Tasks;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Pause between two looks at a connection.
const TICK: Duration = Duration::from_millis(250);
/// Pause between two health checks, of a connection that is silent or reports the endpoint's standing.
const PERIOD: Duration = Duration::from_millis(500);
/// A health check that takes longer than this sends new requests elsewhere.
const LATE: Duration = Duration::from_millis(250);
/// Pause before a ping takes the place of a health check. Members end connections with more than a few pings that come sooner
/// than their `--grpc-keepalive-min-time` (5 s) after the last; Go's clients leave 10 s at least.
const PING_PAUSE: Duration = Duration::from_secs(10);
/// How long a connection must have been of use before a failure counts as the first one again.
const STABLE: Duration = Duration::from_secs(1);

/// Connections of a lane beside the usual ones, for when those have as many streams as the member allows.
const SPARE_MAX: usize = 3;

/// One endpoint: its connections and their health.
#[derive(Debug)]
pub(super) struct UpstreamEndpoint {
    endpoint: Endpoint,
    /// The usual connections of each lane, then the spare ones.
    lanes: [Vec<Slot>; 4],
    next: AtomicUsize,
    health: Mutex<Health>,
    standing: StandingCell,
    /// Notified when the standing becomes worse, for those that wait for an answer.
    limited: Notify,
    /// Ends the workers.
    gone: CancellationToken,
}

#[derive(Debug, Default)]
struct Slot {
    ready: Mutex<Option<Connection>>,
    /// Whether a worker looks after it.
    kept: AtomicBool,
}

#[derive(Debug)]
struct Health {
    backoff: Backoff,
    /// No attempt before this time.
    retry_at: Option<Instant>,
    /// Of the last failure.
    reason: Option<String>,
}

/// What the workers of a pool share.
#[derive(Debug)]
pub(super) struct Keeping {
    pub(super) config: PoolConfig,
    pub(super) tasks: Tasks,
    /// Notified when a connection is ready or an attempt has failed.
    pub(super) changed: Notify,
}

impl UpstreamEndpoint {
    pub(super) fn new(endpoint: Endpoint, config: &PoolConfig) -> Self {
        let slots = |lane: Lane| {
            let count = if lane == Lane::Unary { config.connections.max(1) } else { 1 };
            std::iter::repeat_with(Slot::default).take(count + SPARE_MAX).collect()
        };
        Self {
            endpoint,
            lanes: Lane::ALL.map(slots),
            next: AtomicUsize::new(0),
            health: Mutex::new(Health {
                backoff: Backoff::new(BACKOFF_MIN, BACKOFF_MAX),
                retry_at: None,
                reason: None,
            }),
            standing: StandingCell::default(),
            limited: Notify::new(),
            gone: CancellationToken::new(),
        }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Why the last attempt failed; none before the first has.
    pub(super) fn reason(&self) -> Option<String> {
        self.health.lock().reason.clone()
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing.get()
    }

    /// Completes when the standing becomes worse after the call.
    pub(super) fn limited(&self) -> Notified<'_> {
        self.limited.notified()
    }

    fn stands(&self, standing: Standing, keeping: &Keeping) {
        let before = self.standing.replace(standing);
        if before == standing {
            return;
        }
        if standing == Standing::Full {
            info!(endpoint = %self.endpoint, "endpoint serves all requests again");
            keeping.changed.notify_waiters();
        } else {
            warn!(endpoint = %self.endpoint, reason = standing.text(), "endpoint is used only where no other is ready");
            self.limited.notify_waiters();
        }
    }

    /// Whether a connection of the lane is ready.
    pub(super) fn has_ready(&self, lane: Lane) -> bool {
        self.lanes[lane.index()].iter().any(|slot| slot.live().is_some())
    }

    /// Whether any connection is ready.
    pub(super) fn is_ready(&self) -> bool {
        self.lanes.iter().flatten().any(|slot| slot.live().is_some())
    }

    /// A connection of the lane that is ready, and takes another stream if one does. Starts the workers of those that are not.
    pub(super) fn ready(self: &Arc<Self>, lane: Lane, keeping: &Arc<Keeping>) -> Option<Connection> {
        let slots = &self.lanes[lane.index()];
        let usual = slots.len() - SPARE_MAX;
        let first = if usual > 1 { self.next.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let (mut full, mut is_any_missing) = (None, false);
        for step in 0..usual {
            let number = first.wrapping_add(step) % usual;
            match slots[number].live() {
                Some(connection) if connection.is_full() => full = full.or(Some(connection)),
                Some(connection) => return Some(connection),
                None => {
                    self.start(lane, number, keeping);
                    is_any_missing = true;
                }
            }
        }
        let full = full?;
        for (number, slot) in slots.iter().enumerate().skip(usual) {
            if is_any_missing {
                break;
            }
            match slot.live() {
                Some(connection) if connection.is_full() => {}
                Some(connection) => return Some(connection),
                None => {
                    self.start(lane, number, keeping);
                    is_any_missing = true;
                }
            }
        }
        // One that is about to be ready is worth waiting for: what holds the streams of a full one may never end.
        (!is_any_missing || self.is_backing_off()).then_some(full)
    }

    /// Whether no attempt is made to connect, after one that failed.
    fn is_backing_off(&self) -> bool {
        self.health.lock().retry_at.is_some_and(|at| at > Instant::now())
    }

    fn start(self: &Arc<Self>, lane: Lane, number: usize, keeping: &Arc<Keeping>) {
        let slot = &self.lanes[lane.index()][number];
        if slot.kept.swap(true, Ordering::Relaxed) {
            return;
        }
        // However the worker ends, also with its runtime, another one may be started.
        let kept = Kept { member: self.clone(), lane, number };
        let (keeping, stop) = (keeping.clone(), keeping.tasks.stop_signal());
        if stop.is_cancelled() || self.gone.is_cancelled() {
            return;
        }
        keeping.tasks.clone().spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = kept.member.gone.cancelled() => kept.slot().clear(),
                () = kept.member.keep(kept.slot(), kept.reports(), &keeping) => {}
            }
        });
    }

    /// Keeps one connection ready; see the state machine above. One that `reports` shows the endpoint's standing.
    async fn keep(&self, slot: &Slot, reports: bool, keeping: &Keeping) {
        loop {
            let retry_at = self.health.lock().retry_at;
            if let Some(at) = retry_at {
                tokio::time::sleep_until(at).await;
            }
            let reason = match self.open(reports, keeping).await {
                Ok(connection) => {
                    *slot.ready.lock() = Some(connection.clone());
                    keeping.changed.notify_waiters();
                    let since = Instant::now();
                    let reason = self.until_over(&connection, reports, keeping).await;
                    slot.clear();
                    if since.elapsed() >= STABLE {
                        self.health.lock().backoff.reset();
                    }
                    reason
                }
                Err(reason) => reason,
            };
            debug!(endpoint = %self.endpoint, reason, "endpoint not ready");
            self.failed(reason);
            keeping.changed.notify_waiters();
        }
    }

    /// Dials, and waits for the first answer.
    async fn open(&self, reports: bool, keeping: &Keeping) -> Result<Connection, String> {
        let mut dialled = None;
        let open = async {
            let connection = Connection::open(&self.endpoint, &keeping.config, &keeping.tasks).await;
            let connection = dialled.insert(connection.map_err(|error| error.to_string())?);
            connection.admit(keeping.config.cluster.as_ref()).await?;
            // One that nobody follows would stay as it was first.
            if reports && keeping.config.silence_max.is_some() {
                self.stands(connection.standing().await?, keeping);
            }
            Ok(())
        };
        let admitted = tokio::time::timeout(keeping.config.dial_timeout, open).await;
        match (admitted, dialled) {
            (Ok(Ok(())), Some(connection)) => Ok(connection),
            (outcome, connection) => {
                let reason = match (outcome, &connection) {
                    (Ok(Err(reason)), _) => reason,
                    (_, None) => "connect timed out".to_owned(),
                    (_, Some(_)) => "connected, but nothing answers".to_owned(),
                };
                if let Some(connection) = connection {
                    connection.close();
                }
                Err(reason)
            }
        }
    }

    /// Waits until the connection takes no new requests, or the other side is silent. Says why.
    async fn until_over(&self, connection: &Connection, reports: bool, keeping: &Keeping) -> String {
        let silent = async {
            let Some(silence_max) = keeping.config.silence_max else { return std::future::pending().await };
            let (mut heard, mut checked) = (connection.heard(), Instant::now());
            loop {
                tokio::time::sleep(TICK).await;
                connection.look_at_streams_max();
                let silent = connection.heard() == heard;
                heard = connection.heard();
                let due = if connection.is_full() {
                    // Where pings are configured, they end a connection that is silent.
                    silent && keeping.config.keepalive.is_none() && checked.elapsed() >= PING_PAUSE
                } else {
                    // Somebody waits, and nothing came: asked at once, because the next requests would wait too.
                    let at_once = silent && reports && connection.is_busy();
                    at_once || (checked.elapsed() >= PERIOD && (silent || reports))
                };
                if due {
                    if let Err(reason) = self.check(connection, reports, silence_max, keeping).await {
                        return reason;
                    }
                    (heard, checked) = (connection.heard(), Instant::now());
                }
            }
        };
        tokio::select! {
            () = connection.over() => "connection lost".to_owned(),
            reason = silent => {
                if !connection.is_closed() {
                    warn!(endpoint = %self.endpoint, reason, "upstream connection cut");
                    connection.close();
                }
                reason
            }
        }
    }

    /// One health check; of a connection that takes no more streams, one ping.
    async fn check(
        &self,
        connection: &Connection,
        reports: bool,
        silence_max: Duration,
        keeping: &Keeping,
    ) -> Result<(), String> {
        // One that waits for a stream proves nothing.
        let (heard, by_ping) = (connection.heard(), connection.is_full());
        let mut asking = pin!(async {
            match by_ping {
                true => connection.pong().await.map(|()| None),
                false => connection.standing().await.map(Some),
            }
        });
        let late = LATE.min(silence_max);
        let mut answer = tokio::time::timeout(late, &mut asking).await;
        if answer.is_err() {
            if reports && (by_ping || !connection.is_full()) {
                self.stands(Standing::Late, keeping);
            }
            answer = tokio::time::timeout(silence_max - late, &mut asking).await;
        }
        match answer {
            Ok(Ok(standing)) => {
                // A ping tells no more than that the answers are in time.
                let standing = standing.or_else(|| (self.standing() == Standing::Late).then_some(Standing::Full));
                if let Some(standing) = standing.filter(|_| reports) {
                    self.stands(standing, keeping);
                }
                Ok(())
            }
            Ok(Err(reason)) => Err(reason),
            // A long answer on its way is an answer.
            Err(_) if connection.heard() != heard => Ok(()),
            // It may have got no stream: others took the last ones when it was begun. The next one is a ping.
            Err(_) if !by_ping && connection.is_full() => Ok(()),
            Err(_) => Err("holds its connection but does not answer".to_owned()),
        }
    }

    /// Takes no new requests; those in flight go on.
    pub(super) fn retire(&self) {
        self.gone.cancel();
        for slot in self.lanes.iter().flatten() {
            if let Some(connection) = slot.ready.lock().take() {
                connection.retire();
            }
        }
    }

    /// Notes a failed attempt; the next one waits longer. The
    /// connections of one endpoint fail together, which counts once.
    fn failed(&self, reason: String) {
        let mut health = self.health.lock();
        health.reason = Some(reason);
        let now = Instant::now();
        if health.retry_at.is_some_and(|at| at > now) {
            return;
        }
        health.retry_at = Some(now + health.backoff.pause());
    }
}

/// The worker of one slot.
struct Kept {
    member: Arc<UpstreamEndpoint>,
    lane: Lane,
    number: usize,
}

impl Kept {
    /// One connection shows what the endpoint is good for.
    fn reports(&self) -> bool {
        self.lane == Lane::Unary && self.number == 0
    }

    fn slot(&self) -> &Slot {
        &self.member.lanes[self.lane.index()][self.number]
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.slot().kept.store(false, Ordering::Relaxed);
    }
}

impl Slot {
    fn live(&self) -> Option<Connection> {
        self.ready.lock().as_ref().filter(|connection| !connection.is_closed()).cloned()
    }

    fn clear(&self) {
        *self.ready.lock() = None;
    }
}
