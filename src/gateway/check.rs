use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::dial::Dialer;
use super::upstreams::Upstream;

/// Pause before the first look at an endpoint that went down; doubled after each vain one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause while no endpoint at all is live.
const PAUSE_WITHOUT_ANY: Duration = Duration::from_secs(1);

/// Looks after one endpoint until it leaves the list: sleeps while it is up, asks with growing pauses while it is
/// down.
pub(super) async fn watch_over(
    upstream: Arc<Upstream>,
    dialer: Arc<Dialer>,
    pause_max: Duration,
    stop: CancellationToken,
) {
    let mut pause = FIRST_PAUSE;
    while !upstream.is_removed() {
        if !upstream.is_down() {
            pause = FIRST_PAUSE;
            tokio::select! {
                () = stop.cancelled() => return,
                () = upstream.changed.notified() => continue,
            }
        }
        let limit = if dialer.upstreams.any_live() { pause_max } else { pause_max.min(PAUSE_WITHOUT_ANY) };
        pause = pause.min(limit);
        tokio::select! {
            () = stop.cancelled() => return,
            // A client found it alive, or it left the list.
            () = upstream.changed.notified() => continue,
            () = tokio::time::sleep(jittered(pause)) => {}
        }
        pause *= 2;
        tokio::select! {
            () = stop.cancelled() => return,
            // The outcome is noted where clients note theirs; the connection itself is not needed.
            _ = dialer.try_one(&upstream) => {}
        }
    }
}

/// Between three quarters and all of the pause, so that many gateways do not ask in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + fastrand::f64() / 4.0)
}
