//! Small histories by hand, each with one fault.

use crate::checkers::{
    Body, Compare, CompareTarget, Comparison, Event, History, Kv, MemberState, Nanos, Operation, Outcome, RangeQuery,
    Request, Rule, WatchAnswer, WatchMessage, WatchRecord, check_all, check_end_states,
};

const SECOND: Nanos = 1_000_000_000;

/// Builds a history; each operation comes from a client of its own unless said otherwise.
#[derive(Default)]
struct Story {
    history: History,
}

fn kv(key: &str, value: &str, create: i64, modified: i64, version: i64) -> Kv {
    Kv { key: key.into(), value: value.into(), create_revision: create, mod_revision: modified, version, lease: 0 }
}

fn put(key: &str, value: &str) -> Request {
    Request::Put { key: key.into(), value: value.into(), lease: 0, prev_kv: false }
}

fn delete(key: &str) -> Request {
    Request::Delete { key: key.into(), range_end: String::new(), prev_kv: false }
}

fn get(key: &str) -> Request {
    Request::Range(RangeQuery { key: key.into(), ..Default::default() })
}

fn found(kvs: &[Kv]) -> Body {
    Body::Range { kvs: kvs.to_vec(), count: kvs.len() as i64, more: false }
}

impl Story {
    fn operation(mut self, invoked: Nanos, returned: Nanos, request: Request, outcome: Outcome) -> Self {
        let client = self.history.operations.len() as u32;
        self.history.operations.push(Operation { client, member: 0, invoked, returned, request, outcome });
        self
    }

    fn done(self, invoked: Nanos, returned: Nanos, request: Request, revision: i64, body: Body) -> Self {
        self.operation(invoked, returned, request, Outcome::Done { revision, body })
    }

    fn put(self, invoked: Nanos, returned: Nanos, key: &str, value: &str, revision: i64) -> Self {
        self.done(invoked, returned, put(key, value), revision, Body::Put { previous: None })
    }

    fn read(self, invoked: Nanos, returned: Nanos, key: &str, revision: i64, kvs: &[Kv]) -> Self {
        self.done(invoked, returned, get(key), revision, found(kvs))
    }

    fn unknown(self, invoked: Nanos, returned: Nanos, request: Request) -> Self {
        self.operation(invoked, returned, request, Outcome::Unknown)
    }

    fn watch(mut self, watch: WatchRecord) -> Self {
        self.history.watches.push(watch);
        self
    }

    #[track_caller]
    fn good(self) {
        if let Err(violation) = check_all(&self.history) {
            panic!("a good history was rejected: {violation}");
        }
    }

    #[track_caller]
    fn bad(self, rule: Rule) {
        match check_all(&self.history) {
            Ok(checked) => panic!("a bad history was accepted: {checked:?}"),
            Err(violation) => assert_eq!(violation.rule, rule, "{violation}"),
        }
    }
}

fn story() -> Story {
    Story::default()
}

#[test]
fn a_read_must_not_be_stale() {
    let base = || story().put(0, 10, "k", "a", 2).put(20, 30, "k", "b", 3);
    base().read(25, 40, "k", 2, &[kv("k", "a", 2, 2, 1)]).good();
    base().read(31, 40, "k", 3, &[kv("k", "b", 2, 3, 2)]).good();
    base().read(31, 40, "k", 2, &[kv("k", "a", 2, 2, 1)]).bad(Rule::RealTime);
    // The header is new and the content is not.
    base().read(31, 40, "k", 3, &[kv("k", "a", 2, 2, 1)]).bad(Rule::WrongAnswer);
    // A serializable read may be old, but never wrong.
    let serializable = || Request::Range(RangeQuery { key: "k".into(), serializable: true, ..Default::default() });
    base().done(31, 40, serializable(), 2, found(&[kv("k", "a", 2, 2, 1)])).good();
    base().done(31, 40, serializable(), 2, found(&[kv("k", "b", 2, 3, 2)])).bad(Rule::WrongAnswer);
    base().done(31, 40, serializable(), 2, found(&[])).bad(Rule::WrongAnswer);
}

