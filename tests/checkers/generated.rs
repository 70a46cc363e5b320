//! Random histories of a sequential store: the real ones are accepted, one corruption makes them rejected.

use std::collections::BTreeMap;

use fastrand::Rng;

use crate::checkers::{
    Body, Change, Compare, CompareTarget, Comparison, Event, History, Kv, Nanos, Operation, Outcome, RangeQuery,
    Request, Store, WatchAnswer, WatchMessage, WatchRecord, check_all,
};

const SECOND: Nanos = 1_000_000_000;
const CLIENTS: u64 = 5;
const KEYS: u8 = 6;

/// A store driven by random clients, with the history they would record.
struct Run {
    random: Rng,
    history: History,
    store: Store,
    /// What each revision did, from 2 on.
    log: Vec<Vec<Change>>,
    now: Nanos,
    free_at: BTreeMap<u32, Nanos>,
    /// Writes without an answer that take effect later.
    late: Vec<(Nanos, Request)>,
    leases: BTreeMap<i64, Nanos>,
    values: u64,
}

fn key(number: u8) -> String {
    format!("k{number}")
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            random: Rng::with_seed(seed),
            history: History::default(),
            store: Store::default(),
            log: Vec::new(),
            now: 100,
            free_at: BTreeMap::new(),
            late: Vec::new(),
            leases: BTreeMap::new(),
            values: 0,
        }
    }

    fn key(&mut self) -> String {
        key(self.random.u8(0..KEYS))
    }

    fn put(&mut self, lease: i64) -> Request {
        self.values += 1;
        Request::Put { key: self.key(), value: format!("v{}", self.values), lease, prev_kv: self.random.bool() }
    }

    fn apply(&mut self, changes: &[Change]) {
        if !changes.is_empty() {
            self.store.apply(changes);
            self.log.push(changes.to_vec());
        }
    }

    fn query(&mut self) -> RangeQuery {
        let newest = self.store.revision();
        RangeQuery {
            key: self.key(),
            range_end: if self.random.bool() { "l".into() } else { String::new() },
            revision: if self.random.u8(0..4) == 0 { self.random.i64(1..=newest) } else { 0 },
            limit: if self.random.u8(0..4) == 0 { 2 } else { 0 },
            serializable: false,
        }
    }

    fn request(&mut self) -> Request {
        match self.random.u8(0..12) {
            0..4 => self.put(0),
            4 => Request::Delete { key: self.key(), range_end: String::new(), prev_kv: self.random.bool() },
            5 => Request::Delete { key: self.key(), range_end: key(KEYS), prev_kv: true },
            6 => {
                let key = self.key();
                let found = self.store.get(&key, self.store.revision()).map_or(0, |kv| kv.mod_revision);
                let guess = if self.random.u8(0..3) == 0 { found + 1 } else { found };
                let compare = Compare { key, target: CompareTarget::Mod(guess), comparison: Comparison::Equal };
                Request::Txn {
                    compares: vec![compare],
                    success: vec![self.put(0), Request::Range(self.query())],
                    failure: vec![Request::Range(self.query())],
                }
            }
            7 if !self.leases.is_empty() => {
                let lease = *self.random.choice(self.leases.keys().collect::<Vec<_>>()).expect("a lease");
                self.put(lease)
            }
            _ => Request::Range(self.query()),
        }
    }

    /// The next operation of a client that is free, placed so that it surrounds the moment it takes effect.
    fn step(&mut self) {
        self.now += self.random.u64(1..2_000_000);
        while let Some(at) = self.late.iter().position(|(due, _)| *due <= self.now) {
            let (_, request) = self.late.remove(at);
            let changes = self.store.execute(&request).changes;
            self.apply(&changes);
        }
        self.expire();
        let client = self.random.u32(0..CLIENTS as u32);
        let free = self.free_at.get(&client).copied().unwrap_or_default();
        if free > self.now {
            return;
        }
        let invoked = self.random.u64(free.max(self.now.saturating_sub(5_000_000))..=self.now);
        let returned = self.now + self.random.u64(0..5_000_000);
        self.free_at.insert(client, returned);
        let mut request = self.request();
        let outcome = if self.random.u8(0..12) == 0 {
            match self.random.u8(0..3) {
                0 => {}
                1 => self.late.push((self.now + self.random.u64(0..20_000_000), request.clone())),
                _ => {
                    let changes = self.store.execute(&request).changes;
                    self.apply(&changes);
                }
            }
            Outcome::Unknown
        } else if self.random.u8(0..40) == 0 {
            Outcome::Refused { reason: "ResourceExhausted: too many requests".into() }
        } else if self.random.u8(0..30) == 0 {
            let id = 1000 + self.history.operations.len() as i64;
            self.leases.insert(id, self.now + SECOND / 50);
            request = Request::Grant { id, ttl: 0 };
            Outcome::Done { revision: self.store.revision(), body: Body::Granted { id, ttl: 0 } }
        } else {
            let effect = self.store.execute(&request);
            self.apply(&effect.changes);
            Outcome::Done { revision: self.store.revision(), body: effect.body }
        };
        if let (Request::Range(query), Outcome::Done { .. }) = (&mut request, &outcome) {
            query.serializable = self.random.u8(0..5) == 0;
        }
        self.history.operations.push(Operation { client, member: 0, invoked, returned, request, outcome });
    }

    fn expire(&mut self) {
        let ended: Vec<i64> = self.leases.iter().filter(|(_, due)| **due < self.now).map(|(id, _)| *id).collect();
        for id in ended {
            // Writes without an answer may still attach keys to it; they are not sent with a lease here.
            self.late.retain(|(_, request)| !matches!(request, Request::Put { lease, .. } if *lease == id));
            self.leases.remove(&id);
            let changes = self.store.end_of_lease(id);
            self.apply(&changes);
        }
    }

    fn event(&self, change: &Change, revision: i64, prev_kv: bool) -> Event {
        let nothing = Kv {
            key: change.key.clone(),
            value: String::new(),
            create_revision: 0,
            mod_revision: revision,
            version: 0,
            lease: 0,
        };
        Event {
            deleted: change.kv.is_none(),
            kv: change.kv.clone().unwrap_or(nothing),
            previous: self.store.get(&change.key, revision - 1).filter(|_| prev_kv).cloned(),
        }
    }

    /// A watch from a random revision, told in random portions.
    fn watch(&mut self) -> WatchRecord {
        let newest = self.store.revision();
        let start = self.random.i64(1..=newest);
        let mut watch = WatchRecord {
            key: "k".into(),
            range_end: "l".into(),
            start_revision: start,
            prev_kv: self.random.bool(),
            no_delete: self.random.u8(0..5) == 0,
            resumes: self.random.bool(),
            complete_to: Some(newest),
            ..Default::default()
        };
        // After all of it, so that real time asks nothing of the operations.
        let received = self.now + SECOND;
        watch.answers.push(WatchAnswer { received, revision: newest, message: WatchMessage::Created });
        let mut portion = Vec::new();
        for revision in start.max(2)..=newest {
            let changes = &self.log[(revision - 2) as usize];
            let events = changes.iter().map(|change| self.event(change, revision, watch.prev_kv));
            portion.extend(events.filter(|event| !(event.deleted && watch.no_delete)));
            if !portion.is_empty() && (revision == newest || self.random.bool()) {
                let message = WatchMessage::Events { events: std::mem::take(&mut portion), fragment: false };
                watch.answers.push(WatchAnswer { received, revision, message });
            } else if portion.is_empty() && self.random.u8(0..3) == 0 {
                watch.answers.push(WatchAnswer { received, revision, message: WatchMessage::Progress });
            }
        }
        if self.random.bool() {
            watch.answers.push(WatchAnswer { received, revision: newest, message: WatchMessage::Progress });
        }
        watch
    }

    fn finish(mut self, steps: usize, watches: usize) -> (History, Rng) {
        for _ in 0..steps {
            self.step();
        }
        for _ in 0..watches {
            let watch = self.watch();
            self.history.watches.push(watch);
        }
        (self.history, self.random)
    }
}

