use std::collections::HashSet;

use super::history::{Event, History, Request, WatchMessage, WatchRecord};
use super::linear::{Explanation, wants};
use super::model::covers;
use super::violation::{Rule, Violation};

/// Checks one watch against what happened: ordered, unique, reliable, atomic, resumable, bookmarkable, and the filter,
/// the previous key-values and the creations of its events. Answers with the number of events it received.
///
/// # Errors
/// The first broken guarantee.
pub fn check_watch(watch: &WatchRecord, history: &History, truth: &Explanation) -> Result<usize, Violation> {
    let mut check = Check { watch, history, truth, through: None, pending: Vec::new(), received: HashSet::new() };
    let mut ended = false;
    for (at, answer) in watch.answers.iter().enumerate() {
        if ended {
            return Err(check.broken(Rule::Cancelled, format!("{answer:?} after the end")));
        }
        match &answer.message {
            WatchMessage::Created => check.created(answer.revision),
            WatchMessage::Events { events, fragment } => {
                let following = watch.answers.get(at + 1).map(|answer| &answer.message);
                check.events(events, answer.revision, *fragment, following)?;
            }
            WatchMessage::Progress => check.progress(answer.revision)?,
            WatchMessage::Cancelled { compact_revision, reason } => {
                check.cancelled(*compact_revision, reason)?;
                ended = true;
            }
        }
    }
    if let Some(wanted) = watch.complete_to.filter(|_| !ended) {
        check.nothing_between(wanted, Rule::Reliable)?;
    }
    Ok(check.received.len())
}

struct Check<'a> {
    watch: &'a WatchRecord,
    history: &'a History,
    truth: &'a Explanation,
    /// Everything up to this revision was delivered; unknown before the watch was confirmed.
    through: Option<i64>,
    /// Events of a revision of which the rest is to come.
    pending: Vec<Event>,
    received: HashSet<(String, i64)>,
}

