use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::types::KeyRange;

/// Reads are counted for so long.
const WINDOW: Duration = Duration::from_secs(5);
/// One read in so many is counted.
pub(super) const COUNTED_IN: u32 = 8;
/// Reads that were counted within the window after which a prefix is promoted: some 100 reads a second.
const COUNTED_MIN: u32 = 60;
/// Prefixes that are counted at once, and that are remembered as not worth it.
const PREFIXES_MAX: usize = 1024;
/// A prefix that was too large or changed more often than it was read is not promoted again before.
const REFUSED_FOR: Duration = Duration::from_secs(600);

/// Finds the prefixes of one group that are read often, among the reads that no replica covers. Decisions only.
pub(super) struct Promotion {
    state: Mutex<State>,
}

struct State {
    began: Instant,
    counted: HashMap<Bytes, u32>,
    refused: HashMap<Bytes, Instant>,
}

impl Promotion {
    pub fn new(now: Instant) -> Self {
        Self { state: Mutex::new(State { began: now, counted: HashMap::new(), refused: HashMap::new() }) }
    }

    /// Counts a read of this range; the prefix that it makes hot enough to be promoted.
    pub fn count(&self, range: &KeyRange, now: Instant) -> Option<KeyRange> {
        let prefix = candidate(range)?;
        let mut state = self.state.lock();
        let State { began, counted, refused } = &mut *state;
        if now.duration_since(*began) >= WINDOW {
            (*began, *counted) = (now, HashMap::new());
            refused.retain(|_, at| now.duration_since(*at) < REFUSED_FOR);
        }
        if counted.len() >= PREFIXES_MAX && !counted.contains_key(&prefix) {
            return None;
        }
        let reads = counted.entry(prefix.clone()).or_default();
        *reads += 1;
        let is_hot = *reads >= COUNTED_MIN && !refused.contains_key(&prefix);
        is_hot.then(|| {
            counted.remove(&prefix);
            KeyRange::prefix(prefix)
        })
    }

    /// The replica of this prefix was not worth what it cost.
    pub fn refuse(&self, prefix: &KeyRange, now: Instant) {
        let mut state = self.state.lock();
        if state.refused.len() < PREFIXES_MAX {
            state.refused.insert(prefix.start().clone(), now);
        }
    }
}

/// The prefix that a replica would have for reads like this one: up to the last slash of its key. None of keys without a
/// slash behind their first byte, and of ranges that are not a prefix.
fn candidate(range: &KeyRange) -> Option<Bytes> {
    let is_prefix = *range == KeyRange::prefix(range.start().clone());
    if !is_prefix && !matches!(range, KeyRange::One(_)) {
        return None;
    }
    let end = range.start().iter().rposition(|byte| *byte == b'/').filter(|slash| *slash > 0)?;
    Some(range.start().slice(..=end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &'static str) -> KeyRange {
        KeyRange::from_wire(key.into(), Bytes::new())
    }

    #[test]
    fn the_prefix_of_a_key_ends_with_its_last_slash() {
        let of = |range: &KeyRange| candidate(range).map(|prefix| String::from_utf8(prefix.to_vec()).unwrap());
        assert_eq!(of(&one("a/b/c")).as_deref(), Some("a/b/"));
        assert_eq!(of(&one("/a/b")).as_deref(), Some("/a/"));
        assert_eq!(of(&KeyRange::prefix("a/b/".into())).as_deref(), Some("a/b/"));
        assert_eq!(of(&KeyRange::prefix("a/b".into())).as_deref(), Some("a/"));
        for alone in [one("k"), one("/k"), KeyRange::from_wire("a/".into(), "\0".into())] {
            assert_eq!(of(&alone), None, "{alone:?}");
        }
        assert_eq!(of(&KeyRange::from_wire("a/b".into(), "a/x".into())), None, "not a prefix");
    }

    #[test]
    fn what_is_read_often_within_the_window_is_promoted() {
        let now = Instant::now();
        let promotion = Promotion::new(now);
        let count = |key, at| promotion.count(&one(key), at);
        for _ in 1..COUNTED_MIN {
            assert_eq!(count("a/1", now), None);
            assert_eq!(count("b/1", now), None);
        }
        assert_eq!(count("a/2", now), Some(KeyRange::prefix("a/".into())), "all keys of the prefix count");
        assert_eq!(count("b/2", now + WINDOW), None, "too slow");
    }

    #[test]
    fn what_was_not_worth_it_waits() {
        let now = Instant::now();
        let promotion = Promotion::new(now);
        let read = |at| (0..COUNTED_MIN).find_map(|_| promotion.count(&one("a/1"), at));
        let prefix = read(now).expect("promoted");
        promotion.refuse(&prefix, now);
        assert_eq!(read(now + WINDOW), None);
        assert_eq!(read(now + REFUSED_FOR), Some(prefix));
    }

    #[test]
    fn the_number_of_prefixes_is_bounded() {
        let now = Instant::now();
        let promotion = Promotion::new(now);
        for number in 0..2 * PREFIXES_MAX {
            let key = format!("{number}/k").into_bytes().into();
            promotion.count(&KeyRange::One(key), now);
        }
        assert_eq!(promotion.state.lock().counted.len(), PREFIXES_MAX);
    }
}