fn generated(seed: u64) -> (History, Rng) {
    let mut run = Run::new(seed);
    let (steps, watches) = (run.random.usize(50..400), run.random.usize(0..4));
    run.finish(steps, watches)
}

#[test]
fn histories_of_a_real_store_are_accepted() {
    let (mut operations, mut unknown, mut applied, mut events) = (0, 0, 0, 0);
    for seed in 0..400 {
        let (history, _) = generated(seed);
        let checked = check_all(&history).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        operations += checked.operations;
        unknown += checked.unknown;
        applied += checked.unknown_applied;
        events += checked.events;
    }
    println!("400 histories, {operations} operations, {unknown} unknown, {applied} of them applied, {events} events");
    assert!(unknown > operations / 20 && applied > unknown / 10 && events > operations / 4, "the generator is idle");
}

/// A way to spoil a history; `None` when it has nothing to spoil.
type Corruption = fn(&mut History, &mut Rng) -> Option<()>;

fn pick<T>(random: &mut Rng, all: Vec<T>) -> Option<T> {
    let at = random.usize(0..all.len().max(1));
    all.into_iter().nth(at)
}

/// Places of operations that were answered and fit.
fn answered(history: &History, fits: impl Fn(&Operation, &Body) -> bool) -> Vec<usize> {
    let operations = history.operations.iter().enumerate();
    let fitting = operations.filter(|(_, operation)| match &operation.outcome {
        Outcome::Done { body, .. } => fits(operation, body),
        _ => false,
    });
    fitting.map(|(at, _)| at).collect()
}

