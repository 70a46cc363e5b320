use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::outcome::Outcome;

/// Requests of this member whose outcome somebody waits for, by request id.
///
/// Bounded by what the raft inbox and the apply distance admit: a request enters right before it is proposed.
#[derive(Debug, Default)]
pub struct Waiters {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Outcome>>>,
}

impl Waiters {
    /// Announces a request that is about to be proposed.
    pub fn register(&self, id: u64) -> oneshot::Receiver<Outcome> {
        let (reply, outcome) = oneshot::channel();
        self.waiting.lock().insert(id, reply);
        outcome
    }

    /// Takes a request back that was not proposed, or that nobody waits for any more.
    pub fn forget(&self, id: u64) {
        self.waiting.lock().remove(&id);
    }

    /// Hands out outcomes; those of other members' requests find nobody.
    pub fn resolve(&self, outcomes: Vec<(u64, Outcome)>) {
        // Woken outside the lock: a waiter may come back to it at once.
        let mut ready = Vec::with_capacity(outcomes.len());
        {
            let mut waiting = self.waiting.lock();
            for (id, outcome) in outcomes {
                if let Some(reply) = waiting.remove(&id) {
                    ready.push((reply, outcome));
                }
            }
        }
        for (reply, outcome) in ready {
            // An error means that the client went away.
            let _ = reply.send(outcome);
        }
    }
}
