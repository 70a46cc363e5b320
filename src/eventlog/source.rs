use std::sync::{Arc, OnceLock};

use super::history::History;
use super::log::EventLog;
use super::send_queue::End;

/// A log and the history behind it: what a watcher reads from.
///
/// A watcher set holds it while it has a watcher on it, so that the owner of the log learns from a `Weak` that no watcher is
/// left.
pub struct Source {
    log: Arc<EventLog>,
    history: Arc<dyn History>,
    ended: OnceLock<End>,
    moved: OnceLock<Arc<Source>>,
}

impl Source {
    /// Reads `log`, and `history` for what has left it.
    pub fn new(log: Arc<EventLog>, history: Arc<dyn History>) -> Arc<Self> {
        Arc::new(Self { log, history, ended: OnceLock::new(), moved: OnceLock::new() })
    }

    /// The log.
    pub fn log(&self) -> &Arc<EventLog> {
        &self.log
    }

    pub(super) fn history(&self) -> &Arc<dyn History> {
        &self.history
    }

    /// Marks the source as ended: a watcher that joins from now on is cancelled at once. The caller then tells every
    /// watcher set with [`WatcherSetHandle::end_source`](super::WatcherSetHandle::end_source), in this order.
    pub fn end(&self, end: End) {
        let _ = self.ended.set(end);
    }

    /// Why the source has ended, if it has.
    pub fn ended(&self) -> Option<&End> {
        self.ended.get()
    }

    /// Sends whoever joins from now on to `to`, which covers all keys of this one. The caller then tells every watcher set
    /// with [`WatcherSetHandle::move_source`](super::WatcherSetHandle::move_source), in this order.
    pub fn move_to(&self, to: Arc<Source>) {
        let _ = self.moved.set(to);
    }

    /// The source that this one was moved to, or this one.
    pub(super) fn follow(self: &Arc<Self>) -> Arc<Self> {
        let mut at = self;
        while let Some(next) = at.moved.get() {
            at = next;
        }
        at.clone()
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("log", &self.log).field("ended", &self.ended).finish_non_exhaustive()
    }
}
