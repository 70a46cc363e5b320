use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio_util::sync::CancellationToken;
use watershed::client::Client;

use super::Recorder;
use crate::checkers::{Body, Outcome, RangeQuery, Request};

/// Shortest lease asked for; the server may grant more.
const TTL_SECONDS: i64 = 2;

/// A client that grants leases, attaches keys, keeps them alive for a while, and then revokes them or lets them end.
pub struct LeaseHolder {
    pub recorder: Arc<Recorder>,
    pub client: Client,
    pub member: u32,
    pub random: Rng,
    pub stop: CancellationToken,
}

impl LeaseHolder {
    /// Goes through leases until the stop.
    pub async fn run(mut self) {
        let id = self.recorder.client();
        while !self.stop.is_cancelled() {
            let grant = Request::Grant { id: 0, ttl: TTL_SECONDS };
            let Some((lease, ttl)) = granted(self.send(id, grant).await) else {
                self.wait(Duration::from_millis(100)).await;
                continue;
            };
            for number in 0..2 {
                let key = format!("kl{}-{number}", id);
                let value = self.recorder.value();
                self.send(id, Request::Put { key, value, lease, prev_kv: false }).await;
            }
            self.hold(id, lease, ttl).await;
        }
    }

    /// Keeps a lease alive a few times, then ends it one way or the other.
    async fn hold(&mut self, id: u32, lease: i64, ttl: i64) {
        let quarter = Duration::from_millis(ttl as u64 * 250);
        for _ in 0..self.random.u8(0..6) {
            self.wait(self.random_part(quarter)).await;
            self.send(id, Request::KeepAlive { id: lease }).await;
        }
        if self.random.u8(0..3) == 0 {
            self.send(id, Request::Revoke { id: lease }).await;
            return;
        }
        // Until its end was seen, or too late to blame this client.
        for _ in 0..12 {
            if self.stop.is_cancelled() {
                return;
            }
            self.wait(quarter).await;
            let keys = RangeQuery { key: format!("kl{id}-"), range_end: format!("kl{id}."), ..Default::default() };
            self.send(id, Request::Range(keys)).await;
            let left = self.send(id, Request::TimeToLive { id: lease }).await;
            if matches!(left, Outcome::Done { body: Body::TimeToLive { ttl }, .. } if ttl < 0) {
                return;
            }
        }
    }

    fn random_part(&self, time: Duration) -> Duration {
        time.mul_f64(fastrand::f64())
    }

    async fn wait(&self, time: Duration) {
        let _ = tokio::time::timeout(time, self.stop.cancelled()).await;
    }

    async fn send(&self, id: u32, request: Request) -> Outcome {
        self.recorder.send(id, self.member, &self.client, request).await
    }
}

fn granted(outcome: Outcome) -> Option<(i64, i64)> {
    match outcome {
        Outcome::Done { body: Body::Granted { id, ttl }, .. } => Some((id, ttl)),
        _ => None,
    }
}
