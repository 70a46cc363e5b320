use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tracing::{debug, info};

use super::core::Core;
use crate::core::apply::LeaseFact;
use crate::core::lease::{LeaseStore, Lessor, RenewError, Renewed};
use crate::pb::etcdserverpb::{InternalRaftRequest, LeaseRevokeRequest};
use crate::shutdown::Tasks;
use crate::types::LeaseId;

/// Pause between looks for leases that have run out.
const EXPIRY_PERIOD: Duration = Duration::from_millis(200);
/// Leases revoked per look.
const EXPIRED_MAX: usize = 1000;
/// Revocations under way at once.
const REVOKES_IN_FLIGHT: usize = 64;

/// Leases as the services see them: what apply knows, and the leader's deadlines.
///
/// Time enters here and nowhere deeper: the lessor counts from this object's start.
pub struct LeaseClock {
    /// What exists, with attached keys. Changed by apply only.
    pub store: Arc<RwLock<LeaseStore>>,
    lessor: Mutex<Lessor>,
    started: Instant,
    /// Counts revocations, for those who wait for one.
    revoked: watch::Sender<u64>,
}

impl LeaseClock {
    /// Starts the clock over leases that exist already; deadlines begin with [`promote`](Self::promote).
    pub fn new(store: Arc<RwLock<LeaseStore>>, lessor: Lessor) -> Self {
        Self { store, lessor: Mutex::new(lessor), started: Instant::now(), revoked: watch::channel(0).0 }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// This member leads from now on: every lease gets its full time, plus `extend`.
    pub fn promote(&self, extend: Duration) {
        self.lessor.lock().promote(self.now(), extend);
    }

    /// This member leads no more.
    pub fn demote(&self) {
        self.lessor.lock().demote();
    }

    /// Takes over what apply did to leases.
    pub fn apply_facts(&self, facts: &[LeaseFact]) {
        if facts.is_empty() {
            return;
        }
        let now = self.now();
        let mut revoked = false;
        let mut lessor = self.lessor.lock();
        for fact in facts {
            match *fact {
                LeaseFact::Granted(lease) => lessor.granted(lease, now),
                LeaseFact::Revoked(id) => {
                    lessor.revoked(id);
                    revoked = true;
                }
            }
        }
        drop(lessor);
        if revoked {
            self.revoked.send_modify(|count| *count += 1);
        }
    }

    /// Gives a lease its full time again.
    ///
    /// # Errors
    /// See [`RenewError`].
    pub fn renew(&self, id: LeaseId) -> Result<Renewed, RenewError> {
        self.lessor.lock().renew(id, self.now())
    }

    /// Time left; none for an unknown lease.
    pub fn remaining(&self, id: LeaseId) -> Option<Duration> {
        self.lessor.lock().remaining(id, self.now())
    }

    /// All leases, the next to expire first.
    pub fn by_remaining_time(&self) -> Vec<LeaseId> {
        self.lessor.lock().by_remaining()
    }

    /// Changes whenever a lease is revoked.
    pub fn revocations(&self) -> watch::Receiver<u64> {
        self.revoked.subscribe()
    }

    fn expired(&self) -> Vec<LeaseId> {
        self.lessor.lock().expired(self.now(), EXPIRED_MAX)
    }
}

/// Follows leadership: deadlines count on the leader only, and the leader revokes what has run out.
pub async fn run(core: Arc<Core>, extend: Duration, tasks: Tasks) {
    let mut status = core.raft.status();
    let stop = tasks.stop_signal();
    let mut leading = false;
    let mut ticks = tokio::time::interval(EXPIRY_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let leads = status.borrow_and_update().is_leader;
        if leads != leading {
            leading = leads;
            if leading {
                core.leases.promote(extend)
            } else {
                core.leases.demote()
            }
            info!(leading, "lease deadlines follow the leader");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() { return },
            _ = ticks.tick() => if leading { revoke(&core, core.leases.expired()).await },
        }
    }
}

/// Proposes to revoke leases that have run out. One that fails comes up again later.
async fn revoke(core: &Arc<Core>, expired: Vec<LeaseId>) {
    let revokes = expired.into_iter().map(|id| {
        let core = core.clone();
        async move {
            let request = InternalRaftRequest {
                lease_revoke: Some(LeaseRevokeRequest { id: id.0 }),
                ..InternalRaftRequest::default()
            };
            match core.propose(request).await {
                Ok(_) => core.metrics.lease.expired.inc(),
                Err(error) => debug!(lease = %id, %error, "expired lease not revoked yet"),
            }
        }
    });
    futures::stream::iter(revokes).for_each_concurrent(REVOKES_IN_FLIGHT, |revoke| revoke).await;
}