fn revision_of(operation: &mut Operation) -> &mut i64 {
    match &mut operation.outcome {
        Outcome::Done { revision, .. } => revision,
        _ => unreachable!("an answered operation"),
    }
}

fn newest(history: &History) -> i64 {
    let revisions = history.operations.iter().filter_map(|operation| match operation.outcome {
        Outcome::Done { revision, .. } => Some(revision),
        _ => None,
    });
    revisions.max().unwrap_or(1)
}

fn events(watch: &mut WatchRecord) -> impl Iterator<Item = (usize, &mut Vec<Event>)> {
    let answers = watch.answers.iter_mut().enumerate();
    answers.filter_map(|(at, answer)| match &mut answer.message {
        WatchMessage::Events { events, .. } => Some((at, events)),
        _ => None,
    })
}

/// A watch, and one of its answers with events.
fn portion<'a>(history: &'a mut History, random: &mut Rng) -> Option<(&'a mut WatchRecord, usize)> {
    let mut busy: Vec<&mut WatchRecord> = history.watches.iter_mut().collect();
    busy.retain_mut(|watch| events(watch).next().is_some());
    let watch = pick(random, busy)?;
    let at = pick(random, events(watch).map(|(at, _)| at).collect())?;
    Some((watch, at))
}

fn events_at(watch: &mut WatchRecord, at: usize) -> &mut Vec<Event> {
    match &mut watch.answers[at].message {
        WatchMessage::Events { events, .. } => events,
        _ => unreachable!("an answer with events"),
    }
}