/// What a cache in front of the store does when it is wrong.
#[test]
fn faults_of_a_cache() {
    let (old, new) = (kv("k", "a", 2, 2, 1), kv("k", "b", 2, 3, 2));
    let base = || story().put(0, 10, "k", "a", 2).put(20, 30, "k", "b", 3);
    let found_old = || found(std::slice::from_ref(&old));
    // A read of the cluster's revision that was in flight when the request came: it missed the second write.
    base().read(31, 40, "k", 2, std::slice::from_ref(&old)).bad(Rule::RealTime);
    // A position taken from the header of an event batch: the events up to it had not come.
    base().read(25, 40, "k", 3, std::slice::from_ref(&old)).bad(Rule::WrongAnswer);
    // A replica that was dropped, and answered once more.
    let later = || base().read(31, 40, "k", 3, std::slice::from_ref(&new)).put(50, 60, "l", "c", 4);
    later().read(70, 80, "k", 3, std::slice::from_ref(&new)).bad(Rule::RealTime);
    // A state served for a revision beyond its own, and for one before it.
    let at = |revision| Request::Range(RangeQuery { key: "k".into(), revision, ..Default::default() });
    later().done(70, 80, at(3), 4, found_old()).bad(Rule::WrongAnswer);
    later().done(70, 80, at(2), 4, found(std::slice::from_ref(&new))).bad(Rule::WrongAnswer);
    later().done(70, 80, at(2), 4, found_old()).good();
    // An event that was lost: serializable answers are wrong too, from then on.
    let serializable = Request::Range(RangeQuery { key: "k".into(), serializable: true, ..Default::default() });
    later().done(70, 80, serializable, 4, found_old()).bad(Rule::WrongAnswer);
}

#[test]
fn what_one_client_saw_no_later_one_misses() {
    let base = || story().put(0, 10, "k", "a", 2).unknown(20, 30, put("k", "b"));
    let (old, new) = (kv("k", "a", 2, 2, 1), kv("k", "b", 2, 3, 2));
    base().read(40, 50, "k", 3, std::slice::from_ref(&new)).read(45, 55, "k", 2, std::slice::from_ref(&old)).good();
    base().read(40, 50, "k", 3, &[new]).read(51, 55, "k", 2, &[old]).bad(Rule::RealTime);
}

#[test]
fn an_acknowledged_write_must_not_be_lost() {
    story().put(0, 10, "k", "a", 2).read(20, 30, "k", 2, &[]).bad(Rule::WrongAnswer);
    story().put(0, 10, "k", "a", 2).read(20, 30, "k", 1, &[]).bad(Rule::RealTime);
    story().put(0, 10, "k", "a", 2).put(20, 30, "l", "b", 2).bad(Rule::RealTime);
    story().put(0, 10, "k", "a", 2).put(5, 30, "l", "b", 2).bad(Rule::RevisionReused);
    // Revision 3 must have been made by somebody.
    story().put(0, 10, "k", "a", 2).put(20, 30, "k", "b", 4).bad(Rule::Unexplained);
}

#[test]
fn revisions_must_not_go_back() {
    story().put(0, 10, "k", "a", 2).put(20, 30, "k", "b", 3).put(40, 50, "k", "c", 3).bad(Rule::RealTime);
    story().put(0, 10, "k", "a", 3).put(20, 30, "k", "b", 2).bad(Rule::RealTime);
    story().put(0, 25, "k", "a", 3).put(20, 30, "k", "b", 2).good();
}

