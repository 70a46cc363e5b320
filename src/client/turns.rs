use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Lets one task at a time ask the cluster something that many wait for.
///
/// A lock whose guard waits for a caller would not do: a caller is polled only while its client takes what it is sent, and a
/// guard that such a caller was given, or holds, keeps all others waiting. A [`Turn`] is given to who asks for it at that
/// moment, who moves it into a task.
#[derive(Debug, Default)]
pub struct Turns {
    taken: AtomicBool,
    ended: Notify,
}

/// The right to ask. Whoever waits is woken when it is dropped.
#[derive(Debug)]
pub struct Turn(Arc<Turns>);

impl Turns {
    /// The turn, if nobody has it.
    pub fn take(self: &Arc<Self>) -> Option<Turn> {
        (!self.taken.swap(true, Ordering::Acquire)).then(|| Turn(self.clone()))
    }

    /// Is ready once a turn has ended after this call.
    pub fn ended(&self) -> Notified<'_> {
        self.ended.notified()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
        self.0.ended.notify_waiters();
    }
}
