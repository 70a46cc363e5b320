use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::ops::RangeInclusive;

use super::history::{Body, History, Kv, Operation, Outcome, Request, WatchAnswer, WatchMessage, WatchRecord};
use super::model::{Change, Store, covers};
use super::violation::{Rule, Violation};

/// Choices tried before the search is given up.
const STEPS_MAX: usize = 2_000_000;
/// Reasons kept for the message of a failed search.
const REASONS_MAX: usize = 6;

/// What made a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The operation at this place of the history.
    Operation(usize),
    /// The end of this lease, by expiry or by a revoke.
    LeaseEnd(i64),
}

/// An order of all writes that agrees with the history.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The store after the last revision, with all its history.
    pub store: Store,
    /// What made each revision, from 2 on.
    pub causes: Vec<Cause>,
    /// Revisions that may have had another cause, for all that was seen of them.
    guessed: HashSet<i64>,
    changes: Vec<Vec<Change>>,
    unknown_applied: usize,
}

impl Explanation {
    /// What a revision did; nothing for one that does not exist.
    pub fn changes(&self, revision: i64) -> &[Change] {
        let at = usize::try_from(revision - 2).ok();
        at.and_then(|at| self.changes.get(at)).map_or(&[], Vec::as_slice)
    }

    /// Whether a revision may have had another cause than the one that was chosen.
    pub fn is_guessed(&self, revision: i64) -> bool {
        self.guessed.contains(&revision)
    }

    /// Newest revision.
    pub fn last(&self) -> i64 {
        self.store.revision()
    }

    /// How many operations without an answer took effect.
    pub fn unknown_applied(&self) -> usize {
        self.unknown_applied
    }
}

/// Finds an order of all writes that a sequential store could have taken, in which every answer is right and no
/// operation comes after one that began once it was answered.
///
/// An answered write names its revision, so its place is known. Only a revision without an answered write is a choice:
/// one of the writes whose outcome is unknown, or the end of a lease. What reads and watches showed of that revision
/// narrows the choice; the rest is a search in depth.
///
/// # Errors
/// When there is no such order; the text says how far the best attempt came.
pub fn explain(history: &History) -> Result<Explanation, Violation> {
    explain_by(history, Vec::new())
}

/// As [`explain`], and every watch has received all there was: what it was not told did not happen.
///
/// # Errors
/// When there is no such order. A watch that lost an event makes one impossible.
pub fn explain_trusting_watches(history: &History) -> Result<Explanation, Violation> {
    explain_by(history, history.watches.iter().filter_map(Coverage::of).collect())
}

fn explain_by(history: &History, coverages: Vec<Coverage<'_>>) -> Result<Explanation, Violation> {
    check_recording(history)?;
    let lower = check_real_time(history)?;
    let explanation = Search::new(history, lower.clone(), coverages)?.run()?;
    check_compactions(history, &lower)?;
    Ok(explanation)
}

/// Everything a watch was told, and the revisions of which that is all.
struct Coverage<'a> {
    watch: &'a WatchRecord,
    revisions: RangeInclusive<i64>,
    events: HashSet<(i64, &'a str, bool)>,
}

impl<'a> Coverage<'a> {
    fn of(watch: &'a WatchRecord) -> Option<Self> {
        let first = watch.answers.first().filter(|answer| answer.message == WatchMessage::Created)?;
        let start = if watch.start_revision > 0 { watch.start_revision } else { first.revision + 1 };
        let cancelled = |answer: &WatchAnswer| matches!(answer.message, WatchMessage::Cancelled { .. });
        let whole = watch.complete_to.filter(|_| !watch.answers.iter().any(cancelled));
        let mut end = whole.unwrap_or_default().max(start - 1);
        let mut events = HashSet::new();
        for answer in &watch.answers {
            match &answer.message {
                WatchMessage::Events { events: told, .. } => {
                    for event in told {
                        end = end.max(event.kv.mod_revision);
                        events.insert((event.kv.mod_revision, event.kv.key.as_str(), event.deleted));
                    }
                }
                WatchMessage::Progress => end = end.max(answer.revision),
                WatchMessage::Created | WatchMessage::Cancelled { .. } => {}
            }
        }
        Some(Self { watch, revisions: start..=end, events })
    }

