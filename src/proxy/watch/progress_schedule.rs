use std::time::Duration;

use tokio::time::Instant;

use crate::types::Revision;

/// When a broadcast requests progress from its member, and when the watchers of its log are notified of theirs.
/// Decisions only.
///
/// A member notifies idle watches alone, and the watch of a broadcast is busy while any range below it is. So the
/// broadcast creates a second watch that filters out every event, the *progress watch*: its notifications come at the
/// member's interval. Each is a tick, and the idle watchers are notified once the log has reached the revision it names.
#[derive(Debug)]
pub(super) struct ProgressSchedule {
    /// Between two ticks of the broadcast's own, while none come from the member.
    interval: Duration,
    /// Age of the position at which progress is requested.
    position_max: Duration,
    /// Whether a watcher asked for progress notifications.
    pub wanted: bool,
    /// When progress is requested, unless the position advances before.
    request_at: Instant,
    /// When the broadcast makes a tick of its own, unless one comes from the member before.
    tick_at: Instant,
    /// Watchers are notified once the log has reached this.
    due: Option<Revision>,
}

/// What the broadcast has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProgressActions {
    /// Send a progress request to the member.
    pub request: bool,
    /// Notify the idle watchers of the log's head.
    pub notify: bool,
}

const REQUEST: ProgressActions = ProgressActions { request: true, notify: false };
const NOTIFY: ProgressActions = ProgressActions { request: false, notify: true };

impl ProgressSchedule {
    pub fn new(interval: Duration, position_max: Duration, now: Instant) -> Self {
        Self {
            interval,
            position_max,
            wanted: false,
            request_at: now + position_max,
            tick_at: now + interval,
            due: None,
        }
    }

    /// Another member serves the watch, which was resumed at an old position or begins anew.
    pub fn restart(&mut self, resumed: bool, now: Instant) {
        let wait = if resumed { self.position_max / 60 } else { self.position_max };
        self.request_at = now + wait;
        self.due = None;
    }

    /// When [`timer`](Self::timer) is due.
    pub fn next(&self) -> Instant {
        if self.wanted { self.request_at.min(self.tick_at) } else { self.request_at }
    }

    /// The time of [`next`](Self::next) has come. `ordered`: this member answers progress requests after all events
    /// before the revision it names.
    pub fn timer(&mut self, ordered: bool, now: Instant) -> ProgressActions {
        let mut actions = ProgressActions::default();
        if now >= self.request_at {
            actions.request = ordered;
            // The version that is not known yet may be known by then.
            self.request_at = now + if ordered { self.position_max } else { self.position_max / 12 };
        }
        if self.wanted && now >= self.tick_at {
            self.tick_at = now + self.interval;
            if ordered {
                // Whatever revision the answer names.
                self.due = Some(Revision(i64::MAX));
                actions.request = true;
            } else {
                actions.notify = true;
            }
        }
        actions
    }

    /// The member's interval has passed, and it is at `revision`.
    pub fn tick(&mut self, revision: Revision, head: Revision, ordered: bool, now: Instant) -> ProgressActions {
        if !self.wanted {
            return ProgressActions::default();
        }
        self.tick_at = now + self.interval;
        if head >= revision {
            self.due = None;
            return NOTIFY;
        }
        // Events up to that revision advance the log as well as an answer does.
        self.due = Some(revision);
        if ordered { REQUEST } else { ProgressActions::default() }
    }

    /// The log has reached `head`, by events or by the answer to a progress request (`answered`).
    pub fn reached(&mut self, head: Revision, answered: bool, now: Instant) -> ProgressActions {
        self.request_at = now + self.position_max;
        match self.due {
            Some(due) if answered || head >= due => {
                self.due = None;
                NOTIFY
            }
            _ => ProgressActions::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(600);
    const MINUTE: Duration = Duration::from_secs(60);

    fn schedule(now: Instant) -> ProgressSchedule {
        ProgressSchedule { wanted: true, ..ProgressSchedule::new(INTERVAL, MINUTE, now) }
    }

    #[tokio::test]
    async fn watchers_are_notified_once_the_log_has_reached_the_tick() {
        let now = Instant::now();
        let mut schedule = schedule(now);
        assert_eq!(schedule.tick(Revision(5), Revision(5), true, now), NOTIFY);
        assert_eq!(schedule.tick(Revision(9), Revision(5), true, now), REQUEST);
        assert_eq!(schedule.reached(Revision(7), false, now), ProgressActions::default());
        assert_eq!(schedule.reached(Revision(9), false, now), NOTIFY);
        assert_eq!(schedule.reached(Revision(9), true, now), ProgressActions::default(), "once");
        assert_eq!(schedule.tick(Revision(12), Revision(9), true, now), REQUEST);
        assert_eq!(schedule.reached(Revision(11), true, now), NOTIFY, "an answer is as far as the member is");
        // Answers that may arrive ahead of events are not asked for.
        assert_eq!(schedule.tick(Revision(20), Revision(12), false, now), ProgressActions::default());
        assert_eq!(schedule.reached(Revision(20), false, now), NOTIFY);
        schedule.wanted = false;
        assert_eq!(schedule.tick(Revision(30), Revision(20), true, now), ProgressActions::default());
    }

    #[tokio::test]
    async fn positions_older_than_a_minute_are_renewed() {
        let begun = Instant::now();
        let mut schedule = ProgressSchedule { wanted: false, ..schedule(begun) };
        assert_eq!(schedule.next(), begun + MINUTE);
        assert_eq!(schedule.timer(true, begun + MINUTE / 2), ProgressActions::default());
        assert_eq!(schedule.timer(true, begun + MINUTE), REQUEST);
        assert_eq!(schedule.next(), begun + 2 * MINUTE, "once a minute, answered or not");
        assert_eq!(schedule.reached(Revision(4), true, begun + MINUTE * 3 / 2), ProgressActions::default());
        assert_eq!(schedule.next(), begun + MINUTE * 5 / 2);
        schedule.restart(true, begun + 3 * MINUTE);
        assert_eq!(schedule.next(), begun + 3 * MINUTE + MINUTE / 60, "an old position is renewed soon");
        assert_eq!(
            schedule.timer(false, begun + 4 * MINUTE),
            ProgressActions::default(),
            "not by a member whose answers may arrive ahead of events"
        );
        assert_eq!(schedule.next(), begun + 4 * MINUTE + MINUTE / 12);
    }

    #[tokio::test]
    async fn without_ticks_of_the_member_the_broadcast_makes_its_own() {
        let begun = Instant::now();
        let mut schedule = ProgressSchedule { position_max: INTERVAL * 10, ..schedule(begun) };
        schedule.restart(false, begun);
        assert_eq!(schedule.next(), begun + INTERVAL);
        assert_eq!(schedule.timer(true, begun + INTERVAL), REQUEST);
        assert_eq!(
            schedule.reached(Revision(9), false, begun + INTERVAL),
            ProgressActions::default(),
            "events do not say how far the member is"
        );
        assert_eq!(schedule.reached(Revision(9), true, begun + INTERVAL), NOTIFY);
        assert_eq!(schedule.timer(false, begun + 2 * INTERVAL), NOTIFY, "the position of the last event is certain");
        schedule.tick(Revision(9), Revision(9), true, begun + 5 * INTERVAL / 2);
        assert_eq!(schedule.next(), begun + 7 * INTERVAL / 2, "the member's ticks take their place");
    }
}
