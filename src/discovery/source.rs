use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::endpoint_set::{EndpointSet, Origin, SetChange, dialled};
use crate::net::Endpoint;

/// A source of endpoints.
pub trait Discovery: Send + Sync {
    /// What it publishes; the other methods are parts of it.
    fn followed(&self) -> Followed;

    /// The current set, which is there from the start, and every later one. A sender that is gone means that the set
    /// will not change any more.
    fn endpoints(&self) -> watch::Receiver<EndpointSet> {
        self.followed().current
    }

    /// What it is.
    fn origin(&self) -> Origin {
        self.followed().origin
    }

    /// Has it asked for its endpoints at once; those that are known stay until there is an answer.
    fn ask_again(&self) {
        self.followed().asked.notify_one();
    }

    /// How it fares.
    fn status(&self) -> Arc<SourceStatus> {
        self.followed().status
    }

    /// Its name, for logs.
    fn name(&self) -> &'static str {
        self.origin().name()
    }
}

/// The current endpoints of a source, as the client dials them.
pub fn current_endpoints(source: &dyn Discovery) -> Vec<Endpoint> {
    dialled(&source.endpoints().borrow())
}

/// How a source of endpoints fares.
#[derive(Debug, Default)]
pub struct SourceStatus {
    answered: Mutex<Option<Instant>>,
    failures: AtomicU64,
    changes: AtomicU64,
}

impl SourceStatus {
    /// Time since the last answer that could be used; none for a source that is not asked, or has not answered yet.
    pub fn age(&self) -> Option<Duration> {
        self.answered.lock().map(|at| at.elapsed())
    }

    /// Questions without an answer that could be used.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Answers that changed the set.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }
}

/// The sending end of a source: keeps the set and how the source fares, logs every change.
#[derive(Debug)]
pub(super) struct Published {
    origin: Origin,
    current: watch::Sender<EndpointSet>,
    status: Arc<SourceStatus>,
    /// The operator wants it asked.
    asked: Arc<Notify>,
}

impl Published {
    pub(super) fn new(origin: Origin, first: EndpointSet) -> Self {
        Self { origin, current: watch::Sender::new(first), status: Arc::default(), asked: Arc::default() }
    }

    /// The receiving end.
    pub(super) fn followed(&self) -> Followed {
        let (status, asked) = (self.status.clone(), self.asked.clone());
        Followed { origin: self.origin, current: self.current.subscribe(), status, asked }
    }

    /// Waits before the source is asked again: this long, unless the operator wants it asked at once; tells whether it is so.
    pub(super) async fn pause(&self, pause: Duration) -> bool {
        tokio::select! {
            () = sleep(pause) => false,
            () = self.asked() => true,
        }
    }

    /// Ready when the operator wants the source asked.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
        info!(source = self.origin.name(), endpoints = self.current.borrow().len(), "endpoints are asked for again");
    }

    /// The source answered; an empty set changes nothing, as nobody can be served by it.
    pub(super) fn answer(&self, set: EndpointSet) {
        *self.status.answered.lock() = Some(Instant::now());
        self.replace(set);
    }

    /// Replaces the set, without an answer of the source.
    pub(super) fn replace(&self, set: EndpointSet) {
        let source = self.origin.name();
        self.current.send_if_modified(|current| {
            if set.is_empty() || *current == set {
                return false;
            }
            let change = SetChange::between(current, &set);
            info!(source, %change, endpoints = set.len(), "endpoints have changed");
            self.status.changes.fetch_add(1, Ordering::Relaxed);
            *current = set;
            true
        });
    }

    /// The source did not answer, or with what cannot be used: the last set stays.
    pub(super) fn failed(&self, why: &dyn fmt::Display) {
        self.status.failures.fetch_add(1, Ordering::Relaxed);
        let (source, endpoints) = (self.origin.name(), self.current.borrow().len());
        warn!(source, error = %why, endpoints, "source of endpoints does not answer, they stay as they are");
    }
}

/// The receiving end of a source. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Followed {
    origin: Origin,
    current: watch::Receiver<EndpointSet>,
    status: Arc<SourceStatus>,
    asked: Arc<Notify>,
}

impl Discovery for Followed {
    fn followed(&self) -> Followed {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::endpoint_set::ListedEndpoint;
    use super::*;

    fn set(texts: &[&str]) -> EndpointSet {
        texts.iter().map(|text| ListedEndpoint::new(text.parse::<Endpoint>().unwrap())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_set_stays_and_grows_old() {
        let published = Published::new(Origin::MemberList, set(&["a:1"]));
        let followed = published.followed();
        let mut sets = followed.endpoints();
        let status = followed.status();
        assert_eq!(status.age(), None);
        published.answer(set(&["b:1"]));
        assert_eq!(*sets.borrow_and_update(), set(&["b:1"]));
        tokio::time::advance(Duration::from_secs(7)).await;
        published.failed(&"down");
        published.replace(set(&[]));
        assert!(!sets.has_changed().unwrap());
        assert_eq!((status.age(), status.failures(), status.changes()), (Some(Duration::from_secs(7)), 1, 1));
        published.answer(set(&["b:1"]));
        assert!(!sets.has_changed().unwrap());
        assert_eq!((status.age(), status.changes()), (Some(Duration::ZERO), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_operator_need_not_wait_for_the_next_question() {
        let published = Published::new(Origin::Srv, set(&["a:1"]));
        let long = Duration::from_secs(300);
        assert!(!published.pause(long).await);
        let started = Instant::now();
        // Twice is once.
        published.followed().ask_again();
        published.followed().ask_again();
        assert!(published.pause(long).await);
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert!(!published.pause(long).await);
    }
}
