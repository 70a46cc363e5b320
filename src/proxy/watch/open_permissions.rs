use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::iter;
use parking_lot::Mutex;
use tokio::time::sleep;
use tonic::Status;

use crate::eventlog::{End, WatchPermission};
use crate::proxy::identity::Caller;
use crate::proxy::{ReadPermission, ReadPermissions};
use crate::types::{KeyRange, Revision};

/// Between two looks at all permissions; most of them cost no question to the cluster.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Questions to the cluster at the same time.
const QUESTIONS_MAX: usize = 64;

/// The permissions of callers whose watches read what the proxy's own user reads.
///
/// They are asked for again while a watch is open under them, with the caller's own credentials. One that the cluster takes
/// back, or whose credentials it no longer accepts, ends the watches. While no member decides they go on: a member that could
/// send events has a leader, and would decide too.
pub(super) struct OpenPermissions {
    permissions: ReadPermissions,
    open: Mutex<HashMap<Reader, Weak<WatchPermission>>>,
}

/// Who reads what. `wide` is what other watches of the caller can share the permission for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reader {
    caller: Caller,
    wide: KeyRange,
    range: KeyRange,
}

impl OpenPermissions {
    pub fn new(permissions: ReadPermissions) -> Self {
        Self { permissions, open: Mutex::default() }
    }

    /// The permission of a caller to read `range` of the cluster's keys. The caller of this asks again when no member has
    /// decided.
    ///
    /// # Errors
    /// The refusal as the client is told; none when no member has decided.
    pub async fn ask(
        &self,
        caller: &Caller,
        wide: KeyRange,
        range: KeyRange,
    ) -> Result<Arc<WatchPermission>, Option<String>> {
        let reader = Reader { caller: caller.clone(), wide, range };
        match self.decide(&reader).await {
            ReadPermission::Permitted => Ok(self.open(reader)),
            ReadPermission::Refused(status) => Err(Some(reader.told(&status))),
            ReadPermission::Unknown(status) => {
                tracing::debug!(%status, "permission for a watch is asked for again");
                Err(None)
            }
        }
    }

    fn open(&self, reader: Reader) -> Arc<WatchPermission> {
        let mut open = self.open.lock();
        if let Some(permission) = open.get(&reader).and_then(Weak::upgrade) {
            return permission;
        }
        let permission = Arc::default();
        open.insert(reader, Arc::downgrade(&permission));
        permission
    }

    async fn decide(&self, reader: &Reader) -> ReadPermission {
        let Reader { caller, wide, range } = reader;
        self.permissions.may_still_read_within(&caller.identity, wide, range).await
    }

    /// Revokes what the cluster takes back, for as long as it is polled; `end` ends the watches under a revoked permission.
    pub async fn watch_over(&self, end: impl Fn(&Arc<WatchPermission>)) {
        loop {
            sleep(LOOK_EVERY).await;
            let readers: Vec<Reader> = {
                let mut open = self.open.lock();
                open.retain(|_, permission| permission.strong_count() > 0);
                open.keys().cloned().collect()
            };
            iter(readers).for_each_concurrent(QUESTIONS_MAX, |reader| self.look_at(reader, &end)).await;
        }
    }

    async fn look_at(&self, reader: Reader, end: &impl Fn(&Arc<WatchPermission>)) {
        let ReadPermission::Refused(status) = self.decide(&reader).await else { return };
        let Some(permission) = self.open.lock().remove(&reader).and_then(|permission| permission.upgrade()) else {
            return;
        };
        permission.revoke(End { compact_revision: Revision(0), reason: reader.told(&status) });
        end(&permission);
    }
}

impl Reader {
    fn told(&self, status: &Status) -> String {
        self.caller.told_as_reason(status)
    }
}
