use std::time::Duration;

use tokio::time::Instant;

use crate::types::Revision;

/// When a broadcast asks its member for progress, and when its watchers are told theirs. Decisions only.
///
/// A member notifies idle watches alone, and a shared one is busy while any of the ranges below it is. So the broadcast has
/// a second watch beside it that never gets an event, the *clock*: its notifications come at the member's interval.
/// Each of them is a tick, which tells the idle watchers as soon as the log has reached the revision it names.
#[derive(Debug)]
pub(super) struct Pace {
    /// Between two ticks of the broadcast's own, while none come from the member.
    interval: Duration,
    /// Age of the position at which the member is asked for a newer one.
    position_max: Duration,
    /// Whether a watcher wants to be told.
    pub wanted: bool,
    /// When the member is asked for its position, unless it tells one before.
    ask_at: Instant,
    /// When the broadcast makes a tick of its own, unless one comes from the member before.
    tick_at: Instant,
    /// Watchers are told once the log has reached this.
    due: Option<Revision>,
}

/// What to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Act {
    /// Ask the member how far it is.
    pub ask: bool,
    /// Tell the idle watchers how far the log is.
    pub tell: bool,
}

const ASK: Act = Act { ask: true, tell: false };
const TELL: Act = Act { ask: false, tell: true };

impl Pace {
    pub fn new(interval: Duration, position_max: Duration, now: Instant) -> Self {
        Self { interval, position_max, wanted: false, ask_at: now + position_max, tick_at: now + interval, due: None }
    }

    /// Another member serves the watch, which was resumed at an old position or begins anew.
    pub fn restart(&mut self, resumed: bool, now: Instant) {
        let wait = if resumed { self.position_max / 60 } else { self.position_max };
        self.ask_at = now + wait;
        self.due = None;
    }

    /// When [`alarm`](Self::alarm) is due.
    pub fn next(&self) -> Instant {
        if self.wanted { self.ask_at.min(self.tick_at) } else { self.ask_at }
    }

    /// Time has passed. `proven` says whether the progress this member tells is to be relied on.
    pub fn alarm(&mut self, proven: bool, now: Instant) -> Act {
        let mut act = Act::default();
        if now >= self.ask_at {
            act.ask = proven;
            // One whose version is not known yet may be by then.
            self.ask_at = now + if proven { self.position_max } else { self.position_max / 12 };
        }
        if self.wanted && now >= self.tick_at {
            self.tick_at = now + self.interval;
            if proven {
                // Answered in any case.
                self.due = Some(Revision(i64::MAX));
                act.ask = true;
            } else {
                act.tell = true;
            }
        }
        act
    }

    /// The member's interval has passed, and it is at `revision`.
    pub fn tick(&mut self, revision: Revision, head: Revision, proven: bool, now: Instant) -> Act {
        if !self.wanted {
            return Act::default();
        }
        self.tick_at = now + self.interval;
        if head >= revision {
            self.due = None;
            return TELL;
        }
        // The events on their way to there are proof as well.
        self.due = Some(revision);
        if proven { ASK } else { Act::default() }
    }

    /// The log has reached `head`, by events or because the member says so in answer to a request (`asked`).
    pub fn reached(&mut self, head: Revision, asked: bool, now: Instant) -> Act {
        self.ask_at = now + self.position_max;
        match self.due {
            Some(due) if asked || head >= due => {
                self.due = None;
                TELL
            }
            _ => Act::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(600);
    const MINUTE: Duration = Duration::from_secs(60);

    fn pace(now: Instant) -> Pace {
        Pace { wanted: true, ..Pace::new(INTERVAL, MINUTE, now) }
    }

    #[tokio::test]
    async fn a_tick_is_told_when_the_log_has_reached_it() {
        let now = Instant::now();
        let mut pace = pace(now);
        assert_eq!(pace.tick(Revision(5), Revision(5), true, now), TELL);
        assert_eq!(pace.tick(Revision(9), Revision(5), true, now), ASK);
        assert_eq!(pace.reached(Revision(7), false, now), Act::default());
        assert_eq!(pace.reached(Revision(9), false, now), TELL);
        assert_eq!(pace.reached(Revision(9), true, now), Act::default(), "once");
        assert_eq!(pace.tick(Revision(12), Revision(9), true, now), ASK);
        assert_eq!(pace.reached(Revision(11), true, now), TELL, "the member's answer is the best there is");
        // Nothing that overtakes events is asked for.
        assert_eq!(pace.tick(Revision(20), Revision(12), false, now), Act::default());
        assert_eq!(pace.reached(Revision(20), false, now), TELL);
        pace.wanted = false;
        assert_eq!(pace.tick(Revision(30), Revision(20), true, now), Act::default());
    }

    #[tokio::test]
    async fn positions_older_than_a_minute_are_renewed() {
        let begun = Instant::now();
        let mut pace = Pace { wanted: false, ..pace(begun) };
        assert_eq!(pace.next(), begun + MINUTE);
        assert_eq!(pace.alarm(true, begun + MINUTE / 2), Act::default());
        assert_eq!(pace.alarm(true, begun + MINUTE), ASK);
        assert_eq!(pace.next(), begun + 2 * MINUTE, "once a minute, answered or not");
        assert_eq!(pace.reached(Revision(4), true, begun + MINUTE * 3 / 2), Act::default());
        assert_eq!(pace.next(), begun + MINUTE * 5 / 2);
        pace.restart(true, begun + 3 * MINUTE);
        assert_eq!(pace.next(), begun + 3 * MINUTE + MINUTE / 60, "an old position is renewed soon");
        assert_eq!(pace.alarm(false, begun + 4 * MINUTE), Act::default(), "not by a member that does not prove it");
        assert_eq!(pace.next(), begun + 4 * MINUTE + MINUTE / 12);
    }

    #[tokio::test]
    async fn without_ticks_of_the_member_the_broadcast_makes_its_own() {
        let begun = Instant::now();
        let mut pace = Pace { position_max: INTERVAL * 10, ..pace(begun) };
        pace.restart(false, begun);
        assert_eq!(pace.next(), begun + INTERVAL);
        assert_eq!(pace.alarm(true, begun + INTERVAL), ASK);
        assert_eq!(pace.reached(Revision(9), false, begun + INTERVAL), Act::default(), "events prove too little");
        assert_eq!(pace.reached(Revision(9), true, begun + INTERVAL), TELL);
        assert_eq!(pace.alarm(false, begun + 2 * INTERVAL), TELL, "how far the events have come is proven");
        pace.tick(Revision(9), Revision(9), true, begun + 5 * INTERVAL / 2);
        assert_eq!(pace.next(), begun + 7 * INTERVAL / 2, "the member's ticks take their place");
    }
}
