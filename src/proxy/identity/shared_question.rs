use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::FutureExt;
use futures::future::Shared;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Status;

use super::read_question::{Question, is_refusal};

/// How long a permission holds, counted from when the cluster was asked for it: the bound within which a revoked one
/// takes effect.
pub const PERMISSION_MAX: Duration = Duration::from_secs(1);
/// A permission is asked for again when it is older than this, less twice the time that the answer took: so the next one is there
/// before [`PERMISSION_MAX`] is over, also when it takes longer.
pub(super) const RENEW_AFTER: Duration = Duration::from_millis(700);

/// One question, asked once at a time for all who have it, and what the cluster has answered.
#[derive(Debug)]
pub(super) struct SharedQuestion {
    pub question: Question,
    /// The newest permission; none after a refusal.
    permitted: ArcSwapOption<Permitted>,
    in_flight: Mutex<Option<InFlight>>,
}

/// Ends with the answer, or with an error when the task that asks has ended without.
pub(super) type InFlight = Shared<oneshot::Receiver<Answer>>;

/// What the cluster has answered: when it was asked, or the refusal, or why there is no decision.
pub(super) type Answer = Result<Arc<Permitted>, Status>;

/// A permission of the cluster.
#[derive(Debug)]
pub(super) struct Permitted {
    /// The cluster decided after this.
    asked_at: Instant,
    renew_at: Instant,
    /// How many changes of permissions were known of when it was asked.
    changes: u64,
    /// Somebody has begun to ask again.
    renewed: AtomicBool,
}

impl Permitted {
    /// By an answer that came now.
    pub fn new(asked_at: Instant, changes: u64) -> Self {
        let renew_at = asked_at + RENEW_AFTER.saturating_sub(2 * asked_at.elapsed());
        Self { asked_at, renew_at, changes, renewed: AtomicBool::new(false) }
    }

    /// Whether it holds at a time, for a call that was made after so many changes.
    pub fn holds(&self, changes: u64, now: Instant) -> bool {
        self.changes >= changes && now.saturating_duration_since(self.asked_at) < PERMISSION_MAX
    }

    /// Whether it is to be asked for again.
    pub fn is_old(&self, now: Instant) -> bool {
        now >= self.renew_at
    }

    /// Whether the caller is to ask again in the background; tells so once.
    pub fn takes_renewal(&self) -> bool {
        !self.renewed.swap(true, Ordering::Relaxed)
    }
}

/// The obligation to answer the question in flight. Dropped without an answer, it tells so to those who wait.
pub(super) struct Asking {
    /// Dropped first: who is told may begin the next question.
    in_flight: InFlightGuard,
    answer: oneshot::Sender<Answer>,
}

struct InFlightGuard(Arc<SharedQuestion>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.in_flight.lock().take();
    }
}

/// How a caller takes part in a question.
pub(super) enum Part {
    /// It was in flight before.
    Joined(InFlight),
    /// The caller has it asked.
    Begun(Asking, InFlight),
}

impl SharedQuestion {
    pub fn new(question: Question) -> Self {
        Self { question, permitted: ArcSwapOption::empty(), in_flight: Mutex::default() }
    }

    /// The newest permission, if it holds now for a call that was made after so many changes.
    pub fn permitted(&self, changes: u64, now: Instant) -> Option<Arc<Permitted>> {
        self.permitted.load_full().filter(|permitted| permitted.holds(changes, now))
    }

    /// Whether it is permitted, and nobody needs to ask again for now.
    pub fn is_permitted(&self, changes: u64) -> bool {
        let now = Instant::now();
        self.permitted.load().as_ref().is_some_and(|permitted| {
            permitted.holds(changes, now) && (!permitted.is_old(now) || permitted.renewed.load(Ordering::Relaxed))
        })
    }

    /// Takes part in the question in flight, or begins one.
    pub fn take_part(self: &Arc<Self>) -> Part {
        let mut in_flight = self.in_flight.lock();
        if let Some(in_flight) = &*in_flight {
            return Part::Joined(in_flight.clone());
        }
        let (answer, receiver) = oneshot::channel();
        let receiver = receiver.shared();
        *in_flight = Some(receiver.clone());
        Part::Begun(Asking { in_flight: InFlightGuard(self.clone()), answer }, receiver)
    }
}

impl Asking {
    pub fn question(&self) -> &Question {
        &self.in_flight.0.question
    }

    /// Tells the answer.
    pub fn finish(self, answer: Answer) {
        let Self { in_flight, answer: sender } = self;
        match &answer {
            Ok(permitted) => in_flight.0.permitted.store(Some(permitted.clone())),
            Err(status) if is_refusal(status) => in_flight.0.permitted.store(None),
            Err(_) => {}
        }
        drop(in_flight);
        // Nobody may wait any more.
        let _ = sender.send(answer);
    }
}
