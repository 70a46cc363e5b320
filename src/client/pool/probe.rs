use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tracing::warn;

use super::dispatch::{Head, Inner, Pool};
use super::member::Member;
use crate::client::Lane;

/// Pause between two rounds.
const PERIOD: Duration = Duration::from_secs(1);
/// An empty `HealthCheckRequest`: flag, length, no body.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

impl Pool {
    /// Starts to look for members that hold their connections but answer nothing, once there is somebody else to ask.
    pub(super) fn start_probing(&self) {
        if self.inner.probing.load(Ordering::Relaxed) || self.inner.members.list().len() < 2 {
            return;
        }
        if !self.inner.probing.swap(true, Ordering::Relaxed) {
            let stop = self.inner.tasks.stop_signal();
            let inner = std::sync::Arc::downgrade(&self.inner);
            self.inner.tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = rounds(inner) => {}
                }
            });
        }
    }
}

/// Ends when the pool is gone.
async fn rounds(pool: Weak<Inner>) {
    loop {
        tokio::time::sleep(PERIOD).await;
        let Some(inner) = pool.upgrade() else { return };
        let members = inner.members.list();
        let silence_max = inner.config.silence_max;
        drop(inner);
        let answered = futures::future::join_all(members.iter().map(|member| answers(member, silence_max))).await;
        // A whole cluster that is silent is left alone: there is nobody better.
        if answered.iter().any(|&answered| answered) {
            for (member, _) in members.iter().zip(&answered).filter(|(_, answered)| !**answered) {
                warn!(endpoint = %member.endpoint(), "member holds its connection but does not answer, using others");
                member.eject("does not answer");
            }
        }
    }
}

/// Whether the member says anything at all in time. One without an open connection needs no probe.
async fn answers(member: &Member, silence_max: Duration) -> bool {
    let Some(connection) = Lane::ALL.iter().find_map(|&lane| member.open_connection(lane)) else { return true };
    let head = Head::grpc("/grpc.health.v1.Health/Check", HeaderMap::new());
    let ask = async {
        let Ok((answer, mut send)) = connection.start(head.to_request(member.endpoint()), false).await else { return };
        if send.send_data(Bytes::from_static(EMPTY_MESSAGE), true).is_ok() {
            // Any answer will do, an error too: somebody is there.
            let _ = answer.await;
        }
    };
    tokio::time::timeout(silence_max, ask).await.is_ok()
}
