use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use super::cause::Cause;
use super::dial::Dialer;
use super::loops::until_no_loop;
use super::probe::Probe;
use super::upstream::Upstream;
use super::upstreams::Upstreams;
use crate::net::Backoff;
use crate::shutdown::Tasks;

/// Pause after a failed check of an endpoint that is up, and before the first one of an endpoint that went down; doubled after
/// each failed one then.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Pause before an endpoint from which connections came back is asked whether they still do; doubled after each.
const LOOP_PAUSE: Duration = Duration::from_secs(1);
/// Shortest wait for the answer to a check after which others are preferred. Answers of a member on the same continent are there by
/// then.
const SUSPECT_AFTER: Duration = Duration::from_millis(250);
/// The same as a multiple of the time in which the endpoint usually answers.
const USUAL_TIMES: u32 = 4;
/// What is left of that time after a check that was answered at once.
const USUAL_KEPT: f64 = 0.9;
/// Longest pause while no endpoint at all is live.
const PAUSE_WITHOUT_ANY: Duration = Duration::from_secs(1);
/// How long a connection that an endpoint took counts as proof of its health.
const EVIDENCE_MAX: Duration = Duration::from_secs(1);

/// How endpoints are looked after.
#[derive(Clone, Debug)]
pub(super) struct Care {
    /// Longest pause between two checks of an endpoint that is down.
    pub(super) pause_max: Duration,
    /// Time that connections get to end once their endpoint has left the list.
    pub(super) drain: Duration,
    /// Health checks; without them a connection that is taken is enough, and endpoints that are up are not asked.
    pub(super) health: Option<HealthChecks>,
}

/// Health checks of an endpoint, up or down.
#[derive(Clone, Debug)]
pub(super) struct HealthChecks {
    pub(super) probe: Probe,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    /// Checks in a row that an endpoint must pass to be used again.
    pub(super) rise: u32,
    /// Checks in a row that it must fail to be left out. One that has never passed is left out after the first.
    pub(super) fall: u32,
}

/// Looks after one endpoint until it has left the list and its connections are closed.
pub(super) async fn watch_over(
    upstream: Arc<Upstream>,
    upstreams: Arc<Upstreams>,
    dialer: Arc<Dialer>,
    care: Care,
    tasks: Tasks,
) {
    let stop = tasks.stop_signal();
    // Longer for each loop that is found: two gateways that lead to each other must not find that out over and over.
    let mut loop_pauses = Backoff::new(LOOP_PAUSE, care.pause_max.max(LOOP_PAUSE));
    loop {
        let listed = async {
            match &care.health {
                _ if upstream.is_looped() => until_no_loop(&dialer, &upstream, &mut loop_pauses).await,
                Some(checks) => check_health(&upstream, &dialer, checks, &tasks).await,
                None => find_again(&upstream, &upstreams, &dialer, care.pause_max).await,
            }
        };
        tokio::select! { () = stop.cancelled() => return, () = listed => {} }
        if !upstream.is_removed() {
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            // It may have returned to the list.
            () = upstream.changed.notified() => continue,
            () = tokio::time::sleep(care.drain) => {}
        }
        if upstreams.forget(&upstream) {
            upstream.close_all("endpoint is no longer listed");
            return;
        }
    }
}

/// Sleeps while the endpoint is up, asks with growing pauses while it is down. Ready when it is no longer listed, or a loop has been
/// found.
async fn find_again(upstream: &Upstream, upstreams: &Upstreams, dialer: &Dialer, pause_max: Duration) {
    let mut backoff = Backoff::new(FIRST_PAUSE, pause_max);
    while !upstream.is_removed() && !upstream.is_looped() {
        if !upstream.is_down() {
            backoff.reset();
            upstream.changed.notified().await;
            continue;
        }
        backoff.set_max(if upstreams.any_live() { pause_max } else { pause_max.min(PAUSE_WITHOUT_ANY) });
        tokio::select! {
            // A client found it alive, or it left the list.
            () = upstream.changed.notified() => continue,
            () = tokio::time::sleep(backoff.pause()) => {}
        }
        // The outcome is noted where clients note theirs; the connection itself is not needed.
        let _ = dialer.try_one(upstream).await;
    }
}

