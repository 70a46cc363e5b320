use std::any::Any;
use std::sync::Arc;

use futures::future::BoxFuture;
use tonic::Status;

use super::permission::WatchPermission;
use super::source::Source;
use crate::types::{KeyRange, Revision};

/// Decides what the watchers of a stream may read, and from which source. Each stream has its own, made for its client.
pub trait WatchAdmission: Send {
    /// Admits a watch of `range` from `start` (0: from now).
    fn admit(&mut self, range: &KeyRange, start: Revision) -> Admit;

    /// The newest revision known, for the header of a refusal.
    fn revision(&self) -> Revision;

    /// The status of a stream whose client went away.
    fn canceled(&self) -> Status;
}

/// A decision that needs an answer of the cluster.
pub type Decision = BoxFuture<'static, Result<Admission, Refusal>>;

/// Answer of [`WatchAdmission::admit`].
pub enum Admit {
    /// Decided.
    Now(Result<Admission, Refusal>),
    /// Needs an answer of the cluster. Further requests are read meanwhile, and answered in their order.
    Later(Decision),
}

/// Where an admitted watcher reads.
#[derive(Debug)]
pub struct Admission {
    /// Covers the range asked for.
    pub source: Arc<Source>,
    /// A revision the cluster has reached; a watch from now starts behind it. 0 when the log's head will do.
    pub after: Revision,
    /// The compacted revision if the start is known to be below it: the watch is created and cancelled at once. Else it may be one
    /// that is not above the start, or 0; what the log itself knows of compactions counts besides.
    pub compacted: Revision,
    /// The permission that the watch is open under; none when it cannot be revoked.
    pub permission: Option<Arc<WatchPermission>>,
    /// Dropped when the watch has ended.
    pub held: Option<Arc<dyn Any + Send + Sync>>,
}

/// Why a watch is not admitted.
#[derive(Debug)]
pub enum Refusal {
    /// The create request is answered with a cancellation; the stream goes on.
    Watch {
        /// For the header.
        revision: Revision,
        /// For the client.
        reason: String,
    },
    /// The whole stream ends.
    Stream(Status),
}