/// An answered write becomes a refused one.
fn refuse_a_write(history: &mut History, random: &mut Rng) -> Option<()> {
    // The newest revision could otherwise vanish without a trace.
    let newest = newest(history);
    let at = pick(
        random,
        answered(history, |operation, body| {
            matches!(body, Body::Put { .. })
                && matches!(operation.outcome, Outcome::Done { revision, .. } if revision < newest)
                && matches!(operation.request, Request::Put { lease: 0, .. })
        }),
    )?;
    history.operations[at].outcome = Outcome::Refused { reason: "planted".into() };
    // An unknown write could take its place unless the value was seen.
    let Request::Put { key, value, .. } = history.operations[at].request.clone() else { return None };
    let seen = format!("{:?}", history.operations.iter().map(|o| &o.outcome).collect::<Vec<_>>());
    let _ = key;
    seen.contains(&format!("{value:?}")).then_some(())
}

/// A write that never happened is answered.
fn invent_a_write(history: &mut History, random: &mut Rng) -> Option<()> {
    let revision = random.i64(2..=newest(history).max(2));
    let request = Request::Put { key: key(0), value: "planted".into(), lease: 0, prev_kv: false };
    let outcome = Outcome::Done { revision, body: Body::Put { previous: None } };
    let taken = answered(history, |operation, body| {
        matches!(body, Body::Put { .. })
            && matches!(operation.outcome, Outcome::Done { revision: r, .. } if r == revision)
    });
    let end = history.operations.iter().map(|operation| operation.returned).max()?;
    history.operations.push(Operation { client: 99, member: 0, invoked: 0, returned: end, request, outcome });
    (!taken.is_empty()).then_some(())
}

fn shift_a_write(history: &mut History, random: &mut Rng) -> Option<()> {
    let at = pick(random, answered(history, |_, body| matches!(body, Body::Put { .. })))?;
    *revision_of(&mut history.operations[at]) += if random.bool() { 1 } else { -1 };
    let moved = *revision_of(&mut history.operations[at]);
    // Onto the place of another write.
    let taken = answered(history, |operation, body| {
        matches!(body, Body::Put { .. })
            && matches!(operation.outcome, Outcome::Done { revision, .. } if revision == moved)
    });
    (taken.len() > 1).then_some(())
}

fn change_a_value_read(history: &mut History, random: &mut Rng) -> Option<()> {
    let at = pick(random, answered(history, |_, body| matches!(body, Body::Range { kvs, .. } if !kvs.is_empty())))?;
    if let Outcome::Done { body: Body::Range { kvs, .. }, .. } = &mut history.operations[at].outcome {
        let kv = random.usize(0..kvs.len());
        kvs[kv].value = "planted".into();
    }
    Some(())
}

fn drop_a_key_read(history: &mut History, random: &mut Rng) -> Option<()> {
    let at = pick(
        random,
        answered(history, |operation, body| {
            matches!(body, Body::Range { kvs, .. } if !kvs.is_empty())
                && matches!(&operation.request, Request::Range(query) if query.limit == 0)
        }),
    )?;
    if let Outcome::Done { body: Body::Range { kvs, count, .. }, .. } = &mut history.operations[at].outcome {
        kvs.remove(random.usize(0..kvs.len()));
        *count -= 1;
    }
    Some(())
}

/// A linearizable read answers with what the store held some writes ago, and says so.
fn serve_a_stale_read(history: &mut History, random: &mut Rng) -> Option<()> {
    let end = history.operations.iter().map(|operation| operation.returned).max()?;
    let stale = answered(
        history,
        |operation, _| matches!(&operation.request, Request::Range(query) if !query.serializable && query.revision == 0),
    );
    let newest = newest(history);
    let at = pick(random, stale)?;
    let mut read = history.operations[at].clone();
    (read.client, read.invoked, read.returned) = (99, end + 1, end + 2);
    let stale = *revision_of(&mut read) < newest;
    history.operations.push(read);
    stale.then_some(())
}

fn drop_an_event(history: &mut History, random: &mut Rng) -> Option<()> {
    let (watch, at) = portion(history, random)?;
    let events = events_at(watch, at);
    events.remove(random.usize(0..events.len()));
    Some(())
}