    /// Whether the watch agrees that these are the changes of a revision.
    fn agrees(&self, revision: i64, changes: &[Change]) -> bool {
        let told = |change: &&Change| self.events.contains(&(revision, change.key.as_str(), change.kv.is_none()));
        !self.revisions.contains(&revision)
            || changes.iter().filter(|change| wants(self.watch, change)).all(|c| told(&c))
    }
}

/// Whether a watch is told of a change.
pub(super) fn wants(watch: &WatchRecord, change: &Change) -> bool {
    let unwanted = if change.kv.is_none() { watch.no_delete } else { watch.no_put };
    !unwanted && covers(&watch.key, &watch.range_end, &change.key)
}

/// Every client has one operation at a time.
fn check_recording(history: &History) -> Result<(), Violation> {
    let mut clients: BTreeMap<u32, Vec<&Operation>> = BTreeMap::new();
    for operation in &history.operations {
        if operation.returned < operation.invoked {
            return Err(Violation::new(Rule::Recording, format!("answered before it was sent: {operation:?}")));
        }
        clients.entry(operation.client).or_default().push(operation);
    }
    for operations in clients.values_mut() {
        operations.sort_by_key(|operation| (operation.invoked, operation.returned));
        if let Some(pair) = operations.windows(2).find(|pair| pair[1].invoked < pair[0].returned) {
            let text = format!("a client did two things at once: {:?} and {:?}", pair[0], pair[1]);
            return Err(Violation::new(Rule::Recording, text));
        }
    }
    Ok(())
}

/// Whether an answer says that the request wrote.
fn wrote(body: &Body) -> bool {
    match body {
        Body::Put { .. } => true,
        Body::Delete { deleted, .. } => *deleted > 0,
        Body::Txn { bodies, .. } => bodies.iter().any(wrote),
        _ => false,
    }
}

/// Whether the operation must show everything that was visible before it began.
fn is_linearizable(request: &Request) -> bool {
    match request {
        Request::Put { .. } | Request::Delete { .. } | Request::Txn { .. } => true,
        Request::Range(query) => !query.serializable,
        _ => false,
    }
}

