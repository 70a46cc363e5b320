use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::broadcast::{KeepAliveBroadcast, Subscription};
use crate::api_error::ApiError;
use crate::client::Channel;
use crate::proxy::Identity;
use crate::shutdown::Tasks;

/// Identities whose streams share a broadcast; each stream of further ones has one of its own. Few in tests of this crate.
const SHARED_MAX: usize = if cfg!(test) { 8 } else { 1024 };

/// The broadcasts of all serving threads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KeepAliveBroadcasts {
    /// Of their own runtime, because a stream outlives the clients of any one thread.
    channel: Channel,
    runtime: Handle,
    tasks: Tasks,
    broadcasts: Arc<Mutex<HashMap<Identity, Arc<KeepAliveBroadcast>>>>,
}

impl KeepAliveBroadcasts {
    /// None yet; they will run on the current runtime.
    pub fn new(channel: Channel, tasks: Tasks) -> Self {
        Self { channel, runtime: Handle::current(), tasks, broadcasts: Arc::default() }
    }

    /// Subscribes to the identity's broadcast.
    pub(super) fn join(&self, identity: Identity) -> Subscription {
        let mut broadcasts = self.broadcasts.lock();
        if let Some(broadcast) = broadcasts.get(&identity) {
            return broadcast.join();
        }
        let is_shared = broadcasts.len() < SHARED_MAX;
        let broadcast = KeepAliveBroadcast::new(identity.clone());
        let subscription = broadcast.join();
        if is_shared {
            broadcasts.insert(identity, broadcast.clone());
        }
        drop(broadcasts);
        let this = self.clone();
        let stop = self.tasks.stop_signal();
        let _runtime = self.runtime.enter();
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => {
                        broadcast.end_all(&ApiError::Stopped.into());
                        return;
                    }
                    () = broadcast.run(&this.channel) => {}
                }
                // Under the lock nobody can join, so an empty broadcast stays empty.
                let mut broadcasts = this.broadcasts.lock();
                if broadcast.clients() == 0 {
                    if is_shared {
                        broadcasts.remove(broadcast.identity());
                    }
                    return;
                }
            }
        });
        subscription
    }
}