fn repeat_an_event(history: &mut History, random: &mut Rng) -> Option<()> {
    let (watch, at) = portion(history, random)?;
    let events = events_at(watch, at);
    let again = random.usize(0..events.len());
    events.insert(again, events[again].clone());
    Some(())
}

fn repeat_a_portion(history: &mut History, random: &mut Rng) -> Option<()> {
    let (watch, at) = portion(history, random)?;
    let again = watch.answers[at].clone();
    watch.answers.insert(at + 1, again);
    Some(())
}

fn swap_portions(history: &mut History, random: &mut Rng) -> Option<()> {
    let (watch, at) = portion(history, random)?;
    let other = pick(random, events(watch).map(|(other, _)| other).filter(|&other| other != at).collect())?;
    watch.answers.swap(at, other);
    Some(())
}

/// One revision comes in two answers.
fn split_a_revision(history: &mut History, random: &mut Rng) -> Option<()> {
    let (watch, at) = portion(history, random)?;
    let all = events_at(watch, at);
    let places = 1..all.len();
    let inside = places.filter(|&place| all[place - 1].kv.mod_revision == all[place].kv.mod_revision).collect();
    let place = pick(random, inside)?;
    let rest = all.split_off(place);
    let message = WatchMessage::Events { events: rest, fragment: false };
    let answer = WatchAnswer { message, ..watch.answers[at].clone() };
    watch.answers.insert(at + 1, answer);
    Some(())
}

fn progress_ahead(history: &mut History, random: &mut Rng) -> Option<()> {
    let (watch, at) = portion(history, random)?;
    let first = events_at(watch, at).first()?.kv.mod_revision;
    let answer = WatchAnswer { revision: first, message: WatchMessage::Progress, ..watch.answers[at].clone() };
    watch.answers.insert(at, answer);
    Some(())
}

fn change_an_event(history: &mut History, random: &mut Rng) -> Option<()> {
    let (watch, at) = portion(history, random)?;
    let events = events_at(watch, at);
    let event = random.usize(0..events.len());
    let kv = &mut events[event].kv;
    match random.u8(0..4) {
        0 => kv.version += 1,
        1 => kv.create_revision = kv.mod_revision + 1,
        2 => kv.value.push('x'),
        _ => kv.key = "m".into(),
    }
    Some(())
}

fn change_a_previous_kv(history: &mut History, random: &mut Rng) -> Option<()> {
    let (watch, at) = portion(history, random)?;
    let event = pick(random, events_at(watch, at).iter_mut().collect())?;
    match &mut event.previous {
        Some(previous) if random.bool() => previous.value.push('x'),
        previous @ Some(_) => *previous = None,
        None => return None,
    }
    Some(())
}

#[test]
fn one_corruption_is_rejected() {
    let corruptions: [(&str, Corruption); 14] = [
        ("refuse a write", refuse_a_write),
        ("invent a write", invent_a_write),
        ("shift a write", shift_a_write),
        ("change a value read", change_a_value_read),
        ("drop a key read", drop_a_key_read),
        ("serve a stale read", serve_a_stale_read),
        ("drop an event", drop_an_event),
        ("repeat an event", repeat_an_event),
        ("repeat a portion", repeat_a_portion),
        ("swap portions", swap_portions),
        ("split a revision", split_a_revision),
        ("progress ahead", progress_ahead),
        ("change an event", change_an_event),
        ("change a previous key-value", change_a_previous_kv),
    ];
    for (name, corrupt) in corruptions {
        let mut rejected = 0;
        for seed in 0..1000 {
            if rejected == 60 {
                break;
            }
            let (mut history, mut random) = generated(seed);
            if corrupt(&mut history, &mut random).is_none() {
                continue;
            }
            match check_all(&history) {
                Ok(checked) => panic!("seed {seed}: {name} was accepted: {checked:?}"),
                Err(_) => rejected += 1,
            }
        }
        println!("{name}: {rejected} rejected");
        assert!(rejected == 60, "{name}: only {rejected} histories could be spoiled");
    }
}
