use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use super::config::Periods;
use crate::api_error::ApiError;

/// Evidence that no member of the cluster knows a leader: how upstream streams end.
#[derive(Debug)]
pub(super) struct NoLeaderEvidence {
    /// Evidence for so long means that the cluster has no leader.
    lasting: Duration,
    /// Age at which evidence is dropped.
    fresh: Duration,
    noted: Mutex<Option<Noted>>,
}

/// Evidence without an answer of a member in between.
#[derive(Clone, Copy, Debug)]
struct Noted {
    first: Instant,
    last: Instant,
}

impl NoLeaderEvidence {
    pub fn new(periods: &Periods) -> Self {
        Self { lasting: periods.no_leader_max, fresh: periods.no_leader_fresh, noted: Mutex::default() }
    }

    /// A member serves a stream that requires a leader: there is one.
    pub fn clear(&self) {
        *self.noted.lock() = None;
    }

    /// A member ended a stream because it knows no leader.
    pub fn note(&self, now: Instant) {
        let mut noted = self.noted.lock();
        let first = noted.filter(|noted| now - noted.last < self.fresh).map_or(now, |noted| noted.first);
        *noted = Some(Noted { first, last: now });
    }

    /// Whether the cluster is known to have no leader.
    pub fn is_conclusive(&self, now: Instant) -> bool {
        let noted = *self.noted.lock();
        noted.is_some_and(|noted| now - noted.last < self.fresh && now - noted.first >= self.lasting)
    }
}

/// Whether a status says that the member knows no leader.
pub(super) fn is_no_leader(status: &Status) -> bool {
    ApiError::from_text(status.message()) == Some(ApiError::NoLeader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fresh_evidence_over_a_while_is_conclusive() {
        let ms = Duration::from_millis;
        let periods = Periods { no_leader_max: ms(300), no_leader_fresh: ms(200), ..Periods::default() };
        let (evidence, start) = (NoLeaderEvidence::new(&periods), Instant::now());
        let note = |at| {
            evidence.note(start + ms(at));
            evidence.is_conclusive(start + ms(at))
        };
        assert_eq!([note(0), note(150), note(299), note(300)], [false, false, false, true]);
        assert!(evidence.is_conclusive(start + ms(499)) && !evidence.is_conclusive(start + ms(500)));
        // What came before a gap does not count.
        assert_eq!([note(600), note(750), note(899), note(900)], [false, false, false, true]);
        evidence.clear();
        assert!(!evidence.is_conclusive(start + ms(900)) && !note(901));
    }
}