#[test]
fn an_unknown_write_happens_once_later_or_never() {
    let base = || story().unknown(0, 10, put("k", "a"));
    base().read(20, 30, "k", 1, &[]).good();
    base().read(20, 30, "k", 2, &[kv("k", "a", 2, 2, 1)]).good();
    base().read(20, 30, "k", 1, &[]).read(40, 50, "k", 2, &[kv("k", "a", 2, 2, 1)]).good();
    // Not before it was asked for.
    story().unknown(50, 60, put("k", "a")).read(20, 30, "k", 2, &[kv("k", "a", 2, 2, 1)]).bad(Rule::Unexplained);
    // Not twice.
    base().read(20, 30, "k", 3, &[kv("k", "a", 2, 3, 2)]).bad(Rule::Unexplained);
    let twice = || base().read(20, 30, "k", 2, &[kv("k", "a", 2, 2, 1)]).put(40, 50, "k", "b", 3);
    twice().read(60, 70, "k", 4, &[kv("k", "a", 2, 4, 3)]).bad(Rule::Unexplained);
    // An answered one neither.
    let again = story().put(0, 10, "k", "a", 2).put(20, 30, "k", "b", 3);
    again.read(40, 50, "k", 4, &[kv("k", "a", 2, 4, 3)]).bad(Rule::Unexplained);
    // A refused one not at all.
    let reason = "InvalidArgument: no".to_owned();
    let refused = story().operation(0, 10, put("k", "a"), Outcome::Refused { reason });
    refused.read(20, 30, "k", 2, &[kv("k", "a", 2, 2, 1)]).bad(Rule::Unexplained);
}

#[test]
fn several_unknown_writes_are_put_into_an_order_that_fits() {
    let base = || {
        let base = story().unknown(0, 10, put("k", "a")).unknown(0, 10, put("k", "b")).unknown(0, 10, put("l", "c"));
        base.unknown(0, 10, delete("k"))
    };
    // put b, put c, delete k, put a: only this order has k created at 5.
    base().read(20, 30, "k", 5, &[kv("k", "a", 5, 5, 1)]).read(20, 30, "l", 5, &[kv("l", "c", 3, 3, 1)]).good();
    base().read(20, 30, "k", 5, &[kv("k", "a", 2, 5, 3)]).bad(Rule::Unexplained);
    base().put(40, 50, "z", "z", 6).put(60, 70, "z", "y", 7).good();
    base().put(40, 50, "z", "z", 7).bad(Rule::Unexplained);
}

#[test]
fn transactions_are_checked_as_a_whole() {
    let compare =
        |version| Compare { key: "k".into(), target: CompareTarget::Version(version), comparison: Comparison::Equal };
    let swap = |version, value: &str| Request::Txn {
        compares: vec![compare(version)],
        success: vec![put("k", value), put("l", value)],
        failure: vec![get("k")],
    };
    let won =
        || Body::Txn { succeeded: true, bodies: vec![Body::Put { previous: None }, Body::Put { previous: None }] };
    let lost = |kv: Kv| Body::Txn { succeeded: false, bodies: vec![found(&[kv])] };
    let base = || story().done(0, 10, swap(0, "a"), 2, won());
    base().done(20, 30, swap(0, "b"), 2, lost(kv("k", "a", 2, 2, 1))).good();
    // Two winners of one comparison.
    base().done(20, 30, swap(0, "b"), 3, won()).bad(Rule::WrongAnswer);
    // Half of it.
    base().read(20, 30, "l", 2, &[]).bad(Rule::WrongAnswer);
    // A loser that saw nothing.
    base().done(20, 30, swap(1, "b"), 2, lost(kv("k", "a", 2, 2, 1))).bad(Rule::WrongAnswer);
}

#[test]
fn reads_of_the_past_and_compactions() {
    let past = |revision| Request::Range(RangeQuery { key: "k".into(), revision, ..Default::default() });
    let base = || story().put(0, 10, "k", "a", 2).put(20, 30, "k", "b", 3);
    base().done(40, 50, past(2), 3, found(&[kv("k", "a", 2, 2, 1)])).good();
    base().done(40, 50, past(2), 3, found(&[kv("k", "b", 2, 3, 2)])).bad(Rule::WrongAnswer);
    base().done(40, 50, past(9), 3, found(&[kv("k", "b", 2, 3, 2)])).bad(Rule::WrongAnswer);
    let compacted = || base().done(31, 35, Request::Compact { revision: 3 }, 3, Body::Compacted);
    compacted().done(40, 50, past(2), 3, found(&[kv("k", "a", 2, 2, 1)])).bad(Rule::Compaction);
    compacted().done(40, 50, past(3), 3, found(&[kv("k", "b", 2, 3, 2)])).good();
    let refused = || {
        let reason = "OutOfRange: etcdserver: mvcc: required revision has been compacted".to_owned();
        Outcome::Refused { reason }
    };
    compacted().operation(40, 50, past(2), refused()).good();
    base().operation(40, 50, past(2), refused()).bad(Rule::Compaction);
}

