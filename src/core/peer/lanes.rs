//! Keeps the lanes to one peer connected.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::calls::Calls;
use super::dial::{DialError, Dialed, dial_any};
use super::frame::{ConnectionError, Frame};
use super::hello::{Purpose, Refusal};
use super::link::Link;
use super::outgoing::{Ended, Next, pump};
use super::queue::Messages;
use super::transport::Shared;
use crate::types::MemberId;

/// An attempt to connect is not overtaken before.
const DIAL_PATIENCE: Duration = Duration::from_millis(500);

/// Pauses that double up to a bound, shortened by chance so that members do not dial in step.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new((first, longest): (Duration, Duration)) -> Self {
        Self { first, longest, next: first }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(self.longest);
        pause
    }
}

/// Connects one lane to a peer, again and again, until the peer is none any more.
pub(super) async fn keep_connected(shared: Arc<Shared>, link: Arc<Link>, purpose: Purpose) {
    let ended = link.ended.clone();
    ended.run_until_cancelled(keep(&shared, &link, purpose)).await;
}

async fn keep(shared: &Shared, link: &Link, purpose: Purpose) {
    let limits = &shared.config.limits;
    let mut backoff = Backoff::new(limits.backoff);
    // Why the peer could not be reached, as the log says it: another cause is news.
    let mut told = None;
    loop {
        let urls = link.urls.load_full();
        let hello = shared.hello(link.peer, purpose);
        let dialling = dial_any(&urls, hello, shared.config.tls.as_ref(), limits.handshake_timeout);
        // A packet lost while the link was down makes an attempt slow; when the peer gets through to us, a new one is
        // quick.
        let overtaken = async {
            tokio::time::sleep(DIAL_PATIENCE).await;
            link.redial.notified().await;
        };
        let dialed = tokio::select! {
            dialed = dialling => dialed,
            () = overtaken => continue,
        };
        match dialed {
            Ok(dialed) => {
                info!(peer = %link.peer, lane = %purpose, "established TCP streaming connection with remote peer");
                let ended = run(shared, link, purpose, dialed).await;
                if ended.worked {
                    backoff.reset();
                    told = None;
                }
                if let Err(error) = ended.outcome {
                    warn!(peer = %link.peer, lane = %purpose, %error, "lost TCP streaming connection with remote peer");
                    if purpose == Purpose::Control {
                        warn!(peer = %link.peer, %error, "peer became inactive");
                    }
                }
            }
            Err(error) => {
                if matches!(error, DialError::Refused(Refusal::Removed)) {
                    shared.receiver.removed(link.peer);
                }
                let cause = Some(error.to_string());
                if purpose == Purpose::Control && told != cause {
                    tell(shared, link.peer, &urls, &error);
                    told = cause;
                }
            }
        }
        lost(shared, link, purpose);
        tokio::select! {
            () = tokio::time::sleep(backoff.pause()) => {}
            () = link.redial.notified() => backoff.reset(),
        }
    }
}

fn tell(shared: &Shared, peer: MemberId, urls: &[String], error: &DialError) {
    match error {
        DialError::OtherCluster { theirs } => {
            let theirs = theirs.map(|cluster| cluster.to_string());
            let own = shared.config.cluster;
            warn!(%peer, ?urls, theirs, %own, "request sent was ignored by remote peer due to cluster ID mismatch");
        }
        error => warn!(%peer, ?urls, %error, "peer cannot be reached"),
    }
}

async fn run(shared: &Shared, link: &Link, purpose: Purpose, dialed: Dialed) -> Ended {
    let limits = &shared.config.limits;
    let batch_bytes_max = limits.batch_bytes_max;
    let no_frames = |frame: Frame| Err::<Next, _>(ConnectionError::Unexpected(frame.kind));
    let mut counts = link.counts.clone();
    match purpose {
        Purpose::Control => {
            let _active = link.activate();
            info!(peer = %link.peer, "peer became active");
            let source = Messages { queue: &link.control, batch_bytes_max };
            pump(dialed, source, limits, &counts, no_frames).await
        }
        Purpose::Append => {
            counts.round_trip = None;
            let source = Messages { queue: &link.append, batch_bytes_max };
            pump(dialed, source, limits, &counts, no_frames).await
        }
        Purpose::Calls | Purpose::Snapshot => {
            counts.round_trip = None;
            let source = Calls { queue: &link.calls, batch_bytes_max };
            pump(dialed, source, limits, &counts, |frame| link.calls.on_frame(frame)).await
        }
    }
}

/// What a broken connection, or none, means for those who wait.
fn lost(shared: &Shared, link: &Link, purpose: Purpose) {
    link.sent_failures.inc();
    match purpose {
        Purpose::Append => {
            // Some of what was sent may be lost, and the rest is useless without it.
            link.sent_failures.inc_by(link.append.clear() as u64);
            shared.receiver.unreachable(link.peer);
        }
        Purpose::Calls => link.calls.broke(),
        Purpose::Control | Purpose::Snapshot => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_start_over() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new((ms(20), ms(1000)));
        let bounds = [20, 40, 80, 160, 320, 640, 1000, 1000];
        for bound in bounds {
            let pause = backoff.pause();
            assert!(ms(bound / 2) <= pause && pause <= ms(bound), "{pause:?} for {bound}");
        }
        backoff.reset();
        assert!(backoff.pause() <= ms(20));
    }
}
