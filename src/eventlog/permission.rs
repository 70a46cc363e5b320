use std::sync::OnceLock;

use super::send_queue::End;

/// The permission that watches are open under. Whoever gave it can take it back.
#[derive(Debug, Default)]
pub struct WatchPermission {
    revoked: OnceLock<End>,
}

impl WatchPermission {
    /// Takes the permission back: a watch that is created under it from now on is cancelled at once. The caller then tells
    /// every watcher set with [`WatcherSetHandle::end_permission`](super::WatcherSetHandle::end_permission), in this order.
    pub fn revoke(&self, end: End) {
        let _ = self.revoked.set(end);
    }

    /// How its watches end, once it is revoked.
    pub(super) fn revoked(&self) -> Option<&End> {
        self.revoked.get()
    }
}