#[test]
fn a_client_does_one_thing_at_a_time() {
    let mut story = story().put(0, 10, "k", "a", 2).put(5, 20, "k", "b", 3);
    story.history.operations[1].client = 0;
    story.bad(Rule::Recording);
}

/// Three writes: k at 2, k and l at 3, the delete of k at 4.
fn writes() -> Story {
    let both = Request::Txn { compares: Vec::new(), success: vec![put("k", "b"), put("l", "c")], failure: Vec::new() };
    let bodies = vec![Body::Put { previous: None }, Body::Put { previous: None }];
    let base = story().put(0, 10, "k", "a", 2).done(20, 30, both, 3, Body::Txn { succeeded: true, bodies });
    base.done(40, 50, delete("k"), 4, Body::Delete { deleted: 1, previous: Vec::new() })
}

fn event(kv: Kv, previous: Option<Kv>) -> Event {
    Event { deleted: false, kv, previous }
}

fn k2() -> Event {
    event(kv("k", "a", 2, 2, 1), None)
}

fn k3() -> Event {
    event(kv("k", "b", 2, 3, 2), Some(kv("k", "a", 2, 2, 1)))
}

fn l3() -> Event {
    event(kv("l", "c", 3, 3, 1), None)
}

fn k4() -> Event {
    Event { deleted: true, kv: kv("k", "", 0, 4, 0), previous: Some(kv("k", "b", 2, 3, 2)) }
}

enum Told {
    Created(i64),
    Events(Vec<Event>),
    Fragment(Vec<Event>),
    Progress(i64),
    Compacted(i64),
}

/// A watch over everything with previous key-values that was told this.
fn watch(start_revision: i64, told: Vec<Told>) -> WatchRecord {
    let answers = told.into_iter().enumerate().map(|(at, told)| {
        let newest = |events: &[Event]| events.iter().map(|event| event.kv.mod_revision).max().unwrap_or_default();
        let (revision, message) = match told {
            Told::Created(revision) => (revision, WatchMessage::Created),
            Told::Events(events) => (newest(&events), WatchMessage::Events { events, fragment: false }),
            Told::Fragment(events) => (newest(&events), WatchMessage::Events { events, fragment: true }),
            Told::Progress(revision) => (revision, WatchMessage::Progress),
            Told::Compacted(compact_revision) => {
                (4, WatchMessage::Cancelled { compact_revision, reason: "compacted".into() })
            }
        };
        WatchAnswer { received: 100 + at as u64, revision, message }
    });
    WatchRecord {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision,
        prev_kv: true,
        complete_to: Some(4),
        answers: answers.collect(),
        ..Default::default()
    }
}

use Told::{Compacted, Created, Events, Fragment, Progress};

#[test]
fn good_watches_pass() {
    let good = |watch| writes().watch(watch).good();
    good(watch(2, vec![Created(4), Events(vec![k2(), k3(), l3(), k4()])]));
    good(watch(2, vec![Created(1), Events(vec![k2()]), Progress(2), Events(vec![l3(), k3()]), Events(vec![k4()])]));
    good(watch(0, vec![Created(3), Events(vec![k4()]), Progress(4)]));
    good(watch(9, vec![Created(4)]));
    let pieces = watch(2, vec![Created(1), Events(vec![k2()]), Fragment(vec![k3()]), Events(vec![l3(), k4()])]);
    good(WatchRecord { fragment: true, ..pieces });
    let puts = watch(2, vec![Created(1), Events(vec![k2(), k3(), l3()]), Progress(4)]);
    good(WatchRecord { no_delete: true, ..puts });
    let one_key = watch(2, vec![Created(1), Events(vec![l3()])]);
    good(WatchRecord { key: "l".into(), range_end: String::new(), ..one_key });
    // Broken off in the middle.
    good(WatchRecord { complete_to: None, ..watch(2, vec![Created(1), Events(vec![k2()])]) });
}

