use std::sync::{Arc, OnceLock};

use super::history::History;
use super::log::EventLog;
use super::send_queue::End;
use crate::types::KeyRange;

/// A log and the history behind it: what a watcher reads from.
///
/// A watcher set holds it while it has a watcher on it, so that the owner of the log learns from a `Weak` that no watcher is
/// left.
pub struct Source {
    log: Arc<EventLog>,
    history: Arc<dyn History>,
    ended: OnceLock<SourceEnd>,
    moved: OnceLock<Arc<Source>>,
}

#[derive(Debug)]
struct SourceEnd {
    end: End,
    /// The range whose watch was refused; none where the source ended for all its watchers.
    refused: Option<KeyRange>,
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
        let _ = self.ended.set(SourceEnd { end, refused: None });
    }

    /// As [`end`](Self::end) for watchers of all of `range`, the range of the source: these credentials may not read it any
    /// more. What they may read of it is another question, so the streams of narrower watchers end as `Unavailable`: their
    /// clients open others, and each of those watchers is decided on.
    pub fn refuse(&self, range: KeyRange, end: End) {
        let _ = self.ended.set(SourceEnd { end, refused: Some(range) });
    }

    /// Why the source has ended, if it has.
    pub fn ended(&self) -> Option<&End> {
        self.ended.get().map(|ended| &ended.end)
    }

    /// Whether the end of the source is that of a watcher of `range` too.
    pub(super) fn ends_for(&self, range: &KeyRange) -> bool {
        let refused = self.ended.get().and_then(|ended| ended.refused.as_ref());
        refused.is_none_or(|refused| refused == range)
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
