use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::dial::Dialer;
use super::upstreams::Upstream;
use crate::net::Backoff;

/// Pause before the first check of an endpoint that went down; doubled after each failed one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause while no endpoint at all is live.
const PAUSE_WITHOUT_ANY: Duration = Duration::from_secs(1);
/// How long a connection that an endpoint took counts as proof of its health.
const EVIDENCE_MAX: Duration = Duration::from_secs(1);

/// Looks after one endpoint until it leaves the list: sleeps while it is up, asks with growing pauses while it is
/// down.
pub(super) async fn watch_over(
    upstream: Arc<Upstream>,
    dialer: Arc<Dialer>,
    pause_max: Duration,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(FIRST_PAUSE, pause_max);
    while !upstream.is_removed() {
        if !upstream.is_down() {
            backoff.reset();
            tokio::select! {
                () = stop.cancelled() => return,
                () = upstream.changed.notified() => continue,
            }
        }
        backoff.set_max(if dialer.upstreams.any_live() { pause_max } else { pause_max.min(PAUSE_WITHOUT_ANY) });
        tokio::select! {
            () = stop.cancelled() => return,
            // A client found it alive, or it left the list.
            () = upstream.changed.notified() => continue,
            () = tokio::time::sleep(backoff.pause()) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            // The outcome is noted where clients note theirs; the connection itself is not needed.
            _ = dialer.try_one(&upstream) => {}
        }
    }
}

/// Whether a client that came now would be served: an endpoint took a connection a moment ago, or takes one now.
/// `Err` has the reasons.
///
/// A check costs a connection to each endpoint that took none lately, so it is made on request, and concurrent requests
/// share it.
pub(super) async fn health(dialer: &Dialer) -> Result<(), String> {
    let _one_at_a_time = dialer.checking.lock().await;
    let list = dialer.upstreams.list();
    // What is down is looked at in the background all the time.
    let (down, live): (Vec<_>, Vec<_>) = list.iter().partition(|upstream| upstream.is_down());
    if live.iter().any(|upstream| upstream.took_within(EVIDENCE_MAX)) {
        return Ok(());
    }
    let mut reasons: Vec<_> = down.iter().map(|upstream| (upstream.address(), upstream.reason())).collect();
    let mut attempts: FuturesUnordered<_> =
        live.iter().map(async |upstream| (upstream.address(), dialer.try_one(upstream).await)).collect();
    while let Some((address, outcome)) = attempts.next().await {
        match outcome {
            Ok(_) => return Ok(()),
            Err(error) => reasons.push((address, error.to_string())),
        }
    }
    Err(reasons.iter().map(|(address, reason)| format!("{address}: {reason}")).collect::<Vec<_>>().join("; "))
}