#[test]
fn watches_must_keep_their_guarantees() {
    let bad = |rule, watch| writes().watch(watch).bad(rule);
    // Twice, in one answer and over two.
    bad(Rule::Unique, watch(2, vec![Created(1), Events(vec![k2(), k2(), k3(), l3(), k4()])]));
    bad(Rule::Unique, watch(2, vec![Created(1), Events(vec![k2()]), Events(vec![k2(), k3(), l3(), k4()])]));
    // Missing: in the middle, at the end, below progress, after a resume.
    bad(Rule::Reliable, watch(2, vec![Created(1), Events(vec![k2(), k4()])]));
    bad(Rule::Reliable, watch(2, vec![Created(1), Events(vec![k2(), k3(), k4()])]));
    bad(Rule::Reliable, watch(2, vec![Created(1), Events(vec![k2(), k3(), l3()])]));
    bad(Rule::Bookmarkable, watch(2, vec![Created(1), Events(vec![k2()]), Progress(3)]));
    let resumed = watch(3, vec![Created(4), Events(vec![k4()])]);
    bad(Rule::Resumable, WatchRecord { resumes: true, ..resumed });
    // Out of order.
    bad(Rule::Ordered, watch(2, vec![Created(1), Events(vec![k3(), l3(), k2(), k4()])]));
    bad(Rule::Reliable, watch(2, vec![Created(1), Events(vec![k3(), l3()]), Events(vec![k2(), k4()])]));
    bad(Rule::Ordered, watch(3, vec![Created(1), Events(vec![k3(), l3()]), Events(vec![k2(), k4()])]));
    // One revision in two answers.
    bad(Rule::Atomic, watch(2, vec![Created(1), Events(vec![k2(), k3()]), Events(vec![l3(), k4()])]));
    bad(Rule::Atomic, watch(2, vec![Created(1), Fragment(vec![k2(), k3()]), Events(vec![l3(), k4()])]));
    // Progress ahead, behind, in the middle of a revision.
    bad(Rule::Bookmarkable, watch(2, vec![Created(1), Progress(2), Events(vec![k3(), l3(), k4()])]));
    bad(Rule::Bookmarkable, watch(2, vec![Created(1), Events(vec![k2(), k3(), l3(), k4()]), Progress(3)]));
    let middle = watch(2, vec![Created(1), Fragment(vec![k2(), k3()]), Progress(2), Events(vec![l3(), k4()])]);
    bad(Rule::Bookmarkable, WatchRecord { fragment: true, ..middle });
    // What was not asked for.
    let all = || vec![Created(1), Events(vec![k2(), k3(), l3(), k4()])];
    bad(Rule::Filter, WatchRecord { no_delete: true, ..watch(2, all()) });
    bad(Rule::Filter, WatchRecord { no_put: true, ..watch(2, all()) });
    bad(Rule::Filter, WatchRecord { key: "k".into(), range_end: "l".into(), ..watch(2, all()) });
    // Previous key-values: wrong, missing, too old, not asked for.
    let with = |k3: Event| watch(2, vec![Created(1), Events(vec![k2(), k3, l3(), k4()])]);
    bad(Rule::PreviousKv, with(Event { previous: None, ..k3() }));
    bad(Rule::PreviousKv, with(Event { previous: Some(kv("k", "b", 2, 3, 2)), ..k3() }));
    bad(Rule::PreviousKv, WatchRecord { prev_kv: false, ..watch(2, all()) });
    // Cancelled as compacted although nobody compacted.
    bad(Rule::Cancelled, watch(2, vec![Created(1), Compacted(3)]));
    bad(Rule::Cancelled, {
        let mut watch = watch(2, vec![Created(1), Events(vec![k2(), k3(), l3(), k4()]), Compacted(0)]);
        let last = watch.answers.last().cloned().expect("an answer");
        watch.answers.push(WatchAnswer { message: WatchMessage::Progress, ..last });
        watch
    });
}

