use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use super::cause::Cause;
use super::dial::Dialer;
use super::loops::until_no_loop;
use super::probe::{Probe, ProbeError};
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
    let mut outcomes = Outcomes::default();
    // How long an answer takes.
    let mut usual = Duration::ZERO;
    while !upstream.is_removed() && !upstream.is_looped() {
        let started = Instant::now();
        let outcome = ask(upstream, dialer, checks, usual, tasks).await;
        if outcome.is_ok() {
            // One that is slow now and then is not suspected the next time.
            usual = started.elapsed().max(usual.mul_f64(USUAL_KEPT));
        }
        let was_shortage = outcome.as_ref().is_err_and(ProbeError::is_our_shortage);
        outcomes.note(outcome, upstream, checks);
        let was_down = upstream.is_down();
        if !was_down {
            backoff.reset();
        }
        let pause = match (was_down, outcomes.failed) {
            (true, _) => backoff.pause(),
            // What failed once is soon known for sure: until then it gets connections that are not served.
            (false, 1..) if !was_shortage => FIRST_PAUSE.min(checks.interval),
            // Drawn from a range, so that gateways that started together do not ask together.
            (false, _) => checks.interval.mul_f64(0.9 + fastrand::f64() / 5.0),
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
                outcomes.passed = 0;
                break;
            }
        }
    }
}

/// What the checks of an endpoint have found, as far as it decides whether the endpoint is used.
#[derive(Debug, Default)]
struct Outcomes {
    /// In a row.
    passed: u32,
    /// In a row.
    failed: u32,
    ever_passed: bool,
}

impl Outcomes {
    /// Counts a check, and marks the endpoint when it is one too many.
    fn note(&mut self, outcome: Result<(), ProbeError>, upstream: &Upstream, checks: &HealthChecks) {
        match outcome {
            Ok(()) => {
                upstream.set_suspect(false);
                (self.passed, self.failed, self.ever_passed) = (self.passed.saturating_add(1), 0, true);
                if self.passed >= checks.rise {
                    upstream.mark_up();
                }
            }
            // The endpoint was not asked: what is known of it still holds.
            Err(reason) if reason.is_our_shortage() => {}
            Err(reason) => {
                (self.passed, self.failed) = (0, self.failed.saturating_add(1));
                upstream.set_suspect(true);
                upstream.metrics.check_failures.inc();
                if self.failed >= checks.fall || !self.ever_passed {
                    upstream.mark_down(Cause::Check, &reason.to_string());
                }
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
) -> Result<(), ProbeError> {
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
    let too_slow = || ProbeError::Answer(format!("no answer within {:?}", checks.timeout));
    outcome.await.unwrap_or_else(|_| Err(too_slow()))
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

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::super::balance::Division;
    use super::super::metrics::GatewayMetrics;
    use super::*;
    use crate::config::Balance;
    use crate::telemetry::Metrics;

    const CHECKS: HealthChecks = HealthChecks {
        probe: Probe::Connect,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 2,
    };

    /// An endpoint after these checks: whether it is up, whether it is suspect, and how many it has failed.
    fn after(outcomes: impl IntoIterator<Item = Result<(), ProbeError>>) -> (bool, bool, u64) {
        let division =
            Division { balance: Balance::Listed, slow_start: Duration::ZERO, closes_when_down: true, checked: true };
        let metrics = GatewayMetrics::register(&Metrics::new());
        let upstream = Upstream::new("a:1".parse().unwrap(), &division, &metrics);
        let mut found = Outcomes::default();
        outcomes.into_iter().for_each(|outcome| found.note(outcome, &upstream, &CHECKS));
        (!upstream.is_down(), upstream.is_suspect(), upstream.metrics.check_failures.get())
    }

    fn connect(code: Errno) -> Result<(), ProbeError> {
        Err(ProbeError::Connect(code.into()))
    }

    #[test]
    fn a_shortage_on_this_side_is_no_failed_check() {
        // Cause: a second without descriptors took all endpoints out, and with --on-eject=close reset every connection.
        for code in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL] {
            let short = || (0..10).map(|_| connect(code));
            assert_eq!(after(short()), (true, false, 0), "{code}, not asked yet");
            assert_eq!(after([Ok(())].into_iter().chain(short())), (true, false, 0), "{code}");
            // What was found before and after counts as if nothing had been between.
            let failed = || [Err(ProbeError::Answer("HTTP status 503".to_owned()))];
            let passed_then_failed = || [Ok(())].into_iter().chain(failed()).chain(short());
            assert_eq!(after(passed_then_failed()), (true, true, 1), "{code}");
            assert_eq!(after(passed_then_failed().chain(failed())), (false, true, 2), "{code}");
            let back = failed().into_iter().chain([Ok(())]).chain(short()).chain([Ok(())]);
            assert_eq!(after(back), (true, false, 1), "{code}");
        }
    }

    #[test]
    fn what_an_endpoint_answers_counts() {
        assert_eq!(after([connect(Errno::CONNREFUSED)]), (false, true, 1), "it has never passed");
        assert_eq!(after([Ok(()), connect(Errno::CONNREFUSED)]), (true, true, 1));
        assert_eq!(after([Ok(()), connect(Errno::CONNREFUSED), connect(Errno::TIMEDOUT)]), (false, true, 2));
        // Where this host has no address of the family of the endpoint, that is no shortage.
        let no_way = || Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "this host has no address").into());
        assert_eq!(after([Ok(()), no_way(), no_way()]), (false, true, 2));
    }
}
