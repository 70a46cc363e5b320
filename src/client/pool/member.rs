use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::connection::Connection;
use super::dispatch::PoolConfig;
use crate::client::{Endpoint, Lane};
use crate::shutdown::Tasks;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// One endpoint: its connections and what we know of its health.
#[derive(Debug)]
pub(super) struct Member {
    endpoint: Endpoint,
    lanes: [Vec<Slot>; 4],
    next: AtomicUsize,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Slot {
    ready: Mutex<Option<Connection>>,
    /// Held while connecting, so that many waiting requests make one attempt.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    /// No attempt before this time.
    retry_at: Option<Instant>,
    reason: String,
}

impl Member {
    pub(super) fn new(endpoint: Endpoint, config: &PoolConfig) -> Self {
        let slots = |lane: Lane| {
            let count = if lane == Lane::Unary { config.connections.max(1) } else { 1 };
            std::iter::repeat_with(Slot::default).take(count).collect()
        };
        Self { endpoint, lanes: Lane::ALL.map(slots), next: AtomicUsize::new(0), health: Mutex::new(Health::default()) }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Until when this member is left alone; none when it may be tried now.
    pub(super) fn retry_at(&self, now: Instant) -> Option<Instant> {
        self.health.lock().retry_at.filter(|&at| at > now)
    }

    /// Why the last attempt failed.
    pub(super) fn reason(&self) -> String {
        self.health.lock().reason.clone()
    }

    /// A live connection of the lane, opened if there is none.
    ///
    /// # Errors
    /// When the member cannot be reached, or was not a moment ago.
    pub(super) async fn connection(
        &self,
        lane: Lane,
        config: &PoolConfig,
        tasks: &Tasks,
    ) -> Result<Connection, String> {
        let slots = &self.lanes[lane.index()];
        let slot = &slots[self.next.fetch_add(1, Ordering::Relaxed) % slots.len()];
        if let Some(connection) = slot.live() {
            return Ok(connection);
        }
        let _turn = slot.connecting.lock().await;
        // Somebody else may have connected, or failed to, while we waited for the turn.
        if let Some(connection) = slot.live() {
            return Ok(connection);
        }
        if self.retry_at(Instant::now()).is_some() {
            return Err(self.reason());
        }
        match Connection::open(&self.endpoint, config, tasks).await {
            Ok(connection) => {
                *slot.ready.lock() = Some(connection.clone());
                *self.health.lock() = Health::default();
                Ok(connection)
            }
            Err(error) => Err(self.failed(error.to_string())),
        }
    }

    /// The open connection of the lane, if there is one.
    pub(super) fn open_connection(&self, lane: Lane) -> Option<Connection> {
        self.lanes[lane.index()].iter().find_map(Slot::live)
    }

    /// Cuts every connection and leaves the member alone for a while.
    pub(super) fn eject(&self, reason: &str) {
        self.failed(reason.to_owned());
        self.close();
    }

    /// Takes no new requests; those in flight go on.
    pub(super) fn retire(&self) {
        for slot in self.lanes.iter().flatten() {
            if let Some(connection) = slot.ready.lock().take() {
                connection.retire();
            }
        }
    }

    /// Cuts every connection.
    pub(super) fn close(&self) {
        for slot in self.lanes.iter().flatten() {
            if let Some(connection) = slot.ready.lock().take() {
                connection.close();
            }
        }
    }

    /// Notes a failed attempt; the next one waits longer, with jitter so that many proxies do not come at once.
    fn failed(&self, reason: String) -> String {
        let mut health = self.health.lock();
        let doubled = BACKOFF_MIN.saturating_mul(1 << health.failures.min(10)).min(BACKOFF_MAX);
        health.failures = health.failures.saturating_add(1);
        health.retry_at = Some(Instant::now() + doubled.mul_f64(0.5 + 0.5 * fastrand::f64()));
        health.reason.clone_from(&reason);
        reason
    }
}

impl Slot {
    fn live(&self) -> Option<Connection> {
        let mut ready = self.ready.lock();
        match &*ready {
            Some(connection) if !connection.is_closed() => Some(connection.clone()),
            Some(_) => {
                *ready = None;
                None
            }
            None => None,
        }
    }
}
