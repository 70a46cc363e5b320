use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tonic::{Code, Status};

/// Violations that are kept; one is enough to fail.
const VIOLATIONS: usize = 50;

/// What is asked, and what counts beside it: renewals and the ends of leases, refused writes, first events of new watches.
const KINDS: [&str; 14] = [
    "put",
    "delete",
    "txn",
    "range",
    "serializable",
    "lease",
    "renewal",
    "revoke",
    "expiry",
    "denied",
    "compaction",
    "login",
    "connection",
    "watch",
];

/// What happened so far.
#[derive(Default)]
pub struct Record {
    violations: Mutex<Vec<String>>,
    /// By what was asked: answered, and not.
    requests: Mutex<BTreeMap<&'static str, (u64, u64)>>,
    pub events: AtomicU64,
    /// Streams that the watches over everything have opened.
    pub streams: AtomicU64,
    /// Writes that may have been done or not.
    pub unknown: AtomicU64,
    reported: AtomicU64,
}

impl Record {
    /// Notes a violation unless this holds.
    pub fn must(&self, holds: bool, what: impl FnOnce() -> String) {
        let mut violations = self.violations.lock();
        if !holds && violations.len() < VIOLATIONS {
            let text = what();
            eprintln!("VIOLATION {text}");
            violations.push(text);
        }
    }

    /// Counts an answer, or the failure of a request.
    pub fn count<T>(&self, kind: &'static str, answer: Result<T, Status>) -> Option<T> {
        let mut requests = self.requests.lock();
        let (answered, failed) = requests.entry(kind).or_default();
        match answer {
            Ok(answer) => {
                *answered += 1;
                Some(answer)
            }
            Err(status) => {
                *failed += 1;
                // What a member that ends or has no leader answers; anything else is worth a line.
                let usual = [Code::Unavailable, Code::Cancelled, Code::Unknown, Code::DeadlineExceeded];
                if !usual.contains(&status.code()) {
                    eprintln!("{kind}: {status:?}");
                }
                None
            }
        }
    }

    fn totals(&self) -> (u64, u64) {
        self.requests.lock().values().fold((0, 0), |(answered, failed), one| (answered + one.0, failed + one.1))
    }

    /// A line a minute.
    pub fn report(&self, elapsed: Duration) {
        let minute = elapsed.as_secs() / 60;
        if self.reported.swap(minute, Ordering::Relaxed) != minute {
            let (answered, failed) = self.totals();
            println!(
                "{minute} min: {answered} answered, {failed} failed, {} events",
                self.events.load(Ordering::Relaxed)
            );
        }
    }

    pub fn summary(&self, elapsed: Duration) -> String {
        let mut text = format!(
            "{:.1} minutes\n\n| Request | Answered | Failed |\n| --- | --- | --- |\n",
            elapsed.as_secs_f64() / 60.0
        );
        for (kind, (answered, failed)) in self.requests.lock().iter() {
            text += &format!("| {kind} | {answered} | {failed} |\n");
        }
        let [events, streams, unknown] =
            [&self.events, &self.streams, &self.unknown].map(|one| one.load(Ordering::Relaxed));
        let violations = self.violations();
        text + &format!(
            "\n{events} watch events on {streams} streams, {unknown} writes of unknown outcome, {violations} violations\n"
        )
    }

    /// Kinds of requests of which none was answered yet.
    pub fn lacks(&self) -> Vec<&'static str> {
        let requests = self.requests.lock();
        let lacking = |kind: &&str| requests.get(kind).is_none_or(|(answered, _)| *answered == 0);
        KINDS.into_iter().filter(lacking).collect()
    }

    pub fn violations(&self) -> usize {
        self.violations.lock().len()
    }

    #[track_caller]
    pub fn assert_sound(&self) {
        let violations = self.violations.lock();
        assert!(violations.is_empty(), "{}", violations.join("\n"));
        let (answered, failed) = self.totals();
        assert!(failed * 10 < answered, "{failed} failed, {answered} were answered");
    }
}