/// Checks that nothing visible before an operation began is missing from its answer. Returns for each operation the
/// newest revision that was visible when it began: what an unanswered write did comes after that.
fn check_real_time(history: &History) -> Result<Vec<i64>, Violation> {
    enum Moment<'a> {
        Begins(usize),
        Shows { revision: i64, what: &'a dyn std::fmt::Debug },
    }
    let mut moments: Vec<(u64, u8, Moment<'_>)> = Vec::new();
    for (at, operation) in history.operations.iter().enumerate() {
        // What happens at one time is concurrent, so beginnings come first.
        moments.push((operation.invoked, 0, Moment::Begins(at)));
        if let Outcome::Done { revision, .. } = operation.outcome {
            moments.push((operation.returned, 1, Moment::Shows { revision, what: operation }));
        }
    }
    for watch in &history.watches {
        for answer in &watch.answers {
            moments.push((answer.received, 1, Moment::Shows { revision: answer.revision, what: answer }));
        }
    }
    moments.sort_by_key(|(time, order, _)| (*time, *order));
    let mut lower = vec![1; history.operations.len()];
    let (mut visible, mut witness): (i64, Option<&dyn std::fmt::Debug>) = (1, None);
    for (_, _, moment) in moments {
        match moment {
            Moment::Shows { revision, what } if revision > visible => (visible, witness) = (revision, Some(what)),
            Moment::Shows { .. } => {}
            Moment::Begins(at) => {
                lower[at] = visible;
                let operation = &history.operations[at];
                let Outcome::Done { revision, body } = &operation.outcome else { continue };
                let least = if wrote(body) { visible + 1 } else { visible };
                if is_linearizable(&operation.request) && *revision < least {
                    let text = format!("{operation:?} began when revision {visible} was visible through {witness:?}");
                    return Err(Violation::new(Rule::RealTime, text));
                }
            }
        }
    }
    Ok(lower)
}

/// Reads of compacted revisions fail, and only those.
fn check_compactions(history: &History, lower: &[i64]) -> Result<(), Violation> {
    let compactions: Vec<(i64, &Operation)> = history
        .operations
        .iter()
        .filter_map(|operation| match operation.request {
            Request::Compact { revision } => Some((revision, operation)),
            _ => None,
        })
        .collect();
    for (operation, lower) in history.operations.iter().zip(lower) {
        let Request::Range(query) = &operation.request else { continue };
        if query.revision <= 0 {
            continue;
        }
        let broken = match &operation.outcome {
            Outcome::Done { .. } => {
                !query.serializable
                    && compactions.iter().any(|(revision, compaction)| {
                        matches!(compaction.outcome, Outcome::Done { .. })
                            && *revision > query.revision
                            && compaction.returned < operation.invoked
                    })
            }
            Outcome::Refused { reason } if reason.contains("has been compacted") => !compactions
                .iter()
                .any(|(revision, compaction)| *revision > query.revision && compaction.invoked < operation.returned),
            Outcome::Refused { reason } if reason.contains("future revision") => {
                !query.serializable && query.revision <= *lower
            }
            _ => false,
        };
        if broken {
            return Err(Violation::new(Rule::Compaction, format!("{operation:?}")));
        }
    }
    Ok(())
}

/// Everything the history shows of single revisions.
fn observations(history: &History) -> HashMap<i64, HashSet<Change>> {
    fn see(kv: &Kv, seen: &mut HashMap<i64, HashSet<Change>>) {
        seen.entry(kv.mod_revision).or_default().insert(Change { key: kv.key.clone(), kv: Some(kv.clone()) });
    }
    fn see_body(body: &Body, seen: &mut HashMap<i64, HashSet<Change>>) {
        match body {
            Body::Put { previous } => previous.iter().for_each(|kv| see(kv, seen)),
            Body::Delete { previous, .. } => previous.iter().for_each(|kv| see(kv, seen)),
            Body::Txn { bodies, .. } => bodies.iter().for_each(|body| see_body(body, seen)),
            Body::Range { kvs, .. } => kvs.iter().for_each(|kv| see(kv, seen)),
            _ => {}
        }
    }
    let mut seen = HashMap::new();
    for operation in &history.operations {
        if let Outcome::Done { body, .. } = &operation.outcome {
            see_body(body, &mut seen);
        }
    }
    for answer in history.watches.iter().flat_map(|watch| &watch.answers) {
        let WatchMessage::Events { events, .. } = &answer.message else { continue };
        for event in events {
            if event.deleted {
                let change = Change { key: event.kv.key.clone(), kv: None };
                seen.entry(event.kv.mod_revision).or_default().insert(change);
            } else {
                see(&event.kv, &mut seen);
            }
            event.previous.iter().for_each(|kv| see(kv, &mut seen));
        }
    }
    seen
}

/// The choices for one revision, and which are left.
struct Frame {
    options: Vec<(Cause, Vec<Change>)>,
    next: usize,
    /// Hash of all changes before this revision.
    path: u64,
}

struct Search<'a> {
    history: &'a History,
    lower: Vec<i64>,
    /// Answered writes by their revision.
    fixed: BTreeMap<i64, usize>,
    /// Other answered operations by the revision they show.
    readers: HashMap<i64, Vec<usize>>,
    observed: HashMap<i64, HashSet<Change>>,
    coverages: Vec<Coverage<'a>>,
    /// Writes without an answer, in the order they were sent.
    unknown: Vec<usize>,
    last: i64,
    store: Store,
    frames: Vec<Frame>,
    used: HashSet<usize>,
    tried: HashSet<(i64, u64, u64)>,
    furthest: i64,
    reasons: Vec<Violation>,
}

