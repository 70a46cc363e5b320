use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::http::linearizable_read;
use crate::client::{EndpointState, Pool};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// Between two looks at a cluster that answers, and at one that does not.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Tells `grpc.health.v1` whether to pause: true until the cluster answers a linearizable read, whenever it does not answer
/// one, and once the proxy stops. The metrics say the same, and how far each endpoint of the pool is used.
pub fn pause_without_cluster(pool: Pool, metrics: &Metrics, tasks: &Tasks) -> watch::Receiver<bool> {
    let (paused, seen) = watch::channel(true);
    register(&pool, &seen, metrics);
    let stop = tasks.stop_signal();
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow(&pool, &paused) => {}
        }
        paused.send_replace(true);
    });
    seen
}

fn register(pool: &Pool, paused: &watch::Receiver<bool>, metrics: &Metrics) {
    let answers = metrics.gauge("watershed_proxy_cluster_answers", "Whether the cluster answers linearizable reads.");
    let endpoints = metrics.gauge_vec("watershed_proxy_upstream_endpoints", "Endpoints, by state.", &["state"]);
    let (pool, paused) = (pool.clone(), paused.clone());
    metrics.before_render(move || {
        answers.set(i64::from(!*paused.borrow()));
        let report = pool.report();
        for state in EndpointState::ALL {
            let count = report.iter().filter(|endpoint| endpoint.state == state).count();
            endpoints.with_label_values(&[state.label()]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    });
}

async fn follow(pool: &Pool, paused: &watch::Sender<bool>) {
    loop {
        let outcome = linearizable_read(pool).await;
        let changed = paused.send_if_modified(|paused| std::mem::replace(paused, outcome.is_err()) != outcome.is_err());
        match &outcome {
            Ok(()) if changed => info!("the cluster answers: the gRPC health service says so"),
            Err(reason) if changed => warn!(reason, "the cluster does not answer: the gRPC health service says so"),
            _ => {}
        }
        sleep(if outcome.is_ok() { LOOK_EVERY } else { LOOK_AGAIN }).await;
    }
}