#[test]
fn events_must_say_what_happened() {
    // A value, a version or a whole event that never was is impossible at that revision.
    let bad = |rule, events| writes().watch(watch(2, vec![Created(1), Events(events)])).bad(rule);
    bad(Rule::WrongAnswer, vec![k2(), event(kv("k", "x", 2, 3, 2), k3().previous), l3(), k4()]);
    bad(Rule::WrongAnswer, vec![k2(), event(kv("k", "b", 3, 3, 1), k3().previous), l3(), k4()]);
    bad(Rule::WrongAnswer, vec![k2(), k3(), l3(), event(kv("m", "x", 3, 3, 1), None), k4()]);
    bad(Rule::Unexplained, vec![k2(), k3(), l3(), k4(), event(kv("m", "x", 5, 5, 1), None)]);
    bad(Rule::Content, vec![k2(), k3(), l3(), Event { kv: kv("k", "b", 0, 4, 0), ..k4() }]);
}

#[test]
fn a_creation_is_told_from_an_update() {
    // Checked against the truth of a history whose watch is good, since the search notices the same fault first.
    let truth = crate::checkers::explain(&writes().history).expect("explained");
    let planted = Event { kv: kv("k", "b", 3, 3, 1), ..k3() };
    let watch = watch(2, vec![Created(1), Events(vec![k2(), planted, l3(), k4()])]);
    let refused = crate::checkers::check_watch(&watch, &History::default(), &truth).expect_err("planted");
    assert_eq!(refused.rule, Rule::IsCreate, "{refused}");
}

#[test]
fn compaction_ends_a_watch_only_below_it() {
    let compacted = || writes().done(60, 70, Request::Compact { revision: 3 }, 4, Body::Compacted);
    compacted().watch(watch(2, vec![Created(4), Compacted(3)])).good();
    compacted().watch(watch(3, vec![Created(4), Compacted(3)])).bad(Rule::Cancelled);
    compacted().watch(watch(2, vec![Created(1), Events(vec![k2()]), Compacted(3)])).bad(Rule::Cancelled);
    // A previous key-value may be gone with the history.
    let forgotten = Event { previous: None, ..k3() };
    compacted().watch(watch(2, vec![Created(1), Events(vec![k2(), forgotten, l3(), k4()])])).good();
}

fn grant(invoked: Nanos, returned: Nanos, story: Story) -> Story {
    story.done(invoked, returned, Request::Grant { id: 7, ttl: 2 }, 1, Body::Granted { id: 7, ttl: 2 })
}

fn attach(story: Story) -> Story {
    let request = Request::Put { key: "k".into(), value: "a".into(), lease: 7, prev_kv: false };
    story.done(20, 30, request, 2, Body::Put { previous: None })
}

// Cause: of two leases one had ended in the last revision, which only a progress notification had told. It was taken for the end of the one
// that was granted later.
#[test]
fn an_end_that_nobody_saw_is_not_held_against_a_lease() {
    let put = |key: &str, lease| Request::Put { key: key.into(), value: "a".into(), lease, prev_kv: false };
    let put = |at, key, lease, revision, story: Story| {
        story.done(at, at + 10, put(key, lease), revision, Body::Put { previous: None })
    };
    let granted = |at, id, revision, story: Story| {
        story.done(at, at + 10, Request::Grant { id, ttl: 2 }, revision, Body::Granted { id, ttl: 2 })
    };
    let both = |first, second| {
        let story = put(20, "k", first, 2, granted(0, first, 1, story()));
        put(SECOND + 20, "l", second, 3, granted(SECOND, second, 2, story))
    };
    let told = || {
        let created = WatchAnswer { received: SECOND + 40, revision: 3, message: WatchMessage::Created };
        let progress = WatchAnswer { received: 2 * SECOND + 10, revision: 4, message: WatchMessage::Progress };
        WatchRecord { key: "z".into(), answers: vec![created, progress], ..Default::default() }
    };
    for (first, second) in [(7, 8), (8, 7)] {
        both(first, second).watch(told()).good();
        let seen = |key| both(first, second).watch(told()).read(2 * SECOND, 2 * SECOND + 10, key, 4, &[]);
        seen("k").good();
        seen("l").bad(Rule::EarlyExpiry);
    }
}