impl<'a> Search<'a> {
    fn new(history: &'a History, lower: Vec<i64>, coverages: Vec<Coverage<'a>>) -> Result<Self, Violation> {
        let mut fixed = BTreeMap::new();
        let mut readers: HashMap<i64, Vec<usize>> = HashMap::new();
        let mut unknown = Vec::new();
        let mut last = 1;
        for (at, operation) in history.operations.iter().enumerate() {
            match &operation.outcome {
                Outcome::Done { revision, body } => {
                    last = last.max(*revision);
                    if !wrote(body) {
                        readers.entry(*revision).or_default().push(at);
                    } else if let Some(other) = fixed.insert(*revision, at) {
                        let text = format!("{:?} and {operation:?}", history.operations[other]);
                        return Err(Violation::new(Rule::RevisionReused, text));
                    }
                }
                Outcome::Unknown => {
                    if matches!(operation.request, Request::Put { .. } | Request::Delete { .. } | Request::Txn { .. }) {
                        unknown.push(at);
                    }
                }
                Outcome::Refused { .. } => {}
            }
        }
        unknown.sort_by_key(|&at| history.operations[at].invoked);
        let observed = observations(history);
        let shown = history.watches.iter().flat_map(|watch| &watch.answers).map(|answer| answer.revision);
        let last = shown.chain(observed.keys().copied()).fold(last, i64::max);
        Ok(Self {
            history,
            lower,
            fixed,
            readers,
            observed,
            coverages,
            unknown,
            last,
            store: Store::default(),
            frames: Vec::new(),
            used: HashSet::new(),
            tried: HashSet::new(),
            furthest: 0,
            reasons: Vec::new(),
        })
    }

    fn run(mut self) -> Result<Explanation, Violation> {
        self.check_readers()?;
        let mut steps = 0;
        while self.store.revision() < self.last {
            self.open();
            while !self.step() {
                steps += 1;
                if !self.close() {
                    return Err(self.failure());
                }
                if steps > STEPS_MAX {
                    return Err(Violation::new(Rule::Undecided, format!("after {steps} steps: {}", self.failure())));
                }
            }
        }
        let chosen = |frame: &Frame| frame.options[frame.next - 1].clone();
        let (causes, changes) = self.frames.iter().map(chosen).unzip();
        let others = |(_, frame): &(i64, &Frame)| frame.next < frame.options.len();
        let guessed = (2..).zip(&self.frames).filter(others).map(|(revision, _)| revision).collect();
        Ok(Explanation { store: self.store, causes, guessed, changes, unknown_applied: self.used.len() })
    }

    /// Lists the choices for the next revision.
    fn open(&mut self) {
        let revision = self.store.revision() + 1;
        let path = self.frames.last().map_or(0, |frame| {
            let mut hasher = DefaultHasher::new();
            (frame.path, &frame.options[frame.next - 1].1).hash(&mut hasher);
            hasher.finish()
        });
        let options = match self.fixed.get(&revision) {
            Some(&at) => self.answered(revision, at),
            None => self.choices(revision, path),
        };
        self.frames.push(Frame { options, next: 0, path });
    }

    fn answered(&mut self, revision: i64, at: usize) -> Vec<(Cause, Vec<Change>)> {
        let operation = &self.history.operations[at];
        let Outcome::Done { body, .. } = &operation.outcome else { return Vec::new() };
        let effect = self.store.execute(&operation.request);
        if effect.body != *body {
            let text = format!("revision {revision}: {operation:?} should have answered {:?}", effect.body);
            self.note(revision, Violation::new(Rule::WrongAnswer, text));
            return Vec::new();
        }
        if let Some(missing) = self.unseen(revision, &effect.changes) {
            let text = format!("revision {revision} is {operation:?}, and yet {missing:?} was seen there");
            self.note(revision, Violation::new(Rule::WrongAnswer, text));
            return Vec::new();
        }
        if let Some(coverage) = self.coverages.iter().find(|coverage| !coverage.agrees(revision, &effect.changes)) {
            let text = format!("revision {revision} is {operation:?}, of which {:?} was not told", coverage.watch);
            self.note(revision, Violation::new(Rule::Reliable, text));
            return Vec::new();
        }
        vec![(Cause::Operation(at), effect.changes)]
    }

