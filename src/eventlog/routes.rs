use std::collections::HashMap;
use std::sync::Arc;

use slab::Slab;

use super::batch::{EventKind, LogBatch, LogEvent};
use super::interval::IntervalTree;
use crate::types::{Key, KeyRange};

/// From so many pairs of a group and an event on no further batch is routed together with those before it: what several batches hold
/// is copied for each group, where the event of one batch is shared.
const WANTED_MAX: usize = 4096;

/// What a watcher wants to see: watchers with equal subscriptions share their encoded events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Subscription {
    pub range: KeyRange,
    pub prev_kv: bool,
    pub filters: Filters,
}

/// Kinds of events a watcher does not want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filters {
    /// Drops puts.
    pub no_put: bool,
    /// Drops deletes.
    pub no_delete: bool,
}

impl Filters {
    /// Whether events of `kind` are wanted.
    pub fn pass(self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }
}

impl Subscription {
    pub fn wants(&self, event: &LogEvent) -> bool {
        self.filters.pass(event.kind()) && self.range.contains(event.key())
    }
}

/// Watchers with the same subscription.
#[derive(Debug)]
pub(super) struct Group {
    pub subscription: Subscription,
    /// Cursors that are up to date or wait for a future revision; each knows its slot here.
    pub synced: Vec<u32>,
    /// All cursors of the group, those that lag included.
    watchers: u32,
}

/// A group wants an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wanted {
    pub group: u32,
    /// Number of its batch.
    pub batch: u32,
    /// Number in the batch.
    pub event: u32,
}

/// From a key to the groups that want its events.
#[derive(Debug, Default)]
pub(super) struct Routes {
    groups: Slab<Group>,
    by_subscription: HashMap<Subscription, u32>,
    by_key: HashMap<Key, Vec<u32>>,
    by_range: IntervalTree,
}

impl Routes {
    /// The group of `subscription`, which gets one watcher more.
    pub fn join(&mut self, subscription: Subscription) -> u32 {
        if let Some(&group) = self.by_subscription.get(&subscription) {
            self.groups[group as usize].watchers += 1;
            return group;
        }
        let group = Group { subscription: subscription.clone(), synced: Vec::new(), watchers: 1 };
        let id = self.groups.insert(group) as u32;
        match &subscription.range {
            KeyRange::One(key) => self.by_key.entry(key.clone()).or_default().push(id),
            range => self.by_range.insert(range, id),
        }
        self.by_subscription.insert(subscription, id);
        id
    }

    /// Takes one watcher off the group, and the group away with its last.
    pub fn leave(&mut self, id: u32) {
        let group = &mut self.groups[id as usize];
        group.watchers -= 1;
        if group.watchers > 0 {
            return;
        }
        let group = self.groups.remove(id as usize);
        self.by_subscription.remove(&group.subscription);
        match &group.subscription.range {
            KeyRange::One(key) => {
                if let Some(groups) = self.by_key.get_mut(key) {
                    groups.retain(|&other| other != id);
                    if groups.is_empty() {
                        self.by_key.remove(key);
                    }
                }
            }
            range => self.by_range.remove(range, id),
        }
    }

    pub fn group(&self, id: u32) -> &Group {
        &self.groups[id as usize]
    }

    pub fn group_mut(&mut self, id: u32) -> &mut Group {
        &mut self.groups[id as usize]
    }

    /// Which groups want which events of the first batches, sorted; tells of how many batches, one at least.
    pub fn route(&self, batches: &[Arc<LogBatch>], wanted: &mut Vec<Wanted>) -> usize {
        wanted.clear();
        let mut routed = 0;
        for (batch, events) in batches.iter().enumerate() {
            if wanted.len() >= WANTED_MAX {
                break;
            }
            routed += 1;
            for (number, event) in events.events().iter().enumerate() {
                let mut add = |group: u32| {
                    if self.groups[group as usize].subscription.filters.pass(event.kind()) {
                        wanted.push(Wanted { group, batch: batch as u32, event: number as u32 });
                    }
                };
                if let Some(groups) = self.by_key.get(event.key()) {
                    groups.iter().copied().for_each(&mut add);
                }
                self.by_range.stab(event.key(), &mut add);
            }
        }
        wanted.sort_unstable();
        routed
    }
}
