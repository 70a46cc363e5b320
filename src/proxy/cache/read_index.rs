use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::cluster::Cluster;
use super::config::Periods;
use super::metrics::CacheMetrics;
use super::shared::SharedReplica;
use super::spawner::Spawner;
use crate::api_error::ApiError;
use crate::proxy::Identity;
use crate::types::{ClusterId, Revision};

/// The cluster's revision, read by linearizable reads that all ranges of a group share.
///
/// A caller is served by a read that was sent after it called, never by one in flight, which might miss a write that was
/// acknowledged in between. Callers that arrive during a read share the next one.
pub(super) struct ReadIndex {
    cluster: Arc<dyn Cluster>,
    identity: Identity,
    spawner: Spawner,
    metrics: CacheMetrics,
    periods: Periods,
    waiting: Mutex<Waiting>,
    last: watch::Sender<Last>,
    /// Microseconds a read takes, smoothed.
    took: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    arrived: u64,
    /// The task that reads runs.
    running: bool,
    /// Their watches are asked for progress together with the next read.
    replicas: Vec<Arc<SharedReplica>>,
}

/// What the last read told, and whom: callers up to a number arrived before it was sent.
#[derive(Clone)]
struct Last {
    serves: u64,
    outcome: Result<ReadAnswer, Status>,
}

/// What a read told.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadAnswer {
    /// At or after every write acknowledged before the call.
    pub revision: Revision,
    pub cluster: ClusterId,
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
        let last = Last { serves: 0, outcome: Err(ApiError::Stopped.into()) };
        Arc::new(Self {
            cluster,
            identity,
            spawner,
            metrics,
            periods,
            waiting: Mutex::default(),
            last: watch::Sender::new(last),
            took: AtomicU64::new(0),
        })
    }

    /// The revision of the cluster, for a reader of this replica. Dropping the future is safe.
    ///
    /// # Errors
    /// Those of the read.
    pub async fn read(self: &Arc<Self>, replica: &Arc<SharedReplica>) -> Result<ReadAnswer, Status> {
        let mut last = self.last.subscribe();
        let number = {
            let mut waiting = self.waiting.lock();
            waiting.arrived += 1;
            if !waiting.replicas.iter().any(|other| Arc::ptr_eq(other, replica)) {
                waiting.replicas.push(replica.clone());
            }
            if !std::mem::replace(&mut waiting.running, true) {
                self.spawner.start(self.clone().run());
            }
            waiting.arrived
        };
        let served = last.wait_for(|last| last.serves >= number).await;
        served.map_or_else(|_| Err(ApiError::Stopped.into()), |last| last.outcome.clone())
    }

    /// How long a reader waits for its replica: a few round trips.
    pub fn patience(&self) -> Duration {
        let took = Duration::from_micros(self.took.load(Ordering::Relaxed));
        (took * 4).clamp(self.periods.wait_min, self.periods.wait_max)
    }

    /// Reads for as long as somebody waits.
    async fn run(self: Arc<Self>) {
        loop {
            let (serves, replicas) = {
                let mut waiting = self.waiting.lock();
                if waiting.replicas.is_empty() {
                    waiting.running = false;
                    return;
                }
                (waiting.arrived, std::mem::take(&mut waiting.replicas))
            };
            let outcome = self.send(&replicas).await;
            self.last.send_replace(Last { serves, outcome });
        }
    }

    async fn send(&self, replicas: &[Arc<SharedReplica>]) -> Result<ReadAnswer, Status> {
        let sent_at = Instant::now();
        let key = replicas.first().map(|replica| replica.upstream.start().clone()).unwrap_or_default();
        // A request cannot name the empty key; no key lies before this one.
        let key = if key.is_empty() { Bytes::from_static(b"\0") } else { key };
        self.metrics.read_index.inc();
        let reading = self.cluster.read_index(&self.identity, key, Revision(0));
        replicas.iter().for_each(|replica| replica.read_sent.notify_one());
        let late = |_| Status::deadline_exceeded("the revision of the cluster was not told in time");
        let header = timeout(self.periods.read_index_max, reading).await.map_err(late)??;
        let took = u64::try_from(sent_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        let before = self.took.load(Ordering::Relaxed);
        self.took.store(if before == 0 { took } else { (before * 7 + took) / 8 }, Ordering::Relaxed);
        Ok(ReadAnswer { revision: Revision(header.revision), cluster: ClusterId(header.cluster_id), sent_at })
    }
}