    fn choices(&mut self, revision: i64, path: u64) -> Vec<(Cause, Vec<Change>)> {
        let used = self.used.iter().fold(0, |sum, at| {
            let mut hasher = DefaultHasher::new();
            at.hash(&mut hasher);
            sum ^ hasher.finish()
        });
        let mut options = Vec::new();
        if self.tried.insert((revision, path, used)) {
            for &at in &self.unknown {
                if self.used.contains(&at) || self.lower[at] >= revision {
                    continue;
                }
                let changes = self.store.execute(&self.history.operations[at].request).changes;
                if !changes.is_empty() && self.fits(revision, &changes) {
                    options.push((Cause::Operation(at), changes));
                }
            }
            for lease in self.store.leases() {
                let changes = self.store.end_of_lease(lease);
                if self.fits(revision, &changes) {
                    options.push((Cause::LeaseEnd(lease), changes));
                }
            }
        }
        if options.is_empty() {
            let seen = self.observed.get(&revision);
            let text = format!("nothing that was asked for can have made revision {revision}; seen of it: {seen:?}");
            self.note(revision, Violation::new(Rule::Unexplained, text));
        }
        if options.len() > 1 {
            // Those that are left may all have been it, for all that was seen of this revision.
            options.retain(|(_, changes)| self.is_shown(changes));
        }
        options
    }

    /// Whether these changes make the answers of those who read the next revision.
    fn is_shown(&mut self, changes: &[Change]) -> bool {
        self.store.apply(changes);
        let checked = self.check_readers();
        self.store.undo();
        checked.map_err(|violation| self.note(self.store.revision() + 1, violation)).is_ok()
    }

    fn fits(&self, revision: i64, changes: &[Change]) -> bool {
        self.unseen(revision, changes).is_none()
            && self.coverages.iter().all(|coverage| coverage.agrees(revision, changes))
    }

    /// Something that was seen of the revision and is not among these changes.
    fn unseen(&self, revision: i64, changes: &[Change]) -> Option<&Change> {
        self.observed.get(&revision)?.iter().find(|seen| !changes.contains(seen))
    }

    /// Takes the next choice of the newest frame that agrees with the readers; false when none is left.
    fn step(&mut self) -> bool {
        loop {
            let Some(frame) = self.frames.last_mut() else { return false };
            let Some((cause, changes)) = frame.options.get(frame.next).cloned() else { return false };
            frame.next += 1;
            self.store.apply(&changes);
            match self.check_readers() {
                Ok(()) => {
                    if let Cause::Operation(at) = cause
                        && self.history.operations[at].outcome == Outcome::Unknown
                    {
                        self.used.insert(at);
                    }
                    return true;
                }
                Err(violation) => {
                    self.note(self.store.revision(), violation);
                    self.store.undo();
                }
            }
        }
    }

    /// Drops the newest frame and takes back the choice of the one before it; false when there is none.
    fn close(&mut self) -> bool {
        self.frames.pop();
        let Some(frame) = self.frames.last() else { return false };
        if let Cause::Operation(at) = frame.options[frame.next - 1].0 {
            self.used.remove(&at);
        }
        self.store.undo();
        true
    }

    /// Compares every operation that shows the newest revision with the store.
    fn check_readers(&self) -> Result<(), Violation> {
        let revision = self.store.revision();
        for &at in self.readers.get(&revision).into_iter().flatten() {
            let operation = &self.history.operations[at];
            let Outcome::Done { body, .. } = &operation.outcome else { continue };
            let right = match &operation.request {
                Request::Range(query) if query.revision > revision => Some("a read of the future".to_owned()),
                Request::Range(_) | Request::Put { .. } | Request::Delete { .. } | Request::Txn { .. } => {
                    let effect = self.store.execute(&operation.request);
                    (effect.body != *body).then(|| format!("{:?}", effect.body))
                }
                Request::Revoke { id } => {
                    let left = self.store.attached(*id);
                    (!left.is_empty()).then(|| format!("keys {left:?} are still there"))
                }
                _ => None,
            };
            if let Some(right) = right {
                let text = format!("revision {revision}: {operation:?}, but right is: {right}");
                return Err(Violation::new(Rule::WrongAnswer, text));
            }
        }
        Ok(())
    }

    fn note(&mut self, revision: i64, violation: Violation) {
        if revision > self.furthest {
            self.furthest = revision;
            self.reasons.clear();
        }
        if revision == self.furthest && self.reasons.len() < REASONS_MAX {
            self.reasons.push(violation);
        }
    }

    fn failure(&self) -> Violation {
        let rule = self.reasons.first().map_or(Rule::Unexplained, |violation| violation.rule);
        let texts: Vec<&str> = self.reasons.iter().map(|violation| violation.text.as_str()).collect();
        Violation::new(rule, texts.join("\n or: "))
    }
}