impl Check<'_> {
    fn broken(&self, rule: Rule, text: impl Into<String>) -> Violation {
        let WatchRecord { client, member, key, range_end, start_revision, resumes, .. } = self.watch;
        let which = format!(
            "watch of client {client} on member {member}, {key:?}..{range_end:?} from {start_revision} (resumed: \
             {resumes}), complete up to {:?}",
            self.through
        );
        Violation::new(rule, format!("{which}: {}", text.into()))
    }

    fn created(&mut self, revision: i64) {
        let start = self.watch.start_revision;
        self.through = Some(if start > 0 { start - 1 } else { revision });
    }

    /// What the watch must be told of a revision, as (key, deleted).
    fn wanted(&self, revision: i64) -> Vec<(&str, bool)> {
        let changes = self.truth.changes(revision).iter().filter(|change| wants(self.watch, change));
        changes.map(|change| (change.key.as_str(), change.kv.is_none())).collect()
    }

    /// Asserts that nothing is missing after what was delivered up to and including a revision.
    fn nothing_between(&self, revision: i64, rule: Rule) -> Result<(), Violation> {
        let Some(through) = self.through else { return Ok(()) };
        for missing in through + 1..=revision.min(self.truth.last()) {
            let wanted = self.wanted(missing);
            if !wanted.is_empty() {
                return Err(self.broken(rule, format!("revision {missing} with {wanted:?} is missing")));
            }
        }
        Ok(())
    }

    fn events(
        &mut self,
        events: &[Event],
        header: i64,
        fragment: bool,
        following: Option<&WatchMessage>,
    ) -> Result<(), Violation> {
        if fragment && !self.watch.fragment {
            return Err(self.broken(Rule::Atomic, "a fragment nobody asked for"));
        }
        let Some(through) = self.through else {
            return Err(self.broken(Rule::Ordered, "events before the watch was confirmed"));
        };
        for event in events {
            self.admit(event, through)?;
        }
        self.pending.extend_from_slice(events);
        if !self.pending.is_sorted_by_key(|event| event.kv.mod_revision) {
            return Err(self.broken(Rule::Ordered, format!("{:?}", self.pending)));
        }
        if fragment {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        let Some(last) = pending.last().map(|event| event.kv.mod_revision) else { return Ok(()) };
        if header < last {
            return Err(self.broken(Rule::Ordered, format!("an event of {last} under a header of {header}")));
        }
        for revision in through + 1..=last {
            let wanted = self.wanted(revision);
            let got: Vec<(&str, bool)> = pending
                .iter()
                .filter(|event| event.kv.mod_revision == revision)
                .map(|event| (event.kv.key.as_str(), event.deleted))
                .collect();
            if let Some(extra) = got.iter().find(|event| !wanted.contains(event)) {
                return Err(self.broken(Rule::Content, format!("{extra:?} did not happen at {revision}")));
            }
            if got.len() != wanted.len() {
                let goes_on = matches!(following, Some(WatchMessage::Events { events, .. })
                    if events.first().is_some_and(|event| event.kv.mod_revision == revision));
                let first = self.watch.resumes && through + 1 == self.watch.start_revision;
                let rule = match () {
                    () if goes_on && revision == last => Rule::Atomic,
                    () if first && got.is_empty() => Rule::Resumable,
                    () => Rule::Reliable,
                };
                return Err(self.broken(rule, format!("revision {revision} is {wanted:?}, and only {got:?} arrived")));
            }
        }
        self.through = Some(last);
        Ok(())
    }

    /// Checks one event by itself.
    fn admit(&mut self, event: &Event, through: i64) -> Result<(), Violation> {
        let (key, revision) = (&event.kv.key, event.kv.mod_revision);
        let watch = self.watch;
        let unwanted = if event.deleted { watch.no_delete } else { watch.no_put };
        if unwanted || !covers(&watch.key, &watch.range_end, key) {
            return Err(self.broken(Rule::Filter, format!("{event:?}")));
        }
        if !self.received.insert((key.clone(), revision)) {
            return Err(self.broken(Rule::Unique, format!("{event:?} again")));
        }
        if revision <= through {
            let split = self.received.iter().any(|(other, at)| *at == revision && other != key);
            let rule = if split { Rule::Atomic } else { Rule::Ordered };
            return Err(self.broken(rule, format!("{event:?} came late")));
        }
        let before = self.truth.store.get(key, revision - 1);
        if event.deleted {
            let empty = event.kv.value.is_empty() && event.kv.create_revision == 0 && event.kv.version == 0;
            if !empty {
                return Err(self.broken(Rule::Content, format!("a delete that holds more than a key: {event:?}")));
            }
        } else {
            let created = event.kv.create_revision == event.kv.mod_revision;
            if created != before.is_none() || created != (event.kv.version == 1) {
                return Err(self.broken(Rule::IsCreate, format!("{event:?} after {before:?}")));
            }
            let truth = self.truth.store.get(key, revision);
            if truth != Some(&event.kv) {
                return Err(self.broken(Rule::Content, format!("{event:?}, but right is {truth:?}")));
            }
        }
        let expected = before.filter(|_| watch.prev_kv);
        let differs = event.previous.as_ref() != expected;
        if differs && !(event.previous.is_none() && self.may_be_compacted(revision - 1)) {
            return Err(self.broken(Rule::PreviousKv, format!("{event:?}, but before it was {expected:?}")));
        }
        Ok(())
    }

    /// Whether anybody asked to forget this revision.
    fn may_be_compacted(&self, revision: i64) -> bool {
        self.history.operations.iter().any(|operation| match operation.request {
            Request::Compact { revision: kept } => kept > revision,
            _ => false,
        })
    }

    fn progress(&mut self, revision: i64) -> Result<(), Violation> {
        let Some(through) = self.through else { return Ok(()) };
        if !self.pending.is_empty() {
            return Err(self.broken(Rule::Bookmarkable, format!("progress {revision} between fragments")));
        }
        if revision < through {
            return Err(self.broken(Rule::Bookmarkable, format!("progress went back to {revision}")));
        }
        self.nothing_between(revision, Rule::Bookmarkable)?;
        self.through = Some(revision);
        Ok(())
    }

    fn cancelled(&mut self, compact_revision: i64, reason: &str) -> Result<(), Violation> {
        if compact_revision == 0 {
            return Ok(());
        }
        let asked = self.history.operations.iter().any(
            |operation| matches!(operation.request, Request::Compact { revision } if revision == compact_revision),
        );
        let needs = self.through.map_or(self.watch.start_revision, |through| through + 1);
        if !asked || needs >= compact_revision {
            let text = format!("compacted at {compact_revision} ({reason:?}), while it needs {needs} (asked: {asked})");
            return Err(self.broken(Rule::Cancelled, text));
        }
        Ok(())
    }
}