/// Asks at the interval while the endpoint is up, more often at first while it is down. Ready when it is no longer
/// listed, or a loop has been found.
async fn check_health(upstream: &Upstream, dialer: &Dialer, checks: &HealthChecks, tasks: &Tasks) {
    let mut backoff = Backoff::new(FIRST_PAUSE.min(checks.interval), checks.interval);
    let (mut passed, mut failed, mut ever_passed) = (0_u32, 0_u32, false);
    // How long an answer takes.
    let mut usual = Duration::ZERO;
    while !upstream.is_removed() && !upstream.is_looped() {
        let started = Instant::now();
        match ask(upstream, dialer, checks, usual, tasks).await {
            Ok(()) => {
                upstream.set_suspect(false);
                // One that is slow now and then is not suspected the next time.
                usual = started.elapsed().max(usual.mul_f64(USUAL_KEPT));
                (passed, failed, ever_passed) = (passed.saturating_add(1), 0, true);
                if passed >= checks.rise {
                    upstream.mark_up();
                }
            }
            Err(reason) => {
                (passed, failed) = (0, failed.saturating_add(1));
                upstream.set_suspect(true);
                upstream.metrics.check_failures.inc();
                if failed >= checks.fall || !ever_passed {
                    upstream.mark_down(Cause::Check, &reason);
                }
            }
        }
        let was_down = upstream.is_down();
        if !was_down {
            backoff.reset();
        }
        let pause = match (was_down, failed) {
            (true, _) => backoff.pause(),
            // Drawn from a range, so that gateways that started together do not ask together.
            (false, 0) => checks.interval.mul_f64(0.9 + fastrand::f64() / 5.0),
            // What failed once is soon known for sure: until then it gets connections that are not served.
            (false, _) => FIRST_PAUSE.min(checks.interval),
        };
        let pause = tokio::time::sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = upstream.changed.notified() => {}
                () = &mut pause => break,
            }
            if upstream.is_removed() || upstream.is_looped() {
                return;
            }
            if upstream.is_down() && !was_down {
                // A client was refused: it is asked at once, and must pass anew.
                passed = 0;
                break;
            }
        }
    }
}

/// One check. An endpoint that lets it wait for much longer than is usual there is suspect from then on.
async fn ask(
    upstream: &Upstream,
    dialer: &Dialer,
    checks: &HealthChecks,
    usual: Duration,
    tasks: &Tasks,
) -> Result<(), String> {
    let answer = checks.probe.ask(upstream, dialer, tasks);
    let late = async {
        tokio::time::sleep(SUSPECT_AFTER.max(usual * USUAL_TIMES)).await;
        upstream.set_suspect(true);
        std::future::pending().await
    };
    let outcome = tokio::time::timeout(checks.timeout, async {
        tokio::select! {
            outcome = answer => outcome,
            never = late => never,
        }
    });
    outcome.await.unwrap_or_else(|_| Err(format!("no answer within {:?}", checks.timeout)))
}

/// Whether a client that came now would be served, on one of the routes: an endpoint took a connection a moment ago, or takes one now.
/// `Err` has the reasons.
///
/// A check costs a connection to each endpoint that took none lately, so it is made on request, and concurrent requests
/// share it.
pub(super) async fn health(dialer: &Dialer) -> Result<(), String> {
    let _one_at_a_time = dialer.checking.lock().await;
    let list = dialer.routes.load().endpoints();
    // What is down is looked at in the background all the time.
    let (down, live): (Vec<_>, Vec<_>) =
        list.iter().map(|listed| &listed.upstream).partition(|upstream| upstream.is_down());
    if live.iter().any(|upstream| upstream.is_proven() || upstream.took_within(EVIDENCE_MAX)) {
        return Ok(());
    }
    let mut reasons: Vec<_> = down.iter().map(|upstream| (upstream.endpoint(), upstream.reason())).collect();
    let mut attempts: FuturesUnordered<_> =
        live.iter().map(async |upstream| (upstream.endpoint(), dialer.try_one(upstream).await)).collect();
    while let Some((endpoint, outcome)) = attempts.next().await {
        match outcome {
            Ok(_) => return Ok(()),
            Err(error) => reasons.push((endpoint, error.to_string())),
        }
    }
    Err(reasons.iter().map(|(endpoint, reason)| format!("{endpoint}: {reason}")).collect::<Vec<_>>().join("; "))
}
