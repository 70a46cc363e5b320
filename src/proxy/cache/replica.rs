use std::sync::Arc;

use prost::Message;

use super::pair::{Pair, PairMemory};
use super::past::CHANGE_BYTES;
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::tree::Tree;
use crate::types::Revision;

/// The pairs of a key range as they were at one revision, the position. Decisions only.
///
/// The position moves with whole revisions of events and with progress, never with the header of an event batch.
#[derive(Default)]
pub(super) struct Replica {
    pairs: Tree<Pair>,
    position: Revision,
    /// The pairs are the same since this revision.
    since: Revision,
    /// What was changed since this was asked last.
    changes: Option<Changes>,
    /// Events up to here may come again: they were loaded, or received before the watch was resumed.
    repeats_up_to: Revision,
    /// Newest change of a key that is still there.
    newest: Option<Pair>,
    bytes: usize,
    /// Where its pairs are counted.
    memory: Arc<PairMemory>,
}

/// Changes of a replica between two of its states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Changes {
    /// The revision of the first of them.
    pub first: Revision,
    /// What the state before takes besides what it shares with the one after.
    pub bytes: usize,
}

/// Why what the cluster sends cannot follow what it sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Disorder {
    /// A revision came again, or after a later one.
    #[error("an event of revision {event} came at position {position}")]
    Old { event: Revision, position: Revision },
    /// The pair before the event is not the one held.
    #[error("the pair before the event of revision {0} is not the one held")]
    Previous(Revision),
    /// Version or creation do not follow those of the pair held.
    #[error("the event of revision {0} does not follow the pair held")]
    Version(Revision),
    /// A part of a revision.
    #[error("a part of a revision came, and nobody asked for parts")]
    Fragment,
    #[error("an event has no pair")]
    NoPair,
}

impl Replica {
    /// One without pairs, whose pairs will be counted there.
    pub fn new(memory: Arc<PairMemory>) -> Self {
        Self { memory, ..Self::default() }
    }

    /// Adds a pair that was read.
    pub fn load(&mut self, kv: &KeyValue) {
        self.put(kv);
    }

    /// All pairs of this revision were loaded.
    pub fn begin(&mut self, position: Revision) {
        (self.position, self.since, self.repeats_up_to) = (position, position, position);
    }

    /// The watch was resumed at or before the position: events come again. Behind [`since`](Self::since) there were none: one that
    /// comes is of another history.
    pub fn resume(&mut self) {
        self.repeats_up_to = self.since;
    }

    pub fn pairs(&self) -> &Tree<Pair> {
        &self.pairs
    }

    pub fn position(&self) -> Revision {
        self.position
    }

    /// The revision since which the pairs are what they are.
    pub fn since(&self) -> Revision {
        self.since
    }

    /// What was changed since this was asked last.
    pub fn take_changes(&mut self) -> Option<Changes> {
        self.changes.take()
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The pair that was changed last, if it is still there.
    pub fn newest(&self) -> Option<&Pair> {
        self.newest.as_ref()
    }

    /// All events up to this revision have come.
    pub fn advance(&mut self, revision: Revision) {
        self.position = self.position.max(revision);
    }

    /// Applies the events of one answer, which are whole revisions.
    pub fn apply(&mut self, events: Vec<Event>) -> Result<(), Disorder> {
        let mut last = Revision(0);
        for event in events {
            let kv = event.kv.ok_or(Disorder::NoPair)?;
            let revision = Revision(kv.mod_revision);
            let old = Disorder::Old { event: revision, position: self.position.max(last) };
            if revision < last {
                return Err(old);
            }
            if revision <= self.position {
                if revision > self.repeats_up_to {
                    return Err(old);
                }
                continue;
            }
            last = revision;
            let changes = self.changes.get_or_insert(Changes { first: revision, bytes: 0 });
            changes.bytes += CHANGE_BYTES + self.pairs.get(&kv.key[..]).map_or(0, Pair::bytes);
            if event.r#type == EventType::Delete as i32 {
                self.delete(&kv, event.prev_kv.as_ref())?;
            } else {
                self.follow(&kv, event.prev_kv.as_ref())?;
            }
        }
        if last > self.position {
            (self.position, self.since) = (last, last);
            self.repeats_up_to = Revision(0);
        }
        Ok(())
    }

