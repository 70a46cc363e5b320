use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::dial::Dialer;
use super::listener::Accept;
use super::loop_questions::Growth;
use super::metrics::GatewayMetrics;
use super::worker::Worker;
use crate::net::{connections_within, descriptor_limit};

/// Pause after an error that only time or the end of other connections cures.
const PAUSE: Duration = Duration::from_millis(50);
/// At most one log line about accept errors in this time.
const LOG_PERIOD: Duration = Duration::from_secs(10);
/// Descriptors that client connections leave to listeners, runtimes, pipes, metrics and checks.
const RESERVE_MIN: u64 = 24;
const RESERVE_MAX: u64 = 1024;

/// Where accepted connections go, and how many.
pub(super) struct Door {
    pub(super) workers: Arc<[Worker]>,
    pub(super) dialer: Arc<Dialer>,
    pub(super) metrics: Arc<GatewayMetrics>,
    pub(super) connections_max: usize,
}

/// Accepts until `stop` and gives each connection to the serving thread with the fewest. No error ends it and
/// none makes it spin.
///
/// A connection beyond the bound is reset, not left to wait: where gateways lead to one another and do not find it out, every one that
/// waits is the far end of another one that is open, and none would ever end.
pub(super) async fn accept_loop(mut listener: impl Accept, door: Door, stop: CancellationToken) {
    let Door { workers, dialer, metrics, connections_max } = door;
    let (mut last_log, mut growth): (Option<Instant>, _) = (None, Growth::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let error = match accepted {
            Ok(client) => {
                metrics.accepted.inc();
                let open = workers.iter().map(Worker::open).sum::<usize>();
                if open >= connections_max {
                    client.refuse();
                    metrics.refused_at_bound.inc();
                    if is_due(&mut last_log) {
                        dialer.loops.want();
                        warn!(
                            error = "as many connections are open as --max-connections or the descriptor limit allows",
                            connections = open,
                            "connection not accepted"
                        );
                    }
                    continue;
                }
                if growth.is_due(open) {
                    dialer.loops.want();
                }
                if let Some(worker) = workers.iter().min_by_key(|worker| worker.open()) {
                    worker.hand_over(client).await;
                }
                continue;
            }
            Err(error) => error,
        };
        metrics.accept_errors.inc();
        if is_due(&mut last_log) {
            warn!(%error, "connection not accepted");
        }
        if !concerns_one_connection(&error) {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
}

fn is_due(last_log: &mut Option<Instant>) -> bool {
    let due = last_log.is_none_or(|at| at.elapsed() >= LOG_PERIOD);
    if due {
        *last_log = Some(Instant::now());
    }
    due
}

/// Connections that fit into the descriptor limit, two descriptors each, with a reserve for everything else.
pub(super) fn connections_max() -> usize {
    let limit = descriptor_limit();
    connections_within(limit, (limit / 8).clamp(RESERVE_MIN, RESERVE_MAX), 2).max(1)
}

/// Whether the error took its connection with it, so that the next one may be fine.
fn concerns_one_connection(error: &io::Error) -> bool {
    let codes = [Errno::CONNABORTED, Errno::INTR, Errno::PROTO, Errno::PERM];
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}
