use std::time::Duration;

use tokio::time::Instant;

use crate::types::Revision;

/// When progress is requested on a watch. Decisions only.
///
/// One request goes out with every read of the cluster's revision, and more while a reader waits for a revision that the
/// member has not told: an answer may have been given before the member had it, or not at all.
#[derive(Debug)]
pub(in crate::proxy) struct ProgressRequests {
    first: Duration,
    max: Duration,
    /// A request is to be sent.
    wanted: bool,
    /// When the last one was sent, until its answer has come.
    unanswered: Option<Instant>,
    /// When the next one is due.
    due: Option<Instant>,
    pause: Duration,
}

impl ProgressRequests {
    /// `first` and `max` bound the pauses while a member is behind.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, wanted: false, unanswered: None, due: None, pause: first }
    }

    /// Waits until [`again`](Self::again) is to be called.
    pub fn is_due(&self) -> impl Future<Output = ()> + use<> {
        let due = self.due;
        async move {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        }
    }

    /// A read of the cluster's revision was sent.
    pub fn read_sent(&mut self) {
        self.wanted = true;
    }

    /// A reader waits for `target`.
    pub fn awaited(&mut self, position: Revision, target: Revision, now: Instant) {
        if position >= target || self.due.is_some() {
            return;
        }
        match self.unanswered {
            // Its answer tells whether another one is needed.
            Some(sent) if now < sent + self.max => self.due = Some(sent + self.max),
            _ => self.wanted = true,
        }
    }

    /// An answer was received; `answered`: to a request.
    pub fn reached(&mut self, answered: bool, position: Revision, target: Revision, now: Instant) {
        if answered {
            self.unanswered = None;
        }
        if position >= target {
            (self.due, self.pause) = (None, self.first);
        } else if answered {
            // The member is behind.
            self.due = Some(now + self.pause);
            self.pause = (self.pause * 2).min(self.max);
        } else if self.due.is_none() {
            self.due = Some(now + self.max);
        }
    }

    /// The time has come.
    pub fn again(&mut self, position: Revision, target: Revision) {
        self.due = None;
        self.wanted = position < target;
    }

    /// Whether to send a request now.
    pub fn take(&mut self, now: Instant) -> bool {
        let send = std::mem::take(&mut self.wanted);
        if send {
            self.unanswered = Some(now);
        }
        send
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: Revision = Revision(9);

    fn requests() -> (ProgressRequests, Instant) {
        (ProgressRequests::new(Duration::from_millis(2), Duration::from_millis(50)), Instant::now())
    }

    #[tokio::test]
    async fn one_request_for_a_read_and_more_while_the_member_is_behind() {
        let (mut requests, now) = requests();
        requests.read_sent();
        assert!(requests.take(now) && !requests.take(now));
        requests.awaited(Revision(5), FAR, now);
        assert!(!requests.take(now), "one is unanswered");
        requests.reached(true, Revision(7), FAR, now);
        let due = requests.due.expect("asked again");
        assert!(due > now && due < now + Duration::from_millis(10));
        requests.awaited(Revision(7), FAR, now);
        requests.again(Revision(7), FAR);
        assert!(requests.take(due));
        requests.reached(false, FAR, FAR, due);
        assert_eq!(requests.due, None, "an event got it there");
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_is_asked_for_again() {
        let (mut requests, now) = requests();
        requests.read_sent();
        requests.take(now);
        requests.awaited(Revision(5), FAR, now);
        let due = requests.due.expect("asked again");
        requests.again(Revision(5), FAR);
        assert!(requests.take(due));
        requests.awaited(Revision(5), FAR, due + Duration::from_secs(1));
        assert!(requests.take(due), "the last one was lost");
        requests.reached(false, Revision(9), FAR, due);
        requests.awaited(Revision(9), FAR, due);
        assert!(!requests.take(due));
    }
}
