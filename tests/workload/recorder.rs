use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use watershed::client::Client;

use super::wire;
use crate::checkers::{History, Nanos, Operation, Outcome, Request, WatchRecord};

/// Writes down what clients do, with times of one monotonic clock.
pub struct Recorder {
    begun: Instant,
    history: Mutex<History>,
    clients: AtomicU32,
    values: AtomicU64,
    newest: AtomicI64,
    answered_writes: AtomicU64,
    limit: Duration,
}

impl Recorder {
    /// An empty history; a request without an answer after `limit` has an unknown outcome.
    pub fn new(limit: Duration) -> Self {
        Self {
            begun: Instant::now(),
            history: Mutex::default(),
            clients: AtomicU32::new(0),
            values: AtomicU64::new(0),
            newest: AtomicI64::new(1),
            answered_writes: AtomicU64::new(0),
            limit,
        }
    }

    /// Time since the start.
    pub fn now(&self) -> Nanos {
        self.begun.elapsed().as_nanos() as Nanos
    }

    /// A client id nobody else has.
    pub fn client(&self) -> u32 {
        self.clients.fetch_add(1, Ordering::Relaxed)
    }

    /// A value nobody else writes.
    pub fn value(&self) -> String {
        format!("v{}", self.values.fetch_add(1, Ordering::Relaxed))
    }

    /// Newest revision seen in any answer.
    pub fn newest(&self) -> i64 {
        self.newest.load(Ordering::Relaxed)
    }

    /// Writes that were answered so far.
    pub fn answered_writes(&self) -> u64 {
        self.answered_writes.load(Ordering::Relaxed)
    }

    /// Sends a request and records what came of it. `member` is written down only.
    pub async fn send(&self, id: u32, member: u32, client: &Client, request: Request) -> Outcome {
        let invoked = self.now();
        let answer = tokio::time::timeout(self.limit, wire::send(client, &request)).await;
        let outcome = answer.unwrap_or(Outcome::Unknown);
        let returned = self.now();
        if let Outcome::Done { revision, .. } = &outcome {
            self.newest.fetch_max(*revision, Ordering::Relaxed);
            if matches!(request, Request::Put { .. } | Request::Delete { .. } | Request::Txn { .. }) {
                self.answered_writes.fetch_add(1, Ordering::Relaxed);
            }
        }
        let operation = Operation { client: id, member, invoked, returned, request, outcome: outcome.clone() };
        self.history.lock().operations.push(operation);
        outcome
    }

    /// Adds what a watch saw.
    pub fn watched(&self, watch: WatchRecord) {
        self.history.lock().watches.push(watch);
    }

    /// Everything so far.
    pub fn history(&self) -> History {
        self.history.lock().clone()
    }
}
