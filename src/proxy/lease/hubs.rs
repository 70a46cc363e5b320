use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::hub::{Hub, Seat};
use crate::api_error::ApiError;
use crate::client::Pool;
use crate::proxy::Identity;
use crate::shutdown::Tasks;

/// Identities with a hub at once; the streams of further ones go to a member each by itself.
const HUBS_MAX: usize = 1024;

/// The hubs of one serving thread. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct LeaseHubs {
    pool: Pool,
    tasks: Tasks,
    hubs: Arc<Mutex<HashMap<Identity, Arc<Hub>>>>,
}

impl LeaseHubs {
    pub(in crate::proxy) fn new(pool: Pool, tasks: Tasks) -> Self {
        Self { pool, tasks, hubs: Arc::default() }
    }

    /// A place in the identity's hub; none while there are too many.
    pub(super) fn join(&self, identity: Identity) -> Option<Seat> {
        let mut hubs = self.hubs.lock();
        if let Some(hub) = hubs.get(&identity) {
            return Some(hub.join());
        }
        if hubs.len() >= HUBS_MAX {
            return None;
        }
        let hub = Hub::new(identity.clone());
        let seat = hub.join();
        hubs.insert(identity, hub.clone());
        drop(hubs);
        let this = self.clone();
        let stop = self.tasks.stop_signal();
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => {
                        hub.end_all(&ApiError::Stopped.into());
                        return;
                    }
                    () = hub.run(&this.pool) => {}
                }
                // Under the lock nobody can join, so an empty hub stays empty.
                let mut hubs = this.hubs.lock();
                if hub.clients() == 0 {
                    hubs.remove(hub.identity());
                    return;
                }
            }
        });
        Some(seat)
    }
}
