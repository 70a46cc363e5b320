use std::time::Duration;

use tokio::time::Instant;

/// Callers of a round come again at once, or belong to another time.
const AGAIN_MAX: Duration = Duration::from_millis(20);
/// No read waits for more than this. Of more callers, some are answered while the others' read is in flight, and a read for so many
/// costs the cluster little.
const ENOUGH: usize = 32;
/// Rounds that wait for nobody after one that waited in vain, at first and at most.
const SKIPPED_MIN: u32 = 16;
const SKIPPED_MAX: u32 = 1024;

/// How many callers the next shared read waits for. Decisions only.
///
/// Callers that ask again when they are answered would come in two halves, each of which waits for the other's read. Where
/// those that were served come again at once, one read serves all of them, and none waits longer than it would have for the
/// read in flight. Where they do not, the next reads wait for nobody.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// Callers of the last round and those that waited when it ended.
    expected: usize,
    ended: Option<Instant>,
    /// Rounds that still wait for nobody, and how many there are after the next that waits in vain.
    skip: u32,
    skips: u32,
}

impl Gathering {
    /// Callers that the next read waits for; that they have come, or not, is to be [told](Self::gathered).
    pub fn wanted(&mut self, now: Instant) -> Option<usize> {
        let recent = self.ended.is_some_and(|ended| now.duration_since(ended) < AGAIN_MAX);
        if !recent || self.expected < 2 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        // One who is late does not keep the others.
        Some((self.expected - self.expected / 8).min(ENOUGH))
    }

    /// Whether those who were waited for came.
    pub fn gathered(&mut self, came: bool) {
        if came {
            self.skips = 0;
        } else {
            self.skips = (self.skips * 2).clamp(SKIPPED_MIN, SKIPPED_MAX);
            self.skip = self.skips;
        }
    }

    /// A round has ended that served so many, while others waited for the next one.
    pub fn ended(&mut self, served: usize, waiting: usize, now: Instant) {
        (self.expected, self.ended) = (served + waiting, Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_were_served_are_waited_for() {
        let (mut gathering, now) = (Gathering::default(), Instant::now());
        assert_eq!(gathering.wanted(now), None, "nothing is known");
        gathering.ended(1, 0, now);
        assert_eq!(gathering.wanted(now), None, "a caller alone");
        gathering.ended(1, 31, now);
        assert_eq!(gathering.wanted(now), Some(28));
        gathering.ended(1, 255, now);
        assert_eq!(gathering.wanted(now), Some(ENOUGH));
        gathering.gathered(true);
        gathering.ended(2, 0, now);
        assert_eq!(gathering.wanted(now), Some(2));
        assert_eq!(gathering.wanted(now + AGAIN_MAX), None, "they are gone");
    }

    #[test]
    fn who_does_not_come_again_is_not_waited_for() {
        let (mut gathering, now) = (Gathering::default(), Instant::now());
        gathering.ended(8, 0, now);
        let rounds = |gathering: &mut Gathering| (0..).find(|_| gathering.wanted(now).is_some());
        for skipped in [0, 16, 32, 64, 128, 256, 512, 1024, 1024] {
            assert_eq!(rounds(&mut gathering), Some(skipped));
            gathering.gathered(false);
        }
        assert_eq!(rounds(&mut gathering), Some(1024));
        gathering.gathered(true);
        assert_eq!(rounds(&mut gathering), Some(0));
    }
}