    fn delete(&mut self, kv: &KeyValue, previous: Option<&KeyValue>) -> Result<(), Disorder> {
        let revision = Revision(kv.mod_revision);
        let Some(held) = self.pairs.remove(&kv.key[..]) else { return Err(Disorder::Version(revision)) };
        self.bytes -= held.bytes();
        if self.newest.as_ref().is_some_and(|newest| newest.key() == kv.key) {
            self.newest = None;
        }
        check_previous(&held, previous, revision)
    }

    fn follow(&mut self, kv: &KeyValue, previous: Option<&KeyValue>) -> Result<(), Disorder> {
        let revision = Revision(kv.mod_revision);
        let follows = match self.pairs.get(&kv.key[..]) {
            Some(held) => {
                check_previous(held, previous, revision)?;
                let fields = held.fields();
                kv.version == fields.version + 1 && kv.create_revision == fields.create
            }
            None => kv.version == 1 && kv.create_revision == kv.mod_revision && previous.is_none(),
        };
        if !follows {
            return Err(Disorder::Version(revision));
        }
        self.put(kv);
        Ok(())
    }

    fn put(&mut self, kv: &KeyValue) {
        let pair = Pair::counted(kv, &self.memory);
        self.bytes += pair.bytes();
        if self.newest.as_ref().is_none_or(|newest| newest.modified() <= kv.mod_revision) {
            self.newest = Some(pair.clone());
        }
        if let Some(replaced) = self.pairs.insert(pair, &kv.key[..]) {
            self.bytes -= replaced.bytes();
        }
    }
}