fn renew(invoked: Nanos, ttl: i64, story: Story) -> Story {
    story.done(invoked, invoked + 10, Request::KeepAlive { id: 7 }, 2, Body::KeptAlive { ttl })
}

#[test]
fn a_lease_must_not_end_early() {
    let base = || attach(grant(0, 10, story()));
    let gone = |at, story: Story| story.read(at, at + 10, "k", 3, &[]);
    gone(2 * SECOND, base()).good();
    gone(2 * SECOND - 20, base()).bad(Rule::EarlyExpiry);
    gone(2 * SECOND, renew(SECOND, 2, base())).bad(Rule::EarlyExpiry);
    gone(3 * SECOND, renew(SECOND, 2, base())).good();
    // Through an event or an answer about the lease.
    let end = Event { deleted: true, kv: kv("k", "", 0, 3, 0), previous: None };
    let told = |received| {
        let message = WatchMessage::Events { events: vec![end.clone()], fragment: false };
        let created = WatchAnswer { received: 40, revision: 2, message: WatchMessage::Created };
        WatchRecord {
            key: "k".into(),
            answers: vec![created, WatchAnswer { received, revision: 3, message }],
            ..Default::default()
        }
    };
    base().watch(told(2 * SECOND)).good();
    base().watch(told(2 * SECOND - 1)).bad(Rule::EarlyExpiry);
    let asked =
        |at, story: Story| story.done(at, at + 1, Request::TimeToLive { id: 7 }, 2, Body::TimeToLive { ttl: -1 });
    asked(2 * SECOND, base()).good();
    asked(SECOND, base()).bad(Rule::EarlyExpiry);
    renew(SECOND, 0, base()).bad(Rule::EarlyExpiry);
    // Somebody revoked it, perhaps.
    gone(SECOND, base().done(40, 50, Request::Revoke { id: 7 }, 3, Body::Revoked)).good();
    gone(SECOND, base().unknown(40, 50, Request::Revoke { id: 7 })).good();
}

#[test]
fn a_lease_must_not_live_on() {
    let base = || attach(grant(0, 10, story()));
    let revoked = || base().done(40, 50, Request::Revoke { id: 7 }, 3, Body::Revoked);
    renew(60, 2, revoked()).bad(Rule::AfterEnd);
    renew(45, 2, revoked()).good();
    base().done(40, 50, Request::Revoke { id: 7 }, 2, Body::Revoked).bad(Rule::WrongAnswer);
    renew(3 * SECOND, 2, base().read(2 * SECOND, 2 * SECOND + 10, "k", 3, &[])).bad(Rule::AfterEnd);
    let again = Request::Put { key: "k".into(), value: "b".into(), lease: 7, prev_kv: false };
    let ended = base().read(3 * SECOND, 3 * SECOND + 10, "k", 3, &[]);
    let last = 4 * SECOND;
    ended.done(last, last + 10, again, 4, Body::Put { previous: None }).bad(Rule::AfterEnd);
}

#[test]
fn members_must_be_equal_in_the_end() {
    let state = |member, revision, hash| MemberState { member, revision, compact_revision: 1, hash };
    check_end_states(&[state(1, 5, 7), state(2, 5, 7), state(3, 5, 7)]).expect("equal");
    check_end_states(&[state(1, 5, 7), state(2, 5, 8), state(3, 5, 7)]).expect_err("another hash");
    check_end_states(&[state(1, 5, 7), state(2, 5, 7), state(3, 4, 7)]).expect_err("another revision");
}

#[test]
fn a_history_survives_a_file() {
    let folder = tempfile::TempDir::new().expect("temporary directory");
    let path = folder.path().join("history.json");
    let story = writes().unknown(60, 70, put("z", "z")).watch(watch(2, vec![Created(1), Events(vec![k2(), k3()])]));
    story.history.save(&path).expect("saved");
    let again = History::load(&path).expect("loaded");
    assert_eq!(format!("{again:?}"), format!("{:?}", story.history));
}
