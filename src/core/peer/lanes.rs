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
use crate::net::Backoff;
use crate::types::MemberId;

/// An attempt to connect is not overtaken before.
const DIAL_PATIENCE: Duration = Duration::from_millis(500);

/// Connects one lane to a peer, again and again, until the peer is none any more.
pub(super) async fn keep_connected(shared: Arc<Shared>, link: Arc<Link>, purpose: Purpose) {
    let ended = link.ended.clone();
    ended.run_until_cancelled(keep(&shared, &link, purpose)).await;
}

async fn keep(shared: &Shared, link: &Link, purpose: Purpose) {
    let limits = &shared.config.limits;
    let mut backoff = Backoff::new(limits.backoff.0, limits.backoff.1);
    // The cause that was last logged; only another cause is logged again.
    let mut told = None;
    loop {
        let urls = link.urls.load_full();
        let hello = shared.hello(link.peer, purpose);
        let dialling = dial_any(&urls, hello, &shared.config.dialer, limits.handshake_timeout);
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

/// Reports a lost connection to what waits for it.
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