/// A member leaves out a pair that is compacted. What changed before in the same revision is not the pair before it.
fn check_previous(held: &Pair, previous: Option<&KeyValue>, revision: Revision) -> Result<(), Disorder> {
    let same = previous.is_none_or(|previous| previous.encode_to_vec() == held.encoded()[..]);
    if same || held.modified() == revision.0 { Ok(()) } else { Err(Disorder::Previous(revision)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static str, create: i64, modified: i64, version: i64) -> KeyValue {
        let value = format!("{key}{modified}").into();
        KeyValue { key: key.into(), value, create_revision: create, mod_revision: modified, version, lease: 0 }
    }

    fn put(kv: KeyValue, previous: Option<KeyValue>) -> Event {
        Event { kv: Some(kv), prev_kv: previous, ..Default::default() }
    }

    fn delete(key: &'static str, revision: i64, previous: Option<KeyValue>) -> Event {
        let kv = KeyValue { key: key.into(), mod_revision: revision, ..Default::default() };
        Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: previous }
    }

    /// `a` written at 3, `b` at 5 and 7, all at position 9.
    fn loaded() -> Replica {
        let mut replica = Replica::default();
        replica.load(&kv("a", 3, 3, 1));
        replica.load(&kv("b", 5, 7, 2));
        replica.begin(Revision(9));
        replica
    }

    fn contents(replica: &Replica) -> Vec<(String, i64)> {
        let pairs = replica.pairs().from(b"");
        pairs.map(|pair| (String::from_utf8_lossy(pair.key()).into_owned(), pair.modified())).collect()
    }

    #[test]
    fn events_move_the_position_by_whole_revisions() {
        let mut replica = loaded();
        let before = replica.bytes();
        let repeated = vec![put(kv("a", 3, 3, 1), None), put(kv("b", 5, 7, 2), Some(kv("b", 5, 5, 1)))];
        assert_eq!(replica.apply(repeated), Ok(()), "they were loaded");
        assert_eq!(replica.position(), Revision(9));
        let events = vec![
            put(kv("a", 3, 11, 2), Some(kv("a", 3, 3, 1))),
            delete("b", 11, Some(kv("b", 5, 7, 2))),
            put(kv("c", 12, 12, 1), None),
        ];
        assert_eq!(replica.apply(events), Ok(()));
        assert_eq!(contents(&replica), [("a".to_owned(), 11), ("c".to_owned(), 12)]);
        assert_eq!((replica.position(), replica.newest().unwrap().modified()), (Revision(12), 12));
        let changes = replica.take_changes().expect("changes");
        assert_eq!((replica.since(), changes.first), (Revision(12), Revision(11)));
        assert!(changes.bytes >= 3 * CHANGE_BYTES + before, "{changes:?}");
        assert_eq!(replica.take_changes(), None);
        assert_eq!(replica.apply(vec![delete("c", 13, None)]), Ok(()), "the pair before it may be compacted");
        assert!(replica.newest().is_none());
        replica.advance(Revision(20));
        replica.advance(Revision(15));
        assert_eq!((replica.position(), replica.since()), (Revision(20), Revision(13)));
        assert_eq!(replica.apply(vec![delete("a", 21, Some(kv("a", 3, 11, 2)))]), Ok(()));
        assert_eq!((contents(&replica), replica.bytes()), (Vec::new(), 0));
        assert!(before > 0);
    }

    #[test]
    fn what_does_not_follow_is_found() {
        let check = |events: Vec<Event>, disorder| {
            let mut replica = loaded();
            assert_eq!(replica.apply(vec![put(kv("z", 10, 10, 1), None)]), Ok(()));
            assert_eq!(replica.apply(events), Err(disorder));
        };
        let old = |event| Disorder::Old { event: Revision(event), position: Revision(10) };
        check(vec![put(kv("y", 10, 10, 1), None)], old(10));
        check(vec![put(kv("a", 3, 4, 2), None)], old(4));
        check(
            vec![put(kv("y", 12, 12, 1), None), put(kv("x", 11, 11, 1), None)],
            Disorder::Old { event: Revision(11), position: Revision(12) },
        );
        check(vec![put(kv("b", 5, 11, 4), None)], Disorder::Version(Revision(11)));
        check(vec![put(kv("b", 11, 11, 1), None)], Disorder::Version(Revision(11)));
        check(vec![put(kv("n", 5, 11, 3), None)], Disorder::Version(Revision(11)));
        check(vec![put(kv("n", 11, 11, 1), Some(kv("n", 5, 9, 2)))], Disorder::Version(Revision(11)));
        check(vec![delete("n", 11, None)], Disorder::Version(Revision(11)));
        check(vec![delete("b", 11, Some(kv("b", 5, 5, 1)))], Disorder::Previous(Revision(11)));
        let other = KeyValue { value: "other".into(), ..kv("a", 3, 3, 1) };
        check(vec![put(kv("a", 3, 11, 2), Some(other))], Disorder::Previous(Revision(11)));
        check(vec![Event::default()], Disorder::NoPair);
    }

    #[test]
    fn a_resumed_watch_repeats_what_is_held_and_nothing_after() {
        let mut replica = loaded();
        let change = || put(kv("a", 3, 11, 2), Some(kv("a", 3, 3, 1)));
        assert_eq!(replica.apply(vec![change()]), Ok(()));
        replica.resume();
        assert_eq!(replica.apply(vec![change()]), Ok(()));
        assert_eq!(replica.apply(vec![put(kv("c", 12, 12, 1), None)]), Ok(()));
        assert!(replica.apply(vec![change()]).is_err(), "the repetition is over");
    }

    /// Cause: a change where there had been none was taken for one that was held.
    #[test]
    fn a_resumed_watch_of_another_history_is_found() {
        for revision in 10..=12 {
            let mut replica = loaded();
            replica.advance(Revision(12));
            replica.resume();
            assert_eq!(replica.apply(vec![put(kv("b", 5, 7, 2), None)]), Ok(()), "it is held");
            let other = put(kv("a", 3, revision, 2), Some(kv("a", 3, 3, 1)));
            let old = Disorder::Old { event: Revision(revision), position: Revision(12) };
            assert_eq!(replica.apply(vec![other]), Err(old));
        }
    }
}
