use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, info};

use super::lease_clock::{LeaseClock, checkpoint_request};
use super::lease_driver::LeaseDriver;
use super::metrics::CoreMetrics;
use super::proposer::Proposer;
use super::read_index::ReadIndex;
use crate::core::lease::DueCheckpoint;
use crate::core::raft::RaftHandle;
use crate::pb::etcdserverpb::LeaseRevokeRequest;
use crate::shutdown::Tasks;
use crate::types::{LeaseId, Term};

/// Pause between checks for expired leases.
const EXPIRY_PERIOD: Duration = Duration::from_millis(200);
/// Pause between checks for leases whose remaining time is to be recorded.
const CHECKPOINT_PERIOD: Duration = Duration::from_millis(500);
/// Pause before a leader that could not confirm its leadership tries again.
const CONFIRM_RETRY: Duration = Duration::from_millis(50);

/// What the leader needs to end leases.
pub(super) struct LeaseExpiry {
    pub(super) raft: RaftHandle,
    pub(super) clock: Arc<LeaseClock>,
    pub(super) reads: Arc<ReadIndex>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) metrics: Arc<CoreMetrics>,
}

/// Follows leadership: deadlines count on the leader only, and the leader revokes what has run out.
pub(super) async fn run(expiry: LeaseExpiry, extend: Duration, tasks: Tasks) {
    let stop = tasks.stop_signal();
    let mut status = expiry.raft.status();
    let mut driver = LeaseDriver::new(expiry.clock.clone(), extend);
    let (mut looks, mut checkpoints) = (interval(EXPIRY_PERIOD), interval(CHECKPOINT_PERIOD));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    checkpoints.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut revokes = FuturesUnordered::new();
    loop {
        let led = driver.term();
        if driver.follow(&status.borrow_and_update()) {
            revokes.clear();
            if let Some(term) = led {
                info!(%term, "lease deadlines end with the leadership");
            }
        }
        let term = driver.term().unwrap_or_default();
        revokes.extend(driver.expired().into_iter().map(|lease| revoke(&expiry, term, lease)));
        tokio::select! {
            // In this order: with the leadership go the deadlines, whatever else is ready.
            biased;
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
            () = confirm(&expiry, term), if driver.wants_confirmation() => {
                if driver.confirmed(&expiry.raft.status().borrow()) {
                    info!(%term, "lease deadlines begin with the leadership");
                }
            }
            _ = looks.tick(), if driver.is_leading() => driver.look(),
            _ = checkpoints.tick(), if driver.is_leading() => {
                driver.checkpoint(|term, due| propose_checkpoints(&expiry, term, due));
            }
            Some(()) = revokes.next() => driver.revoked(),
        }
    }
}

/// Completes after a linearizable read.
async fn confirm(expiry: &LeaseExpiry, term: Term) {
    while let Err(error) = expiry.reads.linearizable().await {
        debug!(%term, %error, "leadership is not confirmed yet");
        sleep(CONFIRM_RETRY).await;
    }
}

/// Proposes to revoke a lease that has run out. One that fails comes up again later.
async fn revoke(expiry: &LeaseExpiry, term: Term, lease: LeaseId) {
    match expiry.proposer.propose_as_leader(LeaseRevokeRequest { id: lease.0 }, term).await {
        Ok(_) => expiry.metrics.lease.expired.inc(),
        Err(error) => debug!(%lease, %error, "expired lease not revoked yet"),
    }
}

/// Nobody waits for the outcome: a checkpoint that is lost is made up for by the next one.
fn propose_checkpoints(expiry: &LeaseExpiry, term: Term, due: Vec<DueCheckpoint>) {
    let noted = due.into_iter().map(|due| (due.lease, due.remaining_ttl));
    if let Err(error) = expiry.proposer.send_as_leader(checkpoint_request(noted), term) {
        debug!(%term, %error, "rest of leases not recorded");
    }
}
