use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::broadcast_handle::BroadcastHandle;
use super::permission::PermissionCheck;
use super::ranges::Ranges;
use super::read_index::SharedReadIndex;
use crate::proxy::Identity;
use crate::types::KeyRange;

/// How long a prefix that a group may not read is left out when a watch is looked for or promoted.
const REFUSED_MAX: Duration = Duration::from_secs(60);
/// Refused prefixes a group remembers; more empty the table.
const REFUSED_COUNT_MAX: usize = 1024;

/// Clients that carry the same credentials, and their upstream watches.
pub(super) struct CredentialGroup {
    pub identity: Identity,
    /// Shared by all its new watches: a revision is the cluster's, whatever key was read for it.
    pub read_index: Arc<SharedReadIndex>,
    /// Shared by its broadcasts that ask how far the cluster is.
    pub newest: Arc<SharedReadIndex>,
    table: Mutex<Table>,
}

/// One upstream watch of a group.
#[derive(Clone)]
pub(super) struct SharedWatch {
    pub range: KeyRange,
    pub broadcast: BroadcastHandle,
    pub permission: Arc<PermissionCheck>,
}

#[derive(Default)]
struct Table {
    ranges: Ranges<SharedWatch>,
    refused: HashMap<KeyRange, Instant>,
}

impl Table {
    /// Another broadcast may have taken the place since.
    fn remove(&mut self, range: &KeyRange, broadcast: &BroadcastHandle) {
        if self.ranges.get(range).is_some_and(|watch| watch.broadcast.is(broadcast)) {
            self.ranges.remove(range);
        }
    }

    fn is_refused(&self, range: &KeyRange) -> bool {
        self.refused.get(range).is_some_and(|at| at.elapsed() < REFUSED_MAX)
    }
}

impl CredentialGroup {
    pub fn new(identity: Identity) -> Self {
        Self { identity, read_index: Arc::default(), newest: Arc::default(), table: Mutex::default() }
    }

    /// The upstream watch that covers a range. When there is none, `open` starts the broadcast of a new one: its range
    /// is the first of `prefixes` that covers `range`, else the prefix to which `range` and others are promoted, else
    /// `range` itself. `open` also gets the broadcasts of the narrower ranges, whose watchers move to the new one.
    pub fn covering<'p>(
        &self,
        range: &KeyRange,
        mut prefixes: impl Iterator<Item = &'p KeyRange>,
        open: impl FnOnce(&KeyRange, Vec<BroadcastHandle>) -> BroadcastHandle,
    ) -> SharedWatch {
        let mut table = self.table.lock();
        let usable = |range: &KeyRange, watch: &SharedWatch| !table.is_refused(range) && watch.broadcast.is_open();
        if let Some((_, watch)) = table.ranges.covering(range, usable) {
            return watch.clone();
        }
        let wanted = prefixes.find(|prefix| prefix.covers(range) && !table.is_refused(prefix)).cloned();
        let wanted = wanted.or_else(|| table.ranges.promotion(range).filter(|prefix| !table.is_refused(prefix)));
        let taken = wanted.unwrap_or_else(|| range.clone());
        // What is still there under this range has just ended.
        table.ranges.remove(&taken);
        let narrower = table.ranges.within(&taken);
        let narrower = narrower.iter().filter_map(|range| table.ranges.get(range)).map(|watch| watch.broadcast.clone());
        let broadcast = open(&taken, narrower.collect());
        let watch = SharedWatch { range: taken.clone(), broadcast, permission: Arc::default() };
        table.ranges.insert(taken, watch.clone());
        watch
    }

    /// The range of the upstream watch that [`covering`](Self::covering) would give if no watch is promoted for it.
    pub fn covering_range<'p>(&self, range: &KeyRange, mut prefixes: impl Iterator<Item = &'p KeyRange>) -> KeyRange {
        let table = self.table.lock();
        let usable = |range: &KeyRange, watch: &SharedWatch| !table.is_refused(range) && watch.broadcast.is_open();
        let covering = table.ranges.covering(range, usable).map(|(covering, _)| covering);
        let covering = covering.or_else(|| prefixes.find(|prefix| prefix.covers(range) && !table.is_refused(prefix)));
        covering.unwrap_or(range).clone()
    }

    /// Moves the watchers of the ranges within `range` to its broadcast, once that is live.
    pub async fn move_narrower(&self, range: &KeyRange, wide: &BroadcastHandle) {
        let Ok(source) = wide.live().await else { return };
        let narrower: Vec<SharedWatch> = {
            let mut table = self.table.lock();
            let within = table.ranges.within(range);
            within.iter().filter_map(|range| table.ranges.remove(range)).collect()
        };
        for watch in narrower {
            watch.broadcast.supersede(source.clone()).await;
        }
    }

    /// Its upstream watches.
    pub fn broadcasts(&self) -> Vec<BroadcastHandle> {
        self.table.lock().ranges.values().map(|watch| watch.broadcast.clone()).collect()
    }

    /// The cluster has just let the group watch a range.
    pub fn note_permission(&self, range: &KeyRange) {
        let mut table = self.table.lock();
        table.refused.remove(range);
        if let Some(watch) = table.ranges.get(range) {
            watch.permission.permit();
        }
    }

    /// The group reads a range by a watch that the cluster has let it have. Whether it still may is asked elsewhere.
    pub fn forget_refusal(&self, range: &KeyRange) {
        self.table.lock().refused.remove(range);
    }

    /// Removes an upstream watch if nobody has joined meanwhile.
    pub fn remove_if(&self, range: &KeyRange, broadcast: &BroadcastHandle, idle: impl FnOnce() -> bool) -> bool {
        let mut table = self.table.lock();
        let idle = idle();
        if idle {
            table.remove(range, broadcast);
        }
        idle
    }

    /// Removes an upstream watch that has ended; one that was never permitted is not tried again soon.
    pub fn remove_ended(&self, range: &KeyRange, broadcast: &BroadcastHandle, refused: bool) {
        self.table.lock().remove(range, broadcast);
        if refused {
            self.refuse(range);
        }
    }

    /// Keeps a range out of [`covering`](Self::covering) for a while.
    pub fn refuse(&self, range: &KeyRange) {
        let mut table = self.table.lock();
        if table.refused.len() >= REFUSED_COUNT_MAX {
            table.refused.retain(|_, at| at.elapsed() < REFUSED_MAX);
            if table.refused.len() >= REFUSED_COUNT_MAX {
                table.refused.clear();
            }
        }
        table.refused.insert(range.clone(), Instant::now());
    }
}
